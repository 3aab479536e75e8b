"""A code of categories: each latent is one of a few, and is decoded from its indicator."""

from typing import Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from nbln.arguments import check_whole
from nbln.vae.codes.code import Code, Heads, Posterior


class Categories(Posterior):
    """One-hot z with probabilities softmax(logits); mean and variance are of each indicator."""

    logits: Float[Array, "*cell latent category"]

    @property
    def mean(self):
        return jax.nn.softmax(self.logits)

    @property
    def variance(self):
        return self.mean * (1 - self.mean)

    def draw(self, key, relaxation):
        if relaxation is None:
            chosen = jax.random.categorical(key, self.logits)
            return jax.nn.one_hot(chosen, self.logits.shape[-1], dtype=self.logits.dtype)
        return relaxation.categories(key, self.logits)

    def divergence(self, prior: Self):
        ratio = jax.nn.log_softmax(self.logits) - jax.nn.log_softmax(prior.logits)
        return jnp.sum(self.mean * ratio, axis=-1)

    def log_prob(self, z):
        return jnp.sum(z * jax.nn.log_softmax(self.logits), axis=-1)


class CategoricalCode(Code):
    """Learned prior probabilities of each latent's categories; an encoder says logits."""

    logits: Float[Array, "latent category"]

    @classmethod
    def start(cls, latent_dim: int, n_categories: int = 10) -> "CategoricalCode":
        """All categories equally probable."""
        check_whole("CategoricalCode.start(n_categories", n_categories, 2)
        return cls(jnp.zeros((latent_dim, n_categories)))

    @property
    def latent_dim(self):
        return self.logits.shape[0]

    @property
    def n_heads(self):
        return self.logits.shape[1]

    @property
    def n_values(self):
        return self.logits.shape[1]

    def posterior(self, heads: Heads) -> Categories:
        return Categories(jnp.moveaxis(heads, 1, 2))

    def prior(self) -> Categories:
        return Categories(self.logits)
