"""Stochastic variational inference of independent genes, on NumPyro's SVI with optax.

Steps run inside compiled blocks. Convergence is judged on the locations, in posterior standard
deviations: a change of the evidence bound by 0.05 % is thousands of nats, which says nothing.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

from nbln.arguments import check_settings, number, one_of, whole
from nbln.compiled import once_jit
from nbln.data.counts import Counts
from nbln.data.kept import Kept
from nbln.inference.checkpoint import OFF, Saver, Snapshot, Stage
from nbln.inference.stream import CellStream
from nbln.inference.svi import regression
from nbln.inference.svi.guides import GUIDES, Guide
from nbln.inference.svi.regression import FoundEffects
from nbln.linalg.dtypes import strong
from nbln.models.independent import IndependentGenes
from nbln.posterior.variational import Posterior
from nbln.priors.capture import LatentCapture
from nbln.processes import current
from nbln.progress import Progress

log = logging.getLogger("nbln")

# Before convergence is judged: a tail of fewer blocks moves less by being short.
FEWEST_BLOCKS = 8
WATCHED = 0.95  # share of the locations of a site that have to stand; a few rare genes never do

RULES = {
    "guide": one_of(GUIDES),
    "n_steps": whole(0),
    "batch_size": whole(1),
    "learning_rate": number(open_=True),
    "block_steps": whole(1),
    "tail": number(most=1.0, open_=True),
    "tol": number(),
    "resident_bytes": whole(0),
}


@dataclass(frozen=True)
class SVIConfig:
    """Settings of stochastic variational inference.

    Attributes
    ----------
    guide
        ``"mean_field"`` or ``"low_rank"``.
    n_steps
        Upper bound on optimiser steps; a fit stops earlier when it has converged. Of none, the
        posterior is where steps begin: Gaussian at the mode of the regressions, by curvature.
    batch_size
        Cells in a step.
    learning_rate
        Of Adam, in posterior standard deviations a step.
    block_steps
        Steps between two looks at convergence.
    tail
        Share of the steps, the last ones, whose average is the result.
    tol
        Converged when one more block of steps moves that average by at most this, in posterior
        standard deviations, for 95 % of the locations of each site.
    resident_bytes
        Largest dense float32 matrix of counts kept in memory; of larger ones and of counts on disk,
        each block sees a random part of this size. Of those on disk as much is kept sparse.

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    guide: str = "mean_field"
    n_steps: int = 5_000
    batch_size: int = 256
    learning_rate: float = 0.03
    block_steps: int = 50
    tail: float = 0.75
    tol: float = 0.05
    resident_bytes: int = 2**31

    def __post_init__(self):
        check_settings(self, RULES)


class SVIFit(NamedTuple):
    """What the engine returns."""

    posterior: Posterior
    losses: np.ndarray  # (block,) negative evidence bound at the end of each block
    converged: bool
    n_steps: int
    seconds: dict[str, float]
    effects: FoundEffects | None  # of covariates, where the model has them


