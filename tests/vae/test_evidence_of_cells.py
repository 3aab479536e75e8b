"""Modes and evidence of cells against quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from scipy.special import logsumexp
from scipy.stats import norm
from vae_cells import cells, double, network

from nbln.vae import decoded, marginal, refine

# Of each: how far Laplace's approximation may be from the evidence (nats, median). Rectifiers make
# kinks, of which a Gaussian knows nothing; a linear decoder has none.
KINDS = {
    "nb": ({}, "float32", 0.2),
    "nb in double precision": ({}, "float64", 0.2),
    "zinb": ({"gene_likelihood": "zinb"}, "float32", 0.2),
    "theta of each cell": ({"dispersion": "gene-cell"}, "float32", 0.2),
    "poisson, linear": ({"gene_likelihood": "poisson", "linear": True}, "float32", 0.02),
}
GRID = np.linspace(-8, 8, 1601)
N_DRAWS = 1_000


def of_type(precision, *trees):
    return trees if precision == "float32" else [double(tree) for tree in trees]


def by_quadrature(model, batch):
    """log p(u) of each cell with z on a dense grid, and the z of the largest density."""

    @jax.jit
    def log_prob(z):
        at = jnp.full((len(batch.counts), 1), z)
        f, bound = decoded.decoded(model, at, batch.log_library, batch)
        return jnp.sum(bound.log_prob(batch.counts, f), axis=1)

    given = np.asarray(jax.lax.map(log_prob, jnp.asarray(GRID, batch.counts.dtype)), np.float64)
    joint = given + norm.logpdf(GRID)[:, None]
    return logsumexp(joint, axis=0) + np.log(GRID[1] - GRID[0]), GRID[np.argmax(joint, axis=0)]


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_that_of_quadrature(kind):
    changed, precision, tolerance = KINDS[kind]
    made = network(latent_dim=1, dropout=0.0, **changed), cells(12)
    with precision_of(precision):
        model, batch = of_type(precision, *made)
        expected, mode = by_quadrature(model, batch)
        latent = refine.laplace(model, batch)
        assert latent.mode.dtype == jnp.dtype(precision)
        ratios = marginal.log_ratios(model, batch, latent, jax.random.key(0), N_DRAWS)
        ratios = np.asarray(ratios, np.float64)
        laplace = np.asarray(marginal.log_evidence_at(latent))
    weight = np.exp(ratios - ratios.max(axis=0))
    ess = weight.sum(axis=0) ** 2 / (weight**2).sum(axis=0)
    assert np.median(ess) > 0.7 * N_DRAWS
    assert ess.min() > 0.2 * N_DRAWS
    found = logsumexp(ratios, axis=0) - np.log(N_DRAWS)
    assert np.all(np.abs(found - expected) < 4 / np.sqrt(ess) + 1e-3)
    assert np.median(np.abs(laplace - expected)) < tolerance
    assert np.mean(np.abs(np.asarray(latent.mode)[:, 0] - mode) < 0.02) > 0.9


def test_a_latent_library_is_integrated_out():
    model, batch = network(latent_dim=1, latent_library=True, linear=True), cells(8, mean=2.0)
    step = 0.1
    grid = np.arange(-6, 6 + step / 2, step)
    both = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)

    @jax.jit
    def joint(x):
        return refine.log_joint(model, batch, jnp.broadcast_to(x, (8, 2))) - np.log(2 * np.pi)

    values = np.asarray(jax.lax.map(joint, jnp.asarray(both, jnp.float32)))
    expected = logsumexp(values, axis=0) + 2 * np.log(step)
    latent = refine.laplace(model, batch)
    ratios = marginal.log_ratios(model, batch, latent, jax.random.key(0), N_DRAWS)
    found = logsumexp(ratios, axis=0) - np.log(N_DRAWS)
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(marginal.log_evidence_of(model, batch), expected, atol=0.3)


def test_the_mode_is_a_mode():
    """Of a smooth posterior: the gradient vanishes and no place around is better.

    This encoder learned nothing, so that more steps are needed than from one that did.
    """
    model, batch = network(linear=True, scale=3.0), cells(30, mean=20.0)
    latent = refine.laplace(model, batch, 3 * refine.STEPS)
    assert float(latent.gradient_norm.max()) < 0.05
    rng = np.random.default_rng(0)
    for _ in range(5):
        away = latent.mode + 0.1 * jnp.asarray(rng.normal(size=(30, 2)), jnp.float32)
        assert np.all(refine.log_joint(model, batch, away) <= latent.log_joint + 1e-3)


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("linear", [True, False])
def test_the_spread_is_that_of_the_dense_hessian(latent_dim, linear):
    """Of overdispersed counts: what is expected of a gene and what is counted differ the most."""
    made = network(latent_dim=latent_dim, linear=linear, dropout=0.0), cells(30, mean=20.0, seed=3)
    with precision_of("float64"):
        model, batch = map(double, made)
        model = eqx.tree_at(lambda m: m.likelihood.theta.value, model, jnp.linspace(-1.0, 2.0, 8))
        latent = refine.laplace(model, batch, 3 * refine.STEPS)
        hessian = jax.vmap(jax.hessian(one_cell, 2), (None, 0, 0))
        dense = -np.asarray(jax.jit(hessian)(model, batch, latent.mode))
        root = np.moveaxis(np.asarray(latent.root), -1, 0)
    np.testing.assert_allclose(root @ np.swapaxes(root, 1, 2), np.linalg.inv(dense), rtol=1e-6)
    np.testing.assert_allclose(latent.log_det, -np.linalg.slogdet(dense)[1], rtol=1e-6)


def one_cell(model, cell, x):
    batch = jax.tree.map(lambda part: part[None], cell)
    return refine.log_joint(model, batch, x[None])[0]


@pytest.mark.parametrize("changed", [{}, {"latent_library": True, "gene_likelihood": "zinb"}])
def test_a_cell_of_extreme_counts_stays_finite(changed):
    model, batch = network(**changed), cells(6)
    counts = batch.counts.at[2, 3].set(1e5)
    batch = batch._replace(counts=counts, log_library=jnp.log(counts.sum(axis=1)))
    latent = refine.laplace(model, batch)
    for part in latent:
        assert np.isfinite(part).all()
    ratios = marginal.log_ratios(model, batch, latent, jax.random.key(0), 20)
    assert np.isfinite(logsumexp(ratios, axis=0)).all()
    assert np.all(latent.log_joint >= refine.log_joint(model, batch, started(model, batch)))


def started(model, batch):
    return eqx.filter_jit(refine.coordinates)(model, batch)
