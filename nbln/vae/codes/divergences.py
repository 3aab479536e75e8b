"""How much a negative binomial code costs: divergences of count posteriors from their prior.

With the prior's dispersion r_p between them, KL(q ‖ p) of q = NB(m_q, r_q) from p = NB(m_p, r_p)
is a sum without cross terms, since the log ratio of two negative binomials of equal r is linear
in the count:

    KL(q ‖ p) = KL(NB(m_q, r_p) ‖ NB(m_p, r_p)) + D,    D = KL(NB(m_q, r_q) ‖ NB(m_q, r_p)).

The first is half a deviance (:func:`nbln.distributions.kl_negative_binomial`) and all there is
where dispersion is shared; the second, `dispersion_gap`, is an integral of elementary functions.
"""

import abc
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax
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

# The integral ends where e^(−min(r_q, r_p) t) is e^−18: 2e-8 / 18 of D is above it; and begins
# where 1e-9 of D, or of a derivative in a logarithm, is below it.
_EXACT = 18.0, 1e-9
# Few terms are better spent on the middle. Of 99 % of pairs with means of 0.03 to 100 and r of 0.1
# to 150, 12 of them are right to 0.2 % where D is above 0.01 (derivatives to 1 %), and to 2e-5
# nats where it is not; over the range of the exact sum, to 13 %.
_COARSE, _MOST_COARSE = (8.0, 1e-4), 16


class Counts(Protocol):
    """A negative binomial as divergences see it."""

    log_r: Array
    logit_p: Array

    @property
    def log_mean(self) -> Array: ...

    def draw(self, key: Array, relaxation: Relaxation | None) -> Array: ...


class _Integrand(eqx.Module):
    """What value and derivatives of D share at a node."""

    t: Array
    decay_q: Array  # e^(−r_q t)
    decay_p: Array
    decay: Array  # e^(−r_p t) − e^(−r_q t)
    bracket: Array
    s: Array  # 1 − e^(−t)
    y: Array  # m s / r_q
    curved: Array  # log1p(y) − y
    generating: Array  # E e^(−z t)
    excess: Array  # e^(−m t) / E e^(−z t) − 1

    @property
    def value(self) -> Array:
        """The integrand of D by log t."""
        return self.decay * self.bracket

    @property
    def slopes(self) -> tuple[Array, Array, Array]:
        """Its derivatives by m, r_q and r_p."""
        share = self.y / (1 + self.y)
        by_mean = -self.decay * self.generating * (share + self.excess)
        bend = self.curved + self.y * share  # log1p(y) − y / (1 + y)
        by_q = self.t * self.decay_q * self.bracket + self.decay * self.generating * bend / self.s
        return by_mean, by_q, -self.t * self.decay_p * self.bracket


def _integrand(m: Array, q: Array, p: Array, distance: Array, t: Array) -> _Integrand:
    s = -jnp.expm1(-t)
    y = m * s / q
    curved = log1pmx(y)
    rise = -jnp.expm1(-q * (y + curved))
    generating = 1 - rise
    between = inverse_gap(t, s)
    excess = jnp.expm1(q * curved - m * t * s * between)
    bracket = generating * excess / t + rise * between
    # Of two exponentials the larger is factored out, which leaves no difference of near equals.
    larger = jnp.exp(-jnp.minimum(q, p) * t)
    fall = larger * jnp.expm1(-distance * t)
    decay_q = larger + jnp.where(q > p, fall, 0)
    decay_p = larger + jnp.where(q > p, 0, fall)
    decay = jnp.where(q > p, -fall, fall)
    return _Integrand(t, decay_q, decay_p, decay, bracket, s, y, curved, generating, excess)


def _summed(of: Callable, log_mean: Array, log_q: Array, log_p: Array, n_terms: int):
    """The integral of what `of` takes from each node, by the trapezoidal rule in log t."""
    m, q, p = jnp.exp(log_mean), jnp.exp(log_q), jnp.exp(log_p)
    low = jnp.minimum(q, p)
    distance = low * jnp.expm1(jnp.abs(log_q - log_p))  # |r_q − r_p| of near equals, too
    last, below = _COARSE if n_terms <= _MOST_COARSE else _EXACT
    end = jnp.log(last / low)
    rough = 0.5 * (jnp.log(4 * below) - jnp.maximum(log_q, log_p) - log_mean - jnp.log1p(m / q))
    begin = jnp.minimum(rough, end - 1)
    step = (end - begin) / (n_terms - 1)

    # A node after the other, so that arrays stay in the cache.
    def add(j, total):
        node = _integrand(m, q, p, distance, jnp.exp(begin + step * j))
        return jax.tree.map(jnp.add, total, of(node))

    shapes = jax.eval_shape(lambda: of(_integrand(m, q, p, distance, m)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total = lax.fori_loop(0, n_terms, add, zeros)
    return jax.tree.map(lambda x: step * x, total)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _gap(log_mean: Array, log_q: Array, log_p: Array, n_terms: int) -> Array:
    return _summed(lambda node: node.value, log_mean, log_q, log_p, n_terms)


@_gap.defjvp
def _gap_jvp(n_terms, primals, tangents):
    log_mean, log_q, log_p = primals
    value, slopes = _summed(lambda node: (node.value, node.slopes), log_mean, log_q, log_p, n_terms)
    given = zip(slopes, primals, tangents, strict=True)
    return value, sum(slope * jnp.exp(log) * tangent for slope, log, tangent in given)


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
        is 25 for m = 2e4 and r of 0.05 and 150, where 48 are exact to 1e-7. Up to 16 terms cover
        a shorter range, for training: 12 are right to 0.2 % of all but the smallest D.
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
        # One after the other: at once, each takes four times as long by continuous time, whose
        # sums over arrivals are then no longer one product of matrices.
        keys = jax.random.split(key, self.n_samples)
        ratios = lax.map(lambda one: log_ratio(q.draw(one, relaxation), q, p), keys)
        return jnp.mean(ratios, axis=0)


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
