"""Posterior distributions of a Laplace result's parameters."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from nbln import vocabulary as names
from nbln.linalg import small
from nbln.priors.loadings import HorseshoeSparse, Rows


def of_laplace(result) -> dict[str, dist.Distribution]:
    """See `LaplaceResult.get_distributions`."""
    arrays, frozen = result.arrays, result.frozen
    sd = _row_sd(result)
    found = {
        names.MU: dist.Normal(arrays[names.MU], sd[0]),
        names.LOADINGS: dist.Normal(arrays[names.LOADINGS], sd[1:].T),
        names.RESIDUAL: _residual(result),
        names.ETA: _eta(result),
    }
    if result.log_r_sd is not None and names.DISPERSION not in frozen:
        found[names.DISPERSION] = dist.LogNormal(jnp.log(arrays[names.DISPERSION]), result.log_r_sd)
    if result.cascade_source is not None:
        found |= {site: _of_source(result.cascade_source, site) for site in frozen}
    return found


def _row_sd(result):
    """Conditional sd of [μ, w] of every gene, (1 + factor, gene), from the packed precision."""
    precision = small.unpack_bordered(jnp.asarray(result.precision))
    prior = jnp.asarray(result.loadings_precision, precision.dtype).T
    diagonal = jnp.concatenate([jnp.zeros_like(prior[:1]), prior])
    precision = precision + jnp.eye(len(diagonal))[:, :, None] * diagonal
    covariance, _ = small.inverse_and_log_det(precision)
    return jnp.sqrt(jnp.diagonal(covariance, axis1=0, axis2=1).T)


def membership(result) -> np.ndarray:
    """(gene, factor) posterior probability of the slab; 0 in columns without signal."""
    if "inclusion" not in result.scales:
        raise ValueError(
            "get_membership(): this fit's loadings prior has no spike and slab; fit with "
            "priors={'loadings': 'horseshoe_sparse'}, the default"
        )
    W = result.arrays[names.LOADINGS]
    centre = result.scales["centre"] + W.mean(axis=0)
    rows = Rows(W, _row_sd(result)[1:].T ** 2, centre, result.loadings_precision)
    rows = Rows(*(jnp.asarray(x) for x in rows))
    scales = {name: jnp.asarray(value) for name, value in result.scales.items()}
    found = np.asarray(HorseshoeSparse().membership(scales, rows))
    signal = np.arange(W.shape[1]) < result.w_prior_diagnostics["effective_rank"]
    return np.where(signal, found, 0.0)


def _residual(result):
    """Inverse gamma with the fitted mode; C/2 + prior shape degrees of freedom."""
    shape = 0.5 * result.fitted.n_cells + result.fitted.settings["d_shape"]
    return dist.InverseGamma(shape, result.arrays[names.RESIDUAL] * (shape + 1))


def _eta(result):
    loc, scale = result.arrays["eta_loc"], result.arrays["eta_sd"]
    if not any(result.columns.truncated):
        return dist.Delta(jnp.asarray(loc))
    return dist.TruncatedNormal(loc, scale, low=0.0)


def _of_source(source, site):
    """The source's posterior of a frozen site; μ is the log of its mean expression."""
    if site == names.ETA:
        known = source.known_eta
        return source.get_distributions()[names.ETA] if known is None else dist.Delta(known)
    mean, r = source.sample_genes(1000)
    logs = np.log(mean if site == names.MU else r)
    loc, scale = logs.mean(axis=0), logs.std(axis=0)
    return dist.Normal(loc, scale) if site == names.MU else dist.LogNormal(loc, scale)
