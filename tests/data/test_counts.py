"""What counts hold of an AnnData, and each error at the door."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from count_matrices import FORMS, backed, named, small

from nbln.data.counts import Counts


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


def test_fingerprint_follows_names_and_counts():
    x = small()
    reference = Counts.from_anndata(named(x)).fingerprint
    renamed = named(x)
    renamed.var_names = [f"other{i}" for i in range(6)]
    moved = x.copy()
    moved[0, 0] += 1
    assert Counts.from_anndata(renamed).fingerprint != reference
    assert Counts.from_anndata(named(moved)).fingerprint != reference


def test_names_that_are_not_strings():
    adata = named(small())
    adata.obs.index = pd.Index(range(9))
    adata.var.index = pd.CategoricalIndex(list("abcdef"))
    counts = Counts.from_anndata(adata)
    np.testing.assert_array_equal(counts.cell_names, list("012345678"))
    np.testing.assert_array_equal(counts.gene_names, list("abcdef"))


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


def annotated(**layers):
    return named(small(), layers)


@pytest.mark.parametrize(
    ("make", "arguments", "kind", "start"),
    [
        (small, {}, TypeError, "score(adata): got a ndarray;"),
        (annotated, {"layer": "raw"}, KeyError, 'score(layer="raw"): no such layer;'),
        (annotated, {"gene_coverage": "all"}, TypeError, "score(gene_coverage='all'): got a str;"),
        (annotated, {"gene_coverage": 2}, ValueError, "score(gene_coverage=2): must lie in"),
        (lambda: named(small()[:0]), {}, ValueError, "score(adata): 0 cells × 6 genes: no cells"),
        (lambda: repeated("obs"), {}, ValueError, 'score(adata): cell name "cell1" occurs'),
        (lambda: repeated("var"), {}, ValueError, 'score(adata): gene name "gene1" occurs'),
        (without_x, {}, ValueError, "score(adata): adata.X is None;"),
        (
            lambda: named(np.ma.masked_array(small())),
            {},
            TypeError,
            "score(adata): the counts are a numpy.ma.MaskedArray;",
        ),
        (
            lambda: annotated(raw=small().astype(complex)),
            {"layer": "raw"},
            TypeError,
            'score(layer="raw"): adata.layers["raw"] has dtype complex128;',
        ),
        (lambda: named(-small()), {}, ValueError, 'score(adata): cell "cell0", gene "gene0" of'),
        (
            lambda: annotated(raw=changed(1, 1, 0.25)),
            {"layer": "raw"},
            ValueError,
            'score(layer="raw"): cell "cell1", gene "gene1" of adata.layers["raw"] is 0.25;',
        ),
        (
            lambda: annotated(raw=0 * small()),
            {"layer": "raw"},
            ValueError,
            'score(layer="raw"): cell "cell0" has no counts in adata.layers["raw"] (9 of 9',
        ),
        (
            with_other,
            {"gene_coverage": 0.5},
            ValueError,
            'score(gene_coverage=0.5): a gene is already called "_other"',
        ),
        (
            annotated,
            {"genes": np.array(["gene1", "absent"])},
            ValueError,
            'score(adata): 1 of the 2 genes of the fit are not in it, the first "absent";',
        ),
        (
            lambda: named(np.array([[1, 0], [0, 1]])),
            {"genes": np.array(["gene1"])},
            ValueError,
            'score(adata): 1 cells have no counts in the genes of the fit, the first "cell0";',
        ),
    ],
)
def test_errors_name_the_call_of_the_user(make, arguments, kind, start):
    adata = make()
    with pytest.raises(kind) as error:
        Counts.from_anndata(adata, **arguments, caller="score")
    assert str(error.value).startswith(start)
    with pytest.raises(kind) as error:
        Counts.from_anndata(adata, **arguments)
    assert str(error.value).startswith(start.replace("score", "fit", 1))
