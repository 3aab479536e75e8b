"""Negative-binomial counts with a dispersion per gene: the channel of NBLN."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.distributions.negative_binomial import nb_log_prob

LOG_R_MIN, LOG_R_MAX = -7.0, 9.2  # beyond 1e4 the counts are Poisson to float32
LARGEST_STEP = 1.0  # of log r in one iteration


class NegativeBinomial(Channel):
    """u ~ NB(mean eᶠ, concentration r): variance mean + mean²/r."""

    log_r: Float[Array, " gene"]

    @property
    def r(self):
        """Concentration of every gene."""
        return jnp.exp(self.log_r)

    def log_prob(self, u, f):
        return nb_log_prob(u, f, self.r)

    def derivatives(self, u, f):
        r, low, high = self._shares(f)
        information = (u + r) * low * high
        return u * high - r * low, information, information * (high - low)

    def statistics(self, u, f, variance, mask):
        """First and second derivative of E[log NB] in log r, less their digamma part.

        The expectation is over f ~ N(f, variance) to second order. Sums of digamma functions
        depend on the data alone, through `CountTails`, and enter in `maximise`: no transcendental
        function of a count is evaluated per cell.
        """
        r, low, high = self._shares(f)
        score, information, slope = self.derivatives(u, f)
        saturation = r * jax.nn.softplus(f - self.log_r)
        first = -saturation - score - 0.5 * variance * (r * low * high - slope)
        second = -saturation + 2 * r * low - information
        return jnp.stack([mask @ first, mask @ second])

    def maximise(self, sums, tails, priors):
        """One safeguarded Newton step of log r per gene."""
        prior = priors[names.DISPERSION]
        if prior.frozen:
            return NegativeBinomial(jnp.log(prior.mode()))
        gradient, curvature = self.slopes(sums, tails)
        prior_gradient, prior_curvature = prior.penalty(self.log_r)
        # Where the likelihood is not concave, the prior's curvature alone sets the step.
        curvature = jnp.maximum(curvature, 0) + prior_curvature + 1e-6
        step = (gradient + prior_gradient) / curvature
        log_r = self.log_r + jnp.clip(step, -LARGEST_STEP, LARGEST_STEP)
        return NegativeBinomial(jnp.clip(log_r, LOG_R_MIN, LOG_R_MAX))

    def settling(self):
        """Log of the excess variance 1/r, blind to differences between r far above 100."""
        return jnp.log(1 / self.r + 0.01)

    def log_r_sd(self, sums, tails, priors):
        """By curvature; 0 where r is frozen."""
        prior = priors[names.DISPERSION]
        if prior.frozen:
            return jnp.zeros_like(self.log_r)
        own = getattr(prior, "source", prior)
        curvature = jnp.maximum(self.slopes(sums, tails)[1], 0) + own.penalty(self.log_r)[1]
        return 1 / jnp.sqrt(curvature)

    def slopes(self, sums, tails) -> tuple[Float[Array, " gene"], Float[Array, " gene"]]:
        """First and minus the second derivative of the expected log-likelihood in log r."""
        digamma, trigamma = digamma_sums(tails, self.r)
        gradient = sums[0] + self.r * digamma
        return gradient, -(sums[1] + self.r * digamma + self.r**2 * trigamma)

    def _shares(self, f):
        """r, and the shares e^f/(r + e^f) and r/(r + e^f)."""
        delta = f - self.log_r
        return self.r, jax.nn.sigmoid(delta), jax.nn.sigmoid(-delta)


def digamma_sums(tails, r):
    """Σ_c [ψ(u_c + r) - ψ(r)] and Σ_c [ψ′(u_c + r) - ψ′(r)] of every gene.

    Σ_k excess_k · mean of 1/(r + j) over the counts j of bin k (and of -1/(r + j)²): exact for
    bins of one count, by the midpoint rule's integral for wider ones.
    """
    first, last = tails.edges[:-1], tails.edges[1:]
    width, r = last - first, r[:, None]
    low, high = r + first - 0.5, r + last - 0.5
    # A bin of one count has its exact value; `low` may be negative there (r < ½).
    single = width == 1
    low, high = jnp.where(single, 1.0, low), jnp.where(single, 2.0, high)
    inverse = jnp.where(single, 1 / (r + first), jnp.log(high / low) / width)
    square = jnp.where(single, 1 / (r + first) ** 2, 1 / (low * high))
    return jnp.sum(tails.excess * inverse, axis=1), -jnp.sum(tails.excess * square, axis=1)
