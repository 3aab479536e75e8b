"""What an iteration sums over cells: all that its update needs, so chunks and devices add up."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters, Step
from nbln.priors.activity import Spreads

# Posterior variance of a log-rate up to which the score is corrected for skewness. Where counts are
# rare, score and information a both grow as eᶠ, so that the score's slope is a (1 + ½ Var f): a
# regression with weight a, which is all that it knows, goes too far by half the variance, and from
# 2 on ever farther to and fro. At 1 what is left of an error is half as large and falls.
LARGEST_VARIANCE = 1.0


class Statistics(NamedTuple):
    """Sums over cells, at the parameters and in the basis that they were taken in."""

    normal: Float[Array, "gene moments"]  # Σ S [1, v, vvᵀ packed], v = [x, z]
    response: Float[Array, "gene regressors"]  # Σ q [1, v], less the extra columns' part
    residual: Float[Array, " gene"]  # Σ E[ε²]
    moments: Float[Array, " moments"]  # Σ [1, v, vvᵀ packed]
    channel: Float[Array, "sums gene"]  # the channel's own
    spreads: Spreads  # Σ E[z²] by data set


def advance(
    parameters: Parameters, cells: Cells, columns: Columns, z: Float[Array, "all_columns cell"]
) -> tuple[Statistics, Float[Array, "all_columns cell"]]:
    """One Newton step for a chunk from its coordinates `z`; its sums, and the new coordinates."""
    f = mode.conditional_rates(parameters, cells, columns, z)
    step = mode.newton_step(parameters, cells, columns, f)
    return of_step(step, parameters, cells, columns), step.z


def of_step(step: Step, parameters: Parameters, cells: Cells, columns: Columns) -> Statistics:
    """The sums of a chunk whose cells have just taken a Newton step."""
    k, d = parameters.W.shape[1], parameters.d
    t, S = step.t, step.weight
    mean, leverage, variance = mode.corrected(step, parameters, cells, columns, LARGEST_VARIANCE)
    # Known covariates and factors are all regressors; covariates have no posterior variance.
    p = cells.covariates.shape[1]
    v = jnp.concatenate([cells.covariates.T, mean.z])
    second = (v[:, None] * v[None, :]).at[p:, p:].add(mean.covariance)
    n = p + k
    moments = jnp.concatenate([jnp.ones_like(v[:1]), v[:n], small.pack(second[:n, :n])])
    moments = moments * cells.mask
    # q is S (y - o - μ) in the regression of the working response y on [1, v].
    response = dot(mean.response.T, moments[: n + 1].T)
    if columns.value:
        cross = jnp.concatenate([v[n:, None], second[n:, :n]], axis=1)
        weight = jnp.asarray(columns.value, mean.f.dtype)[:, None] * cells.scale.T
        response = response - dot(S.T, jnp.sum(weight[:, None] * cross, axis=0).T)
    residual = (d * mean.alpha) ** 2 + d * t + (d * S) ** 2 * leverage
    channel = parameters.channel.statistics(cells.counts, mean.f, variance, cells.mask)
    normal, residual = dot(S.T, moments.T), dot(cells.mask, residual)
    spreads = _spreads(cells, jnp.einsum("iin->in", second[p:n, p:n]))
    return Statistics(normal, response, residual, moments.sum(axis=1), channel, spreads)


def _spreads(cells: Cells, squares: Float[Array, "factor cell"]) -> Spreads:
    """Sums of squares of factors over the cells of each data set; nothing where there is one."""
    if cells.datasets is None:
        return Spreads(jnp.zeros((0, len(squares))), jnp.zeros(0))
    inside = cells.datasets.T * cells.mask
    return Spreads(dot(inside, squares.T), jnp.sum(inside, axis=1))
