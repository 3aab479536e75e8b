"""Probabilities of counts with Gaussian log-rates, and their derivatives, against a fine rule."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import gammaln

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.channels.poisson import Poisson
from nbln.posterior import mode, quadrature

STEP = 1e-4


def exact(u, m, d, r):
    """log ∫ p(u | f) N(f; m, d) df without constants, on 4,001 nodes; r infinite is Poisson."""
    spread = 14 * np.sqrt(d)
    f = m[..., None] + np.linspace(-spread, spread, 4001)
    u = u[..., None]
    if np.isinf(r):
        log = u * f - np.exp(f)
    else:
        log = u * f - (u + r) * (np.logaddexp(f, np.log(r)) - np.log(r))
    log = log - 0.5 * (f - m[..., None]) ** 2 / d - 0.5 * np.log(2 * np.pi * d)
    top = log.max(axis=-1, keepdims=True)
    return np.log(np.exp(log - top).sum(axis=-1) * (f[..., 1] - f[..., 0])) + top[..., 0]


def whole(u, m, d, omega):
    """`exact` with what the log-kernel leaves out, which depends on r."""
    r = 1 / np.expm1(omega)
    return exact(u, m, d, r) + gammaln(u + r) - gammaln(r) - u * np.log(r)


def problem(d, r, seed=0):
    rng = np.random.default_rng(seed)
    m = rng.normal(-0.5, 1.8, (40, 30))
    rate = np.exp(m + np.sqrt(d) * rng.normal(size=m.shape))
    if np.isfinite(r):
        rate = rate * rng.gamma(r, 1 / r, m.shape)
    return rng.poisson(rate).astype(float), m


def channel_of(r, n):
    return Poisson() if np.isinf(r) else NegativeBinomial(jnp.full(n, np.log(r), jnp.float32))


@pytest.mark.parametrize("d", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("r", [0.5, 5.0, 200.0, np.inf])
def test_integral_and_its_derivatives_are_those_of_a_fine_rule(d, r):
    u, m = problem(d, r)
    of_gene = jnp.full(u.shape[1], d, jnp.float32)
    channel = channel_of(r, u.shape[1])
    given = quadrature.integrate(channel, jnp.float32(u), jnp.float32(m), of_gene)
    np.testing.assert_allclose(given.log, exact(u, m, d, r), atol=1e-3)
    m = np.float64(np.float32(m))
    up, down = (exact(u, m + sign * STEP, d, r) for sign in (1, -1))
    np.testing.assert_allclose(given.slope, (up - down) / (2 * STEP), atol=2e-3)
    middle = exact(u, m, d, r)
    curvature = (up + down - 2 * middle) / STEP**2
    np.testing.assert_allclose(given.information, -curvature, atol=0.01)
    step = 1e-3 * d
    by_d = (exact(u, m, d + step, r) - exact(u, m, d - step, r)) / (2 * step)
    np.testing.assert_allclose(given.residual_slope, by_d, atol=5e-3)


@pytest.mark.parametrize("r", [0.5, 5.0, 50.0])
def test_slope_in_the_channels_own_overdispersion(r):
    u, m = problem(0.2, r)
    of_gene = jnp.full(u.shape[1], 0.2, jnp.float32)
    given = quadrature.integrate(channel_of(r, u.shape[1]), jnp.float32(u), jnp.float32(m), of_gene)
    omega = np.log1p(1 / r)
    numeric = (whole(u, m, 0.2, omega + 1e-5) - whole(u, m, 0.2, omega - 1e-5)) / 2e-5
    np.testing.assert_allclose(given.own_slope, numeric, rtol=2e-3, atol=0.02)


@pytest.mark.parametrize(("d", "r", "bias"), [(0.12, 50.0, 1e-3), (0.12, 5.0, 1e-4)])
def test_sums_of_slopes_in_the_own_overdispersion_are_not_biased(d, r, bias):
    """How overdispersion splits hangs on their sum over all counts, where errors that agree add."""
    rng = np.random.default_rng(3)
    m = np.log(9.0) + 0.5 * rng.normal(size=(400, 5))
    rate = np.exp(m + np.sqrt(d) * rng.normal(size=m.shape)) * rng.gamma(r, 1 / r, m.shape)
    u = rng.poisson(rate).astype(float)
    of_gene = jnp.full(u.shape[1], d, jnp.float32)
    given = quadrature.integrate(channel_of(r, u.shape[1]), jnp.float32(u), jnp.float32(m), of_gene)
    m = np.float64(np.float32(m))
    omega = np.log1p(1 / np.float64(np.exp(np.float32(np.log(r)))))
    step = 1e-3 * omega
    numeric = (whole(u, m, d, omega + step) - whole(u, m, d, omega - step)) / (2 * step)
    assert abs(np.mean(given.own_slope - numeric)) < bias


def test_poisson_has_no_overdispersion_of_its_own():
    u, m = problem(0.2, np.inf)
    given = quadrature.integrate(
        Poisson(), jnp.float32(u), jnp.float32(m), jnp.full(u.shape[1], 0.2, jnp.float32)
    )
    assert given.own_slope is None


@pytest.mark.parametrize("r", [2.0, np.inf])
def test_a_count_of_a_hundred_thousand(r):
    u, m = np.full((1, 1), 1e5), np.full((1, 1), 10.0)
    given = quadrature.integrate(
        channel_of(r, 1), jnp.float32(u), jnp.float32(m), jnp.full(1, 0.2, jnp.float32)
    )
    # Of a number of a million, float32 has a twentieth left.
    np.testing.assert_allclose(given.log, exact(u, m, 0.2, r), rtol=1e-6)
    assert np.isfinite(given.slope).all()


def test_sums_over_cells_are_not_biased_where_residuals_are_small():
    """Counts tell little of a small residual, so that Σ ∂L/∂d must be right to a thousandth."""
    u, m = problem(0.01, 5.0)
    of_gene = jnp.full(u.shape[1], 0.01, jnp.float32)
    given = quadrature.integrate(
        channel_of(5.0, u.shape[1]), jnp.float32(u), jnp.float32(m), of_gene
    )
    m = np.float64(np.float32(m))
    step = 1e-4
    by_d = (exact(u, m, 0.01 + step, 5.0) - exact(u, m, 0.01 - step, 5.0)) / (2 * step)
    assert abs(np.mean(given.residual_slope - by_d)) < 2e-3


def wild():
    counts, m = np.meshgrid([1e3, 1e4, 1e5, 1e6, 1e7], [-4.0, 0.0, 4.0, 9.0], indexing="ij")
    return counts.ravel(), m.ravel()


@pytest.mark.parametrize("d", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("r", [1.0, 5.0, 1000.0])
def test_wild_counts_have_finite_integrals(d, r):
    """Of a count ten thousand times what is expected nothing but that is asked."""
    u, m = wild()
    n = len(u)
    args = jnp.float32(u[:, None]), jnp.float32(m[:, None]), jnp.full(1, d, jnp.float32)
    found = quadrature.integrate(channel_of(r, 1), *args)
    assert all(np.isfinite(np.asarray(part)).all() for part in found)
    assert found.log.shape == (n, 1)


@pytest.mark.parametrize("d", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("r", [1.0, 5.0, 1000.0, np.inf])
def test_the_mode_is_found_wherever_the_count_is(d, r):
    """Newton steps alone go to and fro between two points on either side of some."""
    u, m = wild()
    channel, of_d = channel_of(r, 1), jnp.full(1, d, jnp.float32)
    f = mode.rates_given_mean(channel, jnp.float32(u[:, None]), jnp.float32(m[:, None]), of_d, 30)
    for count, mean, found in zip(u, m, np.asarray(f[:, 0], float), strict=True):

        def slope(x, count=count, mean=mean):
            score = count - np.exp(x) if np.isinf(r) else r * (count - np.exp(x)) / (r + np.exp(x))
            return x - mean - d * score

        low, high = sorted((mean, np.log(count)))
        assert abs(found - optimize.brentq(slope, low - 1e-6, high + 1e-6)) < 2e-3
