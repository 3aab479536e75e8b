"""What every count distribution promises: a proper pmf, moments, NumPyro's interface."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro
import numpyro.distributions as npd
import pytest
import scipy.stats as st
from numpyro.infer.util import log_density

from nbln.distributions import (
    NegativeBinomialLogMean,
    NegativeBinomialLogNormal,
    PoissonLogNormal,
    ZeroInflatedNegativeBinomial,
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
    kl_negative_binomial,
    nb_tails,
    poisson_log_prob,
)

EXAMPLES = [
    NegativeBinomialLogMean(1.2, 0.7),
    NegativeBinomialLogMean(2.0, 1e8),
    NegativeBinomialLogMean(-18.0, 3.0),
    ZeroInflatedNegativeBinomial(1.0, 2.0, -0.5),
    ZeroInflatedNegativeBinomial(2.0, 50.0, -12.0),
    ZeroTruncatedPoisson(-18.0),
    ZeroTruncatedPoisson(1.5),
    ZeroTruncatedNegativeBinomial(-18.0, 0.3),
    ZeroTruncatedNegativeBinomial(1.0, 0.4),
    ZeroTruncatedNegativeBinomial(2.0, 1e7),
    PoissonLogNormal(0.5, 0.6),
    NegativeBinomialLogNormal(0.5, 0.4, 4.0),
]
IDS = [f"{type(e).__name__}-{i}" for i, e in enumerate(EXAMPLES)]
FAMILIES = [EXAMPLES[i] for i in (0, 3, 6, 8, 10, 11)]
FAMILY_IDS = [type(e).__name__ for e in FAMILIES]


@jax.jit
def log_prob(distribution, counts):
    return distribution.log_prob(counts)


@jax.jit
def cdf(distribution, counts):
    return distribution.cdf(counts)


def expect_counts(distribution, limit=3000):
    counts = np.arange(limit)
    start = 1 if distribution.support is npd.constraints.positive_integer else 0
    counts = counts[start:]
    return counts, np.exp(np.asarray(log_prob(distribution, counts), np.float64))


@pytest.mark.parametrize("distribution", EXAMPLES, ids=IDS)
def test_pmf_sums_to_one_and_has_the_moments(distribution):
    counts, pmf = expect_counts(distribution)
    mean = (counts * pmf).sum()
    np.testing.assert_allclose(pmf.sum(), 1, atol=3e-6)
    np.testing.assert_allclose(distribution.mean, mean, rtol=2e-4)
    variance = ((counts - mean) ** 2 * pmf).sum()
    np.testing.assert_allclose(distribution.variance, variance, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("distribution", EXAMPLES[:10], ids=IDS[:10])
def test_cdf_sums_the_pmf(distribution):
    counts, pmf = expect_counts(distribution, 200)
    np.testing.assert_allclose(cdf(distribution, counts), np.cumsum(pmf), atol=5e-6)
    below, half, whole = cdf(distribution, jnp.array([-1, 2.5, 2.0]))
    assert below == 0
    assert half == whole


@pytest.mark.parametrize("distribution", FAMILIES, ids=FAMILY_IDS)
def test_numpyro_interface(distribution):
    leaves, tree = jax.tree.flatten(distribution)
    assert isinstance(jax.tree.unflatten(tree, leaves), type(distribution))
    wide = distribution.expand((3, 2)).to_event(1)
    assert wide.batch_shape == (3,)
    draws = jax.eval_shape(lambda key: wide.sample(key, (5,)), jax.random.key(0))
    assert draws.shape == (5, 3, 2)
    assert draws.dtype == jnp.int32
    assert jax.eval_shape(log_prob, wide, draws).shape == (5, 3)
    shifted = jax.vmap(lambda shift: jax.tree.map(lambda p: p + shift, distribution))
    batch = jax.vmap(log_prob, (0, None))(shifted(jnp.array([0.0, 0.1])), 2)
    np.testing.assert_allclose(batch[0], log_prob(distribution, 2), rtol=1e-5)


def test_works_as_a_site():
    distribution = EXAMPLES[0]

    def model(counts):
        with numpyro.plate("cells", 4):
            numpyro.sample("counts", distribution, obs=counts)

    density, _ = log_density(model, (jnp.array([1, 2, 3, 4]),), {}, {})
    expected = distribution.log_prob(jnp.array([1, 2, 3, 4])).sum()
    np.testing.assert_allclose(density, expected, rtol=1e-6)


def test_batch_shape_broadcasts():
    distribution = NegativeBinomialLogMean(jnp.zeros((4, 1)), jnp.ones(3))
    assert distribution.batch_shape == (4, 3)
    assert distribution.mean.shape == distribution.variance.shape == (4, 3)
    draws = jax.eval_shape(lambda key: distribution.sample(key, (2,)), jax.random.key(0))
    assert draws.shape == (2, 4, 3)
    gated = ZeroInflatedNegativeBinomial(0.0, jnp.ones(3), jnp.zeros((4, 1)))
    assert gated.batch_shape == gated.mean.shape == gated.variance.shape == (4, 3)
    truncated = ZeroTruncatedNegativeBinomial(jnp.zeros((4, 1)), jnp.ones(3))
    assert truncated.mean.shape == cdf(truncated, 2).shape == (4, 3)


def test_validation():
    with pytest.raises(ValueError, match="concentration"):
        NegativeBinomialLogMean(0.0, -1.0, validate_args=True)
    with pytest.raises(ValueError, match="scale"):
        PoissonLogNormal(0.0, -1.0, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        ZeroTruncatedPoisson(0.0, validate_args=True).log_prob(0)


@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_truncated_zero_is_impossible():
    assert ZeroTruncatedPoisson(0.0).log_prob(0) == -jnp.inf
    assert ZeroTruncatedNegativeBinomial(0.0, 1.0).log_prob(0) == -jnp.inf


def test_parameterizations_agree():
    x = jnp.arange(20)
    expected = st.nbinom.logpmf(x, 2.5, 2.5 / (2.5 + 4.0))
    make = NegativeBinomialLogMean
    for distribution in (
        make(jnp.log(4.0), 2.5),
        make.from_mean(4.0, 2.5),
        make.from_dispersion(4.0, 1 / 2.5),
        make.from_logits(2.5, jnp.log(4.0 / 2.5)),
        make.from_odds(4.0, 2.5 / 4.0),
        npd.NegativeBinomialLogits(2.5, jnp.log(4.0 / 2.5)),
    ):
        np.testing.assert_allclose(log_prob(distribution, x), expected, rtol=1e-5)


def test_no_dispersion_is_poisson():
    x = jnp.arange(30)
    limit = log_prob(NegativeBinomialLogMean.from_dispersion(8.0, 0.0), x)
    np.testing.assert_allclose(limit, st.poisson.logpmf(x, 8.0), rtol=2e-6)
    np.testing.assert_allclose(jax.jit(poisson_log_prob)(x, jnp.log(8.0)), limit, rtol=2e-6)


def test_tails_of_deep_counts():
    x, mean, theta = 3e5, 3.1e5, 40.0
    below, above = nb_tails(x, np.log(mean), theta)
    exact = st.nbinom.cdf(x, theta, theta / (theta + mean))
    np.testing.assert_allclose(below, exact, atol=1e-5)
    np.testing.assert_allclose(below + above, 1, rtol=1e-6)
    _, far = nb_tails(25, 0.0, 1e12)
    np.testing.assert_allclose(far, st.poisson.sf(25, 1.0), rtol=1e-4, atol=0)


def exact_kl(log_mean_q, log_mean_p, theta):
    q, p = mp.exp(log_mean_q), mp.exp(log_mean_p)
    log_ratio = mp.log1p((q - p) / (theta + p))
    value = q * (log_mean_q - log_mean_p) - (theta + q) * log_ratio
    score = (
        q * (log_mean_q - log_mean_p - log_ratio),
        -theta * (q - p) / (theta + p),
        theta * ((q - p) / (theta + p) - log_ratio),
    )
    return value, score


@pytest.mark.parametrize(("dtype", "target"), [("float32", 2e-6), ("float64", 5e-15)])
def test_kl(dtype, target):
    rng = np.random.default_rng(0)
    n = 500
    q = np.log(10) * rng.uniform(-20, 7, n)
    near = q + rng.normal(size=n) * 10 ** rng.uniform(-6, 0.5, n)
    p = np.where(rng.random(n) < 0.6, near, np.log(10) * rng.uniform(-20, 7, n))
    columns = [c.astype(dtype) for c in (q, p, 10 ** rng.uniform(-6, 12, n))]
    with mp.workdps(50):
        rows = [exact_kl(*map(mp.mpf, map(float, row))) for row in zip(*columns, strict=True)]
    value = np.array([float(r[0]) for r in rows])
    score = np.array([[float(s) for s in r[1]] for r in rows]).T
    with jax.enable_x64(dtype == "float64"):
        computed = np.asarray(jax.jit(kl_negative_binomial)(*columns), np.float64)
        gradient = jax.jit(jax.grad(lambda *a: kl_negative_binomial(*a).sum(), (0, 1, 2)))(*columns)
        second = jax.jit(jax.vmap(jax.hessian(kl_negative_binomial, (0, 1, 2))))(*columns)
    gradient = np.array([np.asarray(g, np.float64) for g in gradient])
    gradient[2] *= columns[2].astype(np.float64)
    ulps = np.array([np.spacing(np.abs(c)).astype(np.float64) for c in columns])
    ulps[2] /= columns[2]
    error = np.abs(computed - value) - (np.abs(score) * ulps).sum(0)
    assert (error / np.maximum(1, value)).max() < target
    assert (computed >= 0).all()
    error = np.abs(gradient - score) / np.maximum(1, np.abs(score))
    assert error.max() < target
    assert all(np.isfinite(h).all() for h in jax.tree.leaves(second))


def test_kl_is_an_expectation():
    q, p = NegativeBinomialLogMean(1.0, 3.0), NegativeBinomialLogMean(0.2, 3.0)
    counts, pmf = expect_counts(q, 500)
    expected = (pmf * (log_prob(q, counts) - log_prob(p, counts))).sum()
    np.testing.assert_allclose(kl_negative_binomial(1.0, 0.2, 3.0), expected, rtol=1e-4)
    assert kl_negative_binomial(1.0, 1.0, 3.0) == 0
