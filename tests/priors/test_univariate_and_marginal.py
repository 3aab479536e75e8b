"""Priors of single numbers, their marginal matching, and capture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from scipy import optimize

from nbln.priors.capture import (
    M0_FLOOR,
    CaptureRule,
    KnownCapture,
    LatentCapture,
)
from nbln.priors.coordinates import transform
from nbln.priors.marginal import R_MAX, MarginalDispersion, MarginalMean, conditional_log_r
from nbln.priors.univariate import Beta, Frozen, InverseGamma, LogNormal, Normal

# prior, the site that says in which coordinate it is moved
PRIORS = {
    "normal": (lambda: Normal(jnp.asarray(0.4), jnp.asarray(0.7)), None),
    "log_normal": (lambda: LogNormal(jnp.asarray(0.4), jnp.asarray(0.7)), "r"),
    "beta": (lambda: Beta(jnp.asarray(2.5), jnp.asarray(4.0)), "p"),
}


def log_density(prior, site):
    """Of the coordinate that an engine moves."""
    if site is None:
        return lambda y: prior.distribution(()).log_prob(y)
    bijection = transform(site)

    def density(y):
        value = bijection(y)
        return prior.distribution(()).log_prob(value) + bijection.log_abs_det_jacobian(y, value)

    return density


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("y", [-1.2, 0.0, 0.9])
def test_penalty_is_gradient_and_curvature_of_the_log_density(name, y):
    with precision_of("float64"):
        prior, site = PRIORS[name][0](), PRIORS[name][1]
        density = log_density(prior, site)
        gradient, curvature = prior.penalty(jnp.asarray(y))
        np.testing.assert_allclose(gradient, jax.grad(density)(y), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(curvature, -jax.grad(jax.grad(density))(y), rtol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_mode_is_the_maximum_in_the_coordinate_that_moves(name):
    with precision_of("float64"):
        prior, site = PRIORS[name][0](), PRIORS[name][1]
        density = log_density(prior, site)
        best = optimize.minimize_scalar(lambda y: -float(density(y)), (-3.0, 3.0)).x
        expected = best if site is None else float(transform(site)(best))
        assert float(prior.mode()) == pytest.approx(expected, rel=1e-5)


def test_inverse_gamma_mode():
    prior = InverseGamma(jnp.asarray(3.0), jnp.asarray(0.8))
    x = np.linspace(0.01, 1, 10_000)
    best = x[np.argmax(prior.distribution(()).log_prob(x))]
    assert float(prior.mode()) == pytest.approx(best, abs=1e-3)


def test_infinite_scale_is_flat():
    gradient, curvature = Normal(jnp.asarray(0.0), jnp.asarray(jnp.inf)).penalty(jnp.ones(3))
    assert not np.any(gradient)
    assert not np.any(curvature)


def test_frozen_is_its_value():
    prior = Frozen(jnp.array([1.0, 2.0]))
    assert prior.frozen
    np.testing.assert_array_equal(prior.mode(), [1.0, 2.0])
    np.testing.assert_array_equal(prior.distribution((2,)).mean, [1.0, 2.0])


# Marginal matching (MATH Section 6)


def nbln_moments(mu, r, variance):
    """Mean and variance of a count with a log-normal rate (MATH Section 1)."""
    mean = np.exp(mu + variance / 2)
    return mean, mean + mean**2 * ((1 + 1 / r) * np.exp(variance) - 1)


def test_matched_parameters_have_the_moments_of_the_source():
    log_r, mean, variance = np.log([0.5, 2.0, 4.0]), np.array([0.3, 5.0, 40.0]), 0.15
    with precision_of("float64"):
        r = MarginalDispersion(Frozen(jnp.exp(log_r))).at(jnp.full(3, variance)).mode()
        mu = MarginalMean(Frozen(jnp.log(mean)), jnp.asarray(log_r))
        mu = mu.at(jnp.full(3, variance)).mode()
    matched = nbln_moments(np.asarray(mu), np.asarray(r), variance)
    np.testing.assert_allclose(matched[0], mean, rtol=1e-9)
    np.testing.assert_allclose(matched[1], mean + mean**2 / np.exp(log_r), rtol=1e-9)


def test_soft_priors_move_their_location_and_keep_their_scale():
    log_r, scale = jnp.array([0.7]), jnp.array([0.2])
    soft = MarginalDispersion(LogNormal(log_r, scale)).at(jnp.array([0.1]))
    np.testing.assert_allclose(soft.loc, conditional_log_r(log_r, 0.1))
    assert float(soft.scale[0]) == pytest.approx(0.2)
    mean = MarginalMean(Normal(jnp.array([1.0]), scale), log_r).at(jnp.array([0.1]))
    assert float(mean.loc[0]) == pytest.approx(0.95)
    assert float(mean.scale[0]) == pytest.approx(0.2)


def test_no_overdispersion_left_is_r_max():
    assert float(jnp.exp(conditional_log_r(jnp.log(20.0), 1.0))) == pytest.approx(R_MAX, rel=1e-4)


def test_the_mean_follows_no_further_than_the_source_admits_variance():
    log_r = jnp.log(jnp.array([4.0]))
    prior = MarginalMean(Frozen(jnp.array([2.0])), log_r).at(jnp.array([50.0]))
    assert float(prior.mode()[0]) == pytest.approx(2 - np.log(1.25) / 2, rel=1e-5)


@pytest.mark.parametrize("source", [Frozen(jnp.ones(2)), LogNormal(jnp.zeros(2), jnp.ones(2))])
def test_frozen_if_and_only_if_the_source_is(source):
    assert MarginalDispersion(source).frozen == source.frozen


# Capture


def test_capture_prior_is_centred_on_the_ratio_of_contents():
    library = np.array([1_000.0, 10_000.0])
    capture = CaptureRule(np.log(1e5), 0.5).of(library)
    np.testing.assert_allclose(capture.loc, np.log(1e5 / library), rtol=1e-6)
    np.testing.assert_allclose(capture.scale, 0.5)
    assert capture.distribution().support.lower_bound == 0


def test_default_mrna_content():
    for largest, expected in [(99.0, M0_FLOOR), (8e4, 1.6e5)]:
        rule = CaptureRule.mrna_content(np.array([10.0, largest]))
        assert rule.log_m0 == pytest.approx(np.log(expected))


def test_library_size_offset_is_zero_at_the_median():
    library = np.array([1.0, 4.0, 16.0])
    capture = CaptureRule.library_offset(library).of(library)
    np.testing.assert_allclose(capture.eta, [np.log(4), 0, -np.log(4)], rtol=1e-6)


@pytest.mark.parametrize(
    "capture",
    [KnownCapture(jnp.arange(5.0)), LatentCapture(jnp.arange(5.0) - 1, jnp.ones(5))],
    ids=["known", "latent"],
)
def test_take_and_start(capture):
    some = capture.take(jnp.array([3, 1]))
    np.testing.assert_array_equal(some.start(), np.asarray(capture.start())[[3, 1]])
    if isinstance(capture, LatentCapture):
        assert np.all(np.asarray(capture.start()) > 0)
