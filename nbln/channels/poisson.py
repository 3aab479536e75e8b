"""Poisson counts: the channel of the Poisson log-normal model."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from nbln.channels.base import Channel


class Poisson(Channel):
    """u ~ Poisson(eᶠ)."""

    sites = ()

    @classmethod
    def start(cls, log_r):
        del log_r
        return cls()

    @classmethod
    def of(cls, values):
        del values
        return cls()

    def values(self):
        return {}

    def log_prob(self, u, f):
        return u * f - jnp.exp(f) - gammaln(u + 1)

    def log_kernel(self, u, f):
        return u * f - jnp.exp(f)

    def change(self, u, f, move, growth):
        return u * move - jnp.exp(f) * growth

    def derivatives(self, u, f):
        rate = jnp.exp(f)
        return u - rate, rate, rate

    def information_at_count(self, u):
        return u + 0.5

    def distribution(self, f):
        return dist.Poisson(jnp.exp(f))
