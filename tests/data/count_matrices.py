"""Small count matrices in each form of storage, and a comparison of `Counts`."""

import anndata
import numpy as np
import scipy.sparse as sp

FORMS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


def small(n_cells=9, n_genes=6, seed=0):
    x = np.random.default_rng(seed).poisson(1.0, (n_cells, n_genes)).astype(np.float32)
    x[:, 0] += 1  # no cell is empty
    x[0] += 1  # every gene is seen
    return x


def named(x, layers=None):
    n_cells, n_genes = x.shape
    adata = anndata.AnnData(x, layers=layers)
    adata.obs_names = [f"cell{i}" for i in range(n_cells)]
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    return adata


def backed(adata, path):
    adata.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


def assert_equal(ours, theirs):
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.has_other, ours.genes_never_seen) == (theirs.has_other, theirs.genes_never_seen)
    for name in ("cell_names", "gene_names", "library_size", "gene_totals"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(ours.rows(slice(None)), theirs.rows(slice(None)))


def messy_csr():
    """Unsorted indices, an explicit zero, a duplicate beyond int8, and what they amount to."""
    data = np.array([100, 100, 3, 0, 5, 2, 1], np.int8)
    indices = np.array([2, 2, 0, 1, 3, 1, 0])
    indptr = np.array([0, 4, 6, 7])
    x = np.array([[3, 0, 200, 0], [0, 2, 0, 5], [1, 0, 0, 0]], np.float32)
    return sp.csr_matrix((data, indices, indptr), shape=(3, 4)), x


def parts(matrix):
    return (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,)
