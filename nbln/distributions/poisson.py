"""The Poisson by its log rate, exact in float32 also for large counts."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from nbln.distributions.special import (
    HALF_LOG_TWO_PI,
    LOG_MEAN_BOUND,
    as_float,
    bd0,
    bounded_exp,
    stirling_remainder,
)

# The concentration θ at which a negative binomial is the Poisson to the last digit of float64:
# for large θ their log-pmfs differ by [(x − μ)² − x] / 2θ.
POISSON_CONCENTRATION = 1e30


@jax.custom_jvp
def _log_prob(x: Array, log_rate: Array) -> Array:
    rate = bounded_exp(log_rate)
    count = jnp.where(x > 0, x, 1)
    # `rate` stops falling where `bounded_exp` clips; −x log λ goes on.
    deviance = bd0(count, rate) - count * jnp.minimum(log_rate + LOG_MEAN_BOUND, 0)
    positive = -deviance - 0.5 * jnp.log(count) - stirling_remainder(count, 1) - HALF_LOG_TWO_PI
    return jnp.where(x > 0, positive, -rate)


@_log_prob.defjvp
def _log_prob_jvp(primals, tangents):
    x, log_rate = primals
    return _log_prob(x, log_rate), (x - bounded_exp(log_rate)) * tangents[1]


def poisson_log_prob(x: ArrayLike, log_rate: ArrayLike) -> Array:
    """Log-pmf of the Poisson by its natural log rate; counts ``x`` are data.

    For x > 0 it is −bd0(x, λ) − ½ log(2πx) − S(x) (Loader 2000); ∂/∂log λ = x − λ.
    """
    (log_rate,) = as_float(log_rate)
    return _log_prob(lax.stop_gradient(jnp.asarray(x, log_rate.dtype)), log_rate)
