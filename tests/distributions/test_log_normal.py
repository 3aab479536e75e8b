"""Counts with a normal log rate: the quadrature against an independent fine integral."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from nbln.distributions import (
    log_normal_moments,
    nb_log_normal_log_prob,
    nb_log_prob,
    poisson_log_normal_log_prob,
)

COUNTS = [0, 1, 30, 1000, 1_000_000]
POINTS = np.array(list(product(COUNTS, [-8.0, 0.0, 4.0, 12.0], [0.05, 0.5, 1.0, 2.0])))


def trapezoid(log_prob, loc, scale, centres):
    """log ∫ by the trapezoid rule (which converges exponentially here) on a fine wide grid."""
    low, high = min(loc, *centres) - 12 * scale, max(loc, *centres) + 12 * scale
    z = np.linspace(low, high, 100_001)
    terms = log_prob(z) - 0.5 * ((z - loc) / scale) ** 2
    return logsumexp(terms) + np.log((z[1] - z[0]) / scale) - 0.5 * np.log(2 * np.pi)


def exact_poisson(x, loc, scale):
    centres = (np.log(x),) if x else (loc - scale**2 * np.exp(loc),) if loc < 0 else (0.0,)
    return trapezoid(lambda z: x * z - np.exp(z) - gammaln(x + 1), loc, scale, centres)


def exact_nb(x, loc, scale, theta):
    def log_prob(z):
        return np.asarray(exact(x, z, theta))

    exact = jax.jit(nb_log_prob)
    return trapezoid(log_prob, loc, scale, (np.log(x),) if x else (0.0,))


def test_poisson_log_normal():
    x, loc, scale = POINTS.T
    with jax.enable_x64(True):
        computed = jax.jit(poisson_log_normal_log_prob)(x, loc, scale)
    expected = [exact_poisson(*point) for point in POINTS]
    # The reference's own gammaln loses up to 1e-9 at a count of 1e6.
    np.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("theta", [0.1, 10.0, 1e6])
def test_nb_log_normal(theta):
    with jax.enable_x64(True):
        computed = jax.jit(nb_log_normal_log_prob)(*POINTS.T, theta)
        expected = [exact_nb(*point, theta) for point in POINTS[::2]]
    np.testing.assert_allclose(computed[::2], expected, rtol=1e-6, atol=1e-6)


def test_float32_agrees_with_float64():
    marginal = jax.jit(nb_log_normal_log_prob)
    single = marginal(*POINTS.astype(np.float32).T, 10.0)
    with jax.enable_x64(True):
        double = marginal(*POINTS.astype(np.float32).astype(np.float64).T, 10.0)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, double, rtol=5e-6, atol=2e-4)


def test_wide_rates_with_more_points():
    with jax.enable_x64(True):
        computed = poisson_log_normal_log_prob(30.0, 5.0, 3.0, points=96)
        np.testing.assert_allclose(computed, exact_poisson(30, 5.0, 3.0), atol=1e-6)


def test_gradient_matches_differences():
    with jax.enable_x64(True):
        marginal = jax.jit(nb_log_normal_log_prob)
        slopes = jax.jit(jax.grad(nb_log_normal_log_prob, (1, 2, 3)))
        arguments = np.array([0.4, 0.7, 2.0])
        for x, i in product((0.0, 5.0, 1e5), range(3)):
            step = 1e-5 * np.eye(3)[i]
            high, low = marginal(x, *(arguments + step)), marginal(x, *(arguments - step))
            computed = slopes(x, *arguments)[i]
            np.testing.assert_allclose(computed, (high - low) / 2e-5, rtol=2e-5, atol=1e-7)


def test_moments_of_the_poisson_limit():
    mean, variance = log_normal_moments(0.3, 0.5)
    np.testing.assert_allclose(mean, np.exp(0.3 + 0.125), rtol=1e-6)
    np.testing.assert_allclose(variance, mean + mean**2 * np.expm1(0.25), rtol=1e-6)
