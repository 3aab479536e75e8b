"""Newton step and loop against dense algebra in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import (
    LATENT,
    design_of,
    information,
    posterior,
    precision_of,
    random_problem,
    score,
)
from scipy import optimize, stats

from nbln.channels.negative_binomial import LOG_R_MAX, NegativeBinomial
from nbln.posterior import evidence, mode
from nbln.posterior.mode import Columns, Search

TOLERANCE = {"float32": 2e-3, "float64": 1e-7}
both_precisions = pytest.mark.parametrize("dtype", TOLERANCE)
every_case = pytest.mark.parametrize("columns", ["latent", "known", "flat"])
every_channel = pytest.mark.parametrize("channel", ["poisson", "nb"])
find = jax.jit(mode.find, static_argnums=(2, 4))


def found(problem, dtype, tol=1e-3, max_steps=50):
    """Mode of every cell, and the step taken from it."""
    if dtype == "float64":
        tol = 1e-9
    with precision_of(dtype):
        parameters, cells = problem.kernel(dtype)
        at = find(parameters, cells, problem.columns, problem.start(dtype), Search(tol, max_steps))
        step = mode.newton_step(parameters, cells, problem.columns, at.f)
        # NumPy arrays: outside this context JAX would take float64 for float32.
        return jax.device_get((at, step))


@both_precisions
@every_case
@every_channel
def test_one_newton_step(channel, columns, dtype):
    """From any log-rates: the maximum of the quadratic expansion over (z̃, ε)."""
    p = random_problem(channel, columns)
    f0 = np.log(p.u + 0.5) + np.random.default_rng(1).normal(0, 0.3, p.u.shape)
    with precision_of(dtype):
        parameters, cells = p.kernel(dtype)
        step = mode.newton_step(parameters, cells, p.columns, jnp.asarray(f0, dtype))
        step = jax.device_get(step)
    for c in range(len(p.u)):
        X, prior = design_of(p, c)
        J = np.hstack([X, np.eye(len(p.mu))])
        P = np.concatenate([prior, 1 / p.d])
        mean = p.mu + p.offset[c]
        s, a = score(p.u[c], f0[c], p.log_r), information(p.u[c], f0[c], p.log_r)
        H = J.T @ (a[:, None] * J) + np.diag(P)
        theta = np.linalg.solve(H, J.T @ (a * (f0[c] - mean) + s))
        n = len(prior)
        tolerance = dict(rtol=0, atol=TOLERANCE[dtype])
        np.testing.assert_allclose(step.f[c], mean + J @ theta, **tolerance)
        np.testing.assert_allclose(step.z[:, c], theta[:n], **tolerance)
        np.testing.assert_allclose(step.alpha[c] * p.d, theta[n:], **tolerance)
        inverse = np.linalg.inv(H)
        np.testing.assert_allclose(step.covariance[..., c], inverse[:n, :n], **tolerance)


@both_precisions
@every_case
@every_channel
def test_find(channel, columns, dtype):
    p = random_problem(channel, columns)
    at, step = found(p, dtype)
    assert at.f.dtype == dtype
    assert np.all(at.converged)
    assert np.all(np.asarray(at.gradient_norm) < 1e-2)
    with precision_of(dtype):
        parameters, cells = p.kernel(dtype)
        X = mode.design(parameters.W, p.columns)
        v = mode.scales(cells, p.W.shape[1])
        leverage = mode.design_variance(step.covariance, X, v)
        var_f = jax.device_get(parameters.d * step.t + step.t**2 * leverage)
    for c in range(len(p.u)):
        dense = posterior(p, c)
        tolerance = dict(rtol=0, atol=TOLERANCE[dtype])
        np.testing.assert_allclose(at.f[c], dense.f, **tolerance)
        np.testing.assert_allclose(at.z[:, c], dense.z, **tolerance)
        np.testing.assert_allclose(step.covariance[..., c], dense.inverse, **tolerance)
        np.testing.assert_allclose(var_f[c], np.diag(dense.var_f), **tolerance)


@every_channel
@pytest.mark.parametrize("columns", ["latent", "known"])
def test_find_against_scipy_with_sigma_formed(channel, columns):
    p = random_problem(channel, columns, n_cells=2)
    at, _ = found(p, "float64")
    for c in range(2):
        X, _ = design_of(p, c)
        precision = np.linalg.inv(X @ X.T + np.diag(p.d))
        mean = p.mu + p.offset[c]

        def negative(f, c=c, precision=precision, mean=mean):
            r = None if p.log_r is None else np.exp(p.log_r)
            rate = np.exp(f)
            log_prob = (
                stats.poisson.logpmf(p.u[c], rate)
                if r is None
                else stats.nbinom.logpmf(p.u[c], r, r / (r + rate))
            )
            return -log_prob.sum() + 0.5 * (f - mean) @ precision @ (f - mean)

        def gradient(f, c=c, precision=precision, mean=mean):
            return -score(p.u[c], f, p.log_r) + precision @ (f - mean)

        best = optimize.minimize(negative, mean, jac=gradient, method="BFGS", tol=1e-9).x
        np.testing.assert_allclose(at.f[c], best, atol=1e-5)


@every_channel
def test_var_x_with_latent_capture(channel):
    """x = f + η: its variance comes from f and η together (MATH Section 5)."""
    p = random_problem(channel, "latent")
    _, step = found(p, "float64")
    for c in range(len(p.u)):
        dense = posterior(p, c)
        X, prior = design_of(p, c)
        # x = μ + W z + ε: the residual and the programs, without the capture column.
        J = np.hstack([p.W, np.zeros((len(p.mu), 1)), np.eye(len(p.mu))])
        full = np.hstack([X, np.eye(len(p.mu))])
        P = np.concatenate([prior, 1 / p.d])
        a = information(p.u[c], dense.f, p.log_r)
        inverse = np.linalg.inv(full.T @ (a[:, None] * full) + np.diag(P))
        t = 1 / (1 + p.d * a)
        rows = t[:, None] * X
        rows[:, -1] += p.scale[c, 0]
        M_inverse = np.asarray(step.covariance[..., c])
        ours = p.d * t + np.einsum("gi,ij,gj->g", rows, M_inverse, rows)
        np.testing.assert_allclose(ours, np.diag(J @ inverse @ J.T), rtol=1e-7)


@every_case
def test_corrected_moves_by_the_third_derivative(columns):
    """The linear response of the mode to the score's change -½ a′ Var f."""
    p = random_problem("nb", columns, depth=200.0)
    at, step = found(p, "float64")
    with precision_of("float64"):
        parameters, cells = p.kernel("float64")
        moved = jax.device_get(mode.corrected(step, parameters, cells, p.columns)).step
    for c in range(len(p.u)):
        dense = posterior(p, c)
        change = -0.5 * np.asarray(step.slope[c]) * np.diag(dense.var_f)
        assert np.all(np.abs(change) * np.sqrt(np.diag(dense.var_f)) < 0.5)  # nothing is clipped
        np.testing.assert_allclose(moved.f[c] - at.f[c], dense.var_f @ change, atol=1e-7)


