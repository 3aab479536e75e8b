"""Elementary functions against mpmath."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from nbln.distributions import special

TOLERANCE = {"float32": 5e-7, "float64": 3e-15}
POSITIVE = np.concatenate([10.0 ** np.linspace(-6, 12, 200), np.linspace(0.5, 20, 200)])
NEAR_ONE = np.concatenate([-1 + 10.0 ** np.linspace(-6, -0.01, 60), np.linspace(-0.6, 5, 200)])


def stirling(t):
    return mp.loggamma(t) - (t - 0.5) * mp.log(t) + t - mp.log(2 * mp.pi) / 2


def digamma_remainder(t):
    return mp.log(t) - 1 / (2 * t) - mp.digamma(t)


def gap(a):
    return 1 - a / mp.expm1(a)


def gap_slope(a):
    return -1 / mp.expm1(a) + a * mp.exp(a) / mp.expm1(a) ** 2


UNARY = {
    "log1pmx": (special.log1pmx, lambda r: mp.log1p(r) - r, lambda r: -r / (1 + r), NEAR_ONE),
    "stirling": (
        special.stirling_remainder,
        stirling,
        lambda t: -digamma_remainder(t),
        POSITIVE,
    ),
    "digamma": (
        special.digamma_remainder,
        digamma_remainder,
        lambda t: 1 / t + 1 / (2 * t * t) - mp.psi(1, t),
        POSITIVE,
    ),
    "gap": (special.bernoulli_gap, gap, gap_slope, 10.0 ** np.linspace(-20, 1.9, 300)),
}


def exact(function, *columns):
    with mp.workdps(50):
        points = zip(*(np.asarray(c, np.float64).tolist() for c in columns), strict=True)
        return np.array([float(function(*map(mp.mpf, point))) for point in points])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", UNARY)
def test_value_and_derivative(name, dtype):
    function, value, slope, points = UNARY[name]
    x = points.astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        computed, derivative = jax.jit(jax.vmap(jax.value_and_grad(function)))(jnp.asarray(x))
        second = jax.jit(jax.vmap(jax.grad(jax.grad(function))))(jnp.asarray(x))
    assert computed.dtype == dtype
    assert np.isfinite(second).all()
    for got, expected in ((computed, exact(value, x)), (derivative, exact(slope, x))):
        got = np.asarray(got, np.float64)
        error = np.abs(got - expected) / np.maximum(1, np.abs(expected))
        assert error.max() < 4 * TOLERANCE[dtype], x[error.argmax()]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_small_results_keep_their_digits(dtype):
    eps = np.finfo(dtype).eps
    r = np.concatenate([10.0 ** np.linspace(-15, -0.4, 100), -(10.0 ** np.linspace(-15, -0.4, 99))])
    x = np.round(10 ** np.linspace(0, 6, 199))
    t = 10.0 ** np.linspace(1, 12, 199)
    with jax.enable_x64(dtype == "float64"):
        cases = {
            "log1pmx": (special.log1pmx, lambda r: mp.log1p(r) - r, (r,)),
            "bd0": (special.bd0, lambda x, m: x * mp.log(x / m) - (x - m), (x, 2 * x)),
            "stirling": (special.stirling_remainder, stirling, (t,)),
            "gap": (special.bernoulli_gap, gap, (np.abs(r),)),
            "increment": (
                special.digamma_increment,
                lambda x, t: mp.digamma(t + x) - mp.digamma(t) - mp.log1p(x / t),
                (x, t),
            ),
        }
        for name, (function, truth, columns) in cases.items():
            columns = [c.astype(dtype) for c in columns]
            computed = np.asarray(jax.jit(function)(*columns), np.float64)
            np.testing.assert_allclose(
                computed, exact(truth, *columns), rtol=20 * eps, err_msg=name
            )


def test_bd0_takes_the_exact_difference():
    x, m = jnp.float32(1e6), jnp.float32(1e6)
    assert special.bd0(x, m) == 0
    np.testing.assert_allclose(special.bd0(x, m, 0.25), 0.25**2 / 2e6, rtol=1e-6)


def test_remainder_of_counts_is_the_remainder():
    t = jnp.arange(1.0, 30.0)
    np.testing.assert_allclose(
        special.stirling_remainder(t, at_least=1), special.stirling_remainder(t), atol=2e-7
    )