def fit_svi(
    model: IndependentGenes,
    counts: Counts,
    config: SVIConfig,
    seed: int = 0,
    progress: bool = False,
    saver: Saver = OFF,
) -> SVIFit:
    """Fit independent genes.

    Raises
    ------
    FloatingPointError
        A parameter became infinite or not a number; names the step and the parameter.
    """
    began = time.perf_counter()
    stage = saver.stage("svi", counts.fingerprint, model, config, seed)
    guide, effects, kept = _start(model, counts, config)
    found = None if effects is None else jax.tree.map(np.asarray, effects)
    if not config.n_steps:
        seconds = {"start": time.perf_counter() - began, "steps": 0.0}
        return SVIFit(guide.posterior(guide.initial()), np.zeros(0), True, 0, seconds, found)
    if effects is not None:
        model = dataclasses.replace(model, effects=effects.mean)
    state, processes = _init(model, guide, config, jax.random.key(seed)), current()
    pool = _Pool(kept, config, seed)
    started = time.perf_counter()
    state, blocks, losses = _restored(stage, state)
    n_blocks, converged = -(-config.n_steps // config.block_steps), _settled(blocks, config)
    with Progress("SVI", n_blocks * config.block_steps, progress) as bar:
        bar.advance(steps=len(blocks) * config.block_steps)
        while len(blocks) < n_blocks and not converged:
            block = len(blocks)
            rows, index = pool.block(block)
            key = jax.random.fold_in(jax.random.key(seed + 1), block)
            state, mean, loss, bad = _run_block(model, guide, state, rows, index, key, config)
            _check_finite(mean, int(bad), block * config.block_steps)
            blocks.append(mean)
            losses.append(float(loss))
            bar.advance(f"loss {losses[-1]:.4g}", config.block_steps)
            converged = processes.decided(_settled(blocks, config))
            stage.note(partial(_snapshot, state, blocks, losses, len(blocks)))
    stage.finish(partial(_snapshot, state, blocks, losses, len(blocks)))
    if not converged:
        log.warning("SVI did not converge in n_steps=%d steps", config.n_steps)
    parameters = processes.agreed(_average(_tail(blocks, config)))
    return SVIFit(
        guide.posterior(parameters),
        np.array(losses),
        converged,
        len(blocks) * config.block_steps,
        {"start": started - began, "steps": time.perf_counter() - started},
        found,
    )


def _snapshot(state, blocks: list, losses: list[float], n: int) -> Snapshot:
    """After `n` blocks; the lists may have grown since."""
    return Snapshot(state, list(zip(blocks[:n], losses[:n], strict=True)))


def _restored(stage: Stage, state):
    """The state, the parameters of each block and its loss: of a snapshot, or at the start."""
    saved = stage.restore(state, (state.optim_state[1][0], 0.0))
    if saved is None:
        return state, [], []
    blocks = [mean for mean, _ in saved.items]
    return strong(saved.tree), blocks, [float(loss) for _, loss in saved.items]


def _start(
    model: IndependentGenes, counts: Counts, config: SVIConfig
) -> tuple[Guide, FoundEffects | None, Kept]:
    """A guide at the mode of negative-binomial regressions, scaled by their curvature; effects.

    Also what these passes over the cells have kept of a file.
    """
    added = model.augment(model.capture)._replace(covariates=model.covariates)
    stream = CellStream(counts, added, config.resident_bytes, processes=current())
    *fitted, effects = regression.fit(model, stream, stream.tails(), counts.gene_totals)
    # Batches are of all cells, of which a process that is not alone has kept a share.
    kept = stream.kept if stream.processes.count == 1 else Kept(counts, stream.size, 0)
    return GUIDES[config.guide](*_locations(model, *fitted)), effects, kept


@once_jit
def _locations(model: IndependentGenes, coordinates, sd, z):
    """Location and standard deviation of the genes' sites and of η, as a guide takes them."""
    eta = None
    if isinstance(model.capture, LatentCapture):
        loc = model.capture.loc + model.capture.scale * z[0]
        shift = _gauge(model.capture, loc)
        coordinates = model.parameterization.shift(coordinates, shift)
        eta = (loc + shift, model.capture.scale / jnp.sqrt(z[1]))
    return strong(({name: (loc, sd[name]) for name, loc in coordinates.items()}, eta))


def _gauge(capture: LatentCapture, eta):
    """The shift of all η that their prior likes best; the data do not see it."""
    weight = 1 / capture.scale**2
    return jnp.sum(weight * (capture.loc - eta)) / jnp.sum(weight)


def _program(model: IndependentGenes):
    """The model for a batch, whose cells stand for all."""

    def program(counts, index):
        mean, channel = model.sample_genes(counts.shape[1])
        n_cells = model.capture.start().shape[0]
        with handlers.scale(scale=n_cells / index.shape[0]):
            model.take(index).observe(counts, mean, channel)

    return program


def _svi(model, guide, config, key):
    """NumPyro's SVI, and its first state: `init` also tells it its parameters."""
    optimiser = optax_to_numpyro(optax.adam(config.learning_rate))
    svi = SVI(_program(model), guide, optimiser, Trace_ELBO())
    n_genes = max(loc.size for loc, _ in guide.genes.values())
    return svi, svi.init(key, jnp.zeros((1, n_genes)), jnp.zeros(1, jnp.int32))


@eqx.filter_jit
def _init(model, guide, config, key):
    return strong(_svi(model, guide, config, key)[1])


@eqx.filter_jit
def _run_block(model, guide, state, rows, index, key, config):
    """`block_steps` steps; the state, mean parameters, last loss, and first step gone bad."""
    svi, _ = _svi(model, guide, config, key)
    n_pool = rows.shape[0]
    order = jax.random.permutation(key, n_pool)
    batch = min(config.batch_size, n_pool)

    def batch_of(i):
        local = order[(i * batch + jnp.arange(batch)) % n_pool]
        return rows[local], index[local]

    def step(carry, i):
        state, total, bad = carry
        state, _ = svi.update(state, *batch_of(i))  # the unused loss is never computed
        parameters = svi.get_params(state)
        total = jax.tree.map(jnp.add, total, parameters)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(p)) for p in parameters.values()]))
        return (state, total, jnp.where(finite, bad, jnp.minimum(bad, i))), None

    zeros = jax.tree.map(jnp.zeros_like, svi.get_params(state))
    n = config.block_steps
    carry = (state, zeros, jnp.asarray(n))
    (state, total, bad), _ = lax.scan(step, carry, jnp.arange(n))
    loss = svi.evaluate(state, *batch_of(n))
    state = _shift_gauge(model, guide, svi, state)
    return strong(state), jax.tree.map(lambda x: x / n, total), loss, jnp.where(bad < n, bad, -1)


