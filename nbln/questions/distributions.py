"""Posterior distributions of the parameters of a Laplace fit, and draws from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import xarray as xr
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.compiled import quick_jit
from nbln.data.fitted import Fitted
from nbln.linalg import small
from nbln.posterior.cells import CellPosterior
from nbln.posterior.mode import Parameters
from nbln.posterior.totals import Totals
from nbln.priors.effects import FittedEffects
from nbln.priors.loadings import FittedLoadings, LoadingsPrior, Rows


class Spread(NamedTuple):
    """How far the parameters of a fit may be off, each given all others."""

    # Complete-data precision of [μ, β, W], packed, in the basis of the fitted loadings.
    normal: Float[np.ndarray, "gene moments"]
    channel_sd: dict[str, np.ndarray]  # of the natural log of each channel parameter
    residual_shape: float  # of the inverse gamma posterior of d
    effects: FittedEffects | None = None  # None without covariates


def of_parameters(
    parameters: Parameters, spread: Spread, loadings: FittedLoadings
) -> dict[str, dist.Distribution]:
    """Conditional posterior of each parameter that was learned, as a NumPyro distribution."""
    sd, w = _row_sd(spread, loadings)
    shape = spread.residual_shape
    values = parameters.channel.values()
    return {
        names.MU: dist.Normal(parameters.mu, sd[0]),
        names.LOADINGS: dist.Normal(parameters.W, sd[w:].T),
        **({names.EFFECTS: dist.Normal(parameters.effects, sd[1:w].T)} if w > 1 else {}),
        names.RESIDUAL: dist.InverseGamma(shape, jnp.asarray(parameters.d) * (shape + 1)),
        **{
            site: dist.LogNormal(jnp.log(values[site]), sd_of_log)
            for site, sd_of_log in spread.channel_sd.items()
            if np.all(sd_of_log > 0)  # a frozen one is not spread at all
        },
    }


def effects_sd(spread: Spread, loadings: FittedLoadings) -> Float[np.ndarray, "gene covariate"]:
    """Of the effects of covariates, conditional on the cells' factors."""
    sd, w = _row_sd(spread, loadings)
    return sd[1:w].T


def n_determined(spread: Spread, loadings: FittedLoadings) -> float:
    """How many loadings and effects of covariates the counts determine, and not their prior.

    Each counts by 1 - λ v, with λ its prior's precision and v its posterior variance (MacKay 1992).
    """
    variance = _row_sd(spread, loadings)[0][1:] ** 2
    certain = np.asarray(loadings.precision, np.float64).T
    if spread.effects is not None:
        certain = np.concatenate([np.asarray(spread.effects.precision, np.float64).T, certain])
    held = np.isinf(certain)
    return float(np.sum(np.where(held, 0.0, 1 - np.where(held, 0.0, certain) * variance)))


def of_eta(cells: CellPosterior, positive: bool) -> dist.Distribution:
    """Posterior of the capture loss of each cell, or of its depth, which may be negative."""
    if not np.any(cells.eta_sd):
        return dist.Delta(jnp.asarray(cells.eta_loc))
    if not positive:
        return dist.Normal(cells.eta_loc, cells.eta_sd)
    return dist.TruncatedNormal(cells.eta_loc, cells.eta_sd, low=0.0)


def of_totals(totals: Totals | None) -> dict[str, dist.Distribution]:
    """Posterior of the mean and the dispersion of totals, of a model that has them."""
    if totals is None:
        return {}
    return {
        names.TOTAL_MEAN: dist.LogNormal(np.log(totals.mean), totals.mean_sd),
        names.TOTAL_DISPERSION: dist.LogNormal(np.log(totals.r), totals.r_sd),
    }


def membership(
    parameters: Parameters, spread: Spread, loadings: FittedLoadings, rank: int
) -> Float[np.ndarray, "gene factor"] | None:
    """Posterior probability that each gene belongs to each program; 0 in columns without signal.

    None where under the fit's loadings prior all genes belong to all programs.
    """
    W = np.asarray(parameters.W)
    centre = loadings.scales.get("centre", 0.0) + W.mean(axis=0)
    covariance = _row_covariance(spread, loadings)[-W.shape[1] :, -W.shape[1] :]
    rows = Rows(W, covariance, centre, loadings.precision)
    probability = _membership(loadings.prior, loadings.scales, rows)
    if probability is None:
        return None
    signal = np.arange(W.shape[1]) < rank
    return np.where(signal, np.asarray(probability), 0.0)


def draw(
    fitted: Fitted,
    distributions: dict[str, dist.Distribution],
    dims: dict[str, tuple[str, ...]],
    n_samples: int,
    seed: int,
) -> xr.Dataset:
    """Draws of each site from its own distribution, with dims (chain, draw, ...)."""
    drawn = {}
    for i, (site, distribution) in enumerate(distributions.items()):
        key = jax.random.fold_in(jax.random.key(seed), i)
        values = np.asarray(distribution.sample(key, (n_samples,)))
        drawn[site] = fitted.label(values[None], (names.CHAIN, names.DRAW, *dims[site]))
    return xr.Dataset(drawn)


def _row_sd(spread: Spread, loadings: FittedLoadings) -> tuple[Float[np.ndarray, "row gene"], int]:
    """Conditional standard deviation of [μ, β, w] of each gene, and where w begins."""
    sd = np.sqrt(np.diagonal(_row_covariance(spread, loadings), axis1=0, axis2=1).T)
    return sd, len(sd) - loadings.precision.shape[1]


def _row_covariance(spread: Spread, loadings: FittedLoadings) -> Float[np.ndarray, "row row gene"]:
    """Conditional covariance of [μ, β, w] of each gene, from packed precision and priors."""
    known = None if spread.effects is None else spread.effects.precision.T
    return np.asarray(_posterior_covariance(spread.normal, known, loadings.precision))


@quick_jit
def _posterior_covariance(normal, known, precision) -> Float[Array, "row row gene"]:
    normal = small.unpack_bordered(normal)
    if known is not None:
        of_effects = jnp.arange(1, 1 + len(known))
        normal = normal.at[of_effects, of_effects].add(known)
    return small.inverse_with_diagonal(normal, precision)[0]


@quick_jit
def _membership(prior: LoadingsPrior, scales, rows: Rows) -> Float[Array, "gene factor"] | None:
    return prior.membership(scales, rows.entries())
