"""Counts and compositions drawn from fitted models.

Three levels. ``marginal``: fresh log-rates, capture losses resampled among the fitted cells.
``library_anchored``: fresh log-rates; given the cell's own total L, rates λ_g ~ Gamma(r_g) around
them and u ~ Multinomial(L, λ/Σλ). ``per_cell``: log-rates from the cell's own posterior.
"""

from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Int

from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.posterior import draws, mode
from nbln.results.base import check_whole
from nbln.results.cells import at_mode

LEVELS = ("marginal", "library_anchored", "per_cell")
BLOCK_BYTES = 2**27  # of the draws that are held at once
LARGEST_RATE = 1e9  # of a count: draws are int32

# For some cells: one draw after another of (rates, dispersion or None).
Rates = Iterator[tuple[np.ndarray, np.ndarray | None]]
Sampler = Callable[[slice, np.random.Generator], Rates]


def count_draws(
    result, ppc_level: str, n_samples: int, seed: int, counts=None
) -> Iterator[tuple[slice, Int[np.ndarray, "draw cell gene"]]]:
    """Predictive counts of some cells after others; see `Result.get_ppc_samples`.

    Memory is that of one block, however many cells there are. Same seed, same draws.
    """
    if ppc_level not in LEVELS:
        raise ValueError(
            f"ppc_level={ppc_level!r}: unknown level; choose one of {', '.join(LEVELS)}"
        )
    check_whole("n_samples", n_samples)
    fitted = result.fitted
    size = block_cells(n_samples, fitted.n_cells, fitted.n_genes)
    data = None
    if ppc_level == "per_cell" and result.kind == "laplace":
        data = fitted.data(counts)
    sampler = result.rate_sampler(ppc_level, n_samples, seed, data, size)
    anchored = ppc_level == "library_anchored"
    return _blocks(fitted, sampler, n_samples, size, seed, anchored)


