"""Data given what a decoder says of them: real numbers, counts, or shares of ones.

A decoder says one number f for each feature. What an `Observed` makes of it is normalised, so that
bounds of different likelihoods of the same data may be compared.
"""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float

from nbln.channels.negative_binomial import TYPICAL_R, NegativeBinomial
from nbln.channels.poisson import Poisson
from nbln.data import doors
from nbln.vae.start import LEAST_THETA, MOST_THETA

Matrix = Float[Array, "cell feature"]
# Of log-rates: e¹⁶ is half of the largest count that float32 holds exactly. A code that was never
# seen in training may be decoded to anything, and must not overflow.
MOST_LOG_RATE = 16.0
LEAST_SHARE = 1e-3  # of ones, in the first bias, where none was seen
LEAST_MEAN = 1e-3  # counts, likewise
LEAST_SD = 1e-3  # of what a decoder leaves unexplained: below, float32 gradients are noise


class Observed(eqx.Module):
    """Data of a cell given the decoder's numbers; its leaves are learned with the decoder."""

    door: ClassVar[str]  # which data it is of: a word of `nbln.data.doors.DOORS`

    @classmethod
    @abc.abstractmethod
    def start(cls, mean: np.ndarray, variance: np.ndarray) -> "Observed":
        """By the moments of each feature."""

    @staticmethod
    @abc.abstractmethod
    def link(mean: np.ndarray) -> np.ndarray:
        """The decoder's number at which a feature has this mean."""

    @abc.abstractmethod
    def mean(self, f: Any) -> Any:
        """Expected data."""

    @abc.abstractmethod
    def variance(self, f: Any) -> Any:
        """Variance of the data about their mean."""

    @abc.abstractmethod
    def distribution(self, f: Matrix) -> dist.Distribution:
        """As a NumPyro distribution."""

    def log_prob(self, x: Matrix, f: Matrix) -> Matrix:
        """Natural log probability, or density, of data."""
        return jnp.asarray(self.distribution(f).log_prob(x))

    def fidelity(self, x: Matrix, f: Matrix) -> Matrix:
        """What the published objective has in place of the log probability; often the same."""
        return self.log_prob(x, f)

    def levels(self) -> list[Array]:
        """Leaves that start at moments."""
        return []

    def parameters(self) -> dict[str, Array]:
        """What it has learned of the noise of data, by name: one number, or one a feature."""
        return {}

    @staticmethod
    def seen(x: Matrix) -> Matrix:
        """What an encoder sees of data."""
        return x


class Gaussian(Observed):
    """x ~ N(f, σ²) with one σ for all features."""

    door = doors.NUMBERS
    log_sd: Float[Array, ""]

    @classmethod
    def start(cls, mean, variance):
        del mean
        sd = max(math.sqrt(float(np.mean(variance))), LEAST_SD)
        return cls(jnp.asarray(math.log(sd), jnp.float32))

    @staticmethod
    def link(mean):
        return mean

    @property
    def sd(self) -> Array:
        """σ."""
        return jnp.maximum(jnp.exp(self.log_sd), LEAST_SD)

    def mean(self, f):
        return f

    def variance(self, f):
        return jnp.broadcast_to(self.sd**2, jnp.shape(f))

    def distribution(self, f):
        return dist.Normal(f, self.sd)

    def fidelity(self, x, f):
        """Minus the squared error; σ learns beside it, and is not what weighs the error."""
        own = self.log_prob(x, lax.stop_gradient(f))
        return -((x - f) ** 2) + own - lax.stop_gradient(own)

    def levels(self):
        return [self.log_sd]

    def parameters(self):
        return {"sigma": self.sd}


class Counted(Observed):
    """Counts of a channel of the house, at log-rates f."""

    door = doors.TABLE
    channel: Any  # a `Channel`

    @staticmethod
    def link(mean):
        return np.log(np.maximum(mean, LEAST_MEAN))

    @staticmethod
    def seen(x):
        return jnp.log1p(x)

    def mean(self, f):
        return jnp.exp(bounded(f))

    def variance(self, f):
        return self.mean(f) + self.noise * self.mean(f) ** 2

    @property
    @abc.abstractmethod
    def noise(self) -> Array | float:
        """Squared coefficient of variation of a count beyond Poisson's."""

    def log_prob(self, x, f):
        return self.channel.log_prob(x, bounded(f))

    def distribution(self, f):
        return self.channel.distribution(bounded(f))

    def parameters(self):
        return self.channel.values()


class PoissonCounts(Counted):
    """x ~ Poisson(eᶠ)."""

    @classmethod
    def start(cls, mean, variance):
        del mean, variance
        return cls(Poisson())

    @property
    def noise(self):
        return 0.0


class NegativeBinomialCounts(Counted):
    """x ~ NB(mean eᶠ, dispersion θ of the feature): variance mean + mean²/θ."""

    @classmethod
    def start(cls, mean, variance):
        # Of what varies, a code will explain a part: the rest is less dispersed than the whole.
        excess = np.maximum(variance - mean, 1e-12)
        theta = np.where(variance > mean, mean**2 / excess, MOST_THETA)
        theta = np.clip(np.where(mean > 0, theta, TYPICAL_R), LEAST_THETA, MOST_THETA)
        return cls(NegativeBinomial(jnp.asarray(np.log(theta), jnp.float32)))

    @property
    def noise(self):
        return jnp.exp(-self.channel.log_r)

    def levels(self):
        return [self.channel.log_r]


class Bernoulli(Observed):
    """Ones with probability σ(f); a number between 0 and 1 is the share of ones among many draws.

    Of such a number the log probability is the expected one of a draw of 0 or 1.
    """

    door = doors.SHARES

    @classmethod
    def start(cls, mean, variance):
        del mean, variance
        return cls()

    @staticmethod
    def link(mean):
        share = np.clip(mean, LEAST_SHARE, 1 - LEAST_SHARE)
        return np.log(share) - np.log1p(-share)

    def mean(self, f):
        return jax.nn.sigmoid(f)

    def variance(self, f):
        return self.mean(f) * self.mean(-f)

    def log_prob(self, x, f):
        return x * f - jax.nn.softplus(f)

    def distribution(self, f):
        return dist.Bernoulli(logits=f)


def bounded(f: Matrix) -> Matrix:
    """Log-rates that do not overflow."""
    return jnp.minimum(f, MOST_LOG_RATE)


# By the words of `fit(likelihood=)`, which files keep.
OBSERVED: dict[str, type[Observed]] = {
    "gaussian": Gaussian,
    "poisson": PoissonCounts,
    "nb": NegativeBinomialCounts,
    "bernoulli": Bernoulli,
}
