"""Chunks of cells: shapes, padding, balance."""

from math import ceil

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from nbln.data.chunks import chunk_cells, chunks
from nbln.data.counts import Counts
from nbln.data.slices import slices


def some_counts(n_cells=23, n_genes=4, on_disk=None):
    x = np.random.default_rng(0).poisson(2.0, (n_cells, n_genes)) + 1
    adata = anndata.AnnData(sp.csr_matrix(x.astype(np.float32)))
    if on_disk:
        adata.write_h5ad(on_disk)
        adata = anndata.read_h5ad(on_disk, backed="r")
    return Counts.from_anndata(adata)


@pytest.mark.parametrize("size", [1, 5, 8, 23, 40])
def test_chunks_hold_every_cell_once_in_order(size):
    counts = some_counts()
    parts = list(chunks(counts, size))
    assert {part.counts.shape for part in parts} == {(size, counts.n_genes)}
    assert all(part.counts.dtype == part.mask.dtype == np.float32 for part in parts)
    assert [part.start for part in parts] == list(range(0, 23, size))
    real = np.concatenate([part.counts[part.mask == 1] for part in parts])
    np.testing.assert_array_equal(real, counts.rows(slice(None)))
    for part in parts:
        assert not part.counts[part.mask == 0].any()
        assert np.all(np.diff(part.mask) <= 0)


def test_chunks_from_disk_equal_chunks_from_memory(tmp_path):
    memory = chunks(some_counts(), 6)
    disk = chunks(some_counts(on_disk=tmp_path / "counts.h5ad"), 6)
    for ours, theirs in zip(memory, disk, strict=True):
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_size_below_one_is_an_error_at_once():
    with pytest.raises(ValueError, match=r"chunks\(size=0\): must be at least 1"):
        chunks(some_counts(), 0)


@given(n_cells=st.integers(0, 50), size=st.integers(1, 60))
def test_slices_cover_the_cells_in_order(n_cells, size):
    parts = list(slices(n_cells, size))
    assert [cell for part in parts for cell in range(part.start, part.stop)] == list(range(n_cells))
    assert all(part.step is None for part in parts)
    lengths = [part.stop - part.start for part in parts]
    assert all(length == size for length in lengths[:-1])
    assert all(0 < length <= size for length in lengths)


@pytest.mark.parametrize("size", [0, -3])
def test_slices_of_a_size_below_one_are_an_error_at_once(size):
    with pytest.raises(ValueError, match=rf"slices\(size={size}\): must be at least 1"):
        slices(10, size)


@given(
    n_cells=st.integers(1, 10**7),
    n_genes=st.integers(1, 60_000),
    budget=st.integers(1, 2**30),
)
def test_chunk_cells_is_within_bounds_and_balanced(n_cells, n_genes, budget):
    size = chunk_cells(n_cells, n_genes, budget)
    assert min(64, n_cells) <= size <= n_cells
    assert size <= max(2 * 64, budget // (4 * n_genes))
    # Padding is less than a cell a chunk.
    n_chunks = ceil(n_cells / size)
    assert n_chunks * size - n_cells < n_cells / size + 1


def test_default_budget_is_eight_mebibytes():
    size = chunk_cells(100_000, 2000)
    assert 0.95 * 8 * 2**20 < 4 * 2000 * size <= 8 * 2**20
