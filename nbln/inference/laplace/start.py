"""Where the Laplace engine starts: the leading principal axes of shrunken log-counts."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln.compiled import once_jit
from nbln.linalg import gauge
from nbln.linalg.products import dot
from nbln.posterior.mode import Cells, Parameters

# Further probes and power iterations, as Halko, Martinsson & Tropp (2011) advise: 5 to 10, 1 to 3.
OVERSAMPLING = 8
POWER_ITERATIONS = 3
# Variance of a log-rate between cells that the shrinkage of first log-counts assumes: large, since
# columns that begin small collapse before the factors have formed.
SPREAD = 1.0


class Sketch(eqx.Module):
    """Sums over cells of one pass of a randomised subspace iteration (Halko et al. 2011)."""

    product: Float[Array, "gene probe"]  # Σ ρ (ρᵀ Y), ρ a cell's residual
    inner: Float[Array, "probe probe"]  # Σ (ρᵀ Y)(ρᵀ Y)ᵀ
    total: Float[Array, " gene"]  # Σ ρ
    n_cells: Float[Array, ""]

    @classmethod
    def of(cls, residual: Float[Array, "cell gene"], probes, mask: Float[Array, " cell"]):
        """Of residuals of a chunk, which are 0 in padding."""
        inner = dot(residual, probes)
        return cls(dot(residual.T, inner), dot(inner.T, inner), residual.sum(axis=0), mask.sum())


def sketch(parameters: Parameters, probes: Float[Array, "gene probe"], cells: Cells, z):
    """One chunk's part of a pass; its coordinates `z` pass through.

    A residual is log(u + ½) less its mean, shrunk as the information of the count says: a zero
    of a rare gene says little.
    """
    f = jnp.log(cells.counts + 0.5)
    a = parameters.channel.derivatives(cells.counts, f)[1]
    shrink = SPREAD * a / (1 + SPREAD * a) * cells.mask[:, None]
    residual = shrink * (f - parameters.mean(cells))
    return Sketch.of(residual, probes, cells.mask), z


@once_jit
def orthonormal(sums: Sketch, probes: Float[Array, "gene probe"]) -> Float[Array, "gene probe"]:
    """Orthonormal basis of the centred product: the next pass's probes."""
    return jnp.linalg.qr(sums.product - jnp.outer(sums.total, _mean_inner(sums, probes)))[0]


@eqx.filter_jit
def loadings(
    sums: Sketch, probes: Float[Array, "gene probe"], n_factors: int
) -> Float[Array, "gene factor"]:
    """Principal axes of the residuals in the span of the probes, scaled by standard deviation."""
    mean = _mean_inner(sums, probes)
    covariance = sums.inner / sums.n_cells - jnp.outer(mean, mean)
    values, vectors = jnp.linalg.eigh(covariance)
    scale = jnp.sqrt(jnp.maximum(values, 1e-12))
    W = dot(probes, (vectors * scale)[:, ::-1][:, :n_factors])
    return dot(W, gauge.principal_axes(W))


def first_probes(n_genes: int, n_factors: int, seed: int) -> Float[Array, "gene probe"]:
    """Random probes, more than factors, never more than genes."""
    shape = n_genes, min(n_factors + OVERSAMPLING, n_genes)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def _mean_inner(sums, probes):
    return dot(sums.total, probes) / sums.n_cells
