"""Divergences of codes against enumeration, quadrature, and their limits."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

import nbln
from nbln.vae.codes import DispersionSharing, ExactSum, MonteCarlo
from nbln.vae.codes.categorical import Categories
from nbln.vae.codes.continuous import Gaussian, Laplace
from nbln.vae.codes.divergences import dispersion_gap, kl_poisson, log_ratio
from nbln.vae.codes.relaxed import Gumbel
from nbln.vae.codes.spikes import NegativeBinomialCounts, PoissonCounts

LOG_R = np.log([0.05, 1.0, 150.0])
LOGIT_P = np.array([-5.0, 0.3, 5.0])
GRID = np.array(list(itertools.product(LOG_R, LOGIT_P, LOG_R, LOGIT_P)))


def enumerated(log_r_q, logit_q, log_r_p, logit_p):
    """Σ q(z) [log q(z) − log p(z)] over all z but 1e-18 of q."""
    q = stats.nbinom(np.exp(log_r_q), 1 / (1 + np.exp(-logit_q)))
    p = stats.nbinom(np.exp(log_r_p), 1 / (1 + np.exp(-logit_p)))
    z = np.arange(q.isf(1e-18) + 100)
    log_q = q.logpmf(z)
    return np.sum(np.exp(log_q) * (log_q - p.logpmf(z)))


def pair(parameters):
    log_r_q, logit_q, log_r_p, logit_p = parameters
    return NegativeBinomialCounts(log_r_q, logit_q), NegativeBinomialCounts(log_r_p, logit_p)


@partial(jax.jit, static_argnums=1)
def exact(parameters, n_terms=64):
    return ExactSum(n_terms)(*pair(parameters), None, None)


@pytest.fixture(scope="module")
def truth():
    return np.array([enumerated(*row) for row in GRID])


@pytest.mark.parametrize(("double", "within"), [(True, 1e-6), (False, 2e-5)])
def test_exact_sum_is_enumeration(truth, double, within):
    with jax.enable_x64(double):
        ours = np.asarray(exact(jnp.asarray(GRID.T, float)))
    assert (np.abs(ours - truth) / np.maximum(1, truth)).max() < within


def test_training_takes_enough_terms(truth):
    ours = np.asarray(exact(jnp.asarray(GRID.T), ExactSum().n_terms))
    assert (np.abs(ours - truth) / np.maximum(1, truth)).max() < 1e-3
    usual = np.random.default_rng(0).uniform(-1.5, 1.5, (40, 4))
    enough = [enumerated(*row) for row in usual]
    np.testing.assert_allclose(exact(jnp.asarray(usual.T), ExactSum().n_terms), enough, atol=2e-6)


def test_few_terms_are_right_enough_for_training():
    """Of 99 % of pairs: where D is above 0.01, to 0.2 %, and its derivatives to 1 %."""
    rng = np.random.default_rng(0)
    points = np.log([0.03, 0.1, 0.1]), np.log([100, 150, 150])
    points = rng.uniform(*points, (2_000, 3)).T
    n_terms = nbln.NegBioConfig().n_terms

    def both(points, n_terms):
        gap = partial(dispersion_gap, n_terms=n_terms)
        slopes = jax.vmap(jax.grad(gap, (0, 1, 2)))(*points)
        return np.asarray(gap(*points)), np.asarray(slopes)

    with jax.enable_x64(True):
        truth, slopes = both(points, 200)
    ours, own_slopes = both(jnp.asarray(points, jnp.float32), n_terms)
    large, error = truth > 0.01, np.abs(ours - truth)
    assert np.quantile((error / truth)[large], 0.99) < 2e-3
    assert np.quantile(error[~large], 0.99) < 2e-5
    length = np.linalg.norm(slopes, axis=0)[large]
    wrong = np.linalg.norm(own_slopes - slopes, axis=0)[large]
    assert np.quantile(wrong / length, 0.99) < 1e-2


def test_derivatives_of_the_exact_sum():
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.uniform(-2, 2, (10, 4)), [[-3, 0, 5, 1], [5, 1, -3, 0.5]]])
    with jax.enable_x64(True):
        ours = jax.vmap(jax.grad(exact))(points)
    single = jax.vmap(jax.grad(exact))(jnp.asarray(points))
    for j in range(4):
        step = 1e-4 * np.eye(4)[j]
        by_difference = [
            (enumerated(*(row + step)) - enumerated(*(row - step))) / 2e-4 for row in points
        ]
        np.testing.assert_allclose(ours[:, j], by_difference, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(single[:, j], by_difference, rtol=2e-5, atol=2e-5)


def test_what_is_left_out_of_the_integral_is_bounded():
    """More terms do not help: what is left is what lies beyond the ends, below 3e-9."""
    with jax.enable_x64(True):
        points = np.random.default_rng(2).uniform([-4, -3, -3], [6, 5, 5], (60, 3)).T
        many, more = (np.asarray(dispersion_gap(*points, n)) for n in (100, 400))
    truth = []
    for m, a, b in np.exp(points.T):
        q, p = stats.nbinom(a, a / (a + m)), stats.nbinom(b, b / (b + m))
        log_q = q.logpmf(z := np.arange(q.isf(1e-18) + 50))
        truth.append(np.sum(np.exp(log_q) * (log_q - p.logpmf(z))))
    np.testing.assert_allclose(many, more, atol=3e-9)
    np.testing.assert_allclose(more, truth, atol=3e-9, rtol=1e-9)


def test_no_divergence_without_difference():
    points = jnp.asarray(GRID[:, :2].T)
    ours = exact(jnp.concatenate([points, points]))
    np.testing.assert_allclose(ours, 0, atol=2e-6)


def test_shared_dispersion_is_the_exact_sum_and_the_published_formula():
    rng = np.random.default_rng(3)
    log_r, logit_q, logit_p = rng.uniform(-2, 2, (3, 50))
    q, p = pair(jnp.asarray([log_r, logit_q, log_r, logit_p]))
    shared = DispersionSharing()(q, p, None, None)
    np.testing.assert_allclose(shared, ExactSum()(q, p, None, None), atol=2e-6, rtol=2e-6)
    of_q, of_p = (1 / (1 + np.exp(-logit)) for logit in (logit_q, logit_p))
    published = np.log(of_q / of_p) + (1 - of_q) / of_q * np.log((1 - of_q) / (1 - of_p))
    np.testing.assert_allclose(shared, np.exp(log_r) * published, rtol=2e-5, atol=2e-6)


def test_monte_carlo_is_unbiased_with_hard_draws_only():
    cells = 40_000
    truth = float(exact(jnp.asarray([0.5, -0.7, 0.0, 0.4])))
    q, p = pair([jnp.full(cells, v) for v in (0.5, -0.7, 0.0, 0.4)])

    @jax.jit
    def estimates(relaxation):
        return MonteCarlo()(q, p, jax.random.key(0), relaxation)

    hard, cold, warm = (
        np.asarray(estimates(relaxation))
        for relaxation in (None, *(Gumbel(jnp.float32(t), 32) for t in (0.05, 1.0)))
    )
    assert hard.mean() == pytest.approx(truth, abs=4 * hard.std() / np.sqrt(cells))
    assert cold.mean() == pytest.approx(truth, abs=0.05)
    assert warm.mean() - truth > 0.1


def test_log_ratio_and_its_derivatives_between_counts():
    """log q − log p where p is geometric, whose log-pmf is linear in z."""
    z, a = np.meshgrid([0.0, 1e-3, 0.7, 3.2, 40.0], [0.05, 0.9, 7, 150, 2e4])

    def ratio(z, log_a):
        half, geometric = jnp.zeros_like(z), jnp.zeros_like(z)
        return log_ratio(
            z, NegativeBinomialCounts(log_a, half), NegativeBinomialCounts(geometric, half)
        ).sum()

    value = jax.vmap(jax.vmap(ratio))(jnp.asarray(z), jnp.log(a))
    rising = special.gammaln(z + a) - special.gammaln(a) - special.gammaln(z + 1)
    np.testing.assert_allclose(value, rising - (a - 1) * np.log(2), rtol=3e-6, atol=2e-5)
    with jax.enable_x64(True):
        by_z, by_log_a = jax.grad(ratio, (0, 1))(jnp.asarray(z), jnp.log(a))
    np.testing.assert_allclose(by_z, special.digamma(z + a) - special.digamma(z + 1), atol=1e-7)
    by_a = special.digamma(z + a) - special.digamma(a) - np.log(2)
    np.testing.assert_allclose(by_log_a, a * by_a, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("log_rates", [(0.0, 0.5), (2.0, -1.0), (-4.0, 1.0), (1.0, 1.0001)])
def test_poisson_is_the_limit(log_rates):
    far = np.log(1e7)
    q, p = (
        NegativeBinomialCounts(jnp.array([far]), jnp.array([far - log_rate]))
        for log_rate in log_rates
    )
    poisson_q, poisson_p = (PoissonCounts(jnp.array([log_rate])) for log_rate in log_rates)
    divergence = poisson_q.divergence(poisson_p)
    np.testing.assert_allclose(q.divergence(p), divergence, rtol=1e-5, atol=1e-5)
    delta = np.exp(log_rates[0] - log_rates[1])
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            kl_poisson(*map(jnp.asarray, log_rates)),
            np.exp(log_rates[1]) * (1 - delta + delta * np.log(delta)),
            atol=1e-12,
        )
    z = jnp.arange(8.0)
    np.testing.assert_allclose(q.log_prob(z), poisson_q.log_prob(z), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.variance, poisson_q.variance, rtol=1e-5)


@pytest.mark.parametrize(("family", "density"), [(Gaussian, stats.norm), (Laplace, stats.laplace)])
@pytest.mark.parametrize("parameters", [(0, 0, 0, 0), (0.7, -1, 0, 0), (-2, 0.5, 1, -0.3)])
def test_real_codes_against_quadrature(family, density, parameters):
    a, log_a, b, log_b = map(float, parameters)
    q, p = density(a, np.exp(log_a)), density(b, np.exp(log_b))
    truth = sum(
        integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *ends, epsabs=1e-11)[0]
        for ends in itertools.pairwise(sorted([a - 40, a, b, a + 40]))
    )
    own, prior = (family(*map(jnp.float32, v)) for v in ((a, log_a), (b, log_b)))
    assert float(own.divergence(prior)) == pytest.approx(truth, rel=2e-6, abs=1e-6)
    assert float(own.log_prob(0.3)) == pytest.approx(q.logpdf(0.3), rel=1e-5)
    assert float(own.variance) == pytest.approx(q.var(), rel=1e-5)


def test_categories_against_enumeration():
    logits = np.random.default_rng(0).normal(0, 2, (2, 5, 3, 4))
    q, p = Categories(jnp.asarray(logits[0])), Categories(jnp.asarray(logits[1, 0]))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = (probability[0] * np.log(probability[0] / probability[1, 0])).sum(-1)
    np.testing.assert_allclose(q.divergence(p), truth, rtol=1e-5, atol=1e-6)
