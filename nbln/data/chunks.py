"""Chunks of cells of one static shape, so that code is compiled for one shape only."""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from nbln.data.counts import Counts
from nbln.data.slices import slices

# From here on, reading a sparse matrix in memory takes about the same time for each cell
# (2,000 genes, a tenth of the entries nonzero); with 8 cells a chunk it takes three times that.
_FEWEST_CELLS = 64


class Chunk(NamedTuple):
    """Consecutive cells, padded at the end to the common size.

    Attributes
    ----------
    counts
        Counts; rows of padding are zero.
    mask
        1 for a cell, 0 for padding.
    start
        Number of the first cell.
    """

    counts: Float32[np.ndarray, "cell gene"]
    mask: Float32[np.ndarray, " cell"]
    start: int


def chunk_cells(n_cells: int, n_genes: int, budget: int = 8 * 2**20) -> int:
    """Number of cells of a chunk, such that chunks are almost equally full.

    Parameters
    ----------
    n_cells, n_genes
        Shape of the counts.
    budget
        Approximate bytes of one float32 (cell, gene) array of a chunk. Exceeded where fewer
        than 64 cells would fit. The default, 1,000 cells of 2,000 genes, is where a cell of a
        file on disk took least time to read.
    """
    fit = max(_FEWEST_CELLS, budget // (4 * n_genes))
    n_chunks = min(ceil(n_cells / fit), max(1, n_cells // _FEWEST_CELLS))
    return ceil(n_cells / n_chunks)


def chunks(counts: Counts, size: int) -> Iterator[Chunk]:
    """All cells in order, in chunks of exactly `size` rows.

    Parameters
    ----------
    counts
        In memory or on disk; one chunk is read at a time.
    size
        Rows of each chunk, as from `chunk_cells`.

    Raises
    ------
    ValueError
        A size below 1.
    """
    if size < 1:
        raise ValueError(f"chunks(size={size}): must be at least 1; chunk_cells proposes one")
    return (_chunk(counts, cells, size) for cells in slices(counts.n_cells, size))


def _chunk(counts: Counts, cells: slice, size: int) -> Chunk:
    block = counts.rows(cells)
    mask = np.zeros(size, np.float32)
    mask[: len(block)] = 1
    if len(block) < size:
        block = np.pad(block, ((0, size - len(block)), (0, 0)))
    return Chunk(block, mask, cells.start)
