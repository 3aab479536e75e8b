"""Counts and compositions drawn from fitted models.

Three levels. ``marginal``: fresh log-rates, capture losses resampled among the fitted cells.
``library_anchored``: fresh log-rates; given the cell's own total L, rates λ_g with the channel's
variation and u ~ Multinomial(L, λ/Σλ). ``per_cell``: log-rates from the cell's own posterior.
A model whose totals have a distribution of their own draws a total in ``marginal``, and shares it
out; in ``per_cell`` the cell has its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from nbln import vocabulary as names
from nbln.arguments import check_whole, choose
from nbln.channels.base import Channel
from nbln.data.ahead import ahead
from nbln.data.fitted import Fitted
from nbln.data.slices import slices
from nbln.distributions.sampling import share_out
from nbln.linalg.products import host_dot
from nbln.posterior import draws, mode
from nbln.posterior.cells import CellsAtMode
from nbln.posterior.mode import Parameters
from nbln.posterior.totals import Totals

MARGINAL, ANCHORED, PER_CELL = "marginal", "library_anchored", "per_cell"
LEVELS = (MARGINAL, ANCHORED, PER_CELL)
# Of the draws that a thread holds at once: little beside the counts, and small enough that the
# numbers of one draw are in a core's cache.
BLOCK_BYTES = 2**25


class Shares(NamedTuple):
    """Counts of cells whose totals are given, drawn like those of a channel."""

    channel: Channel
    totals: Float[np.ndarray, " cell"]

    def sample(self, rng: np.random.Generator, f: Float[np.ndarray, "cell gene"]):
        """Counts that share the totals out in proportion to rates."""
        return _anchored(f, self.channel, self.totals, rng)


# For some cells: one draw after another of their log-rates and of what draws counts of them.
Rates = Iterator[tuple[Float[np.ndarray, "cell gene"], Any]]
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


class CellDesign(NamedTuple):
    """What log-rates of cells depend on beside parameters and depth."""

    covariates: Float[np.ndarray, "cell covariate"]
    factor_sd: Float[np.ndarray, "cell factor"]  # no columns where all are 1

    @classmethod
    def like(cls, covariates: Float[np.ndarray, "cell covariate"]) -> "CellDesign":
        """Of cells of one data set."""
        return cls(covariates, np.zeros((len(covariates), 0), np.float32))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.covariates)

    def at(self, index) -> "CellDesign":
        """Of some cells."""
        return CellDesign(self.covariates[index], self.factor_sd[index])

    def scaled(self, z: Float[np.ndarray, "cell factor"]) -> Float[np.ndarray, "cell factor"]:
        """Factors of these cells, from standard ones."""
        return z * self.factor_sd if self.factor_sd.shape[1] else z

    def variance(self, W: Float[np.ndarray, "gene factor"]) -> Float[np.ndarray, "any gene"]:
        """Of the genes' log-rates by the programs; one row where it is that of all cells."""
        squares = (np.asarray(W, np.float64) ** 2).T
        return self.factor_sd**2 @ squares if self.factor_sd.shape[1] else squares.sum(axis=0)[None]


