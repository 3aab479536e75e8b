"""Counts from every kind of AnnData, and every error at the door."""

import logging
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nbln.data import checks
from nbln.data.counts import Counts

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


# What it holds


def test_fields():
    x = small()
    counts = Counts.from_anndata(named(x))
    assert (counts.n_cells, counts.n_genes) == x.shape
    assert (counts.on_disk, counts.has_other, counts.genes_never_seen) == (False, False, 0)
    assert counts.cell_names.dtype.kind == counts.gene_names.dtype.kind == "U"
    assert counts.cell_names[2] == "cell2"
    assert counts.library_size.dtype == counts.gene_totals.dtype == np.float64
    np.testing.assert_array_equal(counts.library_size, x.sum(1))
    np.testing.assert_array_equal(counts.gene_totals, x.sum(0))
    assert len(counts.fingerprint) == 64
    assert repr(counts) == "Counts(9 cells × 6 genes, in memory)"


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


def test_fingerprint_follows_names_and_counts():
    x = small()
    reference = Counts.from_anndata(named(x)).fingerprint
    renamed = named(x)
    renamed.var_names = [f"other{i}" for i in range(6)]
    moved = x.copy()
    moved[0, 0] += 1
    assert Counts.from_anndata(renamed).fingerprint != reference
    assert Counts.from_anndata(named(moved)).fingerprint != reference


# What it accepts


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


def messy_csr():
    """Unsorted indices, an explicit zero, a duplicate beyond int8, and what they amount to."""
    data = np.array([100, 100, 3, 0, 5, 2, 1], np.int8)
    indices = np.array([2, 2, 0, 1, 3, 1, 0])
    indptr = np.array([0, 4, 6, 7])
    x = np.array([[3, 0, 200, 0], [0, 2, 0, 5], [1, 0, 0, 0]], np.float32)
    return sp.csr_matrix((data, indices, indptr), shape=(3, 4)), x


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


def test_names_that_are_not_strings():
    adata = named(small())
    adata.obs.index = pd.Index(range(9))
    adata.var.index = pd.CategoricalIndex(list("abcdef"))
    counts = Counts.from_anndata(adata)
    np.testing.assert_array_equal(counts.cell_names, list("012345678"))
    np.testing.assert_array_equal(counts.gene_names, list("abcdef"))


@pytest.mark.parametrize("on_disk", [False, True])
def test_layers(on_disk, tmp_path):
    x = small()
    adata = named(x / 2, {"counts": sp.csr_matrix(x)})
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    assert_equal(Counts.from_anndata(adata, layer="counts"), Counts.from_anndata(named(x)))


@pytest.mark.parametrize("form", FORMS)
def test_genes_never_seen_are_left_out(form, caplog):
    x = small()
    x[:, [1, 4]] = 0
    adata = named(FORMS[form](x))
    with caplog.at_level(logging.INFO, logger="nbln"):
        counts = Counts.from_anndata(adata)
    assert "2 genes without a single count are left out" in caplog.text
    assert counts.genes_never_seen == 2
    np.testing.assert_array_equal(counts.gene_names, ["gene0", "gene2", "gene3", "gene5"])
    np.testing.assert_array_equal(counts.rows([3, 1]), x[[3, 1]][:, [0, 2, 3, 5]])


@pytest.mark.parametrize("form", FORMS)
def test_other_genes_are_pooled(form):
    x = np.array([[50, 1, 40, 2], [60, 3, 30, 0]], np.float32)
    counts = Counts.from_anndata(named(FORMS[form](x)), gene_coverage=0.9)
    assert counts.has_other
    np.testing.assert_array_equal(counts.gene_names, ["gene0", "gene2", "_other"])
    np.testing.assert_array_equal(counts.gene_totals, [110, 70, 6])
    np.testing.assert_array_equal(counts.library_size, [93, 93])
    np.testing.assert_array_equal(counts.rows([1, 0]), [[60, 30, 3], [50, 40, 3]])


def test_nothing_to_pool_means_no_other():
    counts = Counts.from_anndata(named(small()), gene_coverage=0.9999)
    assert not counts.has_other
    assert "_other" not in counts.gene_names


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


def parts(matrix):
    return (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,)


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


# Errors


def changed(row, column, value, dtype=np.float64):
    x = small().astype(dtype)
    x[row, column] = value
    return x


NAMES_VALUE = r'cell "cell3", gene "gene2" of adata\.X is '


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, NAMES_VALUE + r"1\.5; counts are whole numbers, this looks like normalised data"),
        (-2, NAMES_VALUE + "-2; counts are not negative"),
        (np.nan, NAMES_VALUE + "nan; counts are finite"),
        (np.inf, NAMES_VALUE + "inf; counts are finite"),
        (-np.inf, NAMES_VALUE + "-inf; counts are finite"),
        (2.0**24 + 2, NAMES_VALUE + r"16777218; counts above 2\*\*24 = 16777216 are not exact"),
    ],
)
def test_values_that_are_not_counts(form, on_disk, value, message, tmp_path):
    x = changed(3, 2, value)
    x[4, 0] = -7  # later in row-major order, though in an earlier column
    adata = named(FORMS[form](x), {"raw": x, "spliced": x})
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    with pytest.raises(ValueError, match=message) as error:
        Counts.from_anndata(adata)
    if value < 2**24 or not np.isfinite(value):
        assert "by layer= (adata has layers raw, spliced)" in str(error.value)
    assert str(error.value).startswith("fit(adata): ")


