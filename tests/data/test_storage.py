"""Counts are the same whatever form of storage they are read from."""

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from count_matrices import FORMS, assert_equal, backed, messy_csr, named, parts, small
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nbln.data import checks
from nbln.data.counts import Counts


@given(
    x=arrays(np.int64, st.tuples(st.integers(2, 7), st.integers(1, 6)), elements=st.integers(0, 9)),
    gene_coverage=st.sampled_from([None, 0.4, 0.8, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_storage_makes_no_difference(x, gene_coverage):
    x[:, 0] += 1
    reference = Counts.from_anndata(named(x), gene_coverage=gene_coverage)
    with TemporaryDirectory() as folder:
        for form, make in FORMS.items():
            adata = named(make(x.astype(np.float32)))
            file = backed(adata, Path(folder) / f"{form}.h5ad")
            for source in (adata, file):
                counts = Counts.from_anndata(source, gene_coverage=gene_coverage)
                assert_equal(counts, reference)
            file.file.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("gene_coverage", [None, 0.7])
def test_rows(form, on_disk, gene_coverage, tmp_path):
    x = small()
    adata = named(FORMS[form](x))
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    counts = Counts.from_anndata(adata, gene_coverage=gene_coverage)
    assert counts.on_disk == (on_disk and form != "csc")
    everything = counts.rows(slice(None))
    if gene_coverage is None:
        np.testing.assert_array_equal(everything, x)
    np.testing.assert_array_equal(everything.sum(axis=1), counts.library_size)
    np.testing.assert_array_equal(everything.sum(axis=0), counts.gene_totals)
    for index in (
        slice(2, 5),
        slice(5, 2),
        slice(None, None, -2),
        slice(-3, 100),
        [],
        [4],
        np.array([7, 2, 2, -1, 0]),
        np.arange(3, 6),
        np.arange(6)[::-1],
        np.arange(9) % 2 == 0,
    ):
        rows = counts.rows(index)
        np.testing.assert_array_equal(rows, everything[index])
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
    with pytest.raises(IndexError):
        counts.rows([9])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_nonzeros(form, on_disk, tmp_path):
    adata = named(FORMS[form](small()))
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    counts = Counts.from_anndata(adata, gene_coverage=0.6)
    genes, values = counts.nonzeros(slice(2, 8))
    rows = counts.rows(slice(2, 8))
    np.testing.assert_array_equal(np.bincount(genes, values, counts.n_genes), rows.sum(axis=0))
    np.testing.assert_array_equal(np.sort(values), np.sort(rows[rows > 0]))


def test_rows_are_a_copy():
    x = small()
    counts = Counts.from_anndata(named(x.copy()))
    counts.rows(slice(0, 3))[:] = -1
    np.testing.assert_array_equal(counts.rows(slice(None)), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [bool, "i1", "u1", "i4", "u8", "f4", "f8", ">f4", ">i4"])
def test_types(form, dtype):
    if str(dtype).startswith(">") and form != "dense":
        pytest.skip("SciPy has no sparse matrices of the other byte order")
    x = (small() > 0) if dtype is bool else small()
    adata = named(FORMS[form](x.astype(dtype)))
    for gene_coverage in (None, 0.6):
        counts = Counts.from_anndata(adata, gene_coverage=gene_coverage)
        assert_equal(
            counts, Counts.from_anndata(named(x.astype(np.float32)), gene_coverage=gene_coverage)
        )


def test_half_precision_and_fortran_order():
    x = small()
    for other in (x.astype(np.float16), np.asfortranarray(x)):
        assert_equal(Counts.from_anndata(named(other)), Counts.from_anndata(named(x)))


@pytest.mark.filterwarnings("ignore")
def test_matrix_class():
    x = small()
    adata = named(x)
    adata.layers["counts"] = np.matrix(x)
    assert_equal(Counts.from_anndata(adata, layer="counts"), Counts.from_anndata(adata))


@pytest.mark.parametrize("gene_coverage", [None, 0.96])
@pytest.mark.parametrize("on_disk", [False, True])
def test_messy_csr(gene_coverage, on_disk, tmp_path):
    messy, x = messy_csr()
    adata = named(messy)
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    assert_equal(
        Counts.from_anndata(adata, gene_coverage=gene_coverage),
        Counts.from_anndata(named(x), gene_coverage=gene_coverage),
    )
    assert len(messy.data) == 7  # untouched


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("cells", "genes"),
    [(slice(2, 7), slice(None)), ([8, 0, 5, 3], [4, 1, 2]), (slice(None), slice(1, 5))],
)
def test_views(form, on_disk, cells, genes, tmp_path):
    x = small() + 1
    adata = named(FORMS[form](x))
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    counts = Counts.from_anndata(adata[cells, genes])
    assert counts.on_disk == (on_disk and form != "csc")
    assert_equal(counts, Counts.from_anndata(named(x)[cells, genes].copy()))
    np.testing.assert_array_equal(counts.rows([2, 0]), x[cells][:, genes][[2, 0]])


@pytest.mark.parametrize("on_disk", [False, True])
def test_layers(on_disk, tmp_path):
    x = small()
    adata = named(x / 2, {"counts": sp.csr_matrix(x)})
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    assert_equal(Counts.from_anndata(adata, layer="counts"), Counts.from_anndata(named(x)))


@pytest.mark.parametrize("form", FORMS)
def test_the_anndata_is_not_modified(form):
    x = small()
    x[:, 3] = 0
    matrix = messy_csr()[0] if form == "csr" else FORMS[form](x)
    adata = named(matrix, {"counts": matrix.copy()})
    adata.obs["batch"] = "a"
    adata.uns["key"] = {"a": 1}
    before = adata.copy()
    X, stored = adata.X, [np.array(part) for part in parts(adata.X)]
    for layer in (None, "counts"):
        counts = Counts.from_anndata(adata, layer=layer, gene_coverage=0.7)
        counts.rows([1, 0])
        counts.nonzeros(slice(None))
    assert adata.X is X
    for now, then in zip(parts(adata.X), stored, strict=True):
        assert now.dtype == then.dtype
        np.testing.assert_array_equal(now, then)
    for now, then in zip(parts(adata.layers["counts"]), stored, strict=True):
        np.testing.assert_array_equal(now, then)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert adata.uns == before.uns
    assert checks.layer_names(adata) == ("counts",)


# Memory


@pytest.fixture(scope="module")
def large_sparse():
    rng = np.random.default_rng(0)
    shape, nonzeros = (20_000, 2_000), 800_000
    x = sp.coo_matrix(
        (
            np.ones(nonzeros, np.float32),
            (rng.integers(0, shape[0], nonzeros), rng.integers(0, shape[1], nonzeros)),
        ),
        shape=shape,
    ).tolil(copy=False)
    x[:, 0] = 1
    return x


@pytest.mark.parametrize(("form", "on_disk"), [("csr", True), ("csc", True), ("csr", False)])
def test_sparse_matrices_are_never_made_dense(large_sparse, form, on_disk, tmp_path):
    # NumPy reports its allocations to tracemalloc, so the peak is that of this code.
    adata = anndata.AnnData(FORMS[form](large_sparse))
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    dense = 4 * adata.n_obs * adata.n_vars
    tracemalloc.start()
    try:
        counts = Counts.from_anndata(adata, gene_coverage=0.95)
        counts.rows(slice(100, 200))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts.has_other
    assert peak < dense / 3
