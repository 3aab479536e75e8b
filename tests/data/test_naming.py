"""Names that could not be told apart, shown or saved are errors before the fit."""

import numpy as np
import pandas as pd
import pytest
from count_matrices import named, small

from nbln.data.counts import Counts


def renamed(axis, name):
    adata = named(small())
    frame = getattr(adata, axis)
    frame.index = pd.Index([*frame.index[:-1], name], dtype=object)
    return adata


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", r"'a\\x00b' \(number \d of adata\.{axis}_names\) has a character NUL"),
        ("a\0", r"'a\\x00' \(number \d of adata\.{axis}_names\) has a character NUL"),
        ("\ud800", r"'\\ud800' .* is not Unicode"),
        ("x" * 1001, r"'x{{40}}' .* has 1,001 characters"),
    ],
)
def test_impossible_names(axis, name, message):
    what = {"obs": "cell", "var": "gene"}[axis]
    expected = rf"fit\(adata\): {what} name {message.format(axis=axis)}.*; rename it"
    with pytest.raises(ValueError, match=expected):
        Counts.from_anndata(renamed(axis, name))


@pytest.mark.parametrize("name", ["", " ", "x" * 1000, "Ωß遺伝子", "a\tb\n", "🧬", "_other", "nan"])
@pytest.mark.parametrize("axis", ["obs", "var"])
def test_odd_names_are_taken(axis, name):
    counts = Counts.from_anndata(renamed(axis, name))
    assert {"obs": counts.cell_names, "var": counts.gene_names}[axis][-1] == name


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_of_several_levels(axis):
    adata = named(small())
    frame = getattr(adata, axis)
    frame.index = pd.MultiIndex.from_arrays([frame.index, range(len(frame))])
    with pytest.raises(ValueError, match=rf"adata\.{axis}_names has 2 levels; make") as error:
        Counts.from_anndata(adata)
    exec(str(error.value).partition("for instance by ")[2], {"adata": adata})
    assert Counts.from_anndata(adata).cell_names[0].startswith("cell0")


def test_new_cells_may_be_one():
    genes = np.array([f"gene{i}" for i in range(6)])
    counts = Counts.from_anndata(named(small()[:1]), genes=genes, caller="score")
    assert counts.n_cells == 1
    with pytest.raises(ValueError, match=r"fit\(adata\): 1 cells .* fewer than two cells"):
        Counts.from_anndata(named(small()[:1]))


@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_names(missing):
    message = r"gene name number \d of adata\.var_names is missing, one of 1; give"
    with pytest.raises(ValueError, match=message):
        Counts.from_anndata(renamed("var", missing))
