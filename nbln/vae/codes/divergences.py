"""How much a negative binomial code costs: divergences of count posteriors from their prior.

With the prior's dispersion r_p between them, KL(q ‖ p) of q = NB(m_q, r_q) from p = NB(m_p, r_p)
is a sum without cross terms, since the log ratio of two negative binomials of equal r is linear
in the count:

    KL(q ‖ p) = KL(NB(m_q, r_p) ‖ NB(m_p, r_p)) + D,    D = KL(NB(m_q, r_q) ‖ NB(m_q, r_p)).

The first is half a deviance (:func:`nbln.distributions.kl_negative_binomial`) and all there is
where dispersion is shared; the second, `dispersion_gap`, is an integral of elementary functions.
"""

import abc
from functools import partial
from typing import ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from nbln.arguments import check_whole
from nbln.distributions.divergence import kl_negative_binomial
from nbln.distributions.special import (
    as_float,
    bd0,
    inverse_gap,
    log1pmx,
)
from nbln.vae.codes.relaxed import Relaxation

# The integral ends where e^(−min(r_q, r_p) t) is e^−18: 2e-8 / 18 of D is above it.
_END = 18.0
# ... and begins where 1e-9 of D, or of a derivative in a logarithm, is below it.
_BELOW = 1e-9


class Counts(Protocol):
    """A negative binomial as divergences see it."""

    log_r: Array
    logit_p: Array

    @property
    def log_mean(self) -> Array: ...

    def draw(self, key: Array, relaxation: Relaxation | None) -> Array: ...


class _Integrand(eqx.Module):
    """What value and derivatives of D share at each node."""

    t: Array
    step: Array
    decay_q: Array  # e^(−r_q t)
    decay_p: Array
    decay: Array  # e^(−r_p t) − e^(−r_q t)
    bracket: Array
    s: Array  # 1 − e^(−t)
    y: Array  # m s / r_q
    curved: Array  # log1p(y) − y
    generating: Array  # E e^(−z t)
    excess: Array  # e^(−m t) / E e^(−z t) − 1


def _integrand(log_mean: Array, log_q: Array, log_p: Array, n_terms: int) -> _Integrand:
    m, q, p = jnp.exp(log_mean), jnp.exp(log_q), jnp.exp(log_p)
    low = jnp.minimum(q, p)
    end = jnp.log(_END / low)
    rough = 0.5 * (jnp.log(4 * _BELOW) - jnp.maximum(log_q, log_p) - log_mean - jnp.log1p(m / q))
    begin = jnp.minimum(rough, end - 1)
    step = (end - begin) / (n_terms - 1)
    j = jnp.arange(n_terms, dtype=step.dtype).reshape(-1, *[1] * step.ndim)
    t = jnp.exp(begin + step * j)
    s = -jnp.expm1(-t)
    y = m * s / q
    curved = log1pmx(y)
    exponent = q * (y + curved)
    generating = jnp.exp(-exponent)
    between = inverse_gap(t, s)
    excess = jnp.expm1(q * curved - m * t * s * between)
    bracket = generating * excess / t - jnp.expm1(-exponent) * between
    # Of two exponentials the larger is factored out, which leaves no difference of near equals.
    larger = jnp.exp(-low * t)
    fall = larger * jnp.expm1(-low * jnp.expm1(jnp.abs(log_q - log_p)) * t)
    decay_q = larger + jnp.where(log_q > log_p, fall, 0)
    decay_p = larger + jnp.where(log_q > log_p, 0, fall)
    decay = jnp.where(log_q > log_p, -fall, fall)
    return _Integrand(t, step, decay_q, decay_p, decay, bracket, s, y, curved, generating, excess)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _gap(log_mean: Array, log_q: Array, log_p: Array, n_terms: int) -> Array:
    f = _integrand(log_mean, log_q, log_p, n_terms)
    return f.step * jnp.sum(f.decay * f.bracket, axis=0)


