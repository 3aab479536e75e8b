"""Batched small factorisations against numpy.linalg."""

import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of

from nbln.linalg import small

TOLERANCE = {"float32": 2e-4, "float64": 1e-11}
both_precisions = pytest.mark.parametrize("dtype", TOLERANCE)
sizes = pytest.mark.parametrize("k", [1, 2, 5, 16])


def positive_definite(k, n=9, seed=0):
    root = np.random.default_rng(seed).normal(size=(n, k, k))
    return root @ root.transpose(0, 2, 1) + 0.5 * np.eye(k)


def batch_last(A, dtype=None):
    return jnp.asarray(np.moveaxis(A, 0, -1), dtype)


@both_precisions
@sizes
def test_inverse_and_log_det(k, dtype):
    A = positive_definite(k)
    with precision_of(dtype):
        inverse, log_det = small.inverse_and_log_det(batch_last(A, dtype))
    assert inverse.dtype == log_det.dtype == dtype
    expected = np.moveaxis(np.linalg.inv(A), 0, -1)
    np.testing.assert_allclose(inverse, expected, rtol=0, atol=10 * TOLERANCE[dtype])
    np.testing.assert_allclose(log_det, np.linalg.slogdet(A)[1], rtol=0, atol=TOLERANCE[dtype])


@both_precisions
@sizes
def test_cholesky_and_its_inverse(k, dtype):
    A = positive_definite(k)
    with precision_of(dtype):
        L = small.cholesky(batch_last(A, dtype))
        inverse = small.inverse_lower(L)
    expected = np.linalg.cholesky(A)
    np.testing.assert_allclose(L, np.moveaxis(expected, 0, -1), atol=TOLERANCE[dtype])
    np.testing.assert_allclose(
        inverse, np.moveaxis(np.linalg.inv(expected), 0, -1), atol=10 * TOLERANCE[dtype]
    )


@sizes
def test_multiply(k):
    rng = np.random.default_rng(1)
    A, x = rng.normal(size=(6, k + 1, k)), rng.normal(size=(6, k))
    ours = small.multiply(batch_last(A), batch_last(x))
    np.testing.assert_allclose(ours, np.einsum("nij,nj->in", A, x), atol=1e-5)


@sizes
def test_packing_is_reversed_by_unpacking(k):
    A = batch_last(positive_definite(k))
    packed = small.pack(A)
    assert packed.shape[0] == k * (k + 1) // 2
    np.testing.assert_array_equal(small.unpack(packed), A)


@sizes
def test_row_products_are_packed_outer_products(k):
    W = np.random.default_rng(2).normal(size=(8, k)).astype(np.float32)
    outer = np.einsum("gi,gj->ijg", W, W)
    np.testing.assert_allclose(small.unpack(small.row_products(W).T), outer, rtol=1e-6)


@sizes
def test_quadratic_forms(k):
    A = positive_definite(k)
    W = np.random.default_rng(3).normal(size=(8, k))
    ours = small.row_products(jnp.asarray(W)) @ small.pack_quadratic(batch_last(A))
    np.testing.assert_allclose(ours, np.einsum("gi,nij,gj->gn", W, A, W), rtol=1e-4, atol=1e-4)


@sizes
def test_unpack_bordered(k):
    A = positive_definite(k + 1)
    rows = np.stack([np.concatenate([M[0], M[1:, 1:][np.tril_indices(k)]]) for M in A])
    unpacked = small.unpack_bordered(jnp.asarray(rows))
    np.testing.assert_allclose(unpacked, np.moveaxis(A, 0, -1), rtol=1e-6)


def test_both_precisions_in_one_process():
    """Index arrays are kept for later calls: they must suit either setting of JAX."""
    W = np.arange(6.0).reshape(3, 2)
    for dtype in ("float32", "float64", "float32"):
        with precision_of(dtype):
            assert small.row_products(jnp.asarray(W)).dtype == dtype
