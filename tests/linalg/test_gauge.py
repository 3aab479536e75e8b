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