def _shift_gauge(model, guide, svi, state):
    """Move all η and all means to where the priors of η are best met.

    It is the slowest direction of all, and its optimum has a closed form.
    """
    if guide.eta is None:
        return state
    parameters = svi.get_params(state)
    posterior = guide.posterior(parameters)
    delta = _gauge(model.capture, posterior.eta[0])
    zero = {name: jnp.zeros_like(loc) for name, (loc, _) in guide.genes.items()}
    moves = model.parameterization.shift(zero, delta)
    shifted = {
        f"{name}_loc": parameters[f"{name}_loc"] + move / guide.genes[name][1]
        for name, move in moves.items()
    }
    shifted["eta_loc"] = parameters["eta_loc"] + delta / guide.eta[1]
    parameters = parameters | shifted
    return eqx.tree_at(lambda s: s.optim_state[1][0], state, parameters)


class _Pool:
    """The rows that a block draws its batches from: all of them, or a random part."""

    def __init__(self, kept: Kept, config: SVIConfig, seed: int):
        self._kept, self._seed, counts = kept, seed, kept.counts
        n_rows = max(config.batch_size, config.resident_bytes // (4 * counts.n_genes))
        needed = config.batch_size * config.block_steps
        whole = n_rows >= counts.n_cells and not counts.on_disk
        self._size = counts.n_cells if whole else min(n_rows, needed, counts.n_cells)
        self._all = self._read(np.arange(counts.n_cells)) if whole else None

    def block(self, number: int) -> tuple[Float[Array, "row gene"], Array]:
        """Counts of a block, the same for its number, and the numbers of their cells."""
        if self._all is not None:
            return self._all
        rng = np.random.default_rng((self._seed, number))
        cells = rng.choice(self._kept.counts.n_cells, self._size, replace=False)
        return self._read(np.sort(cells))

    def _read(self, index):
        return jnp.asarray(self._kept.rows(index)), jnp.asarray(index, jnp.int32)


def _check_finite(mean, bad_step, first_step):
    if bad_step < 0:
        return
    bad = [name for name, x in mean.items() if not np.isfinite(np.asarray(x)).all()]
    raise FloatingPointError(
        f"fit(inference_method='svi'): step {first_step + bad_step + 1} gave a value that is not "
        f"finite in {', '.join(bad) or 'the gradient'}; lower SVIConfig(learning_rate=...), or set "
        "tighter priors"
    )


def _tail(blocks, config):
    return blocks[len(blocks) - max(1, round(config.tail * len(blocks))) :]


def _average(blocks) -> dict[str, np.ndarray]:
    return {name: np.mean([np.asarray(b[name]) for b in blocks], axis=0) for name in blocks[0]}


def _settled(blocks, config) -> bool:
    """Whether one more block left the tail's average where it was, to `tol` for each site."""
    if len(blocks) <= FEWEST_BLOCKS:
        return False
    before, now = _average(_tail(blocks[:-1], config)), _average(_tail(blocks, config))
    moved = [np.abs(now[name] - before[name]) for name in now if name.endswith("_loc")]
    return max(float(np.quantile(x, WATCHED)) for x in moved) <= config.tol
