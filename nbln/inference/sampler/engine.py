"""The sampler: chains that start at a fit, adapt, and then keep their draws."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from nbln.arguments import check_seed, check_settings, whole
from nbln.data.counts import Counts
from nbln.inference.checkpoint import OFF, Saver, Snapshot, Stage
from nbln.inference.overdispersion import Overdispersion, OverdispersionPrior
from nbln.inference.sampler import cells as cell_steps
from nbln.inference.sampler import columns
from nbln.inference.sampler.cells import CellState, Genes, Move
from nbln.inference.sampler.sweep import State, Taken, Target, sweep
from nbln.inference.stream import CellStream
from nbln.linalg import gauge
from nbln.linalg.dtypes import strong
from nbln.posterior.mode import Augmentation, Parameters
from nbln.priors.activity import Activity, FittedActivity
from nbln.priors.effects import EffectScales, FittedEffects
from nbln.priors.loadings import FittedLoadings
from nbln.priors.univariate import Prior
from nbln.progress import Progress

# A sweep makes a score of arrays of a chunk: half as large as those of the Laplace engine, they
# stay in the cache of a core. With 1 MiB a sweep over 2,000 x 1,000 counts took a third longer.
CHUNK_BYTES = 2**19
RESIDENT_BYTES = 2**31
# Between sweeps that report how many effective draws there are, which takes a millisecond.
REPORT_EVERY = 10
N_MONITORED = 50  # pairs of genes, drawn at random, whose correlations are watched as it runs

RULES = {"n_draws": whole(1), "n_chains": whole(1), "n_warmup": whole(0), "seed": check_seed}


@dataclass(frozen=True)
class SamplerConfig:
    """How long to sample.

    Attributes
    ----------
    n_draws
        Draws that each chain keeps, one a sweep.
    n_chains
        Chains, one after the other.
    n_warmup
        Sweeps before them, in which step lengths adapt. From a fit whose overdispersion was learned
        over genes the scale of the correlations stands after some 20.
    seed
        Of all draws.
    """

    n_draws: int = 400
    n_chains: int = 2
    n_warmup: int = 60
    seed: int = 0

    def __post_init__(self):
        check_settings(self, RULES)


class Start(NamedTuple):
    """What is sampled and from where: a fit, with the columns of its loadings that carry signal."""

    parameters: Parameters
    loadings: FittedLoadings
    mean: Prior  # of μ
    effects: FittedEffects
    activity: FittedActivity
    overdispersion: Overdispersion
    pooling: OverdispersionPrior
    augmentation: Augmentation
    offset_sd: Float[np.ndarray, " cell"]  # of capture losses that a source draws; else 0


class Draws(NamedTuple):
    """All that is kept of one draw."""

    mu: Float[Array, " gene"]
    effects: Float[Array, "gene covariate"]
    effect_scales: EffectScales
    W: Float[Array, "gene factor"]
    d: Float[Array, " gene"]
    channel: dict[str, Array]  # its fields
    centre: Float[Array, " factor"]
    scales: dict[str, Array]
    pool: Float[Array, " quantity"]  # mean and sd of log φ, mean of logit s
    accepted: Float[Array, " step"]  # shares, as `Taken` has them
    activity: Activity


def without_effects(mu: Float[np.ndarray, "chain draw gene"]) -> tuple[np.ndarray, EffectScales]:
    """The effects and their scales of draws of a model without covariates."""
    none = np.zeros((*mu.shape, 0), np.float32)
    return none, EffectScales(none, none[:, :, 0])


def without_activity(W: Float[np.ndarray, "chain draw gene factor"]) -> Activity:
    """The activities of draws of a model of one data set."""
    sample, k = W.shape[:2], W.shape[3]
    return Activity(np.zeros((*sample, 0, k), np.float32), np.zeros((*sample, 0), np.float32))


class Samples(NamedTuple):
    """What the sampler returns."""

    draws: Draws  # leaves with leading axes (chain, draw)
    z_mean: Float[np.ndarray, "cell all_columns"]
    z_sd: Float[np.ndarray, "cell all_columns"]
    seconds: float


def sample(
    counts: Counts,
    start: Start,
    config: SamplerConfig,
    progress: bool = False,
    saver: Saver = OFF,
) -> Samples:
    """Draw from the posterior of everything; see `sweep` for what a draw does.

    `saver` keeps where the chains stand.
    """
    began = time.perf_counter()
    stream = CellStream(counts, start.augmentation, RESIDENT_BYTES, CHUNK_BYTES)
    target = Target(
        start.mean,
        start.effects.prior,
        start.activity.prior,
        start.loadings.prior,
        start.overdispersion,
        start.pooling,
        stream.tails(),
    )
    genes = Genes(
        start.parameters.mu,
        start.parameters.effects,
        start.parameters.W,
        start.overdispersion.of(start.parameters.d, start.parameters.channel),
        start.activity.log_activity,
    )
    state = _first_state(start, genes)
    first = Run(state, _first_cells(stream, start, genes))
    like = _draw(target, state, Taken(*[jnp.zeros(())] * len(Taken._fields)))
    stage = saver.stage("sampler", counts.fingerprint, config, start)
    run = _restored(stage, first, like)
    sweeps = config.n_warmup + config.n_draws
    with Progress("Sampling", config.n_chains * sweeps, progress) as bar:
        bar.advance(steps=run.chain * sweeps + run.n_done)
        while run.chain < config.n_chains:
            key = jax.random.fold_in(jax.random.key(config.seed), run.chain)
            while run.n_done < sweeps:
                run = _advance(key, target, stream, run, config)
                due = progress and run.n_done % REPORT_EVERY == 0
                bar.advance(_note(run.chains(config)) if due else None)
                stage.note(run.snapshot)
            moments = *run.moments, _moments(stream, run.cells, config.n_draws)
            run = first._replace(chain=run.chain + 1, kept=run.kept, moments=moments)
    stage.finish(run.snapshot)
    chains, moments = run.chains(config)[: config.n_chains], run.moments
    mean, sd = _pooled(moments)
    return Samples(_stacked(chains), mean, sd, time.perf_counter() - began)


class Run(NamedTuple):
    """Where the chains stand."""

    state: State
    cells: Any  # a `CellState` of all chunks, or one of each
    kept: tuple[Draws, ...] = ()  # of all chains, one after the other
    moments: tuple[Any, ...] = ()  # of the cells, of each chain that is done
    chain: int = 0  # which one runs
    n_done: int = 0  # sweeps of it

    def chains(self, config: SamplerConfig) -> list[tuple[Draws, ...]]:
        """The draws of each chain, those of the one that runs last."""
        n = config.n_draws
        return [self.kept[i * n : (i + 1) * n] for i in range(self.chain + 1)]

    def snapshot(self) -> Snapshot:
        """The run as a checkpoint has it."""
        tree = self.state, self.cells, np.array(self.moments), np.array([self.chain, self.n_done])
        return Snapshot(tree, self.kept)


def _restored(stage: Stage, first: Run, like: Draws) -> Run:
    """The run that was interrupted, or the first state; `like` says how a draw is laid out."""
    saved = stage.restore((first.state, first.cells, np.zeros(0), np.zeros(2, int)), like)
    if saved is None:
        return first
    state, cells, moments, (chain, n_done) = saved.tree
    return Run(state, cells, tuple(saved.items), tuple(moments), int(chain), int(n_done))


def _advance(key, target: Target, stream: CellStream, run: Run, config: SamplerConfig) -> Run:
    warm = run.n_done < config.n_warmup
    key = jax.random.fold_in(key, run.n_done)
    flags = jnp.asarray(warm), jnp.asarray(0.0 if warm else 1.0)
    state, cells, taken = sweep(key, target, stream, run.state, run.cells, *flags)
    if not bool(jnp.isfinite(jnp.sum(state.genes.W))):
        raise FloatingPointError(
            f"sample_posterior: sweep {run.n_done + 1} left the finite numbers in the loadings; "
            "check that the fit converged (summary())"
        )
    kept = run.kept
    if not warm:
        kept = (*kept, jax.tree.map(np.asarray, _draw(target, state, taken)))
    return run._replace(state=state, cells=cells, kept=kept, n_done=run.n_done + 1)


def _draw(target: Target, state: State, taken: Taken) -> Draws:
    d, channel = target.overdispersion.parameters(state.genes.psi)
    return Draws(
        state.genes.mu,
        state.genes.effects,
        state.effects,
        state.genes.W,
        d,
        channel.state(),
        state.centre,
        state.scales,
        jnp.stack(list(state.pool)),
        jnp.stack(list(taken)),
        state.activity,
    )


def _first_state(start: Start, genes: Genes) -> State:
    k = genes.W.shape[1]
    state = State(
        genes,
        start.loadings.precision,
        jnp.mean(genes.W, axis=0),
        start.loadings.scales,
        columns.first_steps(start.loadings.prior, k),
        start.pooling.start(genes.psi),
        start.effects.scales,
        start.activity.activity,
        Move(jnp.eye(k), jnp.zeros((k, genes.effects.shape[1]))),
    )
    # A sweep returns strong types: weak ones in the first state would have all compiled twice.
    return strong(state)


def _first_cells(stream: CellStream, start: Start, genes: Genes):
    k = genes.W.shape[1] + len(stream.columns.value)
    parameters = genes.parameters(start.overdispersion)
    _, z = stream.scan_once(cell_steps.begin, stream.zeros(k), parameters, stream.columns)
    split = stream.chunks_of(stream.split(np.asarray(start.offset_sd, np.float32)))
    states = []
    for number, (start_z, sd) in enumerate(zip(stream.chunks_of(z), split, strict=True)):
        of_cells = start_z, start_z, sd, jnp.zeros_like(sd)
        nothing = jnp.zeros_like(start_z)
        states.append(CellState(*of_cells, nothing, nothing, jnp.asarray(number, jnp.int32)))
    return stream.together(states)


def _moments(stream: CellStream, cells, n_draws: int):
    """Mean and variance of every cell's coordinates over the draws of a chain."""
    chunks = stream.chunks_of(cells)
    total, square = (
        np.concatenate([np.asarray(getattr(c, name)).T for c in chunks])[: stream.n_cells]
        for name in ("total", "square")
    )
    mean = total / n_draws
    return mean, np.maximum(square / n_draws - mean**2, 0)


