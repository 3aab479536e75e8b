"""The regression of each gene on the factors, against dense normal equations."""

import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of

from nbln.channels.poisson import Poisson
from nbln.inference.laplace.rows import LARGEST_MOVE, SHORTEST, TURNING, Damping, regress
from nbln.linalg import small
from nbln.posterior.mode import Parameters
from nbln.priors.univariate import Frozen, Normal

G, K, C = 6, 2, 50
PRIOR_SD = 2.0


@pytest.fixture
def problem():
    """Weighted regressions: parameters, N and right-hand side of each gene, prior precision."""
    rng = np.random.default_rng(0)
    mu, W = rng.normal(size=G), 0.3 * rng.normal(size=(G, K))
    z = np.hstack([np.ones((C, 1)), rng.normal(size=(C, K))])
    weight = rng.uniform(0.5, 2, (C, G))
    N = np.einsum("ci,cg,cj->gij", z, weight, z)
    y = 0.3 * rng.normal(size=(C, G))  # working response, less μ
    rhs = np.einsum("ci,cg,cg->gi", z, weight, y)
    return mu, W, N, rhs, rng.uniform(0.5, 5, (G, K))


def run(problem, prior, damping=None):
    mu, W, N, rhs, precision = problem
    corner, border = N[:, 0, :1], N[:, 0, 1:]
    inner = np.stack([small.pack(jnp.asarray(n[1:, 1:, None]))[:, 0] for n in N])
    normal = jnp.asarray(np.hstack([corner, border, inner]))
    old = Parameters(jnp.asarray(mu), jnp.asarray(W), jnp.ones(G), Poisson())
    damping = Damping.start(G) if damping is None else damping
    return regress(
        old,
        normal,
        jnp.asarray(rhs),
        prior,
        jnp.zeros((len(rhs), 0)),
        jnp.asarray(precision),
        damping,
    )


def dense(problem, prior_precision, prior_pull):
    """All rows and the free centres b at once: G (1 + K) + K unknowns."""
    _, _, N, rhs, precision = problem
    n = G * (1 + K)
    A, right = np.zeros((n + K, n + K)), np.zeros(n + K)
    for g in range(G):
        here = slice(g * (1 + K), (g + 1) * (1 + K))
        rows = np.arange(g * (1 + K) + 1, (g + 1) * (1 + K))
        A[here, here] = N[g] + np.diag([prior_precision, *precision[g]])
        right[here] = rhs[g]
        right[g * (1 + K)] += prior_pull[g]
        A[rows, n + np.arange(K)] -= precision[g]
        A[n + np.arange(K), rows] -= precision[g]
        A[n + np.arange(K), n + np.arange(K)] += precision[g]
    solution = np.linalg.solve(A, right)
    return solution[:n].reshape(G, 1 + K), solution[n:]


def test_rows_and_centres_solve_the_normal_equations(problem):
    with precision_of("float64"):
        regression = run(problem, Normal(jnp.asarray(0.5), jnp.asarray(PRIOR_SD)))
        rows = regression.rows
        theta, b = dense(problem, PRIOR_SD**-2, (0.5 - problem[0]) / PRIOR_SD**2)
        np.testing.assert_allclose(rows.mean, theta[:, 1:], atol=1e-10)
        np.testing.assert_allclose(rows.centre, b, atol=1e-10)
        np.testing.assert_allclose(regression.mu, problem[0] + theta[:, 0], atol=1e-10)
        np.testing.assert_allclose(regression.W, theta[:, 1:], atol=1e-10)
        N = problem[2] + np.array([np.diag([PRIOR_SD**-2, *p]) for p in problem[4]])
        covariance = np.linalg.inv(N)[:, 1:, 1:].transpose(1, 2, 0)
        np.testing.assert_allclose(rows.covariance, covariance, atol=1e-10)
    assert not np.any(regression.shortened)


def test_a_frozen_mean_is_held_and_loadings_answer_to_it(problem):
    held = problem[0] + 0.2
    with precision_of("float64"):
        regression = run(problem, Frozen(jnp.asarray(held)))
        np.testing.assert_array_equal(regression.mu, held)
        stiff = run(problem, Normal(jnp.asarray(held), jnp.asarray(1e-6)))
        np.testing.assert_allclose(regression.rows.mean, stiff.rows.mean, atol=1e-6)


def test_a_flat_prior_has_no_centre_to_find(problem):
    flat = (*problem[:4], np.zeros((G, K)))
    with precision_of("float64"):
        regression = run(flat, Normal(jnp.asarray(0.0), jnp.asarray(jnp.inf)))
        plain = np.linalg.solve(problem[2], problem[3][:, :, None])[:, 1:, 0]
        np.testing.assert_allclose(regression.rows.mean, plain, atol=1e-10)
    assert not np.any(regression.rows.centre)


def test_a_gene_goes_no_further_than_it_may(problem):
    mu, W, N, rhs, precision = problem
    far = (mu, W, N, rhs.copy(), precision)
    far[3][2, 0] += 1e4
    flat = Normal(jnp.asarray(0.0), jnp.asarray(jnp.inf))
    regression = run(far, flat)
    step = np.hstack([np.asarray(regression.mu - mu)[:, None], np.asarray(regression.W - W)])
    assert np.linalg.norm(step[2]) == pytest.approx(LARGEST_MOVE, rel=1e-4)
    assert np.asarray(regression.shortened)[2]
    assert np.linalg.norm(step[:2], axis=1).max() < LARGEST_MOVE


def test_a_gene_that_turns_back_takes_half_its_step(problem):
    flat = Normal(jnp.asarray(0.0), jnp.asarray(jnp.inf))
    whole = np.asarray(run(problem, flat).mu) - problem[0]
    turning = np.abs(whole) > TURNING
    assert turning.any()
    before = Damping(jnp.asarray(-whole), jnp.ones(G))
    again = run(problem, flat, before)
    expected = np.where(turning, whole / 2, whole)
    np.testing.assert_allclose(np.asarray(again.mu) - problem[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(again.shortened, turning)


def test_damping_never_stops_a_gene_and_ends_when_it_goes_straight():
    damping, length = Damping.start(1), []
    for i in range(6):
        damping = damping.after(jnp.asarray([(-1.0) ** i]))
        length.append(float(damping.length[0]))
    assert length[:3] == [1.0, 0.5, SHORTEST]
    assert length[-1] == SHORTEST
    for _ in range(10):
        damping = damping.after(damping.move)
    assert float(damping.length[0]) == 1.0