def test_the_largest_count_is_accepted():
    counts = Counts.from_anndata(named(changed(3, 2, 2**24)))
    assert counts.rows([3])[0, 2] == 2**24


def test_value_in_a_layer_names_the_layer():
    adata = named(small(), {"norm": changed(1, 1, 0.25)})
    expected = r'fit\(layer="norm"\): cell "cell1", gene "gene1" of adata.layers\["norm"\] is 0.25'
    with pytest.raises(ValueError, match=expected):
        Counts.from_anndata(adata, layer="norm")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("layer", [None, "raw"])
def test_cells_without_counts_and_the_remedy(form, on_disk, layer, tmp_path):
    x = small()
    x[[2, 5]] = 0
    adata = named(FORMS[form](x), {"raw": FORMS[form](x)})
    if on_disk:
        adata = backed(adata, tmp_path / "counts.h5ad")
    with pytest.raises(ValueError, match=r'cell "cell2" has no counts in .* \(2 of 9 ') as error:
        Counts.from_anndata(adata, layer=layer)
    remedy = str(error.value).partition("leave such cells out with ")[2]
    scope = {"adata": adata, "np": np}
    exec(remedy, scope)
    assert Counts.from_anndata(scope["adata"], layer=layer).n_cells == 7


def repeated(axis):
    adata = named(small())
    names = list(getattr(adata, f"{axis}_names"))
    names[4] = names[3] = names[1]
    setattr(adata, f"{axis}_names", names)
    return adata


def without_x():
    return anndata.AnnData(
        obs=pd.DataFrame(index=list("ab")),
        var=pd.DataFrame(index=list("xy")),
        layers={"raw": np.ones((2, 2))},
    )


def with_other():
    adata = named(small())
    adata.var_names = ["_other", *adata.var_names[1:]]
    return adata


@pytest.mark.parametrize(
    ("make", "arguments", "kind", "message"),
    [
        (small, {}, TypeError, r"fit\(adata\): got a ndarray; pass an anndata\.AnnData"),
        (lambda: "a.h5ad", {}, TypeError, r"got a str; .* anndata\.read_h5ad\(path\)"),
        (lambda: named(small()[:0]), {}, ValueError, "0 cells × 6 genes: no cells"),
        (lambda: named(small()[:, :0]), {}, ValueError, "9 cells × 0 genes: no genes"),
        (lambda: named(small()[:1]), {}, ValueError, "1 cells × 6 genes: fewer than two cells"),
        (lambda: repeated("obs"), {}, ValueError, r'"cell1" occurs .* adata\.obs_names_make_uni'),
        (lambda: repeated("var"), {}, ValueError, r'"gene1" occurs .* adata\.var_names_make_uni'),
        (without_x, {}, ValueError, r"adata\.X is None; .* layer= \(adata has layers raw\)"),
        (
            lambda: named(small(), {"counts": small(), "spliced": small()}),
            {"layer": "foo"},
            KeyError,
            r'^fit\(layer="foo"\): no such layer; adata has layers counts, spliced$',
        ),
        (lambda: named(small()), {"layer": "foo"}, KeyError, "adata has no layers"),
        (
            lambda: named(small().astype(complex)),
            {},
            TypeError,
            r"adata\.X has dtype complex128; counts are integers",
        ),
        (
            lambda: named(np.ma.masked_array(small())),
            {},
            TypeError,
            r"are a numpy\.ma\.MaskedArray; NumPy arrays and CSR or CSC matrices are accepted",
        ),
        (
            with_other,
            {"gene_coverage": 0.5},
            ValueError,
            r'fit\(gene_coverage=0\.5\): a gene is already called "_other"',
        ),
        *[
            (
                lambda: named(small()),
                {"gene_coverage": bad},
                ValueError,
                r"fit\(gene_coverage=.*\): must lie in \(0, 1\]",
            )
            for bad in (0, -0.1, 1.5, np.nan)
        ],
        (
            lambda: named(small()),
            {"gene_coverage": "all"},
            TypeError,
            r"fit\(gene_coverage='all'\): got a str; pass a number in \(0, 1\]",
        ),
    ],
)
def test_errors(make, arguments, kind, message):
    with pytest.raises(kind, match=message):
        Counts.from_anndata(make(), **arguments)


def test_a_file_without_x(tmp_path):
    adata = backed(without_x(), tmp_path / "counts.h5ad")
    with pytest.raises(ValueError, match=r"adata\.X is None"):
        Counts.from_anndata(adata)
    assert Counts.from_anndata(adata, layer="raw").n_cells == 2


def test_a_gene_called_other_is_fine_without_pooling():
    counts = Counts.from_anndata(with_other())
    assert counts.gene_names[0] == "_other"
    assert not counts.has_other
