"""Exact samplers of counts in float32.

They replace JAX's own Poisson sampler, which accepts proposals by a float32 ``lgamma``, so that
counts of rates above 1e4 are distorted, and whose uniforms have no values between 0 and 1e-7.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jaxtyping import Float, Int

from nbln.distributions.special import HALF_LOG_TWO_PI, bd0, stirling_remainder

# Larger rates are lowered to this one. int32 ends at 2^31, 32,000 standard deviations above it.
MAX_RATE = 2.0**30

# Hörmann's algorithm needs rates of at least 10.
_SMALL_RATE = 10.0

# Counts a gene up to which a multinomial is drawn count by count: from there on binomial draws,
# one a gene, are as quick (measured for 300 to 4,000 genes).
MOST_UNIFORMS = 4.0


def sample_exponential(key: Array, shape: tuple[int, ...], dtype) -> Array:
    """Unit exponentials resolved down to 2^-46, where one float32 uniform stops at 2^-23."""
    coarse, fine = random.split(key)
    u = random.uniform(coarse, shape, dtype) + 2.0**-23 * random.uniform(fine, shape, dtype)
    # The sum may round to 1, whose logarithm below would be infinite.
    return -jnp.log1p(-jnp.minimum(u, 1 - 2.0**-24))


def sample_truncated_exponential(key: Array, end: Array) -> Array:
    """Unit exponentials conditioned to lie below ``end``, by inversion."""
    u = random.uniform(key, end.shape, end.dtype)
    return jnp.minimum(-jnp.log1p(u * jnp.expm1(-end)), end)


def sample_poisson(key: Array, rate: Array) -> Array:
    """Poisson counts (int32), one for each rate; rates above 2^30 count as 2^30, NaN gives −1."""
    valid = ~jnp.isnan(rate)
    rate = jnp.where(valid, jnp.minimum(rate, MAX_RATE), 0)
    key_small, key_large = random.split(key)
    small = rate < _SMALL_RATE
    few = _count_arrivals(key_small, jnp.where(small, rate, 0))
    many = _transformed_rejection(key_large, jnp.where(small, _SMALL_RATE, rate), ~small)
    return jnp.where(valid, jnp.where(small, few, many), -1)


def _count_arrivals(key: Array, rate: Array) -> Array:
    """Number of arrivals of a unit-rate Poisson process before time ``rate``.

    The first arrival decides whether the count is zero, so it is drawn with the resolution that
    small rates need.
    """

    def step(carry):
        key, time, count = carry
        key, sub = random.split(key)
        arrived = time < rate
        wait = random.exponential(sub, rate.shape, rate.dtype)
        return key, jnp.where(arrived, time + wait, time), count + arrived

    key, sub = random.split(key)
    first = sample_exponential(sub, rate.shape, rate.dtype)
    start = key, first, jnp.zeros(rate.shape, jnp.int32)
    return lax.while_loop(lambda carry: jnp.any(carry[1] < rate), step, start)[2]


def _transformed_rejection(key: Array, rate: Array, wanted: Array) -> Array:
    """Counts where ``wanted``, by the algorithm PTRS of Hörmann (1993), for rates ≥ 10.

    All constants are his; the log-pmf is that of Loader (2000). Of the proposals 75% are accepted
    at a rate of 10, 89% at large rates. Counts are held as an offset from ⌊rate⌋, which float32
    represents exactly where it could not represent the count.
    """
    base = jnp.floor(rate)
    fraction = rate - base
    b = 0.931 + 2.53 * jnp.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_inverse_alpha = jnp.log(1.1239 + 1.1328 / (b - 3.4))
    squeeze = 0.9277 - 3.6224 / (b - 2)

    def step(carry):
        key, offset, done = carry
        key, key_u, key_v = random.split(key, 3)
        u = random.uniform(key_u, rate.shape, rate.dtype) - 0.5
        v = 1 - random.uniform(key_v, rate.shape, rate.dtype)
        edge = 0.5 - jnp.abs(u)
        proposal = jnp.floor((2 * a / edge + b) * u + fraction + 0.43)
        count = base + proposal
        log_hat = jnp.log(v / (a / (edge * edge) + b)) + log_inverse_alpha
        k = jnp.maximum(count, 1)
        log_pmf = -bd0(k, rate, proposal - fraction) - 0.5 * jnp.log(k) - HALF_LOG_TWO_PI
        log_pmf = jnp.where(count > 0, log_pmf - stirling_remainder(k, 1), -rate)
        outside = (edge <= 0) | (count < 0) | ((edge < 0.013) & (v > edge))
        accept = ((edge >= 0.07) & (v <= squeeze)) | (~outside & (log_hat <= log_pmf))
        return key, jnp.where(accept & ~done, proposal, offset), done | accept

    start = key, jnp.zeros_like(rate), ~wanted
    _, offset, _ = lax.while_loop(lambda carry: ~jnp.all(carry[2]), step, start)
    return base.astype(jnp.int32) + offset.astype(jnp.int32)


def gamma_rates(rng: np.random.Generator, mean: np.ndarray, concentration: np.ndarray):
    """Gamma rates on the host: Poisson counts of these are negative binomial of this mean.

    They are drawn in the precision of the means, which in single precision takes a fifth less time.
    """
    shape = np.broadcast_to(concentration, mean.shape)
    single = mean.dtype == np.float32
    unit = rng.standard_gamma(shape, dtype=np.float32 if single else np.float64)
    return unit * (mean / np.asarray(concentration, unit.dtype))


def share_out(
    rng: np.random.Generator,
    totals: Int[np.ndarray, " cell"],
    weights: Float[np.ndarray, "cell gene"],
) -> Int[np.ndarray, "cell gene"]:
    """Multinomial counts on the host: each cell's total, shared out in proportion to weights.

    Of few counts a gene each count is a uniform number in the gene whose share of [0, 1) it falls
    into, which takes half the time of a binomial draw for every gene.

    Parameters
    ----------
    totals
        Whole numbers.
    weights
        Not negative, and not all 0 in a cell.
    """
    ends = np.cumsum(weights, axis=1, dtype=np.float64)
    ends /= ends[:, -1:]
    if totals.mean() > MOST_UNIFORMS * ends.shape[1]:
        return rng.multinomial(totals, np.diff(ends, axis=1, prepend=0))
    # Numbers below the end of each gene's share; all are below the last.
    below = np.empty(ends.shape, np.int32)
    for row, own, total in zip(below, ends, totals, strict=True):
        row[:] = np.searchsorted(np.sort(rng.random(total)), own)
    below[:, -1] = totals
    below[:, 1:] -= below[:, :-1].copy()
    return below


def sample_negative_binomial(key: Array, mean: Array, concentration: Array) -> Array:
    """Negative binomial counts (int32): Poisson counts whose rate is gamma with the given mean.

    The gamma of shape θ is one of shape θ + 1 times U^(1/θ), with U uniform (Marsaglia and Tsang
    2000), because samplers of the gamma itself underflow for small θ.
    """
    mean, concentration = jnp.broadcast_arrays(mean, concentration)
    key_gamma, key_boost, key_count = random.split(key, 3)
    gamma = random.gamma(key_gamma, concentration + 1)
    boost = -sample_exponential(key_boost, mean.shape, mean.dtype) / concentration
    return sample_poisson(key_count, mean * (gamma / concentration * jnp.exp(boost)))