def block_cells(n_samples: int, n_cells: int, n_genes: int) -> int:
    """Cells whose draws fit in a block."""
    return min(n_cells, max(1, BLOCK_BYTES // (4 * n_samples * n_genes)))


def _blocks(fitted, sampler: Sampler, n_samples, size, seed, anchored):
    for start in range(0, fitted.n_cells, size):
        block = slice(start, min(start + size, fitted.n_cells))
        rng = np.random.default_rng([seed, start])
        drawn = np.empty((n_samples, block.stop - start, fitted.n_genes), np.int32)
        for i, (rates, r) in enumerate(sampler(block, rng)):
            if anchored:
                drawn[i] = _anchored(rates, r, fitted.library_size[block], rng)
            else:
                drawn[i] = rng.poisson(_gamma_rates(np.minimum(rates, LARGEST_RATE), r, rng))
        yield block, drawn


def all_counts(result, ppc_level, n_samples, seed, counts=None) -> xr.DataArray:
    """All predictive draws at once, (chain, draw, cell, gene)."""
    blocks = count_draws(result, ppc_level, n_samples, seed, counts)
    fitted = result.fitted
    drawn = np.empty((n_samples, fitted.n_cells, fitted.n_genes), np.int32)
    for block, values in blocks:
        drawn[:, block] = values
    dims = names.CHAIN, names.DRAW, names.CELL, names.GENE
    return fitted.label(drawn[None], dims, names.COUNTS)


def laplace_sampler(result, ppc_level, n_samples, seed, data: Counts | None, size) -> Sampler:
    """Rates of a log-normal model; `data` are needed for ``per_cell``, in blocks of `size`."""
    r = result.arrays.get(names.DISPERSION)
    if data is not None:
        return lambda block, rng: _own_rates(result, data, size, block, n_samples, seed, r)
    frozen = frozen_draws(result, n_samples, seed)

    def fresh(block, rng):
        n_cells = block.stop - block.start
        for values in frozen:
            x = _fresh_rates(result, values.get(names.MU), n_cells, rng)
            dispersion = values.get(names.DISPERSION, r)
            if ppc_level == "library_anchored":
                # Largest log-rate of the cell at 0: rates are relative, and exp cannot overflow.
                yield np.exp(x - x.max(axis=1, keepdims=True)), dispersion
            else:
                eta = rng.choice(values.get(names.ETA, result.arrays[names.ETA]), n_cells)
                yield np.exp(x - eta[:, None]), dispersion

    return fresh


def svi_sampler(result, ppc_level, n_samples, seed) -> Sampler:
    """Rates of independent genes, which do not vary between cells but for the capture loss."""
    posterior = result.get_posterior_samples(n_samples, seed).isel(chain=0)
    every = [posterior[n].values for n in (names.MEAN, names.DISPERSION, names.ETA)]

    def rates(block, rng):
        n_cells = block.stop - block.start
        for mean, r, eta in zip(*every, strict=True):
            if ppc_level == "library_anchored":
                yield np.broadcast_to(mean / mean.max(), (n_cells, len(mean))), r
            else:
                own = eta[block] if ppc_level == "per_cell" else rng.choice(eta, n_cells)
                yield mean * np.exp(-own[:, None]), r

    return rates


def compositions(result, n_samples, seed) -> xr.DataArray:
    """Softmax of fresh log-rates, one cell a draw."""
    check_whole("n_samples", n_samples)
    rng = np.random.default_rng(seed)
    rows = [
        _fresh_rates(result, frozen.get(names.MU), 1, rng)[0]
        for frozen in frozen_draws(result, n_samples, seed)
    ]
    x = np.stack(rows)
    shares = np.exp(x - x.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    dims = names.CHAIN, names.DRAW, names.GENE
    return result.fitted.label(shares[None], dims, "composition")


def _own_rates(result, data, size, block, n_samples, seed, r):
    """exp(f) with f drawn from the posterior of each cell of a block."""
    cells, z = at_mode(result, data, block, size)  # one shape: the kernel is compiled once
    key = jax.random.fold_in(jax.random.key(seed), block.start)
    drawn = draw_cells(key, result.parameters, cells, result.columns, z, n_samples)
    n = block.stop - block.start
    return ((np.exp(np.asarray(x)[:n]), r) for x in drawn)


@eqx.filter_jit
def draw_cells(key, parameters, cells, columns, z, n_samples):
    """Draws of log-rates from the Laplace posterior of cells whose mode is at `z`."""
    f = mode.conditional_rates(parameters, cells, columns, z, n_iterations=4)
    return draws.draw_rates(key, parameters, cells, columns, f, n_samples)


def frozen_draws(result, n_samples, seed) -> list[dict[str, np.ndarray]]:
    """For each draw, the frozen sites as the source's own posterior has them."""
    if result.cascade_source is None or not result.frozen:
        return [{}] * n_samples
    source = result.cascade_source.get_posterior_samples(n_samples, seed).isel(chain=0)
    per_site = {names.DISPERSION: names.DISPERSION, names.ETA: names.ETA, names.MU: names.MEAN}
    if result.fitted.settings.get("informative_priors_match") == "marginal":
        per_site = {names.ETA: names.ETA}  # the others follow Σ_gg, not the source
    values = {site: source[key].values for site, key in per_site.items() if site in result.frozen}
    if names.MU in values:
        values[names.MU] = np.log(values[names.MU])
    return [{site: value[i] for site, value in values.items()} for i in range(n_samples)]


def _fresh_rates(result, mu, n_cells, rng):
    """x ~ N(μ, W Wᵀ + diag(d)) for new cells, (cell, gene)."""
    W, d = result.arrays[names.LOADINGS], result.arrays[names.RESIDUAL]
    mu = result.arrays[names.MU] if mu is None else mu
    z = rng.standard_normal((n_cells, W.shape[1]), np.float32)
    noise = rng.standard_normal((n_cells, len(d)), np.float32)
    return mu + z @ W.T + noise * np.sqrt(d)


def _gamma_rates(mean, r, rng):
    """Rates of a gamma-Poisson with these means; the means themselves without dispersion."""
    return mean if r is None else rng.gamma(np.broadcast_to(r, mean.shape), mean / r)


def _anchored(mean, r, library_size, rng):
    """Counts of each cell's own total, shared out in proportion to gamma rates."""
    rates = _gamma_rates(mean, r, rng).astype(np.float64)
    return rng.multinomial(library_size.astype(int), rates / rates.sum(axis=1, keepdims=True))
