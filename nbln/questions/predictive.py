"""Counts and compositions drawn from fitted models.

Three levels. ``marginal``: fresh log-rates, capture losses resampled among the fitted cells.
``library_anchored``: fresh log-rates; given the cell's own total L, rates λ_g with the channel's
variation and u ~ Multinomial(L, λ/Σλ). ``per_cell``: log-rates from the cell's own posterior.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from nbln import vocabulary as names
from nbln.arguments import check_whole, choose
from nbln.channels.base import Channel
from nbln.data.fitted import Fitted
from nbln.data.slices import slices
from nbln.posterior import draws, mode
from nbln.posterior.cells import CellsAtMode
from nbln.posterior.mode import Parameters

MARGINAL, ANCHORED, PER_CELL = "marginal", "library_anchored", "per_cell"
LEVELS = (MARGINAL, ANCHORED, PER_CELL)
BLOCK_BYTES = 2**27  # of the draws that are held at once: little beside the counts

# For some cells: one draw after another of their log-rates and of the channel.
Rates = Iterator[tuple[Float[np.ndarray, "cell gene"], Channel]]
Sampler = Callable[[slice, np.random.Generator], Rates]
Draws = Iterator[tuple[slice, Int[np.ndarray, "draw cell gene"]]]
Frozen = Sequence[Mapping[str, np.ndarray]]  # for each draw, the sites that a source has drawn


def check_draws(ppc_level: str, n_samples: int) -> None:
    """Raise for an unknown level, or no draw.

    Raises
    ------
    ValueError
        Says which.
    """
    choose("ppc_level", ppc_level, LEVELS)
    check_whole("n_samples", n_samples)


def block_cells(n_samples: int, n_cells: int, n_genes: int) -> int:
    """Cells whose draws fit in a block."""
    return min(n_cells, max(1, BLOCK_BYTES // (4 * n_samples * n_genes)))


def count_draws(
    fitted: Fitted, sampler: Sampler, ppc_level: str, n_samples: int, seed: int
) -> Draws:
    """Predictive counts of some cells after others; see `Result.get_ppc_samples`.

    Memory is that of one block, however many cells there are. Same seed, same draws.
    """
    size = block_cells(n_samples, fitted.n_cells, fitted.n_genes)
    for block in slices(fitted.n_cells, size):
        rng = np.random.default_rng([seed, block.start])
        drawn = np.empty((n_samples, block.stop - block.start, fitted.n_genes), np.int32)
        for i, (f, channel) in enumerate(sampler(block, rng)):
            if ppc_level == ANCHORED:
                drawn[i] = _anchored(f, channel, fitted.library_size[block], rng)
            else:
                drawn[i] = channel.sample(rng, f)
        yield block, drawn


def all_counts(fitted: Fitted, blocks: Draws, n_samples: int) -> xr.DataArray:
    """All predictive draws at once, (chain, draw, cell, gene)."""
    drawn = np.empty((n_samples, fitted.n_cells, fitted.n_genes), np.int32)
    for block, values in blocks:
        drawn[:, block] = values
    dims = names.CHAIN, names.DRAW, names.CELL, names.GENE
    return fitted.label(drawn[None], dims, names.COUNTS)


def fresh_sampler(
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    covariates: Float[np.ndarray, "cell covariate"],
    frozen: Frozen,
    ppc_level: str,
) -> Sampler:
    """New log-rates of a log-normal model, with covariates and capture losses of fitted cells."""
    channels = [_channel(parameters.channel, values) for values in frozen]

    def fresh(block, rng):
        n_cells = block.stop - block.start
        for values, channel in zip(frozen, channels, strict=True):
            mu = values.get(names.MU)
            if ppc_level == ANCHORED:
                yield _fresh_rates(parameters, mu, covariates[block], rng), channel
            else:
                like = rng.integers(len(eta), size=n_cells)
                x = _fresh_rates(parameters, mu, covariates[like], rng)
                yield x - values.get(names.ETA, eta)[like, None], channel

    return fresh


def own_sampler(cells: CellsAtMode, parameters: Parameters, n_samples: int, seed: int) -> Sampler:
    """Log-rates from the posterior of each cell."""
    n_cells, n_genes = cells.counts.n_cells, cells.counts.n_genes
    size = block_cells(n_samples, n_cells, n_genes)  # one shape: the kernel is compiled once

    def own(block, rng):
        del rng
        block_of, z = cells.take(block, size)
        key = jax.random.fold_in(jax.random.key(seed), block.start)
        drawn = draw_cells(key, parameters, block_of, cells.augmentation.columns, z, n_samples)
        n = block.stop - block.start
        return ((np.asarray(f)[:n], parameters.channel) for f in drawn)

    return own


@eqx.filter_jit
def draw_cells(key, parameters, cells, columns, z, n_samples):
    """Draws of log-rates from the Laplace posterior of cells whose mode is at `z`."""
    f = mode.conditional_rates(parameters, cells, columns, z, mode.FULL_ITERATIONS)
    return draws.draw_rates(key, parameters, cells, columns, f, n_samples)


def independent_sampler(
    mean: Float[np.ndarray, "draw gene"],
    channels: Sequence[Channel],
    eta: Float[np.ndarray, "draw cell"],
    ppc_level: str,
) -> Sampler:
    """Log-rates of independent genes, which do not vary between cells but for the capture loss."""

    def rates(block, rng):
        n_cells = block.stop - block.start
        for log_mean, channel, losses in zip(np.log(mean), channels, eta, strict=True):
            if ppc_level == ANCHORED:
                yield np.broadcast_to(log_mean, (n_cells, len(log_mean))), channel
            else:
                own = losses[block] if ppc_level == PER_CELL else rng.choice(losses, n_cells)
                yield log_mean - own[:, None], channel

    return rates


def compositions(
    fitted: Fitted,
    parameters: Parameters,
    covariates: Float[np.ndarray, "cell covariate"],
    frozen: Frozen,
    seed: int,
) -> xr.DataArray:
    """Softmax of fresh log-rates, (chain, draw, gene), one cell a draw, like some fitted cell."""
    rng = np.random.default_rng(seed)

    def row(values):
        like = rng.integers(len(covariates), size=1)
        return _fresh_rates(parameters, values.get(names.MU), covariates[like], rng)[0]

    rows = [row(values) for values in frozen]
    shares = np.exp(_relative(np.stack(rows)))
    shares /= shares.sum(axis=1, keepdims=True)
    dims = names.CHAIN, names.DRAW, names.GENE
    return fitted.label(shares[None], dims, "composition")


def _channel(channel: Channel, values: Mapping[str, np.ndarray]) -> Channel:
    """The channel with the parameters that a source has drawn in place of its own."""
    own = channel.values()
    drawn = {site: value for site, value in values.items() if site in own}
    return channel.of(own | drawn) if drawn else channel


def _fresh_rates(parameters: Parameters, mu, covariates, rng):
    """x ~ N(μ + β v, W Wᵀ + diag(d)) for new cells with these covariates v, (cell, gene)."""
    W, d = np.asarray(parameters.W), np.asarray(parameters.d)
    mu = np.asarray(parameters.mu) if mu is None else mu
    z = rng.standard_normal((len(covariates), W.shape[1]), np.float32)
    noise = rng.standard_normal((len(covariates), len(d)), np.float32)
    return mu + covariates @ np.asarray(parameters.effects).T + z @ W.T + noise * np.sqrt(d)


def _relative(x):
    """Log-rates less the largest of their cell: shares are the same, and exp cannot overflow."""
    return x - x.max(axis=1, keepdims=True)


def _anchored(x, channel: Channel, library_size, rng):
    """Counts of each cell's own total, shared out in proportion to rates."""
    rates = channel.rates(rng, _relative(x)).astype(np.float64)
    # A cell has counts, so not all of its genes are structural zeros.
    rates = np.where(rates.sum(axis=1, keepdims=True) > 0, rates, np.exp(_relative(x)))
    return rng.multinomial(library_size.astype(int), rates / rates.sum(axis=1, keepdims=True))
