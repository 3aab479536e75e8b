"""NumPyro's NUTS on a model's own program: chains that start at given values."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpyro.infer import NUTS
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

from nbln import vocabulary as names
from nbln.arguments import check_settings, number, whole
from nbln.data.counts import Counts
from nbln.inference.checkpoint import OFF, Saver, Snapshot, Stage
from nbln.inference.mcmc.noncentred import FACTORS, noncentred, standardised
from nbln.models.base import Model
from nbln.progress import Progress

# Seconds of one draw for each count: 200 cells x 30 genes of nbln take 60 to 90 ms on two cores,
# with 80 to 110 leapfrog steps; of independent genes, which have no log-rates of cells, 4 to 20 ms.
SECONDS_WITH_RATES, SECONDS_OF_GENES = 1e-5, 2e-6
# Standard deviation by which chains start apart, in unconstrained coordinates (logarithms, logits,
# standardised factors): far enough that R-hat sees chains that do not forget it.
APART = 0.2
# Where a value is at the end of its range, where it starts, in the same coordinates.
ENDS = 5.0

RULES = {
    "n_warmup": whole(1),
    "n_draws": whole(1),
    "n_chains": whole(1),
    "target_accept": number(0.0, 0.999, open_=True),
    "max_tree_depth": whole(1),
    "most_counts": whole(1),
}


@dataclass(frozen=True)
class MCMCConfig:
    """How long NUTS samples, and how carefully.

    Attributes
    ----------
    n_warmup
        Draws of each chain that are thrown away, in which step size and scales adapt.
    n_draws
        Draws that each chain keeps.
    n_chains
        Chains, one after the other.
    target_accept
        Mean acceptance that the step size is adapted to; nearer to 1 means smaller steps, which is
        slower, and diverges less. NumPyro's default is 0.8, made for fewer dimensions.
    max_tree_depth
        A draw takes at most 2 to this power steps.
    most_counts
        Cells x genes beyond which a fit is refused, since it would take hours.

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    n_warmup: int = 500
    n_draws: int = 500
    n_chains: int = 4
    target_accept: float = 0.9
    max_tree_depth: int = 10
    most_counts: int = 50_000

    def __post_init__(self):
        check_settings(self, RULES)

    def check_size(self, n_cells: int, n_genes: int, seconds: float, remedy: str) -> None:
        """Raise where sampling would take too long.

        Parameters
        ----------
        n_cells, n_genes
            Of the counts.
        seconds
            Of a draw, for each count.
        remedy
            What to do in its place, as a sentence.

        Raises
        ------
        ValueError
            There are more counts than `most_counts`.
        """
        n_counts = n_cells * n_genes
        if n_counts <= self.most_counts:
            return
        minutes = seconds * n_counts * self.n_chains * (self.n_warmup + self.n_draws) / 60
        raise ValueError(
            f"fit(inference_method='mcmc'): {n_cells:,} cells x {n_genes:,} genes would take about "
            f"{minutes:,.0f} minutes or more, and NUTS is for small data; {remedy}. To sample all "
            f"the same, give mcmc=nbln.MCMCConfig(most_counts={n_counts})"
        )


class Steps(NamedTuple):
    """How NUTS came to a draw."""

    accept_prob: Float[Array, ""]  # mean over its steps
    diverging: Bool[Array, ""]
    n_steps: Int[Array, ""]
    cut_short: Bool[Array, ""]  # at `max_tree_depth`


class Samples(NamedTuple):
    """What the engine returns; arrays have leading axes (chain, draw)."""

    sites: dict[str, np.ndarray]
    steps: Steps
    seconds: float


class Run(NamedTuple):
    """Where the chains stand."""

    state: Any  # NumPyro's, of the chain that runs
    kept: tuple[Any, ...] = ()  # (sites, steps) of each draw, chain after chain
    chain: int = 0  # which one runs
    n_done: int = 0  # draws of it, those of the warm-up included

    def snapshot(self) -> Snapshot:
        """The run as a checkpoint has it."""
        return Snapshot((self.state, np.array([self.chain, self.n_done])), self.kept)


