"""Laplace evidence of every cell, differentiable exactly in the parameters."""

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from nbln.distributions.special import HALF_LOG_TWO_PI
from nbln.distributions.truncated import truncated_at_zero
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters, Step


def evidence(
    parameters: Parameters, cells: Cells, columns: Columns, f: Float[Array, "cell gene"]
) -> Float[Array, " cell"]:
    """log p̂(u) of every cell (natural log), from log-rates `f` at the mode.

    Gradients are exact: the mode is held fixed, but one more differentiable Newton step is taken
    from it, and the determinant is evaluated where that step leads. Holding the mode fixed alone
    would forget that the determinant depends on it.
    """
    step = mode.newton_step(parameters, cells, columns, lax.stop_gradient(f))
    return evidence_after(parameters, cells, columns, step)


def evidence_after(
    parameters: Parameters, cells: Cells, columns: Columns, step: Step
) -> Float[Array, " cell"]:
    """As `evidence`, from the step that was taken at the mode."""
    here = mode.newton_step(parameters, cells, columns, step.f)
    residual = step.f - parameters.mean(cells)
    prior = mode.precision(parameters, cells, columns, step.f.dtype)
    log_det = (
        jnp.sum(jnp.log1p(parameters.d * here.information), axis=1)
        + here.log_det
        - jnp.sum(jnp.log(jnp.where(prior > 0, prior, 1.0)), axis=0)
    )
    value = (
        jnp.sum(parameters.channel.log_prob(cells.counts, step.f), axis=1)
        - 0.5 * jnp.sum(step.alpha * residual, axis=1)
        - 0.5 * log_det
        + HALF_LOG_TWO_PI * columns.precision.count(0.0)
        + _truncation(cells, columns, step.z, here.covariance)
    )
    return value * cells.mask


def capture_loss(
    cells: Cells, columns: Columns, z: Float[Array, "all_columns cell"], covariance
) -> tuple[Float[Array, " cell"], Float[Array, " cell"], Float[Array, " cell"]]:
    """η of every cell: its mean, and location and scale of the Gaussian before truncation at 0.

    Log-rates are those before capture less η: where the depth of a cell is a flat column, it is
    that column's, with the other sign.
    """
    if not columns.value:
        return -cells.offset, -cells.offset, jnp.zeros_like(cells.offset)
    if not any(columns.truncated):
        weight = jnp.asarray(columns.value, z.dtype)[:, None] * cells.scale.T
        k = z.shape[0] - len(columns.value)
        loc = -(cells.offset + jnp.sum(weight * z[k:], axis=0))
        spread = jnp.einsum("in,ijn,jn->n", weight, covariance[k:, k:], weight)
        return loc, loc, jnp.sqrt(spread)
    loc, sd = _gaussian_eta(cells, columns, z, covariance)
    return truncated_at_zero(loc, sd).mean, loc, sd


def _gaussian_eta(cells, columns, z, covariance):
    """Mean and standard deviation of η before truncation."""
    e = columns.truncated.index(True)
    row = z.shape[0] - len(columns.value) + e
    scale = jnp.abs(columns.value[e]) * cells.scale[:, e]
    return loss_at(cells, columns, z), scale * jnp.sqrt(covariance[row, row])


def loss_at(
    cells: Cells, columns: Columns, z: Float[Array, "all_columns cell"]
) -> Float[Array, " cell"]:
    """η = -(o + value v ζ) at coordinates z."""
    e = columns.truncated.index(True)
    row = z.shape[0] - len(columns.value) + e
    return -(cells.offset + columns.value[e] * cells.scale[:, e] * z[row])


def log_prior_mass(cells: Cells, columns: Columns) -> Float[Array, " cell"]:
    """log Φ(m/σ): the mass that the Gaussian prior of η has at η ≥ 0."""
    e = columns.truncated.index(True)
    return log_ndtr(-cells.offset / jnp.where(cells.mask > 0, cells.scale[:, e], 1.0))


def _truncation(cells, columns, z, covariance):
    """log Φ(η̂/s_η) - log Φ(m/σ): the posterior and prior mass at η ≥ 0."""
    if not any(columns.truncated):
        return jnp.zeros_like(cells.offset)
    mean, sd = _gaussian_eta(cells, columns, z, covariance)
    mass = log_ndtr(mean / jnp.where(cells.mask > 0, sd, 1.0))
    return mass - log_prior_mass(cells, columns)
