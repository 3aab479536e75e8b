"""Chunks that are kept in narrow numbers are those that are read."""

import numpy as np
import pytest
import scipy.sparse as sp
from count_matrices import FORMS, backed, named, small

from nbln.data.counts import Counts
from nbln.data.kept import Kept, Packed

SIZE = 4


def read_twice(counts, budget):
    kept = Kept(counts, SIZE, budget)
    n_chunks = -(-counts.n_cells // SIZE)
    for _ in range(2):
        chunks = [np.full((SIZE, counts.n_genes), 7.0, np.float32) for _ in range(n_chunks + 1)]
        for i, chunk in enumerate(chunks):
            kept.fill(i, chunk)
        assert not chunks[-1].any()  # a chunk beyond the last cell
        yield np.concatenate(chunks)[: counts.n_cells]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", [0, 150, 10**9])  # none, some, and all chunks are kept
@pytest.mark.parametrize("gene_coverage", [None, 0.7])
def test_kept_chunks_are_those_of_the_file(form, budget, gene_coverage, tmp_path):
    adata = backed(named(FORMS[form](small())), tmp_path / "counts.h5ad")
    counts = Counts.from_anndata(adata, gene_coverage=gene_coverage)
    for read in read_twice(counts, budget):
        np.testing.assert_array_equal(read, counts.rows(slice(None)))


@pytest.mark.parametrize("budget", [0, 60, 10**9])
def test_rows_of_some_cells(budget, tmp_path):
    counts = Counts.from_anndata(backed(named(sp.csr_matrix(small())), tmp_path / "counts.h5ad"))
    kept = Kept(counts, SIZE, budget)
    for i in range(3):
        kept.fill(i, np.empty((SIZE, counts.n_genes), np.float32))
    for cells in ([0, 3, 4, 8], [5], np.arange(9), []):
        cells = np.asarray(cells, int)
        np.testing.assert_array_equal(kept.rows(cells), counts.rows(cells))


@pytest.mark.parametrize(("largest", "kind"), [(255, "u1"), (256, "u2"), (65_536, "f4")])
def test_numbers_are_as_narrow_as_they_can_be(largest, kind):
    x = small()
    x[3, 2] = largest
    packed = Packed.of(sp.csr_array(x))
    assert (packed.counts.dtype, packed.genes.dtype) == (kind, "u1")
    out = np.ones_like(x)
    packed.fill(out)
    np.testing.assert_array_equal(out, x)


def test_counts_in_memory_are_not_copied():
    kept = Kept(Counts.from_anndata(named(sp.csr_matrix(small()))), SIZE, 10**9)
    kept.fill(0, np.empty((SIZE, 6), np.float32))
    assert not kept._chunks
