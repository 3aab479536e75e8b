"""Inputs that a user may bring: counts in every form, names, shapes, values. A table, no tests.

`GOOD` are inputs that must be read as exactly the counts in them; `BAD` must be refused, with the
error and what its message says. Rows are made from short lists, because what holds for one layout
or type has to hold for all.
"""

from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

N_CELLS, N_GENES = 60, 20


def base() -> np.ndarray:
    """Counts with one program, whose every cell and gene is seen."""
    rng = np.random.default_rng(0)
    rate = np.exp(0.7 + 0.6 * rng.normal(size=(N_CELLS, 1)) * rng.normal(size=N_GENES))
    return np.minimum(rng.poisson(rate), 99).astype(np.float32) + np.eye(N_CELLS, N_GENES, 0)


BASE = base().astype(np.float32)
BASE[:, 0] += 1
LAYOUTS = {
    "C order": np.ascontiguousarray,
    "Fortran order": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "csc array": sp.csc_array,
}
SPARSE = [name for name in LAYOUTS if name.startswith("cs")]


class Good(NamedTuple):
    """Counts that are read as they are: ``change`` of an AnnData in memory or in a file."""

    x: np.ndarray  # the matrix
    layout: str = "C order"
    where: str = "X"  # or "layer"
    view: Any = None  # rows and columns
    backed: bool = False
    obs: Any = None  # names; those given by AnnData otherwise
    var: Any = None


class Bad(NamedTuple):
    """Counts that are refused, the error, and what it says."""

    x: Any
    error: type[Exception]
    message: str
    layout: str = "C order"
    where: str = "X"
    view: Any = None
    backed: bool = False
    obs: Any = None
    var: Any = None


def make(case: Good | Bad, path) -> tuple[anndata.AnnData, dict[str, Any]]:
    """The AnnData of a case, and the arguments that point to its counts."""
    x = LAYOUTS[case.layout](case.x)
    n_cells, n_genes = x.shape
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    if case.where == "X":
        adata = anndata.AnnData(x, obs, var)
    else:
        adata = anndata.AnnData(np.full(x.shape, 0.5), obs, var, layers={"counts": x})
    for frame, names in ((adata.obs, case.obs), (adata.var, case.var)):
        if names is not None:
            frame.index = names
    if case.backed:
        adata.write_h5ad(path)
        adata = anndata.read_h5ad(path, backed="r")
    if case.view is not None:
        adata = adata[case.view]
    return adata, {} if case.where == "X" else {"layer": "counts"}


TYPES = ["bool", "float16", "float32", "float64"]
TYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
VIEWS = {
    "first rows": (slice(0, 30), slice(None)),
    "every other row": (slice(None, None, 2), slice(None)),
    "rows in another order": (list(range(59, 9, -1)), slice(None)),
    "some genes": (slice(None), slice(0, 12)),
    "genes in another order": (slice(None), list(range(11, -1, -1))),
    "a mask": (np.arange(N_CELLS) % 3 > 0, slice(None)),
    "both": (slice(5, 50), list(range(0, 14, 2))),
}


def index(first, n: int, dtype: Any = object) -> pd.Index:
    """Names of which the first are given."""
    first = list(first)
    return pd.Index([*first, *[f"n{i}" for i in range(n - len(first))]], dtype=dtype)


ODD_NAMES = {
    "empty": [""],
    "blank": [" "],
    "long": ["x" * 1000],
    "unicode": ["Ωß", "遺伝子", "🧬", "é", "e\u0301"],
    "right to left": ["\u202eabc"],
    "control characters": ["a\tb", "a\nb", "\x01", "\x7f"],
    "called other": ["_other"],
    "slashes": ["a/b", "..", "/", "\\"],
    "quotes": ['"', "'", "{x}", "%s"],
    "like numbers": ["1", "1.0", "nan", "None", "-0"],
    "like dimensions": ["cell", "gene", "factor", "index"],
    "numbers": [3, 4, 5],
    "mixed": [1, "a", 2.5, True],
}
BAD_NAMES = {
    "NUL": (["a\0b"], "has a character NUL"),
    "NUL at the end": (["a\0"], "has a character NUL"),
    "lone surrogate": (["\ud83d"], "is not Unicode"),
    "too long": (["x" * 100_000], "has 100,000 characters"),
    "twice": (["a", "a"], "occurs more than once"),
    "twice as text": ([1, "1"], "occurs more than once"),
    "missing": ([np.nan, "a"], "is missing, one of"),
    "missing, mixed": ([1, None], "is missing, one of"),
    "missing twice": ([np.nan, "nan"], "is missing, one of"),
}


def changed(row: int, column: int, value: float) -> np.ndarray:
    x = BASE.astype(np.float64)
    x[row, column] = value
    return x


def without(cells=(), genes=()) -> np.ndarray:
    x = BASE.copy()
    x[list(cells)] = 0
    x[:, list(genes)] = 0
    return x


BAD_VALUES = {
    "nan": (np.nan, "is nan; counts are finite"),
    "inf": (np.inf, "is inf; counts are finite"),
    "minus inf": (-np.inf, "is -inf; counts are finite"),
    "negative": (-1, "is -1; counts are not negative"),
    "a half": (0.5, "is 0.5; counts are whole numbers"),
    "almost whole": (3 + 1e-9, "counts are whole numbers"),
    "tiny": (1e-300, "is 1e-300; counts are whole numbers"),
    "2**24 + 1": (2.0**24 + 1, "is 16777217; counts above 2"),
    "1e300": (1e300, r"is 1e\+300; counts above 2"),
}


