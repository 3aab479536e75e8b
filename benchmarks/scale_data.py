"""Counts of many cells from the log-normal model, written to a file block by block."""

import math
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from nbln.data.ahead import ahead
from nbln.data.slices import slices

NONZERO = 0.1  # share of the entries, as in a filtered 10x matrix of variable genes
PROGRAMS = 5
DEPTH_SD = 0.4  # of the natural log, as in nbln.datasets.simulate
RAREST = 0.005  # mean count of a gene, so that every gene is seen in some thousand cells
TRIED, STEPS = 200, 14  # cells and bisections by which the mean that gives this share is found
BLOCK_ENTRIES = 2**19  # float32 arrays of a block, 2 MiB each, stay near the cores' caches
COPY_ENTRIES = 2**24  # of the spooled entries that are copied at once


class Truth(NamedTuple):
    """Parameters of the genes."""

    W: np.ndarray  # (gene, program)
    d: np.ndarray  # (gene,)
    r: np.ndarray  # (gene,)
    mu: np.ndarray  # (gene,)

    @classmethod
    def draw(cls, n_genes: int, seed: int) -> "Truth":
        """Loadings, variances and dispersions as in nbln.datasets.simulate, but rare counts."""
        rng = np.random.default_rng(seed)
        strong = rng.random((n_genes, PROGRAMS)) < 0.3
        W = rng.normal(0, np.where(strong, 0.6, 0.05))
        W -= W.mean(axis=0)
        d, r = rng.uniform(0.05, 0.2, n_genes), rng.lognormal(1.6, 0.7, n_genes)
        spread, half = rng.normal(0, 1.2, n_genes), (np.sum(W**2, axis=1) + d) / 2
        low, high = -20.0, 5.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            mu = np.maximum(spread + middle, math.log(RAREST)) - half
            truth = cls(*(np.float32(x) for x in (W, d, r, mu)))
            found = np.count_nonzero(truth.counts(TRIED, np.random.default_rng(seed)))
            low, high = (middle, high) if found < NONZERO * TRIED * n_genes else (low, middle)
        return truth

    def counts(self, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        """Counts of further cells, dense."""
        n_genes, k = self.W.shape
        f = rng.standard_normal((n_cells, n_genes), np.float32)
        f *= np.sqrt(self.d)
        f += self.mu
        f += rng.standard_normal((n_cells, k), np.float32) @ self.W.T
        f += rng.normal(-(DEPTH_SD**2) / 2, DEPTH_SD, (n_cells, 1)).astype(np.float32)
        return negative_binomial(rng, np.exp(f, out=f), self.r)


def negative_binomial(rng: np.random.Generator, mean: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Counts by inversion: nine in ten are zero, which one uniform and one power decide."""
    u = rng.random(mean.shape, np.float32)
    zero = np.exp(-r * np.log(1 + mean / r))  # NumPy's log is quicker than its log1p
    counts = np.zeros(mean.shape, np.float32)
    left = np.flatnonzero(u >= zero)
    # In float64, or the probabilities of all counts might sum to less than a uniform.
    u, m, r = (np.float64(x.ravel()[left]) for x in (u, mean, np.broadcast_to(r, mean.shape)))
    odds, p = m / (m + r), np.exp(-r * np.log1p(m / r))
    total, n = p.copy(), 0
    while left.size:
        n += 1
        p = p * odds * (r + n - 1) / n
        total = total + p
        above = u >= total
        counts.ravel()[left[~above]] = n
        left, u, r, odds, p, total = (x[above] for x in (left, u, r, odds, p, total))
    return counts


def write(path: Path, n_cells: int, n_genes: int, seed: int) -> None:
    """Simulate a file of counts, uncompressed, and the truth beside it, as `path` with .npz."""
    truth = Truth.draw(n_genes, seed)
    np.savez(path.with_suffix(".npz"), **truth._asdict())
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    genes = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    nothing = sp.csr_matrix((n_cells, n_genes), dtype=np.float32)
    ad.AnnData(nothing, obs=cells, var=genes).write_h5ad(path)

    def block(numbered):
        number, rows = numbered
        rng = np.random.default_rng((seed, number))
        return sp.csr_matrix(truth.counts(rows.stop - rows.start, rng))

    # HDF5 lays a dataset out in one piece, as anndata writes it, only if its size is known before.
    spools = {name: path.with_suffix(f".{name}") for name in ("data", "indices")}
    per_cell = []
    with open(spools["data"], "wb") as data, open(spools["indices"], "wb") as indices:
        blocks = enumerate(slices(n_cells, math.ceil(BLOCK_ENTRIES / n_genes)))
        for part in ahead(block, blocks):
            part.data.tofile(data)
            part.indices.astype(np.int32).tofile(indices)
            per_cell.append(np.diff(part.indptr))
    with h5py.File(path, "r+") as file:
        group = file["X"]
        del group["data"], group["indices"], group["indptr"]
        group["indptr"] = np.append(0, np.cumsum(np.concatenate(per_cell), dtype=np.int64))
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            spooled = np.memmap(spools[name], dtype, "r")
            group.create_dataset(name, spooled.shape, dtype)
            for part in slices(len(spooled), COPY_ENTRIES):
                group[name][part] = spooled[part]
    for spool in spools.values():
        spool.unlink()