@every_case
@every_channel
def test_padding_changes_nothing(channel, columns):
    p = random_problem(channel, columns)
    parameters, cells = p.kernel("float32")
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:3])]), cells)
    f = jnp.concatenate([p.start("float32"), jnp.zeros((3, len(p.mu)))])
    at = find(parameters, cells, p.columns, p.start("float32"), Search(1e-3, 50))
    with_padding = find(parameters, padded, p.columns, f, Search(1e-3, 50))
    np.testing.assert_allclose(with_padding.f[:5], at.f, atol=1e-4)
    assert np.all(np.isfinite(with_padding.f))
    assert np.all(with_padding.converged)


# Hard cases: each converges, to the dense mode


def large_cell(channel):
    p = random_problem(channel, "latent", n_cells=4, n_genes=6, seed=3)
    u = p.u.copy()
    u[1] = np.round(1e5 * np.array([0.5, 0.2, 0.2, 0.05, 0.05, 0]))
    return p.with_(u=u)


def rare_gene(channel):
    p = random_problem(channel, "known", n_cells=6, n_genes=6, seed=4)
    u = p.u.copy()
    u[:, 2] = 0
    u[3, 2] = 1
    mu = p.mu.copy()
    mu[2] = -7.0
    return p.with_(u=u, mu=mu)


def one_factor(channel):
    return random_problem(channel, "latent", k=1, seed=5)


def strong_loadings(channel):
    p = random_problem(channel, "known", k=3, seed=6)
    return p.with_(W=4 * p.W, d=np.full_like(p.d, 3.0))


HARD = {f.__name__: f for f in (large_cell, rare_gene, one_factor, strong_loadings)}


@every_channel
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", HARD)
def test_hard_cases(case, dtype, channel):
    p = HARD[case](channel)
    at, _ = found(p, dtype)
    assert np.all(np.isfinite(at.f))
    assert np.all(at.converged)
    for c in range(len(p.u)):
        np.testing.assert_allclose(at.f[c], posterior(p, c).f, atol=2 * TOLERANCE[dtype])


@every_channel
@every_case
@pytest.mark.parametrize("away", [-5.0, 4.0])
def test_a_far_start_reaches_the_same_mode(columns, channel, away):
    p = random_problem(channel, columns)
    parameters, cells = p.kernel("float32")
    near = find(parameters, cells, p.columns, p.start("float32"), Search(1e-3, 100))
    far = find(parameters, cells, p.columns, p.start("float32") + away, Search(1e-3, 100))
    assert np.all(far.converged)
    np.testing.assert_allclose(far.f, near.f, atol=5e-3)