def _pooled(moments):
    means, variances = (np.stack(x) for x in zip(*moments, strict=True))
    return means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0))


def _stacked(chains: list[tuple[Draws, ...]]) -> Draws:
    of_chain = [jax.tree.map(lambda *leaves: np.stack(leaves), *draws) for draws in chains]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *of_chain)


def _note(all_chains: list[tuple[Draws, ...]]) -> str | None:
    """Effective draws and R-hat of some correlations."""
    kept = all_chains[-1]
    if len(kept) < 2 * REPORT_EVERY:
        return "adapting" if not kept else ""
    chains = [monitored(draws) for draws in all_chains]
    length = min(map(len, chains))
    values = np.stack([chain[:length] for chain in chains])
    ess = np.median(effective_sample_size(values))
    r_hat = np.max(split_gelman_rubin(values))
    return f"{ess:.0f} effective draws, R-hat {r_hat:.2f}"


def monitored(draws: Sequence[Draws]) -> Float[np.ndarray, "draw pair"]:
    """Correlations of some pairs of genes, the same for all draws."""
    n_genes = len(draws[0].mu)
    pairs = np.random.default_rng(0).integers(0, n_genes, (N_MONITORED, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return np.stack([gauge.pair_correlations(draw.W, draw.d, pairs) for draw in draws])
