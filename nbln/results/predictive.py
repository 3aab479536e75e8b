"""Counts and compositions drawn from fitted models.

Three levels. ``marginal``: fresh log-rates, capture losses resampled among the fitted cells.
``library_anchored``: fresh log-rates; given the cell's own total L, rates λ_g ~ Gamma(r_g) around
them and u ~ Multinomial(L, λ/Σλ). ``per_cell``: log-rates from the cell's own posterior.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.channels.poisson import Poisson
from nbln.data.chunks import chunk_cells, chunks
from nbln.posterior import draws, mode
from nbln.posterior.mode import Cells, Parameters

LEVELS = ("marginal", "library_anchored", "per_cell")


def laplace_counts(result, ppc_level, n_samples, seed, counts) -> xr.DataArray:
    """Predictive draws of a Laplace result; see `LaplaceResult.get_ppc_samples`."""
    _check(ppc_level, n_samples)
    rng = np.random.default_rng(seed)
    shape = n_samples, result.fitted.n_cells, result.fitted.n_genes
    drawn = np.empty(shape, np.int32)
    if ppc_level == "per_cell":
        _per_cell(result, drawn, rng, seed, counts)
        return _label(result.fitted, drawn)
    r = result.arrays.get(names.DISPERSION)
    for i, frozen in enumerate(_frozen_draws(result, n_samples, seed)):
        x = _fresh_rates(result, frozen.get(names.MU), shape[1], rng)
        dispersion = frozen.get(names.DISPERSION, r)
        if ppc_level == "marginal":
            eta = frozen.get(names.ETA, result.arrays[names.ETA])
            f = x - rng.choice(eta, shape[1])[:, None]
            drawn[i] = rng.poisson(_gamma_rates(np.exp(f), dispersion, rng))
        else:
            # Largest log-rate of the cell at 0: rates are relative, and exp cannot overflow.
            rates = _gamma_rates(np.exp(x - x.max(axis=1, keepdims=True)), dispersion, rng)
            drawn[i] = _anchored(rates, result.fitted.library_size, rng)
    return _label(result.fitted, drawn)


def svi_counts(result, ppc_level, n_samples, seed) -> xr.DataArray:
    """Predictive draws of independent genes; their log-rates do not vary between cells."""
    _check(ppc_level, n_samples)
    rng = np.random.default_rng(seed)
    posterior = result.get_posterior_samples(n_samples, seed).isel(chain=0)
    fitted = result.fitted
    drawn = np.empty((n_samples, fitted.n_cells, fitted.n_genes), np.int32)
    for i in range(n_samples):
        mean, r, eta = (posterior[n].values[i] for n in (names.MEAN, names.DISPERSION, names.ETA))
        if ppc_level == "library_anchored":
            rates = np.broadcast_to(mean / mean.max(), drawn.shape[1:])
            drawn[i] = _anchored(_gamma_rates(rates, r, rng), fitted.library_size, rng)
            continue
        if ppc_level == "marginal":
            eta = rng.choice(eta, fitted.n_cells)
        drawn[i] = rng.poisson(_gamma_rates(mean * np.exp(-eta[:, None]), r, rng))
    return _label(fitted, drawn)


def compositions(result, n_samples, seed) -> xr.DataArray:
    """Softmax of fresh log-rates, one cell a draw."""
    _check("marginal", n_samples)
    rng = np.random.default_rng(seed)
    rows = [
        _fresh_rates(result, frozen.get(names.MU), 1, rng)[0]
        for frozen in _frozen_draws(result, n_samples, seed)
    ]
    x = np.stack(rows)
    shares = np.exp(x - x.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    dims = names.CHAIN, names.DRAW, names.GENE
    return result.fitted.label(shares[None], dims, "composition")


def parameters_of(result) -> Parameters:
    """The parameters of a Laplace result, as the kernel takes them."""
    arrays = {name: jnp.asarray(value) for name, value in result.arrays.items()}
    dispersion = arrays.get(names.DISPERSION)
    channel = Poisson() if dispersion is None else NegativeBinomial(jnp.log(dispersion))
    return Parameters(arrays[names.MU], arrays[names.LOADINGS], arrays[names.RESIDUAL], channel)


def _per_cell(result, drawn, rng, seed, counts):
    data, parameters = result.fitted.data(counts), parameters_of(result)
    offset, scale = result.arrays["offset"], result.arrays["scale"]
    coordinates = np.concatenate([result.arrays["z"], result.arrays["coordinates"]], axis=1)
    size = chunk_cells(data.n_cells, data.n_genes)
    r = result.arrays.get(names.DISPERSION)
    for chunk in chunks(data, size):
        block = slice(chunk.start, chunk.start + size)
        n = len(offset[block])
        cells = Cells(chunk.counts[:n], chunk.mask[:n], offset[block], scale[block])
        cells = jax.tree.map(jnp.asarray, cells)
        z = jnp.asarray(coordinates[block].T)
        f = mode.conditional_rates(parameters, cells, result.columns, z, n_iterations=4)
        key = jax.random.fold_in(jax.random.key(seed), chunk.start)
        rates = draws.draw_rates(key, parameters, cells, result.columns, f, len(drawn))
        for i, drawn_rates in enumerate(np.asarray(rates)):
            drawn[i, block] = rng.poisson(_gamma_rates(np.exp(drawn_rates), r, rng))


def _frozen_draws(result, n_samples, seed):
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


def _anchored(rates, library_size, rng):
    """Counts of each cell's own total, shared out in proportion to the rates."""
    rates = rates.astype(np.float64)
    return rng.multinomial(library_size.astype(int), rates / rates.sum(axis=1, keepdims=True))


def _label(fitted, drawn):
    dims = names.CHAIN, names.DRAW, names.CELL, names.GENE
    return fitted.label(drawn[None], dims, names.COUNTS)


def _check(ppc_level, n_samples):
    if ppc_level not in LEVELS:
        raise ValueError(
            f"ppc_level={ppc_level!r}: unknown level; choose one of {', '.join(LEVELS)}"
        )
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples}: must be at least 1")
