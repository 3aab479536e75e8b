"""Posterior distributions of a Laplace result's parameters."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from nbln import vocabulary as names
from nbln.linalg import small


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
    scales = result.scales
    variance = scales["psi"] if "psi" in scales else scales.get("lambda", np.inf) ** 2
    shrinkage = np.concatenate([[0.0], np.broadcast_to(1 / variance, result.latent_dim)])
    precision = precision + jnp.diag(jnp.asarray(shrinkage, precision.dtype))[:, :, None]
    covariance, _ = small.inverse_and_log_det(precision)
    return jnp.sqrt(jnp.diagonal(covariance, axis1=0, axis2=1).T)


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
