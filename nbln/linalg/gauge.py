"""The part of the loadings that no shift of a cell's log-rates can change: W_⊥ = W - 1 w̄ᵀ."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nbln.linalg.products import dot

Loadings = Float[Array, "gene factor"]

# Random probes of Hutchinson's estimator: a norm to 1/√(2 · 32), about 12 %.
N_PROBES = 32


def compositional(W: Loadings) -> Loadings:
    """W_⊥: each column less its mean over genes."""
    return W - jnp.mean(W, axis=0)


def squared_norms(W: Loadings) -> Float[Array, " factor"]:
    """‖w_⊥j‖² of every column."""
    return jnp.sum(compositional(W) ** 2, axis=0)


def principal_axes(W: Loadings) -> Float[Array, "factor factor"]:
    """The rotation that makes the columns of W_⊥ orthogonal, largest first."""
    centred = compositional(W)
    gram = dot(centred.T, centred)
    return jnp.linalg.eigh(gram)[1][:, ::-1]


def sparse_axes(
    W: Loadings, turned: Bool[Array, " factor"], tol: float = 1e-4, max_steps: int = 100
) -> Float[Array, "factor factor"]:
    """The rotation near the identity that makes the entries of W_⊥ sparse, as far as they can be.

    It maximises Σ [w² - s² log(1 + w²/s²)] over the entries w of the rotated columns, s their root
    mean square: near 0 this is quartimax (Carroll 1953), in the tails it grows no faster than w²,
    which a rotation preserves. The criterion is convex, so replacing it by its tangent and taking
    the rotation that is best for that, a polar factor, never lowers it.

    Parameters
    ----------
    turned
        Columns that take part; the others stay as they are.
    """
    centred = jnp.where(turned, compositional(W), 0.0)
    square = jnp.sum(centred**2) / jnp.maximum(W.shape[0] * jnp.sum(turned), 1)
    still = jnp.diag(jnp.where(turned, 0.0, jnp.maximum(square, 1e-12)))

    def improve(carry):
        step, rotation, _ = carry
        rotated = dot(centred, rotation)
        slope = rotated**3 / (square + rotated**2 + 1e-30)
        left, _, right = jnp.linalg.svd(dot(centred.T, slope) + still)
        new = dot(left, right)
        return step + 1, new, jnp.max(jnp.abs(new - rotation))

    def moves(carry):
        step, _, change = carry
        return (step < max_steps) & (change > tol)

    first = jnp.zeros((), jnp.int32), jnp.eye(W.shape[1], dtype=W.dtype), jnp.ones((), W.dtype)
    return lax.while_loop(moves, improve, first)[1]


def pair_correlations(
    W: Float[np.ndarray, "*draws gene factor"],
    d: Float[np.ndarray, "*draws gene"],
    pairs: Int[np.ndarray, "pair 2"],
) -> Float[np.ndarray, "*draws pair"]:
    """Compositional correlations of pairs of genes, on the host, for any number of draws."""
    centred = W - W.mean(axis=-2, keepdims=True)
    sd = np.sqrt((centred**2).sum(axis=-1) + d)
    unit = centred / sd[..., None]
    first, second = pairs.T
    return (unit[..., first, :] * unit[..., second, :]).sum(axis=-1)


def relative_change(old: Loadings, new: Loadings) -> Float[Array, ""]:
    """‖W_⊥W_⊥ᵀ(new) - W_⊥W_⊥ᵀ(old)‖ relative to the new one's, in Frobenius norm.

    Norms are estimated by fixed random probes (Hutchinson's estimator, about 12 % accurate): the
    difference is taken of vectors, where float32 sees it, and no gene x gene matrix is formed.
    """
    probes = jax.random.rademacher(jax.random.key(0), (old.shape[0], N_PROBES), dtype=new.dtype)

    def times(W):
        W = compositional(W)
        return dot(W, dot(W.T, probes))

    now = times(new)
    return jnp.linalg.norm(now - times(old)) / jnp.maximum(jnp.linalg.norm(now), 1e-12)


def effective_rank(
    column_norms: Float[Array, " factor"], threshold: float = 0.05, floor: float = 0.0
) -> int:
    """Number of loadings columns that carry signal.

    Counts the columns of the gauge-invariant loadings whose Euclidean norm exceeds ``threshold``
    times the largest and also `floor`. Call it in the principal-axis basis: in any other, the
    count depends on an arbitrary rotation.
    """
    norms = np.asarray(column_norms)
    return int(np.sum(norms > max(threshold * norms.max(), floor)))
