"""The sampler: chains that start at a fit, adapt, and then keep their draws."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from nbln.arguments import check_settings, whole
from nbln.data.counts import Counts
from nbln.inference.overdispersion import Overdispersion, OverdispersionPrior
from nbln.inference.sampler import cells as cell_steps
from nbln.inference.sampler import checkpoint, columns
from nbln.inference.sampler.cells import CellState, Genes
from nbln.inference.sampler.sweep import State, Taken, Target, sweep
from nbln.inference.stream import CellStream
from nbln.linalg import gauge
from nbln.posterior.mode import Augmentation, Parameters
from nbln.priors.loadings import FittedLoadings
from nbln.priors.univariate import Prior
from nbln.progress import Progress

# A sweep makes a score of arrays of a chunk: smaller than those of the Laplace engine, they stay
# in the cache of a core.
CHUNK_BYTES = 2**20
RESIDENT_BYTES = 2**31
# Between sweeps that report how many effective draws there are, which takes a millisecond.
REPORT_EVERY = 10
N_MONITORED = 50  # pairs of genes, drawn at random, whose correlations are watched as it runs
SAVE_SECONDS = 60.0

RULES = {"n_draws": whole(1), "n_chains": whole(1), "n_warmup": whole(0), "seed": whole(0)}


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
    overdispersion: Overdispersion
    pooling: OverdispersionPrior
    augmentation: Augmentation
    offset_sd: Float[np.ndarray, " cell"]  # of capture losses that a source draws; else 0


class Draws(NamedTuple):
    """All that is kept of one draw."""

    mu: Float[Array, " gene"]
    W: Float[Array, "gene factor"]
    d: Float[Array, " gene"]
    channel: dict[str, Array]  # its fields
    centre: Float[Array, " factor"]
    scales: dict[str, Array]
    pool: Float[Array, " quantity"]  # mean and sd of log φ, mean of logit s
    accepted: Float[Array, " step"]  # shares of cells, rows, overdispersions, shifts


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
    save_to: str | Path | None = None,
) -> Samples:
    """Draw from the posterior of everything; see `sweep` for what a draw does.

    Parameters
    ----------
    save_to
        A file that is written every minute and removed at the end. Where it exists, the run that
        wrote it goes on, with the same draws as if it had not been interrupted.
    """
    began = time.perf_counter()
    stream = CellStream(counts, start.augmentation, RESIDENT_BYTES, CHUNK_BYTES)
    target = Target(
        start.mean, start.loadings.prior, start.overdispersion, start.pooling, stream.tails()
    )
    genes = Genes(
        start.parameters.mu,
        start.parameters.W,
        start.overdispersion.of(start.parameters.d, start.parameters.channel),
    )
    state = _first_state(start, genes)
    structure = jax.tree.structure(_draw(target, state, Taken(*[jnp.zeros(())] * 4)))
    first = Chain(state, _first_cells(stream, start, genes), [], structure)
    stamp = f"{counts.fingerprint} {config} {genes.W.shape} {start.augmentation.columns}"
    saver = checkpoint.Saver(save_to, stamp, SAVE_SECONDS)
    sweeps = config.n_warmup + config.n_draws
    with Progress("Sampling", config.n_chains * sweeps, progress) as bar:
        done, moments, chain = saver.restore(first)
        bar.advance(steps=len(done) * sweeps + chain.n_done)
        while len(done) < config.n_chains:
            key = jax.random.fold_in(jax.random.key(config.seed), len(done))
            while chain.n_done < sweeps:
                chain = _advance(key, target, stream, chain, config)
                due = progress and chain.n_done % REPORT_EVERY == 0
                note = _note(done, chain.kept) if due else None
                bar.advance(note)
                saver.maybe(done, moments, chain)
            done.append(chain.kept)
            moments.append(_moments(stream, chain.cells, config.n_draws))
            chain = first
    saver.remove()
    mean, sd = _pooled(moments)
    return Samples(_stacked(done), mean, sd, time.perf_counter() - began)


class Chain(NamedTuple):
    """Where a chain stands."""

    state: State
    cells: Any  # a `CellState` of all chunks, or one of each
    kept: list[Draws]
    structure: Any  # of a draw, as a tree
    n_done: int = 0


def _advance(key, target: Target, stream: CellStream, chain: Chain, config: SamplerConfig) -> Chain:
    warm = chain.n_done < config.n_warmup
    key = jax.random.fold_in(key, chain.n_done)
    flags = jnp.asarray(warm), jnp.asarray(0.0 if warm else 1.0)
    state, cells, taken = sweep(key, target, stream, chain.state, chain.cells, *flags)
    if not bool(jnp.isfinite(jnp.sum(state.genes.W))):
        raise FloatingPointError(
            f"sample_posterior: sweep {chain.n_done + 1} left the finite numbers in the loadings; "
            "check that the fit converged (summary())"
        )
    kept = chain.kept
    if not warm:
        kept = [*kept, jax.tree.map(np.asarray, _draw(target, state, taken))]
    return chain._replace(state=state, cells=cells, kept=kept, n_done=chain.n_done + 1)


def _draw(target: Target, state: State, taken: Taken) -> Draws:
    d, channel = target.overdispersion.parameters(state.genes.psi)
    return Draws(
        state.genes.mu,
        state.genes.W,
        d,
        channel.state(),
        state.centre,
        state.scales,
        jnp.stack(list(state.pool)),
        jnp.stack(list(taken)),
    )


def _first_state(start: Start, genes: Genes) -> State:
    k = genes.W.shape[1]
    return State(
        genes,
        start.loadings.precision,
        jnp.mean(genes.W, axis=0),
        start.loadings.scales,
        columns.first_steps(start.loadings.prior, k),
        start.pooling.start(genes.psi),
        jnp.eye(k),
    )


def _first_cells(stream: CellStream, start: Start, genes: Genes):
    k = genes.W.shape[1] + len(stream.columns.value)
    parameters = genes.parameters(start.overdispersion)
    _, z = stream.scan(cell_steps.begin, stream.zeros(k), parameters, stream.columns)
    split = stream.chunks_of(stream.split(start.offset_sd))
    states = []
    for number, (start_z, sd) in enumerate(zip(stream.chunks_of(z), split, strict=True)):
        of_cells = start_z, start_z, sd, jnp.zeros_like(sd)
        nothing = jnp.zeros_like(start_z)
        states.append(CellState(*of_cells, nothing, nothing, jnp.asarray(number)))
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


def _stacked(chains: list[list[Draws]]) -> Draws:
    of_chain = [jax.tree.map(lambda *leaves: np.stack(leaves), *draws) for draws in chains]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *of_chain)


def _note(done: list[list[Draws]], kept: list[Draws]) -> str | None:
    """Effective draws and R-hat of some correlations."""
    if len(kept) < 2 * REPORT_EVERY:
        return "adapting" if not kept else ""
    chains = [monitored(draws) for draws in [*done, kept]]
    length = min(map(len, chains))
    values = np.stack([chain[:length] for chain in chains])
    ess = np.median(effective_sample_size(values))
    r_hat = np.max(split_gelman_rubin(values))
    return f"{ess:.0f} effective draws, R-hat {r_hat:.2f}"


def monitored(draws: list[Draws]) -> Float[np.ndarray, "draw pair"]:
    """Correlations of some pairs of genes, the same for all draws."""
    n_genes = len(draws[0].mu)
    pairs = np.random.default_rng(0).integers(0, n_genes, (N_MONITORED, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return np.stack([gauge.pair_correlations(draw.W, draw.d, pairs) for draw in draws])
