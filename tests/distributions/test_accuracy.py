"""Log-pmfs and their derivatives against 50-digit arithmetic, in float32 and float64.

Errors are relative to max(1, |exact|), after allowing what one ulp of every parameter moves.
"""

from functools import lru_cache
from itertools import product

import count_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nbln.distributions import nb_log_prob, zinb_log_prob, zt_nb_log_prob, zt_poisson_log_prob

FAMILIES = {
    "nb": (nb_log_prob, reference.nb, 2),
    "zinb": (zinb_log_prob, reference.zinb, 3),
    "zt_nb": (zt_nb_log_prob, reference.zt_nb, 2),
    "zt_poisson": (zt_poisson_log_prob, reference.zt_poisson, 1),
}
# Value, ∂/∂log mean, ∂/∂log concentration, ∂/∂gate logits.
TARGETS = {
    "float32": (5e-6, 5e-7, 1e-5, 5e-7),
    "float64": (1e-13, 1e-14, 1e-12, 1e-14),
}
HESSIAN_TARGETS = {"float32": 1e-5, "float64": 1e-12}

COUNTS = [0, 1, 2, 3, 5, 10, 30, 100, 1e3, 1e4, 1e5, 1e6]
MEANS = [1e-20, 1e-12, 1e-8, 1e-4, 1e-2, 0.1, 1, 3, 30, 300, 3e3, 1e4, 1e5, 1e6, 1e7]
CONCENTRATIONS = 10.0 ** np.arange(-6, 13)
GATES = [-30.0, -3.0, 0.0, 5.0, 30.0]


def grid():
    """3,420 points that cover every zone; float64 columns x, log mean, concentration, gate."""
    points = np.array(list(product(COUNTS, np.log(MEANS), CONCENTRATIONS)))
    gate = np.resize(GATES, len(points))
    return np.column_stack([points, gate])


def random_points(n, seed=0):
    """Random points over the same ranges; in half of them the count is near its mean."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), np.floor(10 ** rng.uniform(0, 6, n)))
    log_mean = np.log(10) * rng.uniform(-20, 7, n)
    near = np.log(np.maximum(x, 1)) + 0.3 * rng.normal(size=n)
    log_mean = np.where((rng.random(n) < 0.5) & (x > 0), near, log_mean)
    return np.column_stack([x, log_mean, 10 ** rng.uniform(-6, 12, n), 12 * rng.normal(size=n)])


@lru_cache
def exact(family, dtype, full):
    """The points of a family, rounded to ``dtype``, and the exact quantities there."""
    _, function, parameters = FAMILIES[family]
    points = np.vstack([grid(), random_points(100_000 if full else 3_000)])
    if family.startswith("zt"):
        points[:, 0] = np.maximum(points[:, 0], 1)
    columns = points[:, : parameters + 1].astype(dtype).T
    return columns, reference.evaluate(function, *columns)


def scale_to_logs(columns):
    """∂/∂log concentration = concentration × ∂/∂concentration; other parameters as they are."""
    parameters = columns[1:].astype(np.float64)
    scale = np.ones_like(parameters)
    scale[1:2] = parameters[1:2]
    return parameters, scale


def check(family, dtype, full):
    log_prob, _, parameters = FAMILIES[family]
    columns, truth = exact(family, dtype, full)
    arguments, scale = scale_to_logs(columns)
    ulps = np.spacing(np.abs(arguments.astype(dtype))).astype(np.float64) / scale
    value_moves, score_moves = truth.allowance(ulps.T)
    with jax.enable_x64(dtype == "float64"):
        x, *rest = map(jnp.asarray, columns)
        value = log_prob(x, *rest)
        wrt = tuple(range(1, parameters + 1))
        score = jax.jit(jax.grad(lambda *a: log_prob(*a).sum(), wrt))(x, *rest)
        assert value.dtype == dtype
        assert all(s.dtype == dtype for s in score)
    targets = TARGETS[dtype]
    error = reference.excess_error(value, truth.value, value_moves)
    assert error.max() < targets[0], columns[:, error.argmax()]
    for j in range(parameters):
        score_j = np.asarray(score[j], np.float64) * scale[j]
        error = reference.excess_error(score_j, truth.score[:, j], score_moves[:, j])
        assert error.max() < targets[j + 1], (j, columns[:, error.argmax()])


@pytest.mark.parametrize("dtype", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient(family, dtype):
    check(family, dtype, full=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient_full(family, dtype):
    check(family, dtype, full=True)


@pytest.mark.parametrize("dtype", TARGETS)
@pytest.mark.parametrize("family", ["zinb", "zt_nb", "zt_poisson"])  # these contain the NB's
def test_second_derivatives(family, dtype):
    log_prob, _, parameters = FAMILIES[family]
    columns, truth = exact(family, dtype, False)
    arguments, scale = scale_to_logs(columns)
    wrt = tuple(range(1, parameters + 1))
    with jax.enable_x64(dtype == "float64"):
        hessian = jax.jit(jax.vmap(jax.hessian(log_prob, wrt)))(*map(jnp.asarray, columns))
    for i, j in product(range(parameters), repeat=2):
        computed = np.asarray(hessian[i][j], np.float64) * scale[i] * scale[j]
        expected = truth.hessian[:, i, j] - (truth.score[:, 1] if i == j == 1 else 0)
        ulps = np.finfo(dtype).eps * np.maximum(1, np.abs(arguments[0]))
        moves = ulps * np.abs(truth.hessian).sum((1, 2)) if i != j else 0
        error = reference.excess_error(computed, expected, moves)
        assert error.max() < HESSIAN_TARGETS[dtype], (i, j, columns[:, error.argmax()])


@pytest.mark.parametrize("family", ["zinb", "zt_nb", "zt_poisson"])
def test_nothing_is_ever_infinite(family):
    log_prob, _, parameters = FAMILIES[family]
    points = random_points(100_000, seed=1)
    points[:, 1] *= 4  # log means far outside the range where exp() is finite
    x, *rest = points[:, : parameters + 1].astype(np.float32).T
    x = np.maximum(x, 1) if family.startswith("zt") else x
    wrt = tuple(range(parameters))
    value, score = jax.jit(jax.value_and_grad(lambda *a: log_prob(x, *a).sum(), wrt))(
        *map(jnp.asarray, rest)
    )
    hessian = jax.jit(jax.vmap(jax.hessian(log_prob, tuple(i + 1 for i in wrt))))(x, *rest)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((value, score, hessian)))
    assert (log_prob(x, *rest) <= 0).all()


def test_third_derivatives_match_differences():
    with jax.enable_x64(True):
        curve = jax.jit(jax.hessian(nb_log_prob, (1, 2)))
        third = jax.jit(jax.jacfwd(jax.hessian(nb_log_prob, (1, 2)), 1))
        step = 1e-5
        for x, log_mean, theta in [(0.0, 0.3, 2.0), (7.0, 1.0, 0.5), (40.0, 5.0, 30.0)]:
            high = jnp.array(curve(x, log_mean + step, theta))
            low = jnp.array(curve(x, log_mean - step, theta))
            expected = (high - low) / (2 * step)
            computed = jnp.array(third(x, log_mean, theta))
            np.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-7)


def test_mean_of_zero():
    value = jax.jit(nb_log_prob)(jnp.array([0, 1]), -jnp.inf, 2.0)
    assert abs(value[0]) < 1e-20
    assert value[1] == -jnp.inf