@_gap.defjvp
def _gap_jvp(n_terms, primals, tangents):
    log_mean, log_q, log_p = primals
    f = _integrand(log_mean, log_q, log_p, n_terms)
    value = f.step * jnp.sum(f.decay * f.bracket, axis=0)
    share = f.y / (1 + f.y)
    by_mean = -f.decay * f.generating * (share + f.excess)
    bend = f.curved + f.y * share  # log1p(y) − y / (1 + y)
    by_q = f.t * f.decay_q * f.bracket + f.decay * f.generating * bend / f.s
    by_p = -f.t * f.decay_p * f.bracket
    slopes = (jnp.exp(log_mean), by_mean), (jnp.exp(log_q), by_q), (jnp.exp(log_p), by_p)
    tangent = sum(
        scale * jnp.sum(slope, axis=0) * tangent
        for (scale, slope), tangent in zip(slopes, tangents, strict=True)
    )
    return value, f.step * tangent


def dispersion_gap(log_mean, log_r_q, log_r_p, n_terms: int = 48) -> Array:
    """KL(NB(m, r_q) ‖ NB(m, r_p)) of two negative binomials of equal mean m, in nats.

    By log(z + r) = ∫ (e^(−t) − e^(−(z+r)t)) dt / t and the generating function G(t) = E e^(−z t) =
    (1 + m (1 − e^(−t)) / r_q)^(−r_q), the sum over all counts is

        D = ∫₀^∞ (e^(−r_p t) − e^(−r_q t)) [(1 − G) / (1 − e^(−t)) − (1 − e^(−m t)) / t] dt / t.

    In log t the integrand is analytic in a strip of half-width π/2 and falls off on both sides, so
    that the trapezoidal rule of step h is off by about e^(−π²/h) (Trefethen and Weideman 2014).
    The sum is cut off where less than 2e-9 of a nat is left above (the bracket is below 1.6 there)
    and, since |bracket| ≤ m t (1 + m/r_q) / 2, less than 1e-9 below.

    Parameters
    ----------
    log_mean, log_r_q, log_r_p
        Natural logs of m, r_q and r_p.
    n_terms
        Nodes. The range of log t is 12 for numbers about 1, where 24 terms are exact to 1e-8; it
        is 25 for m = 2e4 and r of 0.05 and 150, where 48 are exact to 1e-7.
    """
    log_mean, log_r_q, log_r_p = jnp.broadcast_arrays(*as_float(log_mean, log_r_q, log_r_p))
    return _gap(log_mean, log_r_q, log_r_p, n_terms)


@jax.custom_jvp
def _log_rising(z: Array, r: Array) -> Array:
    """lgamma(z + r) − lgamma(r) for real z ≥ 0, off by less than 1e-8 but for rounding."""
    return _rising(z, r)[0]


def _rising(z: Array, r: Array) -> tuple[Array, Array, Array]:
    """That and its derivatives: Stirling's series (DLMF 5.11) four higher, and recurrence."""
    low, high = r + 4, z + r + 4
    (below, below_slope), (above, above_slope) = _stirling(low), _stirling(high)
    product, product_slope = _product(z + r)
    first, first_slope = _product(r)
    log_ratio, log_high = jnp.log1p(z / low), jnp.log(high)
    value = z * log_high - z + (low - 0.5) * log_ratio + (above - below)
    by_z = log_high + above_slope - product_slope
    by_r = log_ratio + (above_slope - below_slope) - (product_slope - first_slope)
    return value - jnp.log(product / first), by_z, by_r


def _stirling(n: Array) -> tuple[Array, Array]:
    """lgamma(n) − (n − ½) log n + n − ½ log 2π, and digamma(n) − log n, for n ≥ 4."""
    inverse = 1 / n
    a = inverse * inverse
    value = inverse * (1 / 12 - a * (1 / 360 - a * (1 / 1260 - a * (1 / 1680 - a / 1188))))
    slope = a * (1 / 12 - a * (1 / 120 - a * (1 / 252 - a * (1 / 240 - a / 132))))
    return value, -0.5 * inverse - slope


