"""The gauge-invariant loadings: what a shift of every log-rate cannot change."""

import jax.numpy as jnp
import numpy as np
import pytest

from nbln.linalg import gauge


@pytest.fixture
def W():
    return np.random.default_rng(0).normal(0.3, [2.0, 1.0, 0.1], (50, 3)).astype(np.float32)


def test_compositional_is_blind_to_a_row_added_to_all_genes(W):
    shifted = W + np.array([1.0, -2.0, 3.0], np.float32)
    np.testing.assert_allclose(gauge.compositional(W), gauge.compositional(shifted), atol=1e-6)
    np.testing.assert_allclose(gauge.compositional(W).mean(axis=0), 0, atol=1e-6)


def test_squared_norms(W):
    expected = np.sum((W - W.mean(axis=0)) ** 2, axis=0)
    np.testing.assert_allclose(gauge.squared_norms(W), expected, rtol=1e-5)


def test_principal_axes_are_a_rotation_to_orthogonal_columns_largest_first(W):
    axes = np.asarray(gauge.principal_axes(W))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    turned = np.asarray(gauge.compositional(W @ axes))
    gram = turned.T @ turned
    assert np.all(np.diff(np.diag(gram)) < 0)
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-3)


def sparse_columns(n_genes=300, n_factors=3, seed=3):
    rng = np.random.default_rng(seed)
    strong = rng.random((n_genes, n_factors)) < 0.2
    W = np.where(strong, rng.normal(0, 0.6, strong.shape), 0.02 * rng.normal(size=strong.shape))
    return (W - W.mean(axis=0)).astype(np.float32)


def turned_by(W, degrees, axes=(0, 1)):
    rotation = np.eye(W.shape[1], dtype=np.float32)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation[np.ix_(axes, axes)] = [[c, -s], [s, c]]
    return W @ rotation


def test_sparse_axes_find_sparse_columns_again():
    W = sparse_columns()
    everything = jnp.ones(3, bool)
    found = turned_by(turned_by(W, 35), -20, (1, 2))
    axes = np.asarray(gauge.sparse_axes(found, everything))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    overlap = np.abs(W.T @ found @ axes) / np.sum(W**2, axis=0)[:, None]
    np.testing.assert_allclose(overlap, np.eye(3), atol=0.08)


def test_sparse_axes_leave_the_other_columns_alone():
    W = turned_by(sparse_columns(), 30)
    axes = np.asarray(gauge.sparse_axes(W, jnp.array([True, True, False])))
    np.testing.assert_allclose(axes[2], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(axes[:, 2], [0, 0, 1], atol=1e-6)
    assert abs(axes[0, 1]) > 0.3


@pytest.mark.parametrize("W", [np.zeros((9, 2), np.float32), np.ones((9, 1), np.float32)])
def test_sparse_axes_of_nothing(W):
    nothing = jnp.zeros(W.shape[1], bool)
    np.testing.assert_allclose(gauge.sparse_axes(W, nothing), np.eye(W.shape[1]), atol=1e-6)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3])
def test_relative_change_estimates_the_dense_norm(W, size):
    new = W + size * np.random.default_rng(1).normal(size=W.shape).astype(np.float32)
    before, now = (np.asarray(gauge.compositional(x), np.float64) for x in (W, new))
    dense = np.linalg.norm(now @ now.T - before @ before.T) / np.linalg.norm(now @ now.T)
    assert float(gauge.relative_change(W, new)) == pytest.approx(dense, rel=0.5)


def test_relative_change_does_not_depend_on_the_basis(W):
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0].astype(np.float32)
    assert float(gauge.relative_change(W, W @ rotation)) < 1e-5


def test_relative_change_of_nothing():
    zero = jnp.zeros((5, 2))
    assert float(gauge.relative_change(zero, zero)) == 0


@pytest.mark.parametrize(
    ("norms", "options", "expected"),
    [
        ([10.0, 1.0, 0.4], {}, 2),
        ([10.0, 1.0, 0.4], {"threshold": 0.03}, 3),
        ([10.0, 1.0, 0.4], {"floor": 2.0}, 1),
        ([0.1, 0.1], {"floor": 1.0}, 0),
    ],
)
def test_effective_rank(norms, options, expected):
    assert gauge.effective_rank(jnp.asarray(norms), **options) == expected
