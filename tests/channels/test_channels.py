"""Channels: derivatives against automatic ones, sums of digamma against SciPy."""

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from scipy import optimize, special, stats

from nbln.channels.negative_binomial import LOG_R_MAX, NegativeBinomial, digamma_sums
from nbln.channels.poisson import Poisson
from nbln.data.counts import Counts
from nbln.data.histogram import count_tails
from nbln.priors.univariate import Frozen, LogNormal

LOG_R = np.array([-2.0, 0.0, 1.5, 6.0])
COUNTS = np.array([0.0, 1.0, 3.0, 40.0, 2_000.0])
RATES = np.array([-8.0, -1.0, 0.5, 3.0, 7.0])


@pytest.fixture
def grid():
    u, f, log_r = (x.reshape(-1, len(LOG_R)) for x in np.meshgrid(COUNTS, RATES, LOG_R))
    return u, f, np.broadcast_to(LOG_R, u.shape)


def channels():
    return {"poisson": Poisson(), "nb": NegativeBinomial(jnp.asarray(LOG_R))}


def scipy_log_prob(name, u, f, log_r):
    if name == "poisson":
        return stats.poisson.logpmf(u, np.exp(f))
    r = np.exp(log_r)
    return stats.nbinom.logpmf(u, r, r / (r + np.exp(f)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-9)])
