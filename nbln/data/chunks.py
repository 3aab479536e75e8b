"""Chunks of cells of one static shape, so that compiled code is compiled once."""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from nbln.data.counts import Counts

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
    """Cells of a chunk, such that chunks are equally full.

    Parameters
    ----------
    n_cells, n_genes
        Shape of the counts.
    budget
        Bytes of one float32 (cell, gene) array of a chunk, about. Exceeded where fewer
        than 64 cells would fit.
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
    # Not a generator itself, so that a wrong size is an error where it is given.
    return (_chunk(counts, start, size) for start in range(0, counts.n_cells, size))


def _chunk(counts: Counts, start: int, size: int) -> Chunk:
    block = counts.rows(slice(start, start + size))
    mask = np.zeros(size, np.float32)
    mask[: len(block)] = 1
    if len(block) < size:
        block = np.pad(block, ((0, size - len(block)), (0, 0)))
    return Chunk(block, mask, start)
