"""Negative-binomial counts of which some are structural zeros."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.distributions.sampling import gamma_rates
from nbln.distributions.zero_inflated import ZeroInflatedNegativeBinomial, zinb_log_prob
from nbln.priors.univariate import Beta
from nbln.vocabulary import Site

# A density that is highest at 0, with mean 0.1: as informative as ten cells whose structural zeros
# are known. Of a gate of 0.4 it takes away 2 nats, so that a gate is small unless counts say
# otherwise. (With twenty cells it took 7, and gates of 0.4 that 300 cells show came out at 0.25.)
RARE = Beta(1.0, 9.0)
# Gates closer to 0 or 1 are these: float32 has no logit of a gate that is rounded to either.
LEAST_GATE, MOST_GATE = 1e-12, 1 - 1e-6


class ZeroInflated(Channel):
    """u is 0 with probability π, and else ~ NB(mean eᶠ, concentration r).

    The mean is (1 - π) eᶠ. The log-probability of a zero is not concave in f, so that no engine
    that looks for a mode of log-rates by Newton steps may use it.
    """

    sites = (
        *NegativeBinomial.sites,
        Site(names.GATE, (names.GENE,), "probability of a structural zero"),
    )
    concave: ClassVar[bool] = False

    log_r: Array  # (gene,), or (cell, gene)
    logits: Array  # of the gates: as log_r

    @classmethod
    def start(cls, log_r):
        return cls(log_r, jnp.full_like(log_r, np.log(float(RARE.a) / float(RARE.b))))

    @classmethod
    def of(cls, values):
        gate = jnp.clip(jnp.asarray(values[names.GATE]), LEAST_GATE, MOST_GATE)
        log_r = jnp.log(jnp.asarray(values[names.DISPERSION]))
        return cls(log_r, jnp.log(gate) - jnp.log1p(-gate))

    @classmethod
    def default_priors(cls):
        return {**NegativeBinomial.default_priors(), names.GATE: RARE}

    def values(self):
        return {names.DISPERSION: jnp.exp(self.log_r), names.GATE: jax.nn.sigmoid(self.logits)}

    def log_prob(self, u, f):
        return zinb_log_prob(u, f, jnp.exp(self.log_r), self.logits)

    def distribution(self, f):
        return ZeroInflatedNegativeBinomial(f, jnp.exp(self.log_r), self.logits)

    def derivatives(self, u, f):
        """Score and information in f, of counts known to be structural zeros or not.

        That information (as in expectation-maximisation) is never negative; the observed one is,
        where a zero is half explained.
        """
        counted = NegativeBinomial(self.log_r)
        score, information, slope = counted.derivatives(u, f)
        base = counted.log_prob(jnp.zeros_like(f), f)
        own = jnp.where(u > 0, 1, jax.nn.sigmoid(base - self.logits))  # P(not structural | u)
        return own * score, own * information, own * slope

    def matched(self, log_mean) -> tuple[Array, NegativeBinomial]:
        """m = (1 - π) μ and 1/r' = (1/r + π)/(1 - π), from the variance m + m² / r'."""
        gate = jax.nn.sigmoid(self.logits)
        log_kept = jax.nn.log_sigmoid(-self.logits)
        log_r = log_kept - jnp.log(jnp.exp(-self.log_r) + gate)
        return log_mean + log_kept, NegativeBinomial(log_r)

    # On the host

    @property
    def open(self) -> np.ndarray:
        """Probability that a count is no structural zero."""
        return np.asarray(jax.nn.sigmoid(-self.logits))

    def noise(self):
        """1/r: of the rates of counts that are no structural zeros."""
        return np.exp(-np.asarray(self.log_r, np.float64))

    def rates(self, rng, f):
        """Rates that counts are Poisson draws of; 0 where a count is a structural zero."""
        kept = rng.random(f.shape) < self.open
        return np.where(kept, gamma_rates(rng, np.exp(f), np.exp(np.asarray(self.log_r))), 0)

    def mean(self, f):
        """Expected counts, (1 - π) eᶠ."""
        return self.open * np.exp(f)

    def variance(self, f):
        """(1 - π) μ (1 + μ/r + π μ) at μ = eᶠ."""
        mean = np.exp(f)
        return self.open * mean * (1 + mean * (self.noise() + 1 - self.open))

    def expected_variance(self, loc, variance):
        square = np.exp(2 * (loc + variance)) * (self.noise() + 1 - self.open)
        return self.open * (np.exp(loc + 0.5 * variance) + square)

    def moments(self, loc, variance):
        mean = np.exp(loc + 0.5 * variance)
        spread = (self.open * mean) ** 2 * np.expm1(variance)
        return self.open * mean, self.expected_variance(loc, variance) + spread