def block_cells(n_samples: int, n_cells: int, n_genes: int) -> int:
    """Cells whose draws fit in a block."""
    return min(n_cells, max(1, BLOCK_BYTES // (4 * n_samples * n_genes)))


def count_draws(
    fitted: Fitted, sampler: Sampler, ppc_level: str, n_samples: int, seed: int
) -> Draws:
    """Predictive counts of some cells after others; see `Result.get_ppc_samples`.

    Memory is that of a block for each thread, however many cells there are. Same seed, same draws.
    """

    def draw(block: slice):
        rng = np.random.default_rng([seed, block.start])
        drawn = np.empty((n_samples, block.stop - block.start, fitted.n_genes), np.int32)
        for i, (f, drawer) in enumerate(sampler(block, rng)):
            if ppc_level == ANCHORED:
                drawer = Shares(drawer, fitted.library_size[block])
            drawn[i] = drawer.sample(rng, f)
        return block, drawn

    size = block_cells(n_samples, fitted.n_cells, fitted.n_genes)
    return ahead(draw, slices(fitted.n_cells, size))


def all_counts(
    fitted: Fitted, blocks: Draws, n_samples: int, genes: Int[np.ndarray, " gene"]
) -> xr.DataArray:
    """All predictive draws of these genes at once, (chain, draw, cell, gene)."""
    drawn = np.empty((n_samples, fitted.n_cells, len(genes)), np.int32)
    for block, values in blocks:
        drawn[:, block] = values[:, :, genes]
    dims = names.CHAIN, names.DRAW, names.CELL, names.GENE
    coords = {names.CELL: fitted.cell_names, names.GENE: fitted.gene_names[genes]}
    return xr.DataArray(drawn[None], dims=dims, coords=coords, name=names.COUNTS)


def fresh_sampler(
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    design: CellDesign,
    frozen: Frozen,
    ppc_level: str,
    totals: Totals | None = None,
) -> Sampler:
    """New log-rates of a log-normal model, with design and capture losses of fitted cells.

    Where cells have totals of their own distribution, losses are in these.
    """
    channels = [_channel(parameters.channel, values) for values in frozen]

    def fresh(block, rng):
        n_cells = block.stop - block.start
        for values, channel in zip(frozen, channels, strict=True):
            mu = values.get(names.MU)
            if ppc_level == ANCHORED:
                yield fresh_rates(parameters, mu, design.at(block), rng), channel
            else:
                like = rng.integers(len(eta), size=n_cells)
                x = fresh_rates(parameters, mu, design.at(like), rng)
                losses = values.get(names.ETA, eta)[like]
                if totals is None:
                    yield x - losses[:, None], channel
                else:
                    yield x, Shares(channel, totals.draw(rng, losses, n_cells))

    return fresh


def own_sampler(
    cells: CellsAtMode, parameters: Parameters, n_samples: int, seed: int, given_total: bool = False
) -> Sampler:
    """Log-rates from the posterior of each cell, whose total may be given."""
    n_cells, n_genes = cells.counts.n_cells, cells.counts.n_genes
    size = block_cells(n_samples, n_cells, n_genes)  # one shape: the kernel is compiled once

    def own(block, rng):
        del rng
        block_of, z = cells.take(block, size)
        key = jax.random.fold_in(jax.random.key(seed), block.start)
        drawn = draw_cells(key, parameters, block_of, cells.augmentation.columns, z, n_samples)
        n = block.stop - block.start
        drawer = parameters.channel
        if given_total:
            drawer = Shares(drawer, cells.counts.library_size[block])
        return ((np.asarray(f)[:n], drawer) for f in drawn)

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
    covariates: Float[np.ndarray, "cell covariate"],
    effects: Float[np.ndarray, "gene covariate"],
    ppc_level: str,
) -> Sampler:
    """Log-rates of independent genes: cells differ by capture losses and by covariates alone."""

    def rates(block, rng):
        n_cells = block.stop - block.start
        for log_mean, channel, losses in zip(np.log(mean), channels, eta, strict=True):
            # At the marginal level a cell is like any of the fit.
            fresh = ppc_level == MARGINAL
            like = rng.integers(len(losses), size=n_cells) if fresh else block
            f = log_mean + covariates[like] @ effects.T
            yield (f if ppc_level == ANCHORED else f - losses[like][:, None]), channel

    return rates


def compositions(
    fitted: Fitted,
    parameters: Parameters,
    design: CellDesign,
    frozen: Frozen,
    seed: int,
) -> xr.DataArray:
    """Softmax of fresh log-rates, (chain, draw, gene), one cell a draw, like some fitted cell."""
    rng = np.random.default_rng(seed)

    def row(values):
        like = rng.integers(design.n_cells, size=1)
        return fresh_rates(parameters, values.get(names.MU), design.at(like), rng)[0]

    rows = [row(values) for values in frozen]
    shares = np.exp(relative(np.stack(rows)))
    shares /= shares.sum(axis=1, keepdims=True)
    dims = names.CHAIN, names.DRAW, names.GENE
    return fitted.label(shares[None], dims, "composition")


def _channel(channel: Channel, values: Mapping[str, np.ndarray]) -> Channel:
    """The channel with the parameters that a source has drawn in place of its own."""
    own = channel.values()
    drawn = {site: value for site, value in values.items() if site in own}
    return channel.of(own | drawn) if drawn else channel


def fresh_rates(parameters: Parameters, mu, design: CellDesign, rng):
    """x ~ N(μ + β v, W diag(s²) Wᵀ + diag(d)) for new cells of this design, (cell, gene)."""
    W, d = np.asarray(parameters.W), np.asarray(parameters.d)
    mu = np.asarray(parameters.mu) if mu is None else mu
    z = design.scaled(rng.standard_normal((design.n_cells, W.shape[1]), np.float32))
    noise = rng.standard_normal((design.n_cells, len(d)), np.float32)
    x = host_dot(z, W.T) + mu
    if design.covariates.shape[1]:
        x += host_dot(design.covariates, np.asarray(parameters.effects).T)
    noise *= np.sqrt(d)
    x += noise
    return x


def relative(x):
    """Log-rates less the largest of their cell: shares are the same, and exp cannot overflow."""
    return x - x.max(axis=1, keepdims=True)


def _anchored(x, channel: Channel, library_size, rng):
    """Counts of each cell's own total, shared out in proportion to rates."""
    x = relative(x)
    rates = channel.rates(rng, x)
    # A cell has counts, so not all of its genes are structural zeros.
    none = ~rates.any(axis=1)
    rates[none] = np.exp(x[none])
    return share_out(rng, library_size.astype(int), rates)
