"""Kullback–Leibler divergence of negative binomials."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nbln.distributions.special import LOG_MEAN_BOUND, as_float, bd0, bounded_exp, log_ratio_excess


def _parts(log_mean_q: Array, log_mean_p: Array, concentration: Array):
    """Mean of q, θ + μ_q, (θ + μ_q)/(θ + μ_p), and (μ_q − μ_p)/(θ + μ_p)."""
    mean_q, mean_p = bounded_exp(log_mean_q), bounded_exp(log_mean_p)
    total_q, total_p = concentration + mean_q, concentration + mean_p
    distance = log_mean_q - log_mean_p
    difference = jnp.where(
        jnp.abs(distance) < 1, mean_p * jnp.expm1(jnp.clip(distance, -1, 1)), mean_q - mean_p
    )
    return mean_q, total_q, total_q / total_p, difference / total_p


@jax.custom_jvp
def _kl(log_mean_q: Array, log_mean_p: Array, concentration: Array) -> Array:
    mean_q, _, ratio, delta = _parts(log_mean_q, log_mean_p, concentration)
    near = bd0(mean_q, bounded_exp(log_mean_p) * ratio, concentration * delta)
    return near - concentration * log_ratio_excess(ratio, delta)


@_kl.defjvp
def _kl_jvp(primals, tangents):
    log_mean_q, log_mean_p, concentration = primals
    mean_q, total_q, ratio, delta = _parts(*primals)
    distance = log_mean_q - log_mean_p
    r = concentration / total_q * jnp.expm1(jnp.minimum(distance, LOG_MEAN_BOUND))
    exact = (r > -0.5) & (distance < LOG_MEAN_BOUND)
    # log of μ/(θ + μ) of q over that of p; r is that ratio less one.
    log_share_ratio = jnp.where(exact, jnp.log1p(r), distance - jnp.log(ratio))
    dlog_mean_q, dlog_mean_p, dconcentration = tangents
    tangent = mean_q * log_share_ratio * dlog_mean_q - concentration * delta * dlog_mean_p
    return _kl(*primals), tangent - log_ratio_excess(ratio, delta) * dconcentration


def kl_negative_binomial(
    log_mean_q: ArrayLike, log_mean_p: ArrayLike, concentration: ArrayLike
) -> Array:
    """KL(NB(μ_q, θ) ‖ NB(μ_p, θ)) of two negative binomials of equal concentration θ, in nats.

    It is μ_q log(μ_q/μ_p) − (θ + μ_q) log((θ + μ_q)/(θ + μ_p)), half the negative binomial
    deviance of μ_q under μ_p, and is evaluated as one (Loader 2000). So it keeps its digits where
    the means are nearly equal, and for large θ, where it becomes the Poisson divergence. Log means
    are clipped to ±60.
    """
    return _kl(*as_float(log_mean_q, log_mean_p, concentration))
