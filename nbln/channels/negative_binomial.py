"""Negative-binomial counts with a dispersion per gene: the channel of NBLN."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.distributions.negative_binomial import NegativeBinomialLogMean, nb_log_prob
from nbln.distributions.sampling import gamma_rates
from nbln.priors.marginal import R_MAX
from nbln.priors.univariate import Frozen, LogNormal, Prior, SmoothPrior
from nbln.vocabulary import Site

# Where nothing is known: the middle of what UMI counts of single cells show, 1 to 20.
TYPICAL_R = 5.0
# Below it nearly all counts of a gene with a mean of 1 are 0, and those that are not huge.
LOG_R_MIN = -7.0
LOG_R_MAX = math.log(R_MAX)
LARGEST_LOG_ODDS = 80.0  # of e^f and r: e^88 is the largest number of float32
LARGEST_STEP = 1.0  # of log r in one iteration: a Newton step beyond is an extrapolation


class NegativeBinomial(Channel):
    """u ~ NB(mean eᶠ, concentration r): variance mean + mean²/r."""

    sites = (Site(names.DISPERSION, (names.GENE,), "dispersion: variance of a count is m + m²/r"),)

    log_r: Float[Array, " gene"]

    @classmethod
    def start(cls, log_r):
        return cls(log_r)

    @classmethod
    def of(cls, values):
        return cls(jnp.log(jnp.asarray(values[names.DISPERSION])))

    @classmethod
    def default_priors(cls):
        return {names.DISPERSION: LogNormal(math.log(TYPICAL_R), 2.0)}

    def values(self):
        return {names.DISPERSION: self.r}

    @property
    def r(self) -> Float[Array, " gene"]:
        """Concentration of each gene."""
        return jnp.exp(self.log_r)

    def log_prob(self, u, f):
        return nb_log_prob(u, f, self.r)

    def log_kernel(self, u, f):
        # u log(eᶠ/(1 + eᶠ/r)) - r log(1 + eᶠ/r): finite, and Poisson's, as r grows. The first
        # logarithm is min(f, log r) less a tail, without cancellation, since u may be large.
        tail = jnp.log1p(jnp.exp(-jnp.abs(f - self.log_r)))
        saturation = jnp.maximum(f - self.log_r, 0) + tail
        return u * (jnp.minimum(f, self.log_r) - tail) - self.r * saturation

    def change(self, u, f, move, growth):
        low = jax.nn.sigmoid(f - self.log_r)
        return u * move - (u + self.r) * jnp.log1p(growth * low)

    def derivatives(self, u, f):
        r, low, high = self._shares(f)
        information = (u + r) * low * high
        return u * high - r * low, information, information * (high - low)

    def information_at_count(self, u):
        rate = u + 0.5
        share = self.r / (self.r + rate)
        return (u + self.r) * rate / self.r * share**2

    def own_overdispersion(self):
        """log(1 + 1/r)."""
        return jax.nn.softplus(-self.log_r)

    def with_own(self, omega):
        return NegativeBinomial(jnp.clip(-jnp.log(jnp.expm1(omega)), LOG_R_MIN, LOG_R_MAX))

    def own_log_volume(self):
        """∂r/∂ω = -r (1 + r)."""
        return self.log_r + jnp.log1p(self.r)

    def own_slope(self, u, f, slope, move, change):
        # ∂ℓ/∂ log r = r (ψ(u + r) - ψ(r)) - s - r log(1 + eᶠ/r), and ∂ log r/∂ω = -(1 + r).
        r = self.r
        saturation = jax.nn.softplus(f - self.log_r) + (u * move - change) / (u + r)
        return (1 + r) * (slope + r * (saturation - digamma_rise(u, r)))

    def constant_change(self, old, tails):
        """Σ_c Σ_{j < u} [log(1 + j/r) - log(1 + j/r_old)], the gamma functions of the pmf."""
        assert isinstance(old, NegativeBinomial), "a channel is compared with its own kind"
        middle = 0.5 * (tails.edges[:-1] + tails.edges[1:] - 1)
        change = jnp.log1p(middle * jnp.exp(-self.log_r)[:, None])
        change = change - jnp.log1p(middle * jnp.exp(-old.log_r)[:, None])
        return jnp.sum(tails.excess * change, axis=1)

    def distribution(self, f):
        return NegativeBinomialLogMean(f, self.r)

    def statistics(self, u, f, variance, mask):
        """First and second derivative of E[log NB] in log r, less their digamma part.

        The expectation is over f ~ N(f, variance) to second order. Sums of digamma functions
        depend on the data alone, through `CountTails`, and enter in `maximise`: no transcendental
        function of a count is evaluated per cell.
        """
        r, low, high = self._shares(f)
        score, information, slope = self.derivatives(u, f)
        saturation = r * jnp.log1p(self._odds(f))
        first = -saturation - score - 0.5 * variance * (r * low * high - slope)
        second = -saturation + 2 * r * low - information
        return jnp.stack([mask @ first, mask @ second])

    def maximise(self, sums, tails, priors):
        """One safeguarded Newton step of log r per gene."""
        prior = priors[names.DISPERSION]
        if isinstance(prior, Frozen):
            return NegativeBinomial(jnp.log(jnp.asarray(prior.value)))
        gradient, curvature = self.slopes(sums, tails)
        prior_gradient, prior_curvature = _smooth(prior).penalty(self.log_r)
        # Where the likelihood is not concave, the prior's curvature alone sets the step.
        curvature = jnp.maximum(curvature, 0) + prior_curvature + 1e-6
        step = (gradient + prior_gradient) / curvature
        log_r = self.log_r + jnp.clip(step, -LARGEST_STEP, LARGEST_STEP)
        return NegativeBinomial(jnp.clip(log_r, LOG_R_MIN, LOG_R_MAX))

    def settling(self):
        """Log of 1/r + 0.01: of what counts show of r, which is little above 100."""
        return jnp.log(1 / self.r + 0.01)

    def conditional_sd(self, sums, tails, priors):
        """By curvature; 0 where r is frozen."""
        prior = priors[names.DISPERSION]
        if prior.frozen:
            return {names.DISPERSION: jnp.zeros_like(self.log_r)}
        curvature = jnp.maximum(self.slopes(sums, tails)[1], 0)
        curvature = curvature + _smooth(prior).penalty(self.log_r)[1]
        return {names.DISPERSION: 1 / jnp.sqrt(curvature)}

    def rates(self, rng, f):
        """Gamma rates with mean eᶠ and shape r."""
        return gamma_rates(rng, np.exp(f), np.asarray(self.r))

    def noise(self):
        """1/r."""
        return np.exp(-np.asarray(self.log_r, np.float64))

    def slopes(self, sums, tails) -> tuple[Float[Array, " gene"], Float[Array, " gene"]]:
        """First and minus the second derivative of the expected log-likelihood in log r."""
        digamma, trigamma = digamma_sums(tails, self.r)
        gradient = sums[0] + self.r * digamma
        return gradient, -(sums[1] + self.r * digamma + self.r**2 * trigamma)

    def _odds(self, f):
        """e^f/r, bounded where float32 has no share of it or of 1."""
        return jnp.exp(jnp.clip(f - self.log_r, -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS))

    def _shares(self, f):
        """r, and the shares e^f/(r + e^f) and r/(r + e^f)."""
        odds = self._odds(f)
        low = 1 / (1 + odds)
        return self.r, odds * low, low


def _smooth(prior: Prior) -> SmoothPrior:
    assert isinstance(prior, SmoothPrior), "log r moves by Newton steps"
    return prior


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


def digamma_rise(u, r):
    """ψ(u + r) - ψ(r), by the recurrence and the asymptotic series (DLMF 5.5.2, 5.11.2).

    Every term is a difference written without cancellation: the slope in r has it times r².
    """
    low, high = r + 3, u + r + 3
    steps = sum(1 / ((r + i) * (u + r + i)) for i in range(3))
    whole, part = 1 / (low * high), 1 / low**2 + 1 / high**2
    # 1/low² - 1/high² = u (low + high) / (low high)², and likewise the fourth powers.
    squares = (low + high) * whole**2 * (1 / 12 - part / 120)
    return jnp.log1p(u / low) + u * (steps + 0.5 * whole + squares)