def _product(n: Array) -> tuple[Array, Array]:
    """n (n + 1) (n + 2) (n + 3), and the derivative of its logarithm."""
    outer, inner = n * (n + 3), (n + 1) * (n + 2)
    return outer * inner, (2 * n + 3) * (1 / outer + 1 / inner)


@_log_rising.defjvp
def _log_rising_jvp(primals, tangents):
    value, by_z, by_r = _rising(*primals)
    return value, by_z * tangents[0] + by_r * tangents[1]


def log_ratio(z: Array, q: Counts, p: Counts) -> Array:
    """log q(z) − log p(z), also between counts: lgamma takes the place of factorials."""
    q_r, p_r = (jnp.broadcast_to(jnp.exp(of.log_r), z.shape) for of in (q, p))
    rising = _log_rising(z, q_r) - _log_rising(z, p_r)
    # log p = −softplus(−logit), log (1 − p) = −softplus(logit)
    zeros = p_r * jax.nn.softplus(-p.logit_p) - q_r * jax.nn.softplus(-q.logit_p)
    return rising + zeros + z * (jax.nn.softplus(p.logit_p) - jax.nn.softplus(q.logit_p))


class Divergence(eqx.Module):
    """How training computes KL(q ‖ p), in nats."""

    shares_dispersion: ClassVar[bool] = False  # posteriors have the prior's r

    @abc.abstractmethod
    def __call__(
        self, q: Counts, p: Counts, key: Array, relaxation: Relaxation | None
    ) -> Float[Array, "cell latent"]:
        """Of each latent."""


class MonteCarlo(Divergence):
    """Mean of log q − log p over draws of q: five in the paper, which found no gain from more.

    In training the draws are relaxed, as in the paper, and so is its value: 2.09 where it is 1.34
    at temperature 1, 1.35 at 0.1. With hard draws it is unbiased, but has no gradient.
    """

    # A batch averages over its cells; each further draw costs as much as the code that is decoded.
    n_samples: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        check_whole("MonteCarlo(n_samples", self.n_samples, 1)

    def __call__(self, q, p, key, relaxation):
        keys = jax.random.split(key, self.n_samples)
        z = jax.vmap(lambda one: q.draw(one, relaxation))(keys)
        return jnp.mean(log_ratio(z, q, p), axis=0)


class DispersionSharing(Divergence):
    """The closed form for posteriors that have the prior's r; half a deviance of means."""

    shares_dispersion: ClassVar[bool] = True

    def __call__(self, q, p, key, relaxation):
        del key, relaxation
        return kl_negative_binomial(q.log_mean, p.log_mean, jnp.exp(p.log_r))


class ExactSum(Divergence):
    """The divergence itself, without draws: a closed form and the sum of `dispersion_gap`."""

    # Off by 1e-6 where r and the mean are within e^±3, and by 2e-4 of D at worst.
    n_terms: int = eqx.field(static=True, default=24)

    def __check_init__(self):
        check_whole("ExactSum(n_terms", self.n_terms, 2)

    def __call__(self, q, p, key, relaxation):
        del key, relaxation
        shared = kl_negative_binomial(q.log_mean, p.log_mean, jnp.exp(p.log_r))
        return shared + dispersion_gap(q.log_mean, q.log_r, p.log_r, self.n_terms)


def kl_poisson(log_rate_q: Array, log_rate_p: Array) -> Array:
    """KL of two Poissons, λ_p (1 − δ + δ log δ) with δ = λ_q / λ_p: the limit of large r."""
    rate_p = jnp.exp(log_rate_p)
    difference = rate_p * jnp.expm1(log_rate_q - log_rate_p)
    return bd0(jnp.exp(log_rate_q), rate_p, difference)
