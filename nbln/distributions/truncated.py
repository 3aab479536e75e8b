"""Moments of a Gaussian that is truncated below at 0."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from nbln.distributions.special import HALF_LOG_TWO_PI


class Moments(NamedTuple):
    """Mean and standard deviation."""

    mean: Float[Array, "..."]
    sd: Float[Array, "..."]


@jax.jit
def truncated_at_zero(loc: Float[Array, "..."], scale: Float[Array, "..."]) -> Moments:
    """Moments of N(loc, scale²) given that it is not negative.

    With the hazard h = φ(a)/Φ(a) at a = loc/scale the mean is loc + scale h and the variance
    scale² (1 - h (a + h)) (Johnson, Kotz & Balakrishnan 1994, Chapter 13).
    """
    ratio = loc / scale
    hazard = jnp.exp(-0.5 * ratio**2 - HALF_LOG_TWO_PI - log_ndtr(ratio))
    share = jnp.maximum(1 - hazard * (ratio + hazard), 0)
    return Moments(loc + scale * hazard, scale * jnp.sqrt(share))
