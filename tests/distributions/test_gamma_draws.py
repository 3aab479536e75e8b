"""Gamma draws against SciPy: their distribution, and their derivatives in the shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from nbln.distributions.gamma import _log_quantile, sample_log_gamma

SHAPES = (0.05, 0.3, 1.0, 4.0, 100.0)
DRAWS = 100_000


@jax.jit
def drawn(shape):
    """Logs of many draws of one shape, and their derivatives in it."""

    def both(key):
        return jax.jvp(lambda a: sample_log_gamma(key, a), (shape,), (jnp.ones_like(shape),))

    return jax.vmap(both)(jax.random.split(jax.random.key(3), DRAWS))


@pytest.fixture(scope="module", params=SHAPES)
def sample(request):
    log_x, slope = drawn(jnp.float32(request.param))
    return request.param, np.asarray(log_x, float), np.asarray(slope, float)


def test_draws_are_gamma(sample):
    shape, log_x, _ = sample
    # In logs, because a third of the draws of shape 0.05 are below what float32 can hold.
    grid = np.log(stats.gamma.ppf(np.linspace(0.005, 0.995, 200), shape))
    grid = grid[np.isfinite(grid)]
    below = np.searchsorted(np.sort(log_x), grid) / DRAWS
    assert np.abs(below - stats.gamma.cdf(np.exp(grid), shape)).max() < 1.95 / np.sqrt(DRAWS)
    assert np.isfinite(log_x).all()


def test_moments(sample):
    shape, log_x, _ = sample
    x = np.exp(log_x)
    error = 4 * np.sqrt(shape / DRAWS)
    assert x.mean() == pytest.approx(shape, abs=error)
    fourth = stats.gamma.stats(shape, moments="k") + 2
    assert x.var() == pytest.approx(shape, rel=4 * np.sqrt(fourth / DRAWS))
    assert log_x.mean() == pytest.approx(
        special.digamma(shape), abs=4 * np.sqrt(special.polygamma(1, shape) / DRAWS)
    )


def test_derivatives_have_the_expectations_that_they_must(sample):
    """∂ E log x / ∂a = ψ′(a), ∂ E x / ∂a = 1."""
    shape, log_x, slope = sample
    for per_draw, truth in (
        (slope, special.polygamma(1, shape)),
        (slope * np.exp(log_x), 1.0),
    ):
        error = 4.5 * per_draw.std() / np.sqrt(DRAWS)
        assert per_draw.mean() == pytest.approx(truth, abs=error + 2e-4 * truth)


@pytest.mark.parametrize("shape", [4.0, 4.5, 10.0, 150.0])
def test_quantiles_of_the_raised_shape(shape):
    n = np.linspace(-4, 4, 81)
    with jax.enable_x64(True):
        ours, slope = jax.jvp(lambda a: _log_quantile(n, a), (shape,), (1.0,))
        exact = np.log(stats.gamma.ppf(special.ndtr(n), shape))
        implicit = jax.lax.random_gamma_grad(np.full_like(n, shape), np.exp(exact)) / np.exp(exact)
    assert np.all(np.diff(ours) > 0)
    inner = np.abs(n) < 3
    np.testing.assert_allclose(ours[inner], exact[inner], atol=6e-4)
    np.testing.assert_allclose(ours, exact, atol=3e-3)
    np.testing.assert_allclose(slope[inner], implicit[inner], rtol=4e-3)


def test_shapes_far_out_stay_finite():
    shape = jnp.array([1e-20, 1e-6, 1e4, 1e8])
    value, slope = jax.vmap(jax.value_and_grad(lambda a: sample_log_gamma(jax.random.key(0), a)))(
        shape
    )
    assert np.isfinite(value).all()
    assert np.isfinite(slope[1:]).all()
    np.testing.assert_allclose(value[2:], np.log(shape[2:]), atol=0.05)


def test_float64_is_kept():
    with jax.enable_x64(True):
        assert sample_log_gamma(jax.random.key(0), jnp.ones(2)).dtype == np.float64
