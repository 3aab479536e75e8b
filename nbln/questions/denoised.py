"""Denoised expression: the posterior of every cell's log-rates at full capture."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.arguments import choose
from nbln.data.fitted import Fitted
from nbln.linalg.products import dot
from nbln.posterior import draws, mode
from nbln.posterior.cells import CellsAtMode
from nbln.posterior.mode import Parameters

SCALES = ("rate", "log_rate", "composition")
N_DRAWS = 64  # of log-rates, for compositions: their means err by an eighth of their sd


def denoised(
    fitted: Fitted,
    parameters: Parameters,
    at_mode: CellsAtMode,
    scale: str,
    genes,
    moved: Float[np.ndarray, "cell covariate"] | None = None,
) -> xr.Dataset:
    """See `LaplaceResult.get_denoised`; `moved` is the change of the cells' covariates."""
    choose("scale", scale, SCALES)
    columns = slice(None) if genes is None else fitted.find(genes)
    gene_names = fitted.gene_names[columns]
    values = [np.empty((fitted.n_cells, len(gene_names)), np.float32) for _ in range(2)]
    if moved is None:
        moved = np.zeros((fitted.n_cells, parameters.effects.shape[1]), np.float32)
    for block, cells, z in at_mode.blocks():
        rest = len(cells.mask) - (block.stop - block.start)
        change = np.pad(moved[block], ((0, rest), (0, 0)))
        key = jax.random.fold_in(jax.random.key(0), block.start)
        given = parameters, cells, at_mode.augmentation.columns, z, change
        moments = _moments(key, *given, scale)
        for array, moment in zip(values, moments, strict=True):
            array[block] = np.asarray(moment)[: block.stop - block.start, columns]
    dims = names.CELL, names.GENE
    coords = {names.CELL: fitted.cell_names, names.GENE: gene_names}
    variables = {name: (dims, x) for name, x in zip(("mean", "sd"), values, strict=True)}
    return xr.Dataset(variables, coords=coords, attrs={"scale": scale})


@eqx.filter_jit
def _moments(key, parameters, cells, columns, z, moved, scale):
    shift = dot(moved, parameters.effects.T)
    f = mode.conditional_rates(parameters, cells, columns, z, mode.FULL_ITERATIONS)
    if scale == "composition":
        x = draws.draw_rates(key, parameters, cells, columns, f, N_DRAWS)
        shares = jax.nn.softmax(x + shift, axis=2)  # any loss that a cell's genes share drops out
        return shares.mean(axis=0), shares.std(axis=0)
    mean, variance = latent_moments(parameters, cells, columns, f)
    mean = mean + shift
    if scale == "log_rate":
        return mean, jnp.sqrt(variance)
    rate = jnp.exp(mean + variance / 2)
    return rate, rate * jnp.sqrt(jnp.expm1(variance))


def latent_moments(parameters, cells, columns, f):
    """Posterior mean and variance of x = f - o - (extra columns' part)."""
    k = parameters.W.shape[1]
    step = mode.newton_step(parameters, cells, columns, f)
    step, _, variance = mode.corrected(step, parameters, cells, columns)
    shift = cells.offset
    if columns.value:
        # x = μ + w z + ε, and ε falls by d S w̃ as z̃ rises: its coefficients on z̃ are t w̃, less
        # the extra columns' own.
        X, v = mode.design(parameters.W, columns), mode.scales(cells, k)
        weight = jnp.asarray(columns.value, f.dtype)[:, None] * cells.scale.T
        spread = jnp.einsum("ijn,jn->in", step.covariance[:, k:], weight)
        own = jnp.sum(weight * spread[k:], axis=0)
        variance = variance - 2 * step.t * mode.rates(spread, 0.0, X, v) + own[:, None]
        shift = shift + jnp.sum(weight * step.z[k:], axis=0)
    return step.f - shift[:, None], jnp.maximum(variance, 0)
