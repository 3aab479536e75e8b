"""Codes that are real numbers: Gaussian, and Laplace. Relaxations do not concern them."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.stats as stats
from jax import Array
from jaxtyping import Float

from nbln.vae.codes.code import Code, Heads, Posterior

# An encoder's log scale beyond ± this is a code that is exact, or one that says nothing.
_LOG_SCALES = 7.0


class _LocationScale(Posterior):
    """A location and the log of a scale for each latent."""

    location: Float[Array, "*cell latent"]
    log_scale: Float[Array, "*cell latent"]

    @property
    def mean(self):
        return self.location


class Gaussian(_LocationScale):
    """z ~ N(location, scale²)."""

    @property
    def variance(self):
        return jnp.exp(2 * self.log_scale)

    def draw(self, key, relaxation):
        del relaxation
        noise = jax.random.normal(key, self.location.shape, self.location.dtype)
        return self.location + jnp.exp(self.log_scale) * noise

    def divergence(self, prior: Self):
        ratio = self.log_scale - prior.log_scale
        shift = (self.location - prior.location) * jnp.exp(-prior.log_scale)
        return 0.5 * (jnp.expm1(2 * ratio) + shift * shift) - ratio

    def log_prob(self, z):
        return stats.norm.logpdf(z, self.location, jnp.exp(self.log_scale))


class Laplace(_LocationScale):
    """z with density e^(−|z − location| / scale) / (2 scale)."""

    @property
    def variance(self):
        return 2 * jnp.exp(2 * self.log_scale)

    def draw(self, key, relaxation):
        del relaxation
        noise = jax.random.laplace(key, self.location.shape, self.location.dtype)
        return self.location + jnp.exp(self.log_scale) * noise

    def divergence(self, prior: Self):
        ratio = self.log_scale - prior.log_scale
        distance = jnp.abs(self.location - prior.location)
        shift = distance * jnp.exp(-prior.log_scale)
        own = distance * jnp.exp(-self.log_scale)
        return shift + jnp.expm1(ratio - own) - ratio

    def log_prob(self, z):
        return stats.laplace.logpdf(z, self.location, jnp.exp(self.log_scale))


class _Standard(Code):
    """Prior of location 0 and scale 1; an encoder says the location and the log scale.

    Nothing of the prior is learned: a decoder's first layer scales and shifts a code as it likes.
    """

    size: int = eqx.field(static=True)

    @classmethod
    def start(cls, latent_dim: int):
        """Standard in each latent."""
        return cls(latent_dim)

    @property
    def latent_dim(self):
        return self.size

    @property
    def n_heads(self):
        return 2


def _parts(heads: Heads) -> tuple[Array, Array]:
    return heads[:, 0], jnp.clip(heads[:, 1], -_LOG_SCALES, _LOG_SCALES)


class GaussianCode(_Standard):
    """Prior N(0, 1) (Kingma and Welling 2014)."""

    def posterior(self, heads: Heads) -> Gaussian:
        return Gaussian(*_parts(heads))

    def prior(self) -> Gaussian:
        return Gaussian(jnp.zeros(self.size), jnp.zeros(self.size))


class LaplaceCode(_Standard):
    """Prior Laplace(0, 1); the code is z itself, not a sigmoid of it."""

    def posterior(self, heads: Heads) -> Laplace:
        return Laplace(*_parts(heads))

    def prior(self) -> Laplace:
        return Laplace(jnp.zeros(self.size), jnp.zeros(self.size))
