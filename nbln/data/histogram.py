"""Histograms of each gene's counts, from which sums of digamma over cells are computed."""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nbln.data.ahead import ahead
from nbln.data.chunks import chunk_cells
from nbln.data.counts import Counts
from nbln.data.slices import slices

# With bins of one count up to 64, then 28 to the octave, 2.5 % wide, linear interpolation in a
# bin gives ψ(u + r) − ψ(r) to 1.3e-4 for any r (measured for u up to 2**20, r in 1e-3..1e6).
# A whole number of bins to the octave makes each power of two an edge, so that the edges for
# small counts are the first edges for larger ones.
_UNIT_BINS = 64
_BINS_PER_OCTAVE = 28
# Bytes of one float32 (cell, gene) array of a chunk: small beside any machine's memory, though
# `count_tails` holds several arrays of that size.
_BLOCK_BYTES = 16 * 2**20
# Counts below it have their bin looked up, in 512 KiB, which a core's cache holds. From 2**12 to
# 2**18 the time is the same, a sixth of that of a search.
_TABLE_SIZE = 2**16


class CountTails(NamedTuple):
    """The part of each gene's counts that lies in each bin, summed over the cells.

    For a smooth f, Σ_c Σ_{k < u_c} f(k) is Σ_i excess_i · (mean of f over bin i), exact
    where bins are single counts. With f(k) = 1 / (r + k) it is Σ_c ψ(u_c + r) − ψ(r), by the
    recurrence of the digamma function (DLMF 5.5.2).

    Attributes
    ----------
    edges
        Bin edges, whole numbers from 0: single counts up to 64, then bins 2.5 % wide, up to
        a power of two above the largest count.
    excess
        Σ over cells of clip(u − edges[i], 0, edges[i + 1] − edges[i]). Each gene's sum
        over bins is its total.
    """

    edges: Float[np.ndarray, " edge"]
    excess: Float[np.ndarray, "gene bin"]


def count_tails(counts: Counts, chunk: int | None = None) -> CountTails:
    """Sum the parts of each gene's counts that lie in each bin, in one pass, by several threads.

    The number of bins depends only on the power of two above the largest count, so that
    similar data give equal shapes.

    Parameters
    ----------
    counts
        In memory or on disk.
    chunk
        Cells read at a time; None for as many as fit 16 MiB of float32.

    Raises
    ------
    ValueError
        A chunk below 1.
    """
    size = chunk_cells(counts.n_cells, counts.n_genes, _BLOCK_BYTES) if chunk is None else chunk
    if size < 1:
        raise ValueError(f"count_tails(chunk={chunk}): must be at least 1, or None")
    number = np.zeros((counts.n_genes, _UNIT_BINS))
    above = np.zeros((counts.n_genes, _UNIT_BINS))
    for parts in ahead(partial(_sums_of, counts), slices(counts.n_cells, size)):
        n_bins = parts[0].shape[1]
        if n_bins > number.shape[1]:
            # The edges so far are the first of the new ones, so the sums stay in their bins.
            wider = ((0, 0), (0, n_bins - number.shape[1]))
            number, above = np.pad(number, wider), np.pad(above, wider)
        number[:, :n_bins] += parts[0]
        above[:, :n_bins] += parts[1]
    edges = _edges_of(number.shape[1])
    # A count in a later bin contributes the whole width of this one.
    later = number[:, ::-1].cumsum(axis=1)[:, ::-1] - number
    return CountTails(edges, above + np.diff(edges) * later)


def _sums_of(counts: Counts, cells: slice) -> tuple[np.ndarray, np.ndarray]:
    """How many counts of some cells lie in each bin, by gene, and by how much they are above it."""
    genes, values = counts.nonzeros(cells)
    edges = bin_edges(values.max(initial=0))
    n_genes, n_bins = counts.n_genes, len(edges) - 1
    key = genes.astype(np.intp)
    key *= n_bins
    bins = bin_of(values, edges)
    key += bins
    number = np.bincount(key, minlength=n_genes * n_bins).reshape(n_genes, n_bins)
    # Bins of single counts, which most are in, have nothing above their edge.
    wide = np.flatnonzero(values >= _UNIT_BINS)
    away = values[wide] - edges[bins[wide]]
    above = np.bincount(key[wide], away, n_genes * n_bins).reshape(n_genes, n_bins)
    return number, above


def bin_edges(largest: float) -> Float[np.ndarray, " edge"]:
    """Edges up to the first power of two that is greater than the largest count, 64 at least."""
    octaves = max(int(largest).bit_length() - _UNIT_BINS.bit_length() + 1, 0)
    return _edges_of(_UNIT_BINS + octaves * _BINS_PER_OCTAVE)


def _edges_of(n_bins: int) -> Float[np.ndarray, " edge"]:
    """The first edges, of bins of single counts and then of geometrically growing ones."""
    wide = np.arange(1, n_bins - _UNIT_BINS + 1)
    geometric = np.rint(_UNIT_BINS * 2.0 ** (wide / _BINS_PER_OCTAVE))
    return np.concatenate([np.arange(_UNIT_BINS + 1.0), geometric])


def bin_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each count; counts are below the last edge."""
    # A table is several times faster than a search, which only the few huge counts need.
    table = bin_table(edges)
    whole = values.astype(np.intp)
    bins = table[np.minimum(whole, len(table) - 1)]
    huge = np.flatnonzero(whole >= len(table))
    bins[huge] = np.searchsorted(edges, whole[huge], side="right") - 1
    return bins


def bin_table(edges: np.ndarray) -> Int[np.ndarray, " count"]:
    """The bin of every count below 2**16, or below the last edge."""
    return np.searchsorted(edges, np.arange(min(edges[-1], _TABLE_SIZE)), side="right") - 1
