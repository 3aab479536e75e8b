"""CountTails against brute force, and as a sum of digammas."""

from itertools import pairwise

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import digamma

from nbln.data.counts import Counts
from nbln.data.histogram import count_tails


def negative_binomial(seed=0, n_cells=300, n_genes=25):
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(1.0, 2.0, n_genes)
    x = rng.poisson(mean * rng.gamma(0.5, 2.0, (n_cells, n_genes)))
    x[:, 0] += 1  # no cell is empty
    return x[:, x.any(axis=0)]


def to_counts(x, form=sp.csr_matrix, **arguments):
    return Counts.from_anndata(anndata.AnnData(form(x.astype(np.float32))), **arguments)


def brute_force(x, edges):
    return np.stack(
        [np.clip(x - low, 0, high - low).sum(axis=0) for low, high in pairwise(edges)],
        axis=1,
    )


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("chunk", [None, 1, 70])
def test_excess_equals_the_clipped_sums(form, chunk):
    x = negative_binomial()
    tails = count_tails(to_counts(x, form), chunk)
    np.testing.assert_array_equal(tails.excess, brute_force(x, tails.edges))
    np.testing.assert_array_equal(tails.excess.sum(axis=1), x.sum(axis=0))


def test_pooled_genes_and_files(tmp_path):
    x = negative_binomial()
    adata = anndata.AnnData(sp.csr_matrix(x.astype(np.int32)))
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    for source in (adata, backed):
        counts = Counts.from_anndata(source, gene_coverage=0.95)
        assert counts.has_other
        tails = count_tails(counts, 64)
        np.testing.assert_array_equal(
            tails.excess, brute_force(counts.rows(slice(None)), tails.edges)
        )


@pytest.mark.parametrize(
    ("largest", "top"), [(1, 64), (63, 64), (64, 128), (127, 128), (128, 256), (100_000, 2**17)]
)
def test_edges_depend_on_the_power_of_two_above_the_largest_count(largest, top):
    x = np.array([[1, 2], [largest, 3]])
    tails = count_tails(to_counts(x))
    assert tails.edges[0] == 0
    assert tails.edges[-1] == max(top, 64)
    assert np.all(np.diff(tails.edges) >= 1)
    np.testing.assert_array_equal(tails.edges, np.rint(tails.edges))
    np.testing.assert_array_equal(tails.edges[:65], np.arange(65))
    ratio = tails.edges[65:] / tails.edges[64:-1]
    assert np.all((ratio > 1.01) & (ratio < 1.035))
    np.testing.assert_array_equal(tails.excess, brute_force(x, tails.edges))


@pytest.mark.parametrize("r", [0.01, 0.3, 1.0, 10.0, 1000.0])
def test_sum_of_digammas(r):
    x = negative_binomial(seed=1)
    edges, excess = count_tails(to_counts(x))
    width = np.diff(edges)
    mean = np.log((r + edges[1:] - 0.5) / (r + np.maximum(edges[:-1], 1) - 0.5)) / width
    per_count = np.where(width == 1, 1 / (r + edges[:-1]), mean)
    expected = (digamma(x + r) - digamma(r)).sum(axis=0)
    np.testing.assert_allclose(excess @ per_count, expected, rtol=1e-3)


def test_chunk_below_one_is_an_error():
    with pytest.raises(ValueError, match=r"count_tails\(chunk=0\): must be at least 1"):
        count_tails(to_counts(negative_binomial()), 0)
