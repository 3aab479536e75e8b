"""What the Laplace engine asks of a count channel: a count given its log-rate."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.data.histogram import CountTails
from nbln.priors.univariate import Prior

Matrix = Float[Array, "cell gene"]


class Channel(eqx.Module):
    """Distribution of a count u given its log-rate f, elementwise, log-concave in f.

    The channel's own parameters are its leaves, one entry a gene.
    """

    @abc.abstractmethod
    def log_prob(self, u: Matrix, f: Matrix) -> Matrix:
        """Log-probability of each count."""

    @abc.abstractmethod
    def derivatives(self, u: Matrix, f: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        """Score s = ∂ℓ/∂f, information a = -∂²ℓ/∂f² ≥ 0 and its derivative ∂a/∂f."""

    def statistics(
        self, u: Matrix, f: Matrix, variance: Matrix, mask: Float[Array, " cell"]
    ) -> Float[Array, "sums gene"]:
        """Sums over cells from which the channel's parameters are learned; none by default.

        The log-rates are Gaussian with mean `f` and the given variance.
        """
        del u, variance, mask
        return jnp.zeros((0, f.shape[1]), f.dtype)

    def maximise(
        self, sums: Float[Array, "sums gene"], tails: CountTails, priors: dict[str, Prior]
    ) -> "Channel":
        """The channel with its parameters moved toward their maximum; the same by default."""
        del sums, tails, priors
        return self

    @property
    def r(self) -> Float[Array, " gene"] | None:
        """Dispersion of every gene; None for a channel without."""
        return None

    def settling(self) -> Float[Array, " gene"] | None:
        """What has to stand still for the channel to have converged; None without parameters."""
        return None

    def log_r_sd(
        self, sums: Float[Array, "sums gene"], tails: CountTails, priors: dict[str, Prior]
    ) -> Float[Array, " gene"] | None:
        """Posterior standard deviation of log r given everything else; None without an r."""
        del sums, tails, priors
        return None
