"""Gene coverage and the selection of columns."""

from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from nbln.data.counts import Counts
from nbln.data.genes import Selection, coverage

# Beside the project where it is developed; the test skips without it.
PBMC = Path(__file__).parents[3] / "shared" / "data" / "pbmc_1k_v3.h5ad"


@pytest.mark.parametrize("fraction", [None, 1, 1.0])
def test_full_coverage_keeps_every_gene(fraction):
    kept, pooled = coverage(np.array([3.0, 0.0, 5.0]), fraction)
    np.testing.assert_array_equal(kept, [0, 1, 2])
    assert len(pooled) == 0


def test_indices_come_in_gene_order():
    kept, pooled = coverage(np.array([1.0, 50.0, 2.0, 40.0, 7.0]), 0.9)
    np.testing.assert_array_equal(kept, [1, 3])
    np.testing.assert_array_equal(pooled, [0, 2, 4])


def test_ties_are_broken_by_order():
    kept, pooled = coverage(np.full(4, 5.0), 0.5)
    np.testing.assert_array_equal(kept, [0, 1])
    np.testing.assert_array_equal(pooled, [2, 3])


def test_rounding_costs_no_gene():
    assert 0.55 * 100 > 55
    kept, _ = coverage(np.array([55.0, 45.0]), 0.55)
    np.testing.assert_array_equal(kept, [0])


@given(
    totals=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    fraction=st.floats(0.01, 1, exclude_max=True),
)
def test_kept_genes_are_enough_and_none_too_many(totals, fraction):
    totals = np.array(totals, float)
    kept, pooled = coverage(totals, fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, pooled])), np.arange(len(totals)))
    needed = fraction * totals.sum() * (1 - 1e-9)
    assert totals[kept].sum() >= needed
    assert totals[kept].sum() - totals[kept].min() < fraction * totals.sum()
    if len(pooled):
        assert totals[kept].min() >= totals[pooled].max()


def test_selection_is_the_same_dense_and_sparse():
    block = np.array([[0, 3, 1, 0, 4], [7, 0, 0, 0, 2]])
    selection = Selection(np.array([0, 4]), np.array([1, 2]), 5)
    expected = [[0, 4, 4], [7, 2, 0]]
    assert selection.n_genes == 3
    assert selection.has_other
    assert not selection.is_identity
    np.testing.assert_array_equal(selection.dense(block), expected)
    np.testing.assert_array_equal(selection.sparse(sp.csr_array(block)).toarray(), expected)


@pytest.mark.skipif(not PBMC.exists(), reason="needs the shared data")
def test_coverage_of_real_data():
    counts = Counts.from_anndata(anndata.read_h5ad(PBMC), gene_coverage=0.9)
    assert counts.n_genes == 3573 + 1
    assert counts.genes_never_seen == 127
    assert counts.gene_names[-1] == "_other"
    assert counts.gene_totals[:-1].sum() >= 0.9 * counts.library_size.sum()
