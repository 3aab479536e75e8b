"""Elementary functions that keep count likelihoods exact in float32.

The functions are elementwise, keep float32 and float64, and work under ``jit``, ``vmap`` and
differentiation of any order. The saddle-point form of a log-pmf (C. Loader, 2000, *Fast and
accurate computation of binomial probabilities*) replaces differences of ``lgamma``, which lose
all digits for large arguments, by :func:`bd0` and :func:`stirling_remainder`.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# Log means are clipped to ± this before exp(): e^60 times a concentration of 1e12 is 1.1e38, and
# float32 ends at 3.4e38.
LOG_MEAN_BOUND = 60.0

# DLMF 5.10.1: continued fraction of the Stirling remainder.
_BINET = (
    1 / 12,
    1 / 30,
    53 / 210,
    195 / 371,
    22999 / 22737,
    29944523 / 19733142,
    109535241009 / 48264275462,
)
# DLMF 5.11.2: Bernoulli numbers B_{2k} / 2k of the digamma expansion.
_DIGAMMA = (
    1 / 12,
    -1 / 120,
    1 / 252,
    -1 / 240,
    1 / 132,
    -691 / 32760,
    1 / 12,
    -3617 / 8160,
    43867 / 14364,
    -174611 / 6600,
)
# DLMF 24.2.1: B_{2k} / (2k)!, the even Taylor coefficients of a / expm1(a) from a² on.
_BERNOULLI = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
    -3617 / 10670622842880000,
    43867 / 5109094217170944000,
    -174611 / 802857662698291200000,
)


def as_float(*values: ArrayLike) -> tuple[Array, ...]:
    """Arrays of the common floating dtype of ``values``: float64 if one is, else float32."""
    dtype = jnp.promote_types(jnp.result_type(*values), jnp.float32)
    return tuple(jnp.asarray(value, dtype) for value in values)


def as_parameters(*values: ArrayLike) -> tuple[Array, ...]:
    """Parameters of a distribution: :func:`as_float`, of equal rank and not yet broadcast."""
    arrays = as_float(*values)
    rank = max(array.ndim for array in arrays)
    return tuple(array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays)


def bounded_exp(log_value: Array) -> Array:
    """``exp`` of a value clipped to ±60, finite and non-zero in float32."""
    return jnp.exp(jnp.clip(log_value, -LOG_MEAN_BOUND, LOG_MEAN_BOUND))


def _is_single(value: Array) -> bool:
    return value.dtype == jnp.float32


def _polynomial(coefficients, x: Array) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _log1pmx_series(r: Array) -> Array:
    """log1p(r) − r for |r| < ½, through log1p(r) = 2 atanh(s) with s = r / (2 + r)."""
    s = r / (2 + r)
    s2 = s * s
    # At r = −½, where the series converges slowest, 5e-8 and 7e-20 of the result are left out.
    terms = 6 if _is_single(r) else 18
    return s * (2 * s2 * _polynomial([1 / (2 * k + 3) for k in range(terms)], s2) - r)


@jax.custom_jvp
def _log1pmx(r: Array) -> Array:
    small = jnp.abs(r) < 0.5
    return jnp.where(small, _log1pmx_series(jnp.where(small, r, 0)), jnp.log1p(r) - r)


@_log1pmx.defjvp
def _log1pmx_jvp(primals, tangents):
    (r,), (dr,) = primals, tangents
    return _log1pmx(r), -r / (1 + r) * dr


def log1pmx(r: ArrayLike) -> Array:
    """``log1p(r) − r`` for r > −1, without cancellation near zero."""
    return _log1pmx(*as_float(r))


def log_ratio_excess(ratio: Array, r: Array, rest: ArrayLike = 0.0) -> Array:
    """``log(ratio) − r + rest`` for ``ratio`` = 1 + r, both given: neither is exact everywhere.

    Near zero r alone is used, elsewhere the ratio, which may be near zero itself. The rest is added
    before the choice, not after: a sum in front of a sum over cells XLA hands, with that sum, to a
    library that takes several times as long on a CPU as the loop which ends in a choice.
    """
    small = jnp.abs(r) < 0.5
    return jnp.where(
        small, _log1pmx_series(jnp.where(small, r, 0)) + rest, jnp.log(ratio) - r + rest
    )


def bd0(x: ArrayLike, m: ArrayLike, d: ArrayLike | None = None) -> Array:
    """Half deviance ``x log(x / m) − (x − m)`` of a count x under a Poisson mean m (Loader 2000).

    Parameters
    ----------
    x, m
        Positive values.
    d
        ``x − m``, where the caller has it more exactly than by subtraction.
    """
    x, m = as_float(x, m)
    d = x - m if d is None else jnp.asarray(d, x.dtype)
    r = d / m
    small = jnp.abs(r) < 0.5
    s = jnp.where(small, r, 0)
    near = m * ((1 + s) * _log1pmx_series(s) + s * s)
    return jnp.where(small, near, x * jnp.log(x / m) - d)


def _binet(t: Array, at_least: int) -> Array:
    """Stirling remainder of t ≥ ``at_least``; small t are first moved up by the recurrence."""
    # At t = floor the fraction of so many levels is off by 2e-8 and 8e-17; above it, by less.
    floor, levels = (2, 6) if _is_single(t) else (8, 7)
    shift = max(floor - at_least, 0)
    small = t < floor
    z = jnp.where(small, t + shift, t)
    fraction = z
    for coefficient in _BINET[levels - 1 : 0 : -1]:
        fraction = z + coefficient / fraction
    steps = sum((t + (k + 0.5)) * jnp.log1p(1 / (t + k)) - 1 for k in range(shift))
    return _BINET[0] / fraction + jnp.where(small, steps, 0)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _remainder(t: Array, at_least: int) -> Array:
    return _binet(t, at_least)


@_remainder.defjvp
def _remainder_jvp(at_least, primals, tangents):
    (t,), (dt,) = primals, tangents
    return _remainder(t, at_least), -digamma_remainder(t) * dt


def stirling_remainder(t: ArrayLike, at_least: int = 0) -> Array:
    """S(t) = lgamma(t) − (t − ½) log t + t − ½ log 2π, for t > 0.

    ``at_least`` is a lower bound of t, such as 1 for positive counts; a higher one saves
    logarithms.
    """
    return _remainder(*as_float(t), at_least)


def _digamma_expansion(t: Array) -> tuple[int, int]:
    """By how much small t are moved up, and the number of terms of the expansion there.

    The expansion is off by 1e-9 in float32 and 3e-18 in float64 at the smallest arguments.
    """
    return (4, 5) if _is_single(t) else (8, 10)


def digamma_remainder(t: ArrayLike) -> Array:
    """D(t) = log t − 1 / (2t) − digamma(t) = −S′(t), for t > 0."""
    (t,) = as_float(t)
    shift, terms = _digamma_expansion(t)
    small = t < shift
    z = jnp.where(small, t + shift, t)
    s = jnp.where(small, t, 1)
    steps = sum((s + (k + 0.5)) / (s + k) / (s + (k + 1)) for k in range(shift))
    steps = steps - jnp.log1p(shift / s)
    a = 1 / (z * z)
    return a * _polynomial(_DIGAMMA[:terms], a) + jnp.where(small, steps, 0)


def digamma_rise(x: Array, t: Array) -> tuple[Array, Array]:
    """z ≥ t and R with ``digamma(t + x) − digamma(t)`` = log((z + x) / z) + x R, for x ≥ 0, t > 0.

    R has no logarithm, and z has the shape of t: with another logarithm of what depends on x,
    this one makes a single one.
    """
    shift, terms = _digamma_expansion(t)
    small = t < shift
    z = jnp.where(small, t + shift, t)
    # Divisions of what has the shape of t alone are few; those by x + t are what takes time.
    inverse_z, inverse_n = 1 / z, 1 / (z + x)
    slope = _divided_difference(_DIGAMMA[:terms], inverse_z**2, inverse_n**2)
    far = inverse_n * inverse_z * (0.5 + (inverse_z + inverse_n) * slope)
    s = jnp.where(small, t, 1)
    m = s + x
    inverse = [jnp.where(small, 1 / (s + k), 0) for k in range(shift)]
    # Σ_k 1 / ((s + k) (m + k)), two terms over one denominator.
    steps = sum(
        ((m + (k + 1)) * inverse[k] + (m + k) * inverse[k + 1]) / ((m + k) * (m + (k + 1)))
        for k in range(0, shift, 2)
    )
    return z, far + steps


def digamma_increment(x: ArrayLike, t: ArrayLike) -> Array:
    """Increase of ``digamma − log`` from t to t + x, exact also where x ≪ t.

    ∂/∂t [lgamma(t + x) − lgamma(t)] is this increment plus log((t + x) / t).
    """
    x, t = as_float(x, t)
    z, rise = digamma_rise(x, t)
    # log((t + x) / t) − log((z + x) / z)
    return x * rise - jnp.log1p(x * ((z - t) / t / (z + x)))


def _divided_difference(coefficients, a: Array, b: Array) -> Array:
    """[F(a) − F(b)] / (a − b) of F(y) = Σ_k coefficients[k] y^(k+1), by synthetic division."""
    value = jnp.full_like(a, coefficients[-1])
    slope = value
    for coefficient in coefficients[-2::-1]:
        value = value * a + coefficient
        slope = slope * b + value
    return slope


def bernoulli_gap(a: ArrayLike) -> Array:
    """``1 − a / expm1(a)`` for a ≥ 0: a / 2 near zero, one for large a."""
    (a,) = as_float(a)
    small = a < 1
    s = jnp.where(small, a, 0)
    b = jnp.where(small, 1, a)
    # At a = 1, 5e-8 and 2e-17 of the result are left out.
    terms = 4 if _is_single(a) else 10
    near = s * (0.5 - s * _polynomial(_BERNOULLI[:terms], s * s))
    decay = jnp.exp(-b)
    return jnp.where(small, near, 1 - b * decay / (1 - decay))


def inverse_gap(a: Array, s: Array) -> Array:
    """``1 / s − 1 / a`` for a > 0 and s = 1 − e^(−a): ½ near zero, one for large a."""
    small = a < 1
    t = jnp.where(small, a, 0)
    # At a = 1, 2e-8 and 2e-17 of the result are left out.
    terms = 4 if _is_single(a) else 10
    return jnp.where(small, 0.5 + t * _polynomial(_BERNOULLI[:terms], t * t), 1 / s - 1 / a)