def _good() -> dict[str, Good]:
    rows: dict[str, Good] = {}
    for layout in LAYOUTS:
        rows[f"layout, {layout}"] = Good(BASE, layout)
        rows[f"layout, {layout}, layer"] = Good(BASE, layout, "layer")
        rows[f"layout, {layout}, backed"] = Good(BASE, layout, backed=True)
    for dtype in TYPES:
        for layout in ("C order", "csr", "csc"):
            if dtype != "float16" or layout == "C order":  # SciPy has no sparse half precision
                rows[f"type, {dtype}, {layout}"] = Good(BASE.astype(dtype), layout)
    for name, view in VIEWS.items():
        for layout in ("C order", "csr", "csc"):
            rows[f"view, {name}, {layout}"] = Good(BASE, layout, view=view)
        for layout in ("C order", "csr"):
            rows[f"view, {name}, {layout}, backed"] = Good(BASE, layout, view=view, backed=True)
    for name, first in ODD_NAMES.items():
        rows[f"names of cells, {name}"] = Good(BASE, obs=index(first, N_CELLS))
        rows[f"names of genes, {name}"] = Good(BASE, var=index(first, N_GENES))
    rows["names, categories"] = Good(BASE, var=pd.CategoricalIndex(index([], N_GENES)))
    rows["names, range"] = Good(BASE, obs=pd.RangeIndex(N_CELLS))
    rows["names, dates"] = Good(BASE, obs=pd.date_range("2020", periods=N_CELLS))
    rows["names, reals"] = Good(BASE, var=pd.Index(np.arange(N_GENES) / 2))
    for layout in ("C order", "csr", "csc"):
        rows[f"value, 2**24, {layout}"] = Good(changed(3, 2, 2.0**24), layout)
        rows[f"genes never seen, {layout}"] = Good(without(genes=[3, 7, 19]), layout)
        rows[f"two cells, {layout}"] = Good(BASE[:2], layout)
        rows[f"one gene, {layout}"] = Good(BASE[:, :1], layout)
        rows[f"one gene seen, {layout}"] = Good(without(genes=range(1, 20)), layout)
        rows[f"many genes, {layout}"] = Good(np.tile(BASE[:2], (1, 50)), layout)
    rows["value, minus zero"] = Good(np.where(BASE == 0, -0.0, BASE))
    return rows


def _bad() -> dict[str, Bad]:
    rows: dict[str, Bad] = {}
    for value_name, (value, message) in BAD_VALUES.items():
        full = rf'cell "c7", gene "g4" of adata\.X .*{message}|{message}'
        for layout in LAYOUTS:
            rows[f"{value_name}, {layout}"] = Bad(changed(7, 4, value), ValueError, full, layout)
        for layout in ("C order", "csr", "csc"):
            x = changed(7, 4, value)
            backed = Bad(x, ValueError, full, layout, backed=True)
            rows[f"{value_name}, {layout}, backed"] = backed
            layer = rf'fit\(layer="counts"\): .*{message}'
            rows[f"{value_name}, {layout}, layer"] = Bad(x, ValueError, layer, layout, "layer")
    for name, (first, message) in BAD_NAMES.items():
        cells, genes = index(first, N_CELLS), index(first, N_GENES)
        rows[f"names of cells, {name}"] = Bad(BASE, ValueError, f"cell name .*{message}", obs=cells)
        rows[f"names of genes, {name}"] = Bad(BASE, ValueError, f"gene name .*{message}", var=genes)
    levels = pd.MultiIndex.from_product([list("abcd"), range(5)])
    rows["names of genes, levels"] = Bad(BASE, ValueError, "var_names has 2 levels", var=levels)
    levels = pd.MultiIndex.from_product([list("abcd"), range(15)])
    rows["names of cells, levels"] = Bad(BASE, ValueError, "obs_names has 2 levels", obs=levels)
    for layout in ("C order", "csr", "csc"):
        empty = 'cell "c3" has no counts'
        rows[f"empty cell, {layout}"] = Bad(without(cells=[3, 8]), ValueError, empty, layout)
        rows[f"no counts, {layout}"] = Bad(BASE * 0, ValueError, "60 of 60 cells", layout)
        rows[f"no cells, {layout}"] = Bad(BASE[:0], ValueError, "no cells", layout)
        rows[f"one cell, {layout}"] = Bad(BASE[:1], ValueError, "fewer than two cells", layout)
        rows[f"no genes, {layout}"] = Bad(BASE[:, :0], ValueError, "no genes", layout)
        kind = "has dtype complex"
        rows[f"complex, {layout}"] = Bad(BASE.astype(complex), TypeError, kind, layout)
    rows["nothing at all"] = Bad(BASE[:0, :0], ValueError, "no cells")
    rows["objects"] = Bad(BASE.astype(object), TypeError, "has dtype object")
    rows["text"] = Bad(BASE.astype(str), TypeError, "has dtype <U")
    rows["masked"] = Bad(BASE, TypeError, "MaskedArray; NumPy arrays", "masked")
    rows["view without cells"] = Bad(BASE, ValueError, "no cells", view=slice(0, 0))
    return rows


GOOD, BAD = _good(), _bad()
LAYOUTS["masked"] = np.ma.masked_array
