"""How far the counts of each gene reach: all that sums of digamma over cells depend on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nbln.data.chunks import chunk_cells
from nbln.data.counts import Counts

_UNIT_BINS = 64
# 2**(1/28) = 1.025. Whole bins to the octave make every power of two an edge, so that the
# edges of small counts are the first edges of larger ones.
_BINS_PER_OCTAVE = 28
_BLOCK_BYTES = 64 * 2**20
_TABLE_SIZE = 2**16


class CountTails(NamedTuple):
    """Counts of each gene above each bin edge, summed over the cells.

    For a smooth f, Σ_c Σ_{k < u_c} f(k) is Σ_i excess_i · (mean of f over bin i): exact
    where bins are single counts. With f(k) = 1 / (r + k) this is Σ_c ψ(u_c + r) − ψ(r).

    Attributes
    ----------
    edges
        Bin edges, whole numbers from 0: each count up to 64, then wider by a fortieth
        up to a power of two above the largest count.
    excess
        Σ over cells of clip(u − edges[i], 0, edges[i + 1] − edges[i]). Each gene's sum
        over bins is its total.
    """

    edges: Float[np.ndarray, " edge"]
    excess: Float[np.ndarray, "gene bin"]


def count_tails(counts: Counts, chunk: int | None = None) -> CountTails:
    """Summarise how far the counts of each gene reach, in one pass.

    The number of bins depends only on the power of two above the largest count, so that
    similar data give equal shapes.

    Parameters
    ----------
    counts
        In memory or on disk.
    chunk
        Cells read at a time; None for a default by memory.

    Raises
    ------
    ValueError
        A chunk below 1.
    """
    size = chunk_cells(counts.n_cells, counts.n_genes, _BLOCK_BYTES) if chunk is None else chunk
    if size < 1:
        raise ValueError(f"count_tails(chunk={chunk}): must be at least 1, or None")
    n_genes = counts.n_genes
    number = np.zeros((n_genes, _UNIT_BINS))
    total = np.zeros((n_genes, _UNIT_BINS))
    for start in range(0, counts.n_cells, size):
        genes, values = counts.nonzeros(slice(start, start + size))
        edges = bin_edges(values.max(initial=0))
        n_bins = len(edges) - 1
        if n_bins > number.shape[1]:
            # Edges nest: what was counted so far stays in its bins.
            wider = ((0, 0), (0, n_bins - number.shape[1]))
            number, total = np.pad(number, wider), np.pad(total, wider)
        key = genes.astype(np.intp) * n_bins + bin_of(values, edges)
        shape = (n_genes, n_bins)
        number[:, :n_bins] += np.bincount(key, minlength=n_genes * n_bins).reshape(shape)
        total[:, :n_bins] += np.bincount(key, values, n_genes * n_bins).reshape(shape)
    edges = _edges_of(number.shape[1])
    # Cells whose count lies in a later bin cross this one whole.
    later = number[:, ::-1].cumsum(axis=1)[:, ::-1] - number
    return CountTails(edges, total - edges[:-1] * number + np.diff(edges) * later)


def bin_edges(largest: float) -> Float[np.ndarray, " edge"]:
    """Edges up to the first power of two that is greater than the largest count, 64 at least."""
    octaves = max(int(largest).bit_length() - _UNIT_BINS.bit_length() + 1, 0)
    return _edges_of(_UNIT_BINS + octaves * _BINS_PER_OCTAVE)


def _edges_of(n_bins: int) -> Float[np.ndarray, " edge"]:
    wide = np.arange(1, n_bins - _UNIT_BINS + 1)
    geometric = np.rint(_UNIT_BINS * 2.0 ** (wide / _BINS_PER_OCTAVE))
    return np.concatenate([np.arange(_UNIT_BINS + 1.0), geometric])


def bin_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of every count below the last edge."""
    # A table is several times faster than a search; the few huge counts are searched.
    table = np.searchsorted(edges, np.arange(min(edges[-1], _TABLE_SIZE)), side="right") - 1
    whole = values.astype(np.intp)
    bins = table[np.minimum(whole, len(table) - 1)]
    huge = np.flatnonzero(whole >= len(table))
    bins[huge] = np.searchsorted(edges, whole[huge], side="right") - 1
    return bins
