"""Correlations by moments alone: weighted regressions of counts on library sizes, in NumPy.

usage: python peer_moments.py COUNTS.npz OUT.npz [float64|float32] [RUNS]

With s the library size of a cell, the estimator of Su et al. (2023, Nature Communications, CS-CORE)
takes E u_g = s μ_g, Var u_g = s μ_g + s² σ²_g and Cov(u_g, u_h) = s² σ_gh, and solves for μ, σ² and
σ_gh by least squares, weighted by the variances that the current μ and one θ for all genes imply,
w = sμ + (sμ)²/θ, θ the median of μ²/σ². Nothing is iterated but two numbers a gene, so that this is
about the least that correlations of counts cost: what a model takes beyond it buys what moments do
not give. Without tests of significance, which cost a third product of matrices.

Two threads: the products are BLAS's, and blocks of cells that fit a cache are shared between two
Python threads. COUNTS.npz holds ``counts`` (cell, gene); OUT.npz gets ``correlation`` and
``seconds``, the median of RUNS after one more, imports and the reading of the file left out.
"""

import os

THREADS = 2
for library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{library}_NUM_THREADS", str(THREADS))

import sys  # noqa: E402  BLAS reads its number of threads when NumPy is imported
import time  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402

import numpy as np  # noqa: E402

# Genes have settled when no log(μ²/σ²) moves by more, or after so many steps (both as published).
TOLERANCE, MOST_STEPS = 0.05, 10
BLOCK_BYTES = 2**18  # of one array of a block: the four that are in use stay in a core's L2 cache


class Data:
    """Counts in one precision, with library sizes whose mean is 1, in blocks of cells."""

    def __init__(self, counts: np.ndarray, pool: ThreadPoolExecutor, dtype=np.float64):
        self.counts = np.ascontiguousarray(counts, dtype)
        total = self.counts.sum(axis=1, dtype=np.float64)
        self.size = (total / total.mean()).astype(dtype)[:, None]
        n_cells, n_genes = counts.shape
        rows = max(1, BLOCK_BYTES // (self.counts.itemsize * n_genes))
        self._slices = [slice(i, i + rows) for i in range(0, n_cells, rows)]
        self._pool = pool

    def sums(self, visit, *arguments) -> np.ndarray:
        """Sums over blocks of ``visit(counts, sizes, *arguments)``, in float64."""

        def of(own):
            total = 0.0
            for cells in own:
                part = visit(self.counts[cells], self.size[cells], *arguments)
                total = total + np.asarray(part, np.float64)
            return total

        shares = [self._slices[i::THREADS] for i in range(THREADS)]
        return sum(self._pool.map(of, shares))

    def fill(self, visit, *arguments) -> tuple[np.ndarray, np.ndarray]:
        """Two matrices like the counts, which `visit` fills block by block."""
        found = np.empty_like(self.counts), np.empty_like(self.counts)

        def of(cells):
            out = (matrix[cells] for matrix in found)
            visit(self.counts[cells], self.size[cells], *arguments, *out)

        list(self._pool.map(of, self._slices))
        return found


def shrinkage(size, mean, theta):
    """v = sμ / w = 1 / (1 + sμ/θ): all weights are made of it, and the factors μ cancel."""
    v = size * (mean / theta)
    v += 1
    return np.reciprocal(v, out=v)


def of_means(counts, size, mean, theta):
    """Σ xs/w and Σ s²/w of the regression of counts on sizes, both times μ."""
    v = shrinkage(size, mean, theta)
    return (v * counts).sum(axis=0), (size.T @ v)[0]


def of_variances(counts, size, mean, theta):
    """Σ ((x - sμ)² - sμ) s²/w² and Σ s⁴/w², both times μ²."""
    expected = size * mean
    v = shrinkage(size, mean, theta)
    excess = counts - expected
    excess *= excess
    excess -= expected
    v *= v
    excess *= v
    return excess.sum(axis=0), ((size * size).T @ v)[0]


def weighted(counts, size, mean, theta, residual, weight):
    """(x - sμ) s/w and s²/w, both times μ: their products are those of the covariances."""
    v = shrinkage(size, mean, theta)
    np.multiply(size, mean, out=residual)
    np.subtract(counts, residual, out=residual)
    residual *= v
    np.multiply(size, v, out=weight)


def correlation(counts: np.ndarray, dtype=np.float64) -> np.ndarray:
    """Correlation of expression between genes; 0 for genes that vary less than Poisson counts."""
    with ThreadPoolExecutor(THREADS) as pool:
        data = Data(counts, pool, dtype)
        # At first the weights of Poisson counts: v = 1 where θ is infinite.
        theta, ratio = np.inf, None
        mean = np.ones(counts.shape[1], dtype)
        for _ in range(1 + MOST_STEPS):
            mean = _quotient(data.sums(of_means, mean, theta), dtype)
            variance = _quotient(data.sums(of_variances, mean, theta), dtype)
            old, ratio = ratio, mean**2 / variance
            theta = dtype(np.median(ratio[ratio > 0]))
            if old is not None and _moved(old, ratio) <= TOLERANCE:
                break
        residual, weight = data.fill(weighted, mean, theta)
    covariance = residual.T @ residual
    covariance /= weight.T @ weight
    sd = np.sqrt(np.where(variance > 0, variance, np.inf))
    covariance /= sd[:, None]
    covariance /= sd
    np.clip(covariance, -1, 1, out=covariance)
    np.fill_diagonal(covariance, 1)
    return covariance


def _quotient(sums: np.ndarray, dtype) -> np.ndarray:
    return (sums[0] / sums[1]).astype(dtype)


def _moved(old: np.ndarray, new: np.ndarray) -> float:
    both = (old > 0) & (new > 0)
    return float(np.abs(np.log(new[both] / old[both])).max(initial=0.0))


def main(source: str, target: str, precision: str = "float64", runs: str = "3") -> None:
    counts, dtype = np.load(source)["counts"], np.dtype(precision).type
    counts, seconds = counts.astype(dtype), []
    for _ in range(1 + int(runs)):
        began = time.perf_counter()
        found = correlation(counts, dtype)
        seconds.append(time.perf_counter() - began)
    np.savez(target, correlation=found, seconds=np.median(seconds[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