@pytest.mark.parametrize("name", ["poisson", "nb"])
def test_log_prob(name, dtype, tolerance, grid):
    u, f, log_r = grid
    with precision_of(dtype):
        ours = channels()[name].log_prob(jnp.asarray(u, dtype), jnp.asarray(f, dtype))
    expected = scipy_log_prob(name, u, f, log_r)
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("name", ["poisson", "nb"])
def test_derivatives(name, grid):
    u, f, _ = grid
    with precision_of("float64"):
        channel = channels()[name]
        u, f = jnp.asarray(u), jnp.asarray(f)

        def total(f):
            return jnp.sum(channel.log_prob(u, f))

        first = jax.grad(total)
        second = jax.grad(lambda f: jnp.sum(first(f)))
        third = jax.grad(lambda f: jnp.sum(second(f)))
        s, a, slope = channel.derivatives(u, f)
        np.testing.assert_allclose(s, first(f), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(a, -second(f), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(slope, -third(f), rtol=1e-6, atol=1e-8)
    assert np.all(np.asarray(a) >= 0)


def test_score_keeps_its_digits_in_float32():
    u, r = 1e5, 2.0
    f = np.log(u) + 1e-3
    channel = NegativeBinomial(jnp.log(jnp.array([r], jnp.float32)))
    ours = channel.derivatives(jnp.array([[u]], jnp.float32), jnp.array([[f]], jnp.float32))[0]
    rounded = np.float64(np.float32(f))
    exact = r * (u - np.exp(rounded)) / (r + np.exp(rounded))
    assert float(ours[0, 0]) == pytest.approx(exact, rel=1e-2)


@pytest.fixture(scope="module")
def observed():
    """Counts of 300 cells and 6 genes, from a handful to tens of thousands."""
    rng = np.random.default_rng(0)
    r = np.array([0.3, 1.0, 2.0, 5.0, 20.0, 3.0])
    mean = np.array([0.2, 1.0, 8.0, 60.0, 700.0, 2e4])
    f = np.log(mean) + rng.normal(0, 0.3, (300, 6))
    u = rng.poisson(rng.gamma(np.broadcast_to(r, f.shape), np.exp(f) / r)).astype(np.float32)
    u[:, 3] += 1
    counts = Counts.from_anndata(anndata.AnnData(u))
    return u.astype(float), f, np.log(r), count_tails(counts)


@pytest.mark.parametrize("factor", [0.05, 1.0, 30.0])
def test_digamma_sums(observed, factor):
    """Exact for counts in bins of their own, to 5e-4 where bins are wider."""
    u, _, log_r, tails = observed
    r = factor * np.exp(log_r)
    with precision_of("float64"):
        first, second = digamma_sums(jax.tree.map(jnp.asarray, tails), jnp.asarray(r))
    expected = (special.psi(u + r) - special.psi(r)).sum(0)
    np.testing.assert_allclose(first, expected, rtol=5e-4)
    exact = (special.polygamma(1, u + r) - special.polygamma(1, r)).sum(0)
    np.testing.assert_allclose(second, exact, rtol=2e-3)
    alone = u.max(axis=0) <= 32
    assert alone.any()
    np.testing.assert_allclose(first[alone], expected[alone], rtol=1e-9)
    np.testing.assert_allclose(second[alone], exact[alone], rtol=1e-9)


def log_likelihood(u, f, log_r):
    r = np.exp(log_r)
    return stats.nbinom.logpmf(u, r, r / (r + np.exp(f))).sum(axis=0)


def test_slopes_are_those_of_the_log_likelihood(observed):
    u, f, log_r, tails = observed
    h = 1e-4
    up, here, down = (log_likelihood(u, f, log_r + step) for step in (h, 0, -h))
    with precision_of("float64"):
        channel = NegativeBinomial(jnp.asarray(log_r))
        sums = channel.statistics(
            jnp.asarray(u), jnp.asarray(f), jnp.zeros(f.shape), jnp.ones(len(u))
        )
        gradient, curvature = channel.slopes(sums, jax.tree.map(jnp.asarray, tails))
    exact = (up - down) / (2 * h)
    np.testing.assert_allclose(curvature, -(up - 2 * here + down) / h**2, rtol=5e-2)
    # Wide bins of large counts may move log r by less than half its standard deviation.
    assert np.all(np.abs(gradient - exact) < 0.5 * np.sqrt(curvature))
    alone = u.max(axis=0) <= 32
    np.testing.assert_allclose(gradient[alone], exact[alone], rtol=1e-5)


def test_statistics_average_over_the_log_rate(observed):
    """The gradient for uncertain log-rates is that of the quadrature average, to second order."""
    u, f, log_r, tails = observed
    u, f, variance, h = u[:50], f[:50], 0.01, 1e-4
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()

    def expected(log_r):
        return sum(
            w * log_likelihood(u, f + np.sqrt(variance) * x, log_r)
            for x, w in zip(nodes, weights, strict=True)
        )

    with precision_of("float64"):
        channel = NegativeBinomial(jnp.asarray(log_r))
        flat = jnp.full(f.shape, variance)
        difference = (
            channel.statistics(jnp.asarray(u), jnp.asarray(f), flat, jnp.ones(len(u)))
            - channel.statistics(jnp.asarray(u), jnp.asarray(f), 0 * flat, jnp.ones(len(u)))
        )[0]
    certain = (log_likelihood(u, f, log_r + h) - log_likelihood(u, f, log_r - h)) / (2 * h)
    uncertain = (expected(log_r + h) - expected(log_r - h)) / (2 * h)
    np.testing.assert_allclose(difference, uncertain - certain, rtol=0.05, atol=2e-3)


def test_masked_cells_do_not_count(observed):
    u, f, log_r, _ = observed
    channel = NegativeBinomial(jnp.asarray(log_r))
    args = (jnp.asarray(u), jnp.asarray(f), jnp.full(f.shape, 0.1))
    half = channel.statistics(*(x[:150] for x in args), jnp.ones(150))
    masked = channel.statistics(*args, jnp.repeat(jnp.array([1.0, 0.0]), 150))
    np.testing.assert_allclose(masked, half, rtol=1e-5)


def test_maximise_reaches_the_posterior_mode(observed):
    u, f, log_r, tails = observed
    prior = LogNormal(jnp.asarray(1.0), jnp.asarray(0.7))

    def objective(value, g):
        return -log_likelihood(u[:, [g]], f[:, [g]], value)[0] + 0.5 * ((value - 1.0) / 0.7) ** 2

    modes = [optimize.minimize_scalar(objective, (-4, 6), args=(g,)).x for g in range(u.shape[1])]
    with precision_of("float64"):
        tails = jax.tree.map(jnp.asarray, tails)
        channel = NegativeBinomial(jnp.zeros(u.shape[1]))
        for _ in range(30):
            sums = channel.statistics(
                jnp.asarray(u), jnp.asarray(f), jnp.zeros(f.shape), jnp.ones(len(u))
            )
            channel = channel.maximise(sums, tails, {"r": prior})
        sd = channel.conditional_sd(sums, tails, {"r": prior})["r"]
    assert np.all(np.abs(channel.log_r - np.array(modes)) < 0.5 * sd)
    alone = u.max(axis=0) <= 32
    np.testing.assert_allclose(channel.log_r[alone], np.array(modes)[alone], atol=1e-5)
    h = 1e-3
    for g, mode in enumerate(modes):
        curvature = (
            objective(mode + h, g) - 2 * objective(mode, g) + objective(mode - h, g)
        ) / h**2
        assert float(sd[g]) == pytest.approx(curvature**-0.5, rel=0.05)


def test_frozen_dispersion_is_what_it_was_frozen_at(observed):
    _, _, log_r, tails = observed
    frozen = {"r": Frozen(jnp.full(6, 7.0))}
    channel = NegativeBinomial(jnp.asarray(log_r)).maximise(jnp.zeros((2, 6)), tails, frozen)
    np.testing.assert_allclose(channel.r, 7.0, rtol=1e-6)
    sd = channel.conditional_sd(jnp.zeros((2, 6)), tails, frozen)
    assert sd.keys() == {"r"}
    assert sd["r"].shape == (6,)
    assert not np.any(sd["r"])


def test_large_dispersion_is_poisson():
    u, f = jnp.array([[0.0, 3.0, 20.0]]), jnp.array([[-1.0, 1.0, 2.5]])
    nb = NegativeBinomial(jnp.full(3, LOG_R_MAX))
    np.testing.assert_allclose(nb.log_prob(u, f), Poisson().log_prob(u, f), atol=2e-2)
    for ours, theirs in zip(nb.derivatives(u, f), Poisson().derivatives(u, f), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3)


def test_poisson_has_no_parameters():
    u = jnp.ones((4, 3))
    channel = Poisson()
    assert channel.statistics(u, u, u, jnp.ones(4)).shape == (0, 3)
    assert channel.settling().shape == (1,)
    assert not np.any(channel.settling())
    assert channel.values() == channel.state() == {}
    assert channel.conditional_sd(jnp.zeros((0, 3)), None, {}) == {}
