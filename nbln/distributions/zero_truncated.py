"""The Poisson and the negative binomial without their zero, exact in float32.

With a = −log P(0) and log-pmf ℓ of the distribution before truncation, the truncated log-pmf is
ℓ − log(1 − e^(−a)), also for large means: nowhere is the second term left out. Where zero is
likely (a < 1), both terms hold the log of the mean; it is cancelled analytically, so that
P(X = 1), which tends to 1, is exact down to a mean of 1e-20. In the derivatives the second term
appears as b(a) = a / expm1(a) = 1 − `bernoulli_gap`.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.nn import log1mexp
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from nbln.distributions.negative_binomial import (
    log_total_excess,
    nb_log_prob,
    nb_tails,
    score_concentration,
    score_log_mean,
    shares,
)
from nbln.distributions.poisson import POISSON_CONCENTRATION, poisson_log_prob
from nbln.distributions.sampling import (
    sample_negative_binomial,
    sample_poisson,
    sample_truncated_exponential,
)
from nbln.distributions.special import as_float, as_parameters, bernoulli_gap, bounded_exp


@jax.custom_jvp
def _ztp_log_prob(x: Array, log_rate: Array) -> Array:
    rate = bounded_exp(log_rate)
    small = rate < 1
    # For a small rate the log-pmf is (x − 1) log λ − log x! − log(expm1(λ) / λ).
    base = poisson_log_prob(jnp.where(small, x - 1, x), log_rate)
    r = jnp.where(small, rate, 1)
    shifted = base + r - jnp.log(jnp.maximum(x, 1)) + jnp.log1p(-bernoulli_gap(r))
    plain = base - log1mexp(jnp.where(small, 1, rate))
    return jnp.where(x >= 1, jnp.minimum(jnp.where(small, shifted, plain), 0), -jnp.inf)


@_ztp_log_prob.defjvp
def _ztp_log_prob_jvp(primals, tangents):
    x, log_rate = primals
    rate = bounded_exp(log_rate)
    score = (x - 1) - (rate - bernoulli_gap(rate))
    return _ztp_log_prob(x, log_rate), score * tangents[1]


def zt_poisson_log_prob(x: ArrayLike, log_rate: ArrayLike) -> Array:
    """Log-pmf of the Poisson given that it is not zero; counts ``x`` are data."""
    (log_rate,) = as_float(log_rate)
    return _ztp_log_prob(lax.stop_gradient(jnp.asarray(x, log_rate.dtype)), log_rate)


@jax.custom_jvp
def _neg_log_zero(log_mean: Array, concentration: Array) -> Array:
    """a = −log P(0) = θ log1p(μ/θ) of the negative binomial."""
    zero = jnp.zeros_like(log_mean)
    excess = log_total_excess(zero, log_mean, concentration)
    return -concentration * excess - score_log_mean(zero, log_mean, concentration)


@_neg_log_zero.defjvp
def _neg_log_zero_jvp(primals, tangents):
    zero = jnp.zeros_like(primals[0])
    tangent = -score_log_mean(zero, *primals) * tangents[0]
    return _neg_log_zero(*primals), tangent - log_total_excess(zero, *primals) * tangents[1]


@jax.custom_jvp
def _zero_shares(log_mean: Array, concentration: Array) -> tuple[Array, Array]:
    """∂ log a / ∂ log μ and ∂ log a / ∂ log θ; their sum is one, as a/θ depends on μ/θ alone."""
    a = _neg_log_zero(log_mean, concentration)
    _, w = shares(log_mean, concentration)
    excess = log_total_excess(jnp.zeros_like(log_mean), log_mean, concentration)
    return w * bounded_exp(log_mean) / a, -concentration * excess / a


@_zero_shares.defjvp
def _zero_shares_jvp(primals, tangents):
    by_mean, by_concentration = _zero_shares(*primals)
    v, _ = shares(*primals)
    dlog_odds = tangents[0] - tangents[1] / primals[1]
    change = by_mean * (by_concentration - v) * dlog_odds
    return (by_mean, by_concentration), (change, -change)


@jax.custom_jvp
def _ztnb_log_prob(x: Array, log_mean: Array, concentration: Array) -> Array:
    a = _neg_log_zero(log_mean, concentration)
    odds = bounded_exp(log_mean) / concentration
    small = (a < 1) & (odds < 1)
    # x P(x) is proportional to the probability of x − 1 at θ + 1 and the same odds μ/θ.
    base = nb_log_prob(
        jnp.where(small, x - 1, x),
        log_mean + jnp.where(small, jnp.log1p(1 / concentration), 0),
        concentration + small,
    )
    s = jnp.where(small, a, 1)
    by_mean, _ = _zero_shares(log_mean, concentration)
    shifted = base + s + jnp.log1p(odds) - jnp.log(jnp.maximum(x, 1))
    shifted = shifted + jnp.log(by_mean) + jnp.log1p(-bernoulli_gap(s))
    plain = base - log1mexp(jnp.where(small, 1, a))
    return jnp.where(x >= 1, jnp.minimum(jnp.where(small, shifted, plain), 0), -jnp.inf)


@_ztnb_log_prob.defjvp
def _ztnb_log_prob_jvp(primals, tangents):
    _, log_mean, concentration = primals
    _, dlog_mean, dconcentration = tangents
    b = 1 - bernoulli_gap(_neg_log_zero(log_mean, concentration))
    by_mean, by_concentration = _zero_shares(log_mean, concentration)
    slope = score_log_mean(*primals) - by_mean * b
    slope_concentration = score_concentration(*primals) - by_concentration * b / concentration
    return _ztnb_log_prob(*primals), slope * dlog_mean + slope_concentration * dconcentration


def zt_nb_log_prob(x: ArrayLike, log_mean: ArrayLike, concentration: ArrayLike) -> Array:
    """Log-pmf of the negative binomial given that it is not zero; counts ``x`` are data."""
    log_mean, concentration = as_float(log_mean, concentration)
    x = lax.stop_gradient(jnp.asarray(x, log_mean.dtype))
    return _ztnb_log_prob(x, log_mean, concentration)


class ZeroTruncatedPoisson(Distribution):
    """Poisson counts given that they are not zero.

    Parameters
    ----------
    log_rate
        Natural log of the rate λ before truncation.
    """

    arg_constraints: ClassVar = {"log_rate": constraints.real}
    support = constraints.positive_integer  # pyright: ignore[reportAssignmentType]

    def __init__(self, log_rate: ArrayLike, *, validate_args: bool | None = None):
        (self.log_rate,) = as_float(log_rate)
        super().__init__(batch_shape=jnp.shape(log_rate), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Counts (int32): arrivals of a Poisson process, of which the first is sure to come."""
        key_first, key_rest = random.split(key)
        rate = jnp.broadcast_to(jnp.exp(self.log_rate), sample_shape + self.batch_shape)
        return 1 + sample_poisson(key_rest, rate - sample_truncated_exponential(key_first, rate))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Natural log probability."""
        return zt_poisson_log_prob(value, self.log_rate)

    @property
    def mean(self) -> Array:
        """λ / (1 − e^(−λ))."""
        rate = jnp.exp(self.log_rate)
        return 1 + (rate - bernoulli_gap(rate))

    @property
    def variance(self) -> Array:
        """m (1 − λ / expm1(λ)), with m the mean."""
        return self.mean * bernoulli_gap(jnp.exp(self.log_rate))

    def cdf(self, value: ArrayLike) -> Array:
        """P(X ≤ value)."""
        above = nb_tails(value, self.log_rate, POISSON_CONCENTRATION)[1]
        nonzero = -jnp.expm1(-bounded_exp(self.log_rate))
        return jnp.where(jnp.asarray(value) < 1, 0, 1 - above / nonzero)


class ZeroTruncatedNegativeBinomial(Distribution):
    """Negative binomial counts given that they are not zero.

    Parameters
    ----------
    log_mean
        Natural log of the mean μ before truncation.
    concentration
        θ > 0; the variance before truncation is μ + μ² / θ.
    """

    arg_constraints: ClassVar = {
        "log_mean": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.positive_integer  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        log_mean: ArrayLike,
        concentration: ArrayLike,
        *,
        validate_args: bool | None = None,
    ):
        self.log_mean, self.concentration = as_parameters(log_mean, concentration)
        shape = jnp.broadcast_shapes(self.log_mean.shape, self.concentration.shape)
        super().__init__(batch_shape=shape, validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Counts (int32).

        The negative binomial counts the births until time log1p(μ/θ), if after k births the
        rate of the next is θ + k (Kendall 1948). So the time of the first birth is drawn, given
        that there is one; those after it are negative binomial with θ + 1.
        """
        key_first, key_rest = random.split(key)
        shape = sample_shape + self.batch_shape
        log_mean, theta = (jnp.broadcast_to(p, shape) for p in (self.log_mean, self.concentration))
        a = _neg_log_zero(log_mean, theta)
        left = (a - sample_truncated_exponential(key_first, a)) / theta
        return 1 + sample_negative_binomial(key_rest, (theta + 1) * jnp.expm1(left), theta + 1)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Natural log probability."""
        return zt_nb_log_prob(value, self.log_mean, self.concentration)

    @property
    def mean(self) -> Array:
        """μ / (1 − P(0)), with P(0) before truncation."""
        return jnp.exp(self.log_mean) / -jnp.expm1(
            -_neg_log_zero(self.log_mean, self.concentration)
        )

    @property
    def variance(self) -> Array:
        """m (1 + μ + μ / θ − m), with m the mean."""
        mu = jnp.exp(self.log_mean)
        return self.mean * jnp.maximum(1 - self.mean + mu + mu / self.concentration, 0)

    def cdf(self, value: ArrayLike) -> Array:
        """P(X ≤ value); loses digits in float32 where θ < 1e-2, as P(0) is then near one."""
        above = nb_tails(value, self.log_mean, self.concentration)[1]
        nonzero = -jnp.expm1(-_neg_log_zero(self.log_mean, self.concentration))
        return jnp.where(jnp.asarray(value) < 1, 0, 1 - above / nonzero)
