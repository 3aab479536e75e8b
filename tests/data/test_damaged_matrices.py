"""Matrices that are damaged in how they are stored: an error that says how, never a crash."""

import os

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from count_matrices import backed, named, small

from nbln.data.counts import Counts
from nbln.data.damage import Source, check_sparse


def pointer(place, value):
    def damage(matrix):
        matrix["indptr"][place] = value

    return damage


def index(value):
    def damage(matrix):
        matrix["indices"][3] = value

    return damage


DAMAGES = {
    "negative index": (index(-1), r"entry in (row|column) -1, and (row|column)s are 0 to [58]"),
    "large index": (index(10**6), r"entry in (row|column) 1000000"),
    "indptr goes back": (
        pointer(2, 10**4),
        r"indptr goes back from 10000 to \d+ at \w+ 2",
    ),
    "indptr negative": (pointer(2, -3), r"indptr goes back from \d+ to -3 at (row|column) 1"),
    "indptr begins late": (pointer(0, 2), r"indptr begins with 2, not with 0"),
    "indptr too long": (pointer(-1, 10**6), r"indptr ends with 1000000, but \d+ entries"),
}
CLASSES = [sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array]


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("form", CLASSES)
@pytest.mark.parametrize("view", [False, True])
def test_in_memory(case, form, view):
    damage, message = DAMAGES[case]
    adata = named(form(small()))
    damage({"indptr": adata.X.indptr, "indices": adata.X.indices})
    kind = f"{adata.X.format.upper()} matrix"
    with pytest.raises(
        ValueError, match=rf"fit\(adata\): adata\.X is a damaged {kind}: .*{message}"
    ):
        Counts.from_anndata(adata[1:, 1:] if view else adata)


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("form", CLASSES[:2])
@pytest.mark.parametrize("view", [False, True])
def test_on_disk(case, form, view, tmp_path):
    damage, message = DAMAGES[case]
    path = tmp_path / "counts.h5ad"
    named(form(small())).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        damage(file["X"])
    adata = anndata.read_h5ad(path, backed="r")
    with pytest.raises(ValueError, match=rf"fit\(adata\): adata\.X is a damaged .*: .*{message}"):
        Counts.from_anndata(adata[:8] if view else adata)


def test_coordinates_and_blocks_out_of_range():
    matrix = sp.coo_matrix(small())
    matrix.coords[1][2] = 77
    with pytest.raises(ValueError, match=r"X is a damaged COO matrix: .* entry in column 77"):
        check_sparse(matrix, Source("fit(adata)", "X"))
    matrix = sp.bsr_matrix(small(), blocksize=(3, 3))
    matrix.indices[1] = -5
    with pytest.raises(ValueError, match="X is a damaged BSR matrix: "):
        check_sparse(matrix, Source("fit(adata)", "X"))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_a_file_that_is_cut_short(form, tmp_path):
    path = tmp_path / "counts.h5ad"
    x = np.random.default_rng(0).poisson(5.0, (800, 50)).astype(np.float32) + 1
    adata = backed(named(form(x)), path)
    with path.open("r+b") as file:
        file.truncate(2_000)
    with pytest.raises(OSError, match=r"fit\(adata\): adata\.X: the file .*counts\.h5ad cannot"):
        Counts.from_anndata(adata)


def test_a_file_that_is_cut_short_after_the_check(tmp_path):
    path = tmp_path / "counts.h5ad"
    counts = Counts.from_anndata(backed(named(np.ones((800, 50), np.float32)), path))
    os.truncate(path, 2_000)  # h5py reads zeros beyond the end
    with pytest.raises(OSError, match=r"counts\.h5ad cannot be read; .*cut short"):
        counts.rows([1, 2])


def test_a_file_that_is_deleted_or_closed_after_the_check(tmp_path):
    path = tmp_path / "counts.h5ad"
    adata = backed(named(sp.csr_matrix(small())), path)
    counts = Counts.from_anndata(adata)
    adata.file.close()
    with pytest.raises(OSError, match=r"the file .*counts\.h5ad cannot be read; it is gone"):
        counts.rows([1, 2])
    path.unlink()
    with pytest.raises(OSError, match=r"fit\(adata\): adata\.X: the file .*counts\.h5ad cannot"):
        Counts.from_anndata(adata)
