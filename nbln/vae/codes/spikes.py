"""Codes that are counts: negative binomial, and Poisson as its limit of equal mean and variance."""

from typing import Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from nbln.distributions.gamma import sample_log_gamma
from nbln.distributions.negative_binomial import nb_log_prob
from nbln.distributions.poisson import poisson_log_prob
from nbln.distributions.sampling import sample_poisson
from nbln.vae.codes.code import Code, Heads, Posterior
from nbln.vae.codes.divergences import Divergence, ExactSum, kl_poisson
from nbln.vae.codes.relaxed import Relaxation

# As in the published code: no prior has a log r above 5, a |logit p| above 5, and no posterior is
# farther from the prior than e^±5 in r, nor has a |logit p| above 5.
BOUND = 5.0
# Terms of the divergence that reports; see `dispersion_gap`.
_REPORTED = ExactSum(64)


def _bounded(value: Array) -> Array:
    return jnp.clip(value, -BOUND, BOUND)


def _counts(key: Array, log_rate: Array, relaxation: Relaxation | None) -> Array:
    if relaxation is None:
        return sample_poisson(key, jnp.exp(log_rate)).astype(log_rate.dtype)
    return relaxation.counts(key, log_rate)


class NegativeBinomialCounts(Posterior):
    """Counts z ~ NB(r, p): mean r (1 − p) / p, variance mean / p.

    z is Poisson given its rate λ ~ Gamma(r, rate p / (1 − p)). r may be shared by cells.
    """

    log_r: Float[Array, "*cell latent"]
    logit_p: Float[Array, "*cell latent"]

    @property
    def log_mean(self) -> Array:
        """Natural log of the mean."""
        return self.log_r - self.logit_p

    @property
    def mean(self):
        return jnp.exp(self.log_mean)

    @property
    def variance(self):
        return self.mean * (1 + jnp.exp(-self.logit_p))

    @property
    def dispersion(self):
        return jnp.broadcast_to(jnp.exp(self.log_r), self.logit_p.shape)

    def draw(self, key, relaxation):
        of_rate, of_count = jax.random.split(key)
        r = jnp.broadcast_to(jnp.exp(self.log_r), self.logit_p.shape)
        log_rate = sample_log_gamma(of_rate, r) - self.logit_p
        return _counts(of_count, log_rate, relaxation)

    def divergence(self, prior: Self):
        return _REPORTED(self, prior, None, None)

    def log_prob(self, z):
        return nb_log_prob(z, self.log_mean, jnp.exp(self.log_r))


class NegativeBinomialCode(Code):
    """Overdispersed counts: prior NB(r, p) of each latent, posterior NB(r δ(x), p(x)).

    An encoder says logit p(x) and log δ(x); where the divergence shares dispersion, δ = 1 and it
    says the first only.
    """

    log_r: Float[Array, " latent"]
    logit_p: Float[Array, " latent"]
    how: Divergence

    @classmethod
    def start(
        cls, latent_dim: int, divergence: Divergence | None = None, log_r: float = 0.0
    ) -> "NegativeBinomialCode":
        """r = e^log_r and p = ½ in each latent; the divergence is exact unless given."""
        how = ExactSum() if divergence is None else divergence
        return cls(jnp.full(latent_dim, float(log_r)), jnp.zeros(latent_dim), how)

    @property
    def latent_dim(self):
        return self.log_r.shape[0]

    @property
    def n_heads(self):
        return 1 if self.how.shares_dispersion else 2

    def posterior(self, heads: Heads) -> NegativeBinomialCounts:
        log_r = self.prior().log_r
        if not self.how.shares_dispersion:
            log_r = log_r + _bounded(heads[:, 1])
        return NegativeBinomialCounts(log_r, _bounded(heads[:, 0]))

    def prior(self) -> NegativeBinomialCounts:
        return NegativeBinomialCounts(jnp.minimum(self.log_r, BOUND), _bounded(self.logit_p))

    def divergence(self, posterior, key, relaxation):
        return self.how(posterior, self.prior(), key, relaxation)


class PoissonCounts(Posterior):
    """Counts z ~ Poisson(λ), the negative binomial of this mean as r → ∞."""

    log_rate: Float[Array, "*cell latent"]

    @property
    def mean(self):
        return jnp.exp(self.log_rate)

    @property
    def variance(self):
        return self.mean

    @property
    def dispersion(self):
        return jnp.full_like(self.log_rate, jnp.inf)

    def draw(self, key, relaxation):
        return _counts(key, self.log_rate, relaxation)

    def divergence(self, prior: Self):
        return kl_poisson(self.log_rate, prior.log_rate)

    def log_prob(self, z):
        return poisson_log_prob(z, self.log_rate)


class PoissonCode(Code):
    """Counts whose variance is their mean: prior Poisson(λ), posterior Poisson(λ δ(x)).

    An encoder says log δ(x), at most ±5 (Vafaii et al. 2024).
    """

    log_rate: Float[Array, " latent"]

    @classmethod
    def start(cls, latent_dim: int, log_rate: float = 0.0) -> "PoissonCode":
        """λ = e^log_rate in each latent."""
        return cls(jnp.full(latent_dim, float(log_rate)))

    @property
    def latent_dim(self):
        return self.log_rate.shape[0]

    @property
    def n_heads(self):
        return 1

    def posterior(self, heads: Heads) -> PoissonCounts:
        return PoissonCounts(self.prior().log_rate + _bounded(heads[:, 0]))

    def prior(self) -> PoissonCounts:
        # The mean of a negative binomial prior has the same range.
        return PoissonCounts(jnp.clip(self.log_rate, -2 * BOUND, 2 * BOUND))
