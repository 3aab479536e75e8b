"""Counts and categories that have derivatives: relaxations of draws, for training.

A temperature of 0 would be the draw itself, which has no derivative; at larger ones a draw is a
smooth function of its rate and of noise that does not depend on it.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jaxtyping import Float
from scipy.special import pdtri

from nbln.arguments import check_whole

# A draw has places for so many arrivals that a Poisson needs more in one of 10,000.
_OVERFLOW = 1e-4
# Soft thresholds count arrivals up to this many temperatures late: of those later still, σ(−4) or
# less of each is left out, 1.4 % of the mean at temperature 1.
_LATE = 4.0
# Rates are clipped to e^±: one count in 1e13 draws below, more than float32 can count above.
_LOG_RATES = -30.0, 30.0


def annealed(epoch: Array | float) -> Array:
    """Temperature max(1 − 0.95 epoch / 250, 0.05), as the published NegBio-VAE was trained."""
    return jnp.maximum(1 - 0.95 * jnp.asarray(epoch) / 250, 0.05)


class Relaxation(eqx.Module):
    """How counts and categories are drawn in training."""

    temperature: Float[Array, ""]  # no derivative is taken in it
    straight_through: eqx.AbstractVar[bool]  # exact values, with the derivatives of relaxed ones

    @property
    @abc.abstractmethod
    def largest_rate(self) -> Array:
        """The rate above which arrivals are normal rather than counted one by one."""

    @abc.abstractmethod
    def _few(self, key: Array, log_rate: Array) -> Array:
        """Relaxed Poisson counts of rates up to `largest_rate`."""

    def counts(self, key: Array, log_rate: Array) -> Array:
        """Relaxed Poisson counts of natural log rates, of their shape.

        A static number of places cannot hold the counts of any rate, and a truncated Poisson has
        a smaller mean: with 5 places, 3.5 instead of 10. So of a rate λ above `largest_rate` the
        excess e is drawn apart (a sum of Poissons is one), as a normal of mean e and of variance
        e²/(1 + e), which is smooth in e at 0 where √e is not and lacks less than 1 of λ.
        """
        few, many = random.split(key)
        log_rate = jnp.clip(log_rate, *_LOG_RATES)
        rate, largest = jnp.exp(log_rate), self.largest_rate
        counted = self._few(few, jnp.minimum(log_rate, jnp.log(largest)))
        excess = jnp.maximum(rate - largest, 0)
        noise = random.normal(many, rate.shape, rate.dtype)
        more = excess * jnp.maximum(1 + noise * lax.rsqrt(1 + excess), 0)
        return counted + self._through(jnp.round(more), more)

    def categories(self, key: Array, logits: Float[Array, "*shape category"]) -> Array:
        """Relaxed one-hot categories (Jang et al. 2017; Maddison et al. 2017), of that shape."""
        scores = logits + random.gumbel(key, logits.shape, logits.dtype)
        soft = jax.nn.softmax(scores / self.temperature)
        return self._through(jax.nn.one_hot(scores.argmax(-1), logits.shape[-1]), soft)

    def _through(self, hard: Array, soft: Array) -> Array:
        if not self.straight_through:
            return soft
        return soft + lax.stop_gradient(hard.astype(soft.dtype) - soft)


class Gumbel(Relaxation):
    """Gumbel softmax over the counts 0 ≤ k < n_counts.

    z = Σ k softmax((log Poisson(k; λ) + g_k) / temperature), g_k of Gumbel's distribution; the
    k of the largest is an exact Poisson draw, given that it is below n_counts.
    """

    temperature: Float[Array, ""]
    n_counts: int = eqx.field(static=True, default=16)
    straight_through: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_whole("Gumbel(n_counts", self.n_counts, 2)

    @property
    def largest_rate(self):
        return jnp.asarray(pdtri(self.n_counts - 1, 1 - _OVERFLOW), jnp.float32)

    def _few(self, key, log_rate):
        noise = random.gumbel(key, (self.n_counts, *log_rate.shape), log_rate.dtype)
        soft = _soft_count(log_rate, noise, self.temperature)
        if not self.straight_through:
            return soft
        return self._through(_scores(log_rate, noise).argmax(0), soft)


def _scores(log_rate: Array, noise: Array) -> Array:
    """log Poisson(k) + g_k, up to what all k have in common."""
    k = jnp.arange(noise.shape[0], dtype=noise.dtype).reshape(-1, *[1] * log_rate.ndim)
    return k * log_rate - lax.lgamma(k + 1) + noise


def _soft_moments(log_rate: Array, noise: Array, temperature: Array) -> tuple[Array, Array]:
    """Mean of k and of k² under the softmax; products with k are cheaper than sums of terms."""
    scores = _scores(log_rate, noise) / temperature
    weight = jnp.exp(scores - scores.max(0))
    k = jnp.arange(noise.shape[0], dtype=noise.dtype)
    total, first, second = jnp.tensordot(jnp.stack([jnp.ones_like(k), k, k * k]), weight, 1)
    return first / total, second / total


@jax.custom_jvp
def _soft_count(log_rate: Array, noise: Array, temperature: Array) -> Array:
    return _soft_moments(log_rate, noise, temperature)[0]


@_soft_count.defjvp
def _soft_count_jvp(primals, tangents):
    # The derivative, Var k / temperature, comes with the value: nothing of size n_counts is kept.
    first, second = _soft_moments(*primals)
    return first, (second - first * first) / primals[2] * tangents[0]


class ContinuousTime(Relaxation):
    """Arrivals of a Poisson process until time 1, by a soft threshold.

    z = Σ σ((1 − S_i) / temperature), S_i the arrival times at rate λ. E z = λ τ softplus(1/τ) and
    Var z = λ τ (softplus(1/τ) − σ(1/τ)), with τ the temperature: a mean 1.31 λ at τ = 1, and λ
    to five digits at τ ≤ 0.1. Where S_i ≤ 1 are counted instead, the count is exactly Poisson.
    """

    temperature: Float[Array, ""]
    n_events: int = eqx.field(static=True, default=16)
    straight_through: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_whole("ContinuousTime(n_events", self.n_events, 1)

    @property
    def largest_rate(self):
        until = 1 + _LATE * self.temperature
        return jnp.asarray(pdtri(self.n_events, 1 - _OVERFLOW), jnp.float32) / until

    def _few(self, key, log_rate):
        waits = random.exponential(key, (self.n_events, *log_rate.shape), log_rate.dtype)
        # A product with ones is many times faster than a cumulative sum, if it is of matrices.
        flat = jnp.tri(self.n_events, dtype=waits.dtype) @ waits.reshape(self.n_events, -1)
        unit_times = flat.reshape(waits.shape)
        soft = _soft_arrivals(log_rate, unit_times, self.temperature)
        if not self.straight_through:
            return soft
        return self._through(jnp.sum(unit_times <= jnp.exp(log_rate), axis=0), soft)


def _arrivals(log_rate: Array, unit_times: Array, temperature: Array) -> tuple[Array, Array]:
    times = unit_times * jnp.exp(-log_rate)
    return times, jax.nn.sigmoid((1 - times) / temperature)


@jax.custom_jvp
def _soft_arrivals(log_rate: Array, unit_times: Array, temperature: Array) -> Array:
    return jnp.sum(_arrivals(log_rate, unit_times, temperature)[1], axis=0)


@_soft_arrivals.defjvp
def _soft_arrivals_jvp(primals, tangents):
    times, arrived = _arrivals(*primals)
    slope = jnp.sum(arrived * (1 - arrived) * times, axis=0) / primals[2]
    return jnp.sum(arrived, axis=0), slope * tangents[0]
