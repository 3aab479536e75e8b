"""Poisson counts: the channel of the Poisson log-normal model."""

import jax.numpy as jnp
from jax.scipy.special import gammaln

from nbln.channels.base import Channel


class Poisson(Channel):
    """u ~ Poisson(eᶠ)."""

    def log_prob(self, u, f):
        return u * f - jnp.exp(f) - gammaln(u + 1)

    def derivatives(self, u, f):
        rate = jnp.exp(f)
        return u - rate, rate, rate
