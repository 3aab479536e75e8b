"""Laplace evidence: its value against dense determinants, its gradient against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import (
    information,
    posterior,
    precision_of,
    random_problem,
    score,
    total_evidence,
)
from scipy import special, stats

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.posterior import evidence, mode
from nbln.posterior.mode import Parameters, Search

find = jax.jit(mode.find, static_argnums=(2, 4))
evaluate = jax.jit(evidence.evidence, static_argnums=2)
every_case = pytest.mark.parametrize("columns", ["latent", "known", "flat"])
every_channel = pytest.mark.parametrize("channel", ["poisson", "nb"])


def evidence_of(problem, dtype="float64"):
    with precision_of(dtype):
        parameters, cells = problem.kernel(dtype)
        tol = 1e-9 if dtype == "float64" else 1e-3
        at = find(parameters, cells, problem.columns, problem.start(dtype), Search(tol, 50))
        return np.asarray(evaluate(parameters, cells, problem.columns, at.f))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-3), ("float64", 1e-8)])
@every_case
@every_channel
def test_value(channel, columns, dtype, tolerance):
    p = random_problem(channel, columns)
    ours = evidence_of(p, dtype)
    assert ours.dtype == dtype
    dense = [posterior(p, c).evidence for c in range(len(p.u))]
    np.testing.assert_allclose(ours, dense, rtol=0, atol=tolerance)


@every_channel
def test_value_with_sigma_formed(channel):
    """Rasmussen & Williams (2006), equation 3.32."""
    p = random_problem(channel, "known")
    ours = evidence_of(p)
    Sigma = p.W @ p.W.T + np.diag(p.d)
    for c in range(len(p.u)):
        f, mean = posterior(p, c).f, p.mu + p.offset[c]
        a = information(p.u[c], f, p.log_r)
        log_prob = (
            stats.poisson.logpmf(p.u[c], np.exp(f))
            if p.log_r is None
            else stats.nbinom.logpmf(p.u[c], np.exp(p.log_r), 1 / (1 + np.exp(f - p.log_r)))
        )
        quadratic = (f - mean) @ np.linalg.solve(Sigma, f - mean)
        B = np.eye(len(f)) + Sigma * a
        dense = log_prob.sum() - 0.5 * quadratic - 0.5 * np.linalg.slogdet(B)[1]
        assert ours[c] == pytest.approx(dense, abs=1e-8)
        np.testing.assert_allclose(f - mean, Sigma @ score(p.u[c], f, p.log_r), atol=1e-7)


def test_a_prior_that_allows_negative_eta_little_is_truncated():
    p = random_problem("nb", "latent")
    p = p.with_(offset=np.array([0.6, 0.3, 0.0, -0.5, -2.0]))
    dense = [posterior(p, c).evidence for c in range(len(p.u))]
    np.testing.assert_allclose(evidence_of(p), dense, atol=1e-8)


def leaves(problem):
    names = ["mu", "W", "d"] + (["log_r"] if problem.log_r is not None else [])
    return {name: getattr(problem, name) for name in names}


@every_case
@every_channel
def test_gradient(channel, columns):
    """Central differences of the dense evidence, the mode found anew each time."""
    p = random_problem(channel, columns, n_cells=3, n_genes=5)
    with precision_of("float64"):
        _, cells = p.kernel("float64")
        parameters, _ = p.kernel("float64")
        f = find(parameters, cells, p.columns, p.start("float64"), Search(1e-11, 100)).f

        def total(values):
            channel = parameters.channel
            if "log_r" in values:
                channel = NegativeBinomial(values["log_r"])
            new = Parameters(values["mu"], values["W"], values["d"], channel)
            return jnp.sum(evaluate(new, cells, p.columns, f))

        values = {name: jnp.asarray(x) for name, x in leaves(p).items()}
        gradient = jax.device_get(jax.jit(jax.grad(total))(values))
    h = 1e-5
    for name, x in leaves(p).items():
        for i in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[i] += h
            down[i] -= h
            above, below = (total_evidence(p.with_(**{name: y})) for y in (up, down))
            difference = (above - below) / (2 * h)
            assert gradient[name][i] == pytest.approx(difference, rel=1e-5, abs=1e-5), (name, i)


def test_gradient_in_float32():
    p = random_problem("nb", "latent")
    gradients = {}
    for dtype in ("float32", "float64"):
        with precision_of(dtype):
            parameters, cells = p.kernel(dtype)
            f = find(parameters, cells, p.columns, p.start(dtype), Search(1e-3, 100)).f

            def total(parameters, cells=cells, f=f):
                return jnp.sum(evaluate(parameters, cells, p.columns, f))

            gradients[dtype] = jax.device_get(jax.tree.leaves(jax.jit(jax.grad(total))(parameters)))
    for ours, exact in zip(gradients["float32"], gradients["float64"], strict=True):
        np.testing.assert_allclose(ours, exact, atol=2e-3 * np.abs(exact).max(initial=0))


# Limits


@every_channel
def test_without_variance_it_is_the_likelihood(channel):
    p = random_problem(channel, "known")
    p = p.with_(W=np.zeros_like(p.W), d=np.full_like(p.d, 1e-10))
    f = p.mu + p.offset[:, None]
    with precision_of("float64"):
        parameters, cells = p.kernel("float64")
        log_prob = np.asarray(parameters.channel.log_prob(cells.counts, jnp.asarray(f)).sum(axis=1))
    np.testing.assert_allclose(evidence_of(p), log_prob, rtol=1e-6)


@every_case
def test_vanishing_residual_variance(columns):
    """d → 0 leaves a model of the factors alone, whose dense evidence is k-dimensional."""
    p = random_problem("poisson", columns)
    small, smaller = (evidence_of(p.with_(d=np.full_like(p.d, d))) for d in (1e-7, 1e-9))
    assert np.all(np.isfinite(smaller))
    np.testing.assert_allclose(small, smaller, atol=1e-3)
    dense = [posterior(p.with_(d=np.full_like(p.d, 1e-7)), c).evidence for c in range(len(p.u))]
    np.testing.assert_allclose(small, dense, atol=1e-5)


@every_channel
def test_without_loadings_genes_are_independent(channel):
    p = random_problem(channel, "known")
    p = p.with_(W=np.zeros_like(p.W))
    alone = sum(
        evidence_of(
            p.with_(
                u=p.u[:, [g]],
                mu=p.mu[[g]],
                W=p.W[[g]],
                d=p.d[[g]],
                log_r=None if p.log_r is None else p.log_r[[g]],
            )
        )
        for g in range(len(p.mu))
    )
    np.testing.assert_allclose(evidence_of(p), alone, atol=1e-8)


@every_case
def test_large_dispersion_is_poisson(columns):
    p = random_problem("poisson", columns)
    nearly = p.with_(log_r=np.full(len(p.mu), np.log(1e10)))
    np.testing.assert_allclose(evidence_of(nearly), evidence_of(p), atol=1e-5)


def test_multinomial_identity():
    """Poisson with a flat column is the multinomial's Laplace + log L + S(L) (MATH Section 2).

    The multinomial's own Laplace works on x alone, with the Hessian L (diag(p) - p pᵀ) + Σ⁻¹.
    """
    p = random_problem("poisson", "flat")
    ours = evidence_of(p)
    Sigma = p.W @ p.W.T + np.diag(p.d)
    inverse = np.linalg.inv(Sigma)
    for c in range(len(p.u)):
        u, L = p.u[c], p.u[c].sum()
        x = p.mu.copy()
        for _ in range(200):
            share = special.softmax(x)
            H = L * (np.diag(share) - np.outer(share, share)) + inverse
            x = x + np.linalg.solve(H, u - L * share - inverse @ (x - p.mu)) * 0.7
        share = special.softmax(x)
        H = L * (np.diag(share) - np.outer(share, share)) + inverse
        log_prob = stats.multinomial.logpmf(u, L, share / share.sum())
        quadratic = (x - p.mu) @ inverse @ (x - p.mu)
        dense = log_prob - 0.5 * quadratic - 0.5 * np.linalg.slogdet(Sigma @ H)[1]
        stirling = special.gammaln(L + 1) - (L + 0.5) * np.log(L) + L - 0.5 * np.log(2 * np.pi)
        # The joint Laplace integrates κ by Stirling's formula for 1/L! instead of exactly.
        assert ours[c] == pytest.approx(dense - np.log(L) - stirling, abs=1e-8)


def test_padding_has_no_evidence():
    p = random_problem("nb", "latent")
    with precision_of("float32"):
        parameters, cells = p.kernel("float32")
        cells = cells._replace(mask=cells.mask.at[2].set(0))
        at = find(parameters, cells, p.columns, p.start("float32"), Search(1e-3, 50))
        ours = evaluate(parameters, cells, p.columns, at.f)
        slope = jax.grad(lambda q: jnp.sum(evaluate(q, cells, p.columns, at.f)))(parameters)
    assert float(ours[2]) == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