def test_too_few_steps_are_reported():
    p = random_problem("poisson", "known")
    parameters, cells = p.kernel("float32")
    at = find(parameters, cells, p.columns, p.start("float32") + 4, Search(1e-3, 1))
    assert not np.any(at.converged)
    assert np.all(np.asarray(at.gradient_norm) > 1e-2)


# Limits


def test_without_variance_the_mode_is_the_mean():
    p = random_problem("nb", "known")
    p = p.with_(W=np.zeros_like(p.W), d=np.full_like(p.d, 1e-8))
    at, _ = found(p, "float64")
    np.testing.assert_allclose(at.f, p.mu + p.offset[:, None], atol=1e-5)


@every_case
def test_large_dispersion_is_poisson(columns):
    p = random_problem("poisson", columns)
    nearly = p.with_(log_r=np.full(len(p.mu), np.log(1e9)))
    ours, theirs = found(nearly, "float64"), found(p, "float64")
    np.testing.assert_allclose(ours[0].f, theirs[0].f, atol=1e-6)
    np.testing.assert_allclose(ours[1].covariance, theirs[1].covariance, atol=1e-6)
    assert np.log(1e9) > LOG_R_MAX


@every_channel
@every_case
def test_conditional_rates_solve_their_equation(channel, columns):
    """f = m + d s(f): the mode of a log-rate given the coordinates."""
    p = random_problem(channel, columns)
    with precision_of("float64"):
        parameters, cells = p.kernel("float64")
        z = jnp.asarray(np.random.default_rng(2).normal(size=(3 if columns != "known" else 2, 5)))
        f = mode.conditional_rates(parameters, cells, p.columns, z, n_iterations=30)
        X, v = mode.design(parameters.W, p.columns), mode.scales(cells, 2)
        m = mode.rates(z, parameters.mu + cells.offset[:, None], X, v)
        s = parameters.channel.derivatives(cells.counts, f)[0]
        f, m, s = jax.device_get((f, m, s))
    np.testing.assert_allclose(f, m + p.d * s, atol=1e-8)


@every_case
def test_conditional_rates_at_the_mode_are_the_mode(columns):
    p = random_problem("nb", columns)
    at, _ = found(p, "float64")
    with precision_of("float64"):
        parameters, cells = p.kernel("float64")
        f = mode.conditional_rates(parameters, cells, p.columns, at.z, n_iterations=20)
        f = jax.device_get(f)
    np.testing.assert_allclose(f, at.f, atol=1e-7)


def test_conditional_rates_stay_where_they_have_arrived():
    """However often a compiler computes a number, and rounds it: as optimised as for users."""
    rng = np.random.default_rng(0)
    m = rng.normal(0.5, 1.5, (300, 300)).astype(np.float32)
    d, log_r = rng.uniform(0.05, 0.5, 300), rng.normal(1, 1, 300)
    f = m + rng.normal(size=m.shape) * np.sqrt(d)
    u = rng.poisson(np.exp(f) * rng.gamma(np.exp(log_r), np.exp(-log_r), m.shape))
    given = [jnp.asarray(x, jnp.float32) for x in (u, m, d, log_r)]

    def what_is_left(u, m, d, log_r):
        channel = NegativeBinomial(log_r)
        f = mode.rates_given_mean(channel, u, m, d, mode.FULL_ITERATIONS)
        s, a, _ = channel.derivatives(u, f)
        return (f - m - d * s) / (1 + d * a)

    optimised = {"xla_backend_optimization_level": 3}
    left = jax.jit(what_is_left, compiler_options=optimised)(*given)
    assert np.abs(left).max() < 1e-5


# Capture


def test_capture_loss_is_the_mean_of_the_truncated_gaussian():
    p = random_problem("nb", "latent")
    p = p.with_(offset=np.array([0.5, 0.1, -0.1, -1.0, -3.0]))  # prior means -0.5 ... 3
    at, step = found(p, "float64")
    with precision_of("float64"):
        _, cells = p.kernel("float64")
        eta = evidence.capture_loss(cells, LATENT, at.z, step.covariance)
        mean, loc, sd = jax.device_get(eta)
    for c in range(len(p.u)):
        expected = posterior(p, c).eta
        assert (float(loc[c]), float(sd[c])) == pytest.approx(expected, rel=1e-6)
        low = -expected[0] / expected[1]
        truncated = stats.truncnorm.mean(low, np.inf, *expected)
        assert float(mean[c]) == pytest.approx(truncated, rel=1e-5)


def test_known_capture_loss_is_the_offset():
    p = random_problem("nb", "known")
    _, cells = p.kernel("float32")
    mean, loc, sd = evidence.capture_loss(cells, Columns(), None, None)
    np.testing.assert_allclose(mean, -p.offset, rtol=1e-6)
    np.testing.assert_allclose(loc, -p.offset, rtol=1e-6)
    assert not np.any(sd)
