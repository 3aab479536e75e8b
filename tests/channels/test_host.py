"""What a channel says on the host: draws, conditional and marginal moments, what a file keeps."""

import jax.numpy as jnp
import numpy as np
import pytest

from nbln.channels.base import LARGEST_LOG_RATE
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.channels.poisson import Poisson

R = np.array([0.5, 2.0, 50.0])
LOC, VARIANCE = np.array([0.1, 1.0, -1.0]), np.array([0.5, 0.2, 1.2])
CHANNELS = {"poisson": Poisson(), "nb": NegativeBinomial(jnp.log(jnp.asarray(R, jnp.float32)))}
each_channel = pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)


@each_channel
def test_conditional_variance_is_that_of_draws(channel):
    f = np.broadcast_to(LOC, (200_000, 3))
    drawn = channel.sample(np.random.default_rng(0), f)
    np.testing.assert_allclose(drawn.mean(axis=0), np.exp(LOC), rtol=0.02)
    np.testing.assert_allclose(drawn.var(axis=0), channel.variance(LOC), rtol=0.04)


@each_channel
def test_conditional_variance_is_that_of_the_distribution(channel):
    distribution = channel.distribution(jnp.asarray(LOC, jnp.float32))
    np.testing.assert_allclose(channel.variance(LOC), distribution.variance, rtol=1e-4)


@each_channel
def test_marginal_moments_by_quadrature(channel):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = (weights / weights.sum())[:, None]
    f = LOC + np.sqrt(VARIANCE) * nodes[:, None]
    mean = (weights * np.exp(f)).sum(axis=0)
    expected = (weights * channel.variance(f)).sum(axis=0)
    total = expected + (weights * np.exp(2 * f)).sum(axis=0) - mean**2
    np.testing.assert_allclose(channel.expected_variance(LOC, VARIANCE), expected, rtol=1e-6)
    ours = channel.moments(LOC, VARIANCE)
    np.testing.assert_allclose(ours, (mean, total), rtol=1e-6)


@each_channel
def test_rates_average_to_the_mean(channel):
    f = np.broadcast_to(LOC, (100_000, 3))
    rates = channel.rates(np.random.default_rng(1), f)
    np.testing.assert_allclose(rates.mean(axis=0), np.exp(LOC), rtol=0.03)


@each_channel
def test_a_rate_beyond_all_counts_is_drawn_at_the_largest(channel):
    drawn = channel.sample(np.random.default_rng(0), np.full((2, 3), 1e3))
    assert np.all(drawn >= 0)
    if isinstance(channel, Poisson):
        np.testing.assert_allclose(drawn, np.exp(LARGEST_LOG_RATE), rtol=1e-3)


@each_channel
def test_to_values_and_to_a_file_and_back(channel):
    assert set(channel.values()) == {site.name for site in channel.sites}
    again = channel.of(channel.values() | {"mu": 1.0})  # others are passed over
    restored = channel.restore({name: np.asarray(x) for name, x in channel.state().items()})
    for name, value in channel.values().items():
        np.testing.assert_allclose(again.values()[name], value, rtol=1e-6)
        np.testing.assert_array_equal(restored.values()[name], value)
    assert set(channel.default_priors()) == set(channel.values())