def sample(
    model: Model,
    counts: Counts,
    start: dict[str, Any],
    config: MCMCConfig,
    seed: int = 0,
    progress: bool = False,
    saver: Saver = OFF,
) -> Samples:
    """Draw from the posterior of all sites of the model's program but log-rates.

    Parameters
    ----------
    model
        Of these cells.
    start
        Values of its sites, from near which all chains start; of factors `z` too, where there are
        log-rates.

    Raises
    ------
    FloatingPointError
        A chain starts where the density is not finite.
    """
    began = time.perf_counter()
    stage = saver.stage("mcmc", counts.fingerprint, model, start, config, seed)
    rows = jnp.asarray(counts.rows(slice(None)))
    program = noncentred(model)
    first = unconstrain_fn(program, (rows,), {}, standardised(model, start, rows.shape))
    kernel = NUTS(
        potential_fn=partial(potential_energy, program, (rows,), {}),
        target_accept_prob=config.target_accept,
        max_tree_depth=config.max_tree_depth,
    )
    most_steps = 2**config.max_tree_depth - 1
    advance = _advance(kernel, program, rows, _kept_sites(model), most_steps)

    @jax.jit
    def init(key):
        keys = jax.random.split(key)
        return kernel.init(keys[0], config.n_warmup, init_params=_apart(keys[1], first))

    def begin(chain: int):
        state = init(jax.random.fold_in(jax.random.key(seed), chain))
        if not jnp.isfinite(state.potential_energy):
            raise FloatingPointError(
                f"fit(inference_method='mcmc'): chain {chain + 1} starts where the model has no "
                "finite density; check the priors, or give another seed"
            )
        return state

    run = _restored(stage, Run(begin(0)), advance)
    length = config.n_warmup + config.n_draws
    with Progress("Sampling", config.n_chains * length, progress) as bar:
        bar.advance(steps=run.chain * length + run.n_done)
        while run.chain < config.n_chains:
            while run.n_done < length:
                state, draw = advance(run.state)
                warm = run.n_done < config.n_warmup
                kept = run.kept if warm else (*run.kept, jax.tree.map(np.asarray, draw))
                run = run._replace(state=state, kept=kept, n_done=run.n_done + 1)
                bar.advance(f"chain {run.chain + 1}, {'adapting' if warm else 'drawing'}")
                stage.note(run.snapshot)
            chain = run.chain + 1
            state = begin(chain) if chain < config.n_chains else run.state
            run = run._replace(state=state, chain=chain, n_done=0)
    stage.finish(run.snapshot)
    sites, steps = _stacked(run.kept, config)
    return Samples(sites, steps, time.perf_counter() - began)


def _apart(key: Array, first: dict[str, Array]) -> dict[str, Array]:
    """The start of one chain."""
    keys = jax.random.split(key, len(first))
    return {
        name: jnp.nan_to_num(x, posinf=ENDS, neginf=-ENDS)
        + APART * jax.random.normal(key, x.shape, x.dtype)
        for key, (name, x) in zip(keys, first.items(), strict=True)
    }


def _kept_sites(model: Model) -> list[str]:
    """All sites but those with a number for each gene of each cell."""
    return [site.name for site in model.sites if not {names.CELL, names.GENE} <= {*site.dims}]


def _advance(kernel: NUTS, program, rows, kept: list[str], most_steps: int):
    """One draw, compiled: state -> (state, (values of sites, steps))."""

    @jax.jit
    def advance(state):
        state = kernel.sample(state, (), {})
        values = constrain_fn(program, (rows,), {}, state.z, return_deterministic=True)
        sites = {name: values[name] for name in (*kept, FACTORS) if name in values}
        n_steps = state.num_steps
        steps = Steps(state.accept_prob, state.diverging, n_steps, n_steps >= most_steps)
        return state, (sites, steps)

    return advance


def _restored(stage: Stage, first: Run, advance) -> Run:
    """The run that was interrupted, or the first state."""
    like = jax.eval_shape(advance, first.state)[1]
    saved = stage.restore((first.state, np.zeros(2, int)), like)
    if saved is None:
        return first
    state, (chain, n_done) = saved.tree
    return Run(state, tuple(saved.items), int(chain), int(n_done))


def _stacked(kept: tuple[Any, ...], config: MCMCConfig):
    """Draws with leading axes (chain, draw)."""
    shape = config.n_chains, config.n_draws
    return jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *kept)
