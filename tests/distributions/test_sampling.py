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
from nbln.distributions.sampling import gamma_rates, sample_exponential, sample_poisson, share_out

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


@pytest.mark.parametrize("total", [300, 40_000])  # count by count, and by binomial draws
def test_totals_are_shared_out_in_proportion(total):
    weights = np.array([0.0, 1e-3, 0.2, 3.0, 1.0, 0.0], np.float32)
    n_cells = 4000
    drawn = share_out(
        np.random.default_rng(0), np.full(n_cells, total), np.tile(weights, (n_cells, 40))
    )
    np.testing.assert_array_equal(drawn.sum(axis=1), total)
    p = np.tile(weights, 40) / (40 * weights.astype(np.float64).sum())
    assert not drawn[:, p == 0].any()
    drawn, p = drawn[:, p > 0], p[p > 0]
    # Means and covariances of a multinomial, within five standard errors over cells.
    error = (drawn.mean(axis=0) - total * p) / np.sqrt(total * p * (1 - p) / n_cells)
    assert np.abs(error).max() < 5
    assert 0.8 < error.std() < 1.2
    for count in (0, 1, 2):
        share, expected = (drawn == count).mean(axis=0), st.binom(total, p).pmf(count)
        seen = expected * n_cells > 20
        sd = np.sqrt(expected * (1 - expected) / n_cells)[seen]
        assert np.all(np.abs(share - expected)[seen] < 5 * sd)
    groups = drawn.reshape(n_cells, 40, -1).sum(axis=1)
    q = p[: groups.shape[1]] * 40
    covariance = np.cov(groups.T) / total
    np.testing.assert_allclose(covariance, np.diag(q) - np.outer(q, q), atol=0.012)


@pytest.mark.parametrize("shape", [0.05, 0.9, 3.0, 200.0])
def test_rates_of_single_precision_are_gamma(shape):
    mean = np.full((DRAWS, 1), 2.5, np.float32)
    drawn = gamma_rates(np.random.default_rng(0), mean, np.array([shape]))
    assert drawn.dtype == np.float32
    rates = drawn.ravel().astype(np.float64)
    # Below 1e-9 no count tells one rate from another, and float32 ends.
    large = rates[rates > 1e-9]
    gamma = st.gamma(shape, scale=2.5 / shape)
    assert st.binomtest(len(large), DRAWS, gamma.sf(1e-9)).pvalue > REJECT
    inside = 1 - gamma.sf(large) / gamma.sf(1e-9)
    assert st.kstest(inside, "uniform").pvalue > REJECT
