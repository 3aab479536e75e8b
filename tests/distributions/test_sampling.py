"""Samplers against the pmf, by chi-square tests at a fixed seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from nbln.distributions import (
    NegativeBinomialLogMean,
    PoissonLogNormal,
    ZeroInflatedNegativeBinomial,
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
)
from nbln.distributions.sampling import sample_exponential, sample_poisson

draw = jax.jit(sample_poisson)
DRAWS = 100_000
REJECT = 1e-4


@jax.jit
def sample(distribution, key):
    return distribution.sample(key, (DRAWS,))


@jax.jit
def log_prob(distribution, counts):
    return distribution.log_prob(counts)


def goodness_of_fit(draws, counts, pmf):
    """p value of a chi-square test; ``counts`` are consecutive, the rest is one more bin."""
    inside = draws[(draws >= counts[0]) & (draws <= counts[-1])]
    observed = np.bincount(inside - counts[0], minlength=len(counts))
    observed = np.append(observed, len(draws) - observed.sum())
    expected = len(draws) * np.append(pmf, max(1 - pmf.sum(), 0))
    order = np.argsort(-expected)
    observed, expected = observed[order], expected[order]
    bins = np.minimum(np.cumsum(expected) // 10, np.sum(expected) // 10 - 1).astype(int)
    _, bins = np.unique(bins, return_inverse=True)
    observed, expected = np.bincount(bins, observed), np.bincount(bins, expected)
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    return st.chi2.sf(statistic, max(len(expected) - 1, 1))


CASES = [
    NegativeBinomialLogMean(jnp.log(3.0), 0.5),
    NegativeBinomialLogMean(jnp.log(0.02), 1e-3),
    NegativeBinomialLogMean(jnp.log(1e-5), 2.0),
    NegativeBinomialLogMean(jnp.log(60.0), 1e-2),
    NegativeBinomialLogMean(jnp.log(40.0), 1e12),
    NegativeBinomialLogMean(jnp.log(300.0), 8.0),
    ZeroInflatedNegativeBinomial(jnp.log(4.0), 3.0, 0.4),
    ZeroTruncatedPoisson(jnp.log(1e-8)),
    ZeroTruncatedPoisson(jnp.log(0.3)),
    ZeroTruncatedPoisson(jnp.log(25.0)),
    ZeroTruncatedNegativeBinomial(jnp.log(1e-8), 0.5),
    ZeroTruncatedNegativeBinomial(jnp.log(0.5), 1e-6),
    ZeroTruncatedNegativeBinomial(jnp.log(0.5), 0.4),
    ZeroTruncatedNegativeBinomial(jnp.log(5.0), 2.0),
    ZeroTruncatedNegativeBinomial(jnp.log(5.0), 1e10),
    PoissonLogNormal(0.5, 0.8),
]
IDS = [f"{type(case).__name__}-{i}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_draws_follow_the_pmf(case):
    draws = np.asarray(sample(case, jax.random.key(7)))
    truncated = type(case).__name__.startswith("ZeroTruncated")
    counts = np.arange(truncated, 2000)
    pmf = np.exp(np.asarray(log_prob(case, counts), np.float64))
    assert draws.min() >= counts[0]
    assert goodness_of_fit(draws, counts, pmf) > REJECT


@pytest.mark.parametrize("rate", [0.5, 9.99, 10.0, 37.5, 1e3, 1e5, 3e6])
def test_poisson(rate):
    rate = float(np.float32(rate))
    draws = np.asarray(draw(jax.random.key(1), jnp.full(DRAWS, rate)))
    reach = 6 * np.sqrt(rate) + 10
    counts = np.arange(int(max(rate - reach, 0)), int(rate + reach))
    assert goodness_of_fit(draws, counts, st.poisson.pmf(counts, rate)) > REJECT


def test_small_probabilities_are_resolved():
    """One float32 uniform has no value between 0 and 1e-7, and few below 1e-4."""
    waits = np.asarray(sample_exponential(jax.random.key(3), (1_000_000,), jnp.float32))
    early = waits[waits < 1e-4]
    assert st.binomtest(len(early), len(waits), 1e-4).pvalue > REJECT
    assert len(np.unique(early)) == len(early)
    assert early.min() > 0


def test_huge_means():
    """Depth beyond 2^24, where float32 no longer holds every integer."""
    draws = np.asarray(draw(jax.random.key(0), jnp.full(DRAWS, 1e9)), np.float64)
    z = (draws - 1e9) / np.sqrt(1e9)
    assert st.kstest(z, st.norm.cdf).pvalue > REJECT
    assert len(np.unique(draws % 64)) == 64
    deep = NegativeBinomialLogMean(jnp.log(1e7), 5.0)
    draws = np.asarray(sample(deep, jax.random.key(0)), np.float64)
    assert st.kstest(draws, st.gamma(5.0, scale=1e7 / 5).cdf).pvalue > REJECT


def test_sampling_ends_whatever_the_rate():
    rates = jnp.array([jnp.nan, 0.0, 5.0, jnp.inf])
    draws = draw(jax.random.key(0), rates)
    assert draws[0] == -1
    assert draws[1] == 0
    assert draws[3] > 1e9
