"""What the rest of the package asks of a count channel: a count given its log-rate."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from nbln.data.histogram import CountTails
from nbln.priors.univariate import Prior
from nbln.vocabulary import Site

Matrix = Float[Array, "cell gene"]
HostMatrix = Float[np.ndarray, "cell gene"]

LARGEST_LOG_RATE = np.log(1e9)  # of a count that is drawn: draws are int32


class Channel(eqx.Module):
    """Distribution of a count u given its log-rate f: mean eᶠ and log-concave in f, as a rule.

    A channel knows its own parameters, which are its leaves, positive on their natural scale, and
    answers for them: nobody else asks which they are. Methods of the first group run inside
    compiled code, those of the second on the host, in NumPy.
    """

    sites: ClassVar[tuple[Site, ...]]  # the parameters: dims (gene,), or () where genes share one
    concave: ClassVar[bool] = True  # whether `log_prob` is concave in f, as Newton steps need

    @classmethod
    @abc.abstractmethod
    def start(cls, log_r: Float[Array, " gene"]) -> "Channel":
        """The channel before the first iteration, from first log dispersions."""

    @classmethod
    @abc.abstractmethod
    def of(cls, values: Mapping[str, Any]) -> "Channel":
        """The channel of these parameters, on their natural scale; others are passed over."""

    @abc.abstractmethod
    def values(self) -> dict[str, Array]:
        """The parameters by site, on their natural scale."""

    def state(self) -> dict[str, Array]:
        """Its fields, as a file keeps them: to the last bit, which `values` may round."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> "Channel":
        """The reverse of `state`."""
        return cls(**state)

    @classmethod
    def default_priors(cls) -> dict[str, Prior]:
        """What is believed of each parameter unless the user says otherwise."""
        return {}

    # In compiled code

    @abc.abstractmethod
    def log_prob(self, u: Matrix, f: Matrix) -> Matrix:
        """Log-probability of each count."""

    @abc.abstractmethod
    def derivatives(self, u: Matrix, f: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        """Score s = ∂ℓ/∂f, information a = -∂²ℓ/∂f² ≥ 0 and its derivative ∂a/∂f."""

    def information_at_count(self, u: Matrix) -> Matrix:
        """Information at f = log(u + ½), which needs no transcendental function as a rule."""
        return self.derivatives(u, jnp.log(u + 0.5))[1]

    def log_kernel(self, u: Matrix, f: Matrix) -> Matrix:
        """`log_prob`; what depends on no log-rate may be left out.

        That part is constant but for the channel's parameters; see `constant_change`.
        """
        return self.log_prob(u, f)

    def change(self, u: Matrix, f: Matrix, move: Matrix, growth: Matrix) -> Matrix:
        """ℓ(f + move) - ℓ(f), better without cancellation; `growth` is e^move - 1."""
        del growth
        return self.log_prob(u, f + move) - self.log_prob(u, f)

    def own_overdispersion(self) -> Float[Array, " gene"] | None:
        """ω = log(1 + c), c the squared coefficient of variation of rates given f.

        A log-rate of variance d and the channel together give counts the overdispersion d + ω on
        the log scale. None, the default, where rates are eᶠ.
        """
        return None

    def with_own(self, omega: Float[Array, " gene"]) -> "Channel":
        """The channel that has this overdispersion of its own; the same where it has none."""
        del omega
        return self

    def own_log_volume(self) -> Float[Array, " gene"] | float:
        """``log |∂ parameters/∂ω|``, the parameters on their natural scale."""
        return 0.0

    def own_slope(
        self, u: Matrix, f: Matrix, slope: Matrix, move: Matrix, change: Matrix
    ) -> Matrix | None:
        """E[∂ log p(u | F)/∂ω] over a log-rate F that is distributed about `f`.

        Parameters
        ----------
        slope
            E[∂ℓ/∂F].
        move
            E[F - f].
        change
            E[ℓ(F) - ℓ(f)], as `change` says it.
        """
        del u, f, slope, move, change
        return None

    def constant_change(self, old: "Channel", tails: CountTails) -> Float[Array, " gene"] | float:
        """Σ_c of what `log_kernel` leaves out, less the same of a channel of this kind."""
        del old, tails
        return 0.0

    @abc.abstractmethod
    def distribution(self, f: Matrix) -> dist.Distribution:
        """As a NumPyro distribution of counts."""

    def statistics(
        self, u: Matrix, f: Matrix, variance: Matrix, mask: Float[Array, " cell"]
    ) -> Float[Array, "sums gene"]:
        """Sums over cells from which the parameters are learned; none by default.

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

    def settling(self) -> Float[Array, " parameter"]:
        """What has to stand still for the channel to have converged; by default a constant."""
        return jnp.zeros(1)

    def conditional_sd(
        self, sums: Float[Array, "sums gene"], tails: CountTails, priors: dict[str, Prior]
    ) -> dict[str, Array]:
        """Posterior sd of each parameter's natural log, given all else; 0 if frozen."""
        del sums, tails, priors
        return {}

    def matched(
        self, log_mean: Float[Array, "... gene"]
    ) -> tuple[Float[Array, "... gene"], "Channel"]:
        """Log-rates and a channel without structural zeros, with the same mean and variance.

        `log_mean` are log-rates that do not vary, at one capture loss; the answer holds at all.
        """
        return log_mean, self

    # On the host

    def noise(self) -> Float[np.ndarray, " gene"] | float:
        """Squared coefficient of variation of `rates` given f; 0 where they are eᶠ."""
        return 0.0

    def rates(self, rng: np.random.Generator, f: HostMatrix) -> HostMatrix:
        """Rates that counts are Poisson draws of, the channel's own variation in them."""
        del rng
        return np.exp(f)

    def sample(self, rng: np.random.Generator, f: HostMatrix) -> Int[np.ndarray, "cell gene"]:
        """Draws of the counts."""
        return rng.poisson(self.rates(rng, np.minimum(f, LARGEST_LOG_RATE)))

    def variance(self, f: HostMatrix) -> HostMatrix:
        """Variance of a count given its log-rate; the mean is eᶠ."""
        return np.exp(f) + self.noise() * np.exp(2 * f)

    def expected_variance(
        self, loc: HostMatrix, variance: Float[np.ndarray, " gene"]
    ) -> HostMatrix:
        """Mean of `variance` over log-rates that are Gaussian with this mean and variance."""
        return np.exp(loc + 0.5 * variance) + self.noise() * np.exp(2 * (loc + variance))

    def moments(
        self, loc: HostMatrix, variance: Float[np.ndarray, " gene"]
    ) -> tuple[HostMatrix, HostMatrix]:
        """Mean and variance of a count whose log-rate is Gaussian (law of total variance)."""
        mean = np.exp(loc + 0.5 * variance)
        return mean, self.expected_variance(loc, variance) + mean**2 * np.expm1(variance)
