"""The negative binomial by its log mean, exact in float32, with analytic derivatives.

With mean μ, concentration θ, n = x + θ, t = θ + μ and δ = (x − μ) / t,

    log P(x) = θ L − bd0(x, μ n/t) − ½ log(x n/θ) − ½ log 2π + S(n) − S(θ) − S(x)   (x > 0)
    log P(0) = θ (L + δ)
    L        = log(n/t) − δ
    ∂/∂log μ = θ δ
    ∂/∂θ     = L + [ψ(n) − log n] − [ψ(θ) − log θ]

This is the saddle-point form of Loader (2000); bd0 and S are functions of
:mod:`nbln.distributions.special`, ψ is digamma. No term is a difference of large numbers, for x
up to 1e6, μ in 1e-20..1e7 and θ in 1e-6..1e12.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from nbln.distributions.incomplete_beta import beta_fraction
from nbln.distributions.sampling import sample_negative_binomial
from nbln.distributions.special import (
    HALF_LOG_TWO_PI,
    LOG_MEAN_BOUND,
    as_float,
    as_parameters,
    bd0,
    bounded_exp,
    digamma_increment,
    digamma_rise,
    log_ratio_excess,
    stirling_remainder,
)


@jax.custom_jvp
def shares(log_mean: Array, concentration: Array) -> tuple[Array, Array]:
    """μ / (θ + μ) and θ / (θ + μ); derivatives of any order neither overflow nor cancel."""
    mean = bounded_exp(log_mean)
    total = concentration + mean
    return mean / total, concentration / total


@shares.defjvp
def _shares_jvp(primals, tangents):
    (log_mean, concentration), (dlog_mean, dconcentration) = primals, tangents
    v, w = shares(log_mean, concentration)
    dv = v * w * (dlog_mean - dconcentration / concentration)
    return (v, w), (dv, -dv)


@jax.custom_jvp
def relative_residual(x: Array, log_mean: Array, concentration: Array) -> Array:
    """δ = (x − μ) / (θ + μ)."""
    mean = bounded_exp(log_mean)
    return (x - mean) / (concentration + mean)


@relative_residual.defjvp
def _relative_residual_jvp(primals, tangents):
    x, log_mean, concentration = primals
    _, dlog_mean, dconcentration = tangents
    delta = relative_residual(x, log_mean, concentration)
    v, _ = shares(log_mean, concentration)
    total = concentration + bounded_exp(log_mean)
    return delta, -v * (x + concentration) / total * dlog_mean - delta / total * dconcentration


@jax.custom_jvp
def score_log_mean(x: Array, log_mean: Array, concentration: Array) -> Array:
    """∂ log P(x) / ∂ log μ = θ (x − μ) / (θ + μ); x is data."""
    _, w = shares(log_mean, concentration)
    return w * (x - bounded_exp(log_mean))


@score_log_mean.defjvp
def _score_log_mean_jvp(primals, tangents):
    x, log_mean, concentration = primals
    _, dlog_mean, dconcentration = tangents
    v, w = shares(log_mean, concentration)
    curvature = -v * w * (x + concentration)
    cross = v * relative_residual(x, log_mean, concentration)
    score = score_log_mean(x, log_mean, concentration)
    return score, curvature * dlog_mean + cross * dconcentration


@jax.custom_jvp
def log_total_excess(x: Array, log_mean: Array, concentration: Array) -> Array:
    """L = log((θ + x) / (θ + μ)) − δ, never positive."""
    total = concentration + bounded_exp(log_mean)
    delta = relative_residual(x, log_mean, concentration)
    excess = log_ratio_excess((concentration + x) / total, delta)
    # `total` stops growing where `bounded_exp` clips; log t goes on as log μ.
    return excess - jnp.maximum(log_mean - LOG_MEAN_BOUND, 0)


@log_total_excess.defjvp
def _log_total_excess_jvp(primals, tangents):
    x, log_mean, concentration = primals
    _, dlog_mean, dconcentration = tangents
    delta = relative_residual(x, log_mean, concentration)
    v, _ = shares(log_mean, concentration)
    tangent = v * delta * dlog_mean + delta * delta / (x + concentration) * dconcentration
    return log_total_excess(x, log_mean, concentration), tangent


@jax.custom_jvp
def score_concentration(x: Array, log_mean: Array, concentration: Array) -> Array:
    """∂ log P(x) / ∂θ; x is data.

    Where ψ is moved up, from θ to z, the two logarithms of L + [ψ(n) − log n] − [ψ(θ) − log θ] are
    one: with ε = (x θ/z − μ) / t it is log(1 + ε) − ε + x (R − (1 − θ/z) / t).
    """
    mean = bounded_exp(log_mean)
    z, rise = digamma_rise(x, concentration)
    lowered, moved = concentration / z, (z - concentration) / z
    inverse = 1 / (concentration + mean)
    ratio = lowered * (z + x) * inverse
    # `mean` stops growing where `bounded_exp` clips; log t goes on as log μ.
    rest = x * (rise - moved * inverse) - jnp.maximum(log_mean - LOG_MEAN_BOUND, 0)
    return log_ratio_excess(ratio, (x * lowered - mean) * inverse, rest)


@score_concentration.defjvp
def _score_concentration_jvp(primals, tangents):
    x, log_mean, concentration = primals
    _, dlog_mean, dconcentration = tangents
    v, _ = shares(log_mean, concentration)
    delta = relative_residual(x, log_mean, concentration)
    bend = jax.jvp(lambda t: digamma_increment(x, t), (concentration,), (dconcentration,))[1]
    tangent = v * delta * dlog_mean + delta * delta / (x + concentration) * dconcentration + bend
    return score_concentration(*primals), tangent


def half_deviance(x: Array, log_mean: Array, concentration: Array, residual: Array) -> Array:
    """bd0(x, μ n/t), for x > 0; with −θ L it makes half the deviance of a count.

    ``residual`` is θ (x − μ) / (θ + μ), the difference of the arguments of bd0.
    """
    mean = bounded_exp(log_mean)
    expected = mean * ((x + concentration) / (mean + concentration))
    # `mean` stops falling where `bounded_exp` clips; −x log μ goes on.
    return bd0(x, expected, residual) - x * jnp.minimum(log_mean + LOG_MEAN_BOUND, 0)


@jax.custom_jvp
def _log_prob(x: Array, log_mean: Array, concentration: Array) -> Array:
    residual = score_log_mean(x, log_mean, concentration)
    excess = log_total_excess(x, log_mean, concentration)
    count = jnp.where(x > 0, x, 1)
    total = count + concentration
    positive = (
        -half_deviance(count, log_mean, concentration, residual)
        - 0.5 * jnp.log(count * (total / concentration))
        + (stirling_remainder(total, 1) - stirling_remainder(count, 1))
        - (stirling_remainder(concentration) + HALF_LOG_TWO_PI)
    )
    return concentration * excess + jnp.where(x > 0, positive, residual)


def _log_prob_jvp(primals, tangents):
    value = _log_prob(*primals)
    _, dlog_mean, dconcentration = tangents
    tangent = jnp.zeros_like(value)
    if not isinstance(dlog_mean, SymbolicZero):
        tangent = tangent + score_log_mean(*primals) * dlog_mean
    if not isinstance(dconcentration, SymbolicZero):
        tangent = tangent + score_concentration(*primals) * dconcentration
    return value, tangent


_log_prob.defjvp(_log_prob_jvp, symbolic_zeros=True)


def nb_log_prob(x: ArrayLike, log_mean: ArrayLike, concentration: ArrayLike) -> Array:
    """Log-pmf of the negative binomial by its log mean.

    Parameters
    ----------
    x
        Counts. They are data: derivatives with respect to them are zero.
    log_mean
        Natural log of the mean μ. Beyond ±60 its asymptotes replace the log-pmf, so that no
        value overflows; −inf is a mean of zero.
    concentration
        θ > 0; the variance is μ + μ² / θ.

    Returns
    -------
    Array
        Natural log probabilities, broadcast over the arguments, of the parameters' dtype.
    """
    log_mean, concentration = as_float(log_mean, concentration)
    x = lax.stop_gradient(jnp.asarray(x, log_mean.dtype))
    return _log_prob(x, log_mean, concentration)


def nb_tails(x: ArrayLike, log_mean: ArrayLike, concentration: ArrayLike) -> tuple[Array, Array]:
    """P(X ≤ x) and P(X > x) of the negative binomial.

    P(X ≤ x) is the incomplete beta function I_w(θ, x + 1) with w = θ / (θ + μ). Of the two
    tails, the one that does not hold the mean is the pmf over a continued fraction, accurate
    relative to its own size; the other is one less it. Not reverse-differentiable.
    """
    log_mean, concentration = as_float(log_mean, concentration)
    x = jnp.floor(jnp.asarray(x, log_mean.dtype))
    x, log_mean, concentration = jnp.broadcast_arrays(x, log_mean, concentration)
    successor = jnp.maximum(x, 0) + 1
    v, w = shares(log_mean, concentration)
    distance = w * (bounded_exp(log_mean) - successor)
    lower = distance >= 0
    a = jnp.where(lower, concentration, successor)
    b = jnp.where(lower, successor, concentration)
    fraction = beta_fraction(
        a, b, jnp.where(lower, w, v), jnp.where(lower, v, w), jnp.abs(distance)
    )
    pmf = jnp.exp(nb_log_prob(successor, log_mean, concentration))
    tail = jnp.clip(successor * pmf / fraction, 0, 1)
    below = jnp.where(x < 0, 0, jnp.where(lower, tail, 1 - tail))
    return below, jnp.where(x < 0, 1, jnp.where(lower, 1 - tail, tail))


class NegativeBinomialLogMean(Distribution):
    """Negative binomial counts by the log of their mean.

    x ~ Poisson(μ g), g ~ Gamma(θ, θ); variance μ + μ² / θ.

    Parameters
    ----------
    log_mean
        Natural log of the mean μ.
    concentration
        θ > 0, the inverse of the dispersion α.
    """

    arg_constraints: ClassVar = {
        "log_mean": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.nonnegative_integer  # pyright: ignore[reportAssignmentType]

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

    @classmethod
    def from_mean(cls, mean: ArrayLike, concentration: ArrayLike, **kwargs):
        """By the mean μ and the inverse dispersion θ."""
        (mean,) = as_float(mean)
        return cls(jnp.log(mean), concentration, **kwargs)

    @classmethod
    def from_dispersion(cls, mean: ArrayLike, dispersion: ArrayLike, **kwargs):
        """By the mean μ and the dispersion α = 1 / θ.

        α below 1e-20 is taken as 1e-20, which gives the Poisson to 1e-6 for counts up to 1e7.
        """
        (dispersion,) = as_float(dispersion)
        return cls.from_mean(mean, 1 / jnp.maximum(dispersion, 1e-20), **kwargs)

    @classmethod
    def from_logits(cls, total_count: ArrayLike, logits: ArrayLike, **kwargs):
        """By θ = ``total_count`` and the logit of μ / (θ + μ), as in NumPyro and PyTorch."""
        total_count, logits = as_float(total_count, logits)
        return cls(jnp.log(total_count) + logits, total_count, **kwargs)

    @classmethod
    def from_odds(cls, mean: ArrayLike, odds: ArrayLike, **kwargs):
        """By the mean μ and the odds φ = θ / μ; the variance is μ (1 + 1 / φ)."""
        mean, odds = as_float(mean, odds)
        return cls.from_mean(mean, mean * odds, **kwargs)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Counts (int32); exact for tiny and for large means."""
        mean = jnp.broadcast_to(self.mean, sample_shape + self.batch_shape)
        return sample_negative_binomial(key, mean, self.concentration)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Natural log probability."""
        return nb_log_prob(value, self.log_mean, self.concentration)

    @property
    def mean(self) -> Array:
        """μ."""
        return jnp.broadcast_to(jnp.exp(self.log_mean), self.batch_shape)

    @property
    def variance(self) -> Array:
        """μ + μ² / θ."""
        return self.mean * (1 + self.mean / self.concentration)

    def cdf(self, value: ArrayLike) -> Array:
        """P(X ≤ value)."""
        return nb_tails(value, self.log_mean, self.concentration)[0]
