"""What every family of latent codes is: its prior, its posteriors, their divergence, draws."""

import abc
from typing import Self

import equinox as eqx
from jax import Array
from jaxtyping import Float

from nbln.vae.codes.relaxed import Relaxation

Heads = Float[Array, "cell head latent"]
# (cell, latent), and for categories (cell, latent, category); a prior's has no axis of cells.
Latent = Float[Array, "*cell latent"]


class Posterior(eqx.Module):
    """Independent latents of each cell; a prior is one without the axis of cells."""

    @property
    @abc.abstractmethod
    def mean(self) -> Latent:
        """Expectation of the code."""

    @property
    @abc.abstractmethod
    def variance(self) -> Latent:
        """Variance of the code."""

    @property
    def dispersion(self) -> Latent | None:
        """r of counts, whose variance is mean + mean²/r; None of codes that are no counts."""
        return None

    @abc.abstractmethod
    def draw(self, key: Array, relaxation: Relaxation | None) -> Latent:
        """One draw of each latent.

        With a relaxation it is differentiable in the parameters, and counts and categories are
        approximate. With None it is exact; counts and categories then have no derivative.
        """

    @abc.abstractmethod
    def divergence(self, prior: Self) -> Float[Array, "cell latent"]:
        """KL(self ‖ prior) of each latent, in nats: deterministic, and exact to about 1e-6."""

    @abc.abstractmethod
    def log_prob(self, z: Latent) -> Float[Array, "cell latent"]:
        """Natural log probability, or density, of codes z that were drawn without relaxation."""


class Code(eqx.Module):
    """A family of codes; its leaves are what is learned of the prior."""

    @property
    @abc.abstractmethod
    def latent_dim(self) -> int:
        """Number of latents."""

    @property
    @abc.abstractmethod
    def n_heads(self) -> int:
        """Numbers that an encoder emits for each latent; they may be any reals."""

    @property
    def n_values(self) -> int:
        """Numbers that a decoder gets of each latent."""
        return 1

    @abc.abstractmethod
    def posterior(self, heads: Heads) -> Posterior:
        """The code of cells whose encoder says ``heads``."""

    @abc.abstractmethod
    def prior(self) -> Posterior:
        """The code before a cell is seen; its parameters have the shape (latent,)."""

    def divergence(
        self, posterior: Posterior, key: Array, relaxation: Relaxation | None
    ) -> Float[Array, "cell latent"]:
        """What training pays for ``posterior``, in nats; most codes ignore key and relaxation."""
        del key, relaxation
        return posterior.divergence(self.prior())
