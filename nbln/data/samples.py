"""Real numbers, checked and named: what models of other data than counts see."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float32, Int

from nbln.data import checks
from nbln.data.storage import open_matrix
from nbln.text import visible


class Support(NamedTuple):
    """Which numbers a model is of."""

    words: str
    holds: Callable[[np.ndarray], np.ndarray]  # of each number; False for what is none
    remedy: str


REAL = Support("finite numbers", np.isfinite, "leave such samples out, or fill them in")
UNIT = Support(
    "numbers from 0 to 1",
    lambda x: (x >= 0) & (x <= 1),
    "divide by the largest value, or take likelihood='gaussian'",
)


class Table(NamedTuple):
    """Numbers with the names of rows and columns, as they were given."""

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    given: str  # the argument, for messages

    @classmethod
    def of(cls, given: Any, layer: str | None, caller: str) -> "Table":
        """An AnnData's matrix made dense, or an array whose samples are flattened.

        Raises
        ------
        TypeError
            Neither, or no numbers.
        KeyError
            No such layer.
        ValueError
            No rows or columns, names that no file can hold, a layer of an array.
        """
        if isinstance(given, AnnData):
            return _of_anndata(given, layer, caller)
        if layer is not None:
            raise ValueError(f"{caller}(layer={layer!r}): an array has no layers; leave it out")
        values = flattened(given, caller)
        numbers = (np.arange(n).astype(str) for n in values.shape)
        rows, columns = numbers
        return cls(values, rows, columns, f"{caller}(x)")


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Samples:
    """Real numbers of features in samples, in memory; answers as `Counts` does.

    Attributes
    ----------
    cell_names, gene_names
        Names of samples and of features.
    fingerprint
        SHA-256 of names and values.
    library_size, has_other, obs, on_disk
        As those of `Counts`: nothing, since totals of such numbers mean nothing.
    """

    cell_names: np.ndarray
    gene_names: np.ndarray
    fingerprint: str
    _values: Float32[np.ndarray, "cell gene"]
    library_size: None = None
    has_other: bool = False
    on_disk: bool = False
    obs: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def of(
        cls,
        given: Any,
        support: Support,
        layer: str | None = None,
        features: np.ndarray | None = None,
        caller: str = "fit",
    ) -> "Samples":
        """Check numbers and copy them as float32.

        Parameters
        ----------
        given
            An AnnData, or an array of samples in rows; further axes are flattened.
        support
            Which numbers are accepted.
        features
            Names of the features of an earlier fit, which are taken in that order.

        Raises
        ------
        TypeError, KeyError
            As `Table.of`.
        ValueError
            As `Table.of`; a number outside the support (the first is named), a single sample, a
            feature that is missing.
        """
        table = Table.of(given, layer, caller)
        if features is None and len(table.rows) < 2:
            raise ValueError(f"{table.given}: a single sample; variation needs at least two")
        if features is not None:
            table = _chosen(table, features, caller)
        with np.errstate(over="ignore"):  # what float32 cannot hold is named below
            values = np.array(table.values, np.float32, order="C")
        bad = ~support.holds(values)
        if bad.any():
            row, column = divmod(int(bad.argmax()), values.shape[1])
            raise ValueError(
                f'{table.given}: sample "{visible(table.rows[row])}", feature '
                f'"{visible(table.columns[column])}" is {table.values[row, column]:.12g}; '
                f"must hold {support.words}: {support.remedy}"
            )
        named = json.dumps([table.rows.tolist(), table.columns.tolist()]).encode()
        digest = hashlib.sha256(named + values.tobytes())
        return cls(table.rows, table.columns, digest.hexdigest(), values)

    @property
    def n_cells(self) -> int:
        """Number of samples."""
        return len(self.cell_names)

    @property
    def n_genes(self) -> int:
        """Number of features."""
        return len(self.gene_names)

    def rows(self, index: slice | Int[np.ndarray, " cell"]) -> Float32[np.ndarray, "cell gene"]:
        """Numbers of some samples, a new array."""
        return np.array(self._values[index])

    def check_unchanged(self) -> None:
        """They are: these are a copy."""

    def __repr__(self) -> str:
        return f"Samples({self.n_cells} samples × {self.n_genes} features)"


def flattened(given: Any, caller: str) -> np.ndarray:
    """An array of numbers with one row a sample.

    Raises
    ------
    TypeError
        No array, or none of numbers.
    ValueError
        A single axis, no rows, or no columns.
    """
    array_like = hasattr(given, "__array__") and not isinstance(given, np.ma.MaskedArray)
    if not array_like:
        raise TypeError(
            f"{caller}(x): got a {type(given).__name__}; pass an array of samples in rows, or an "
            "anndata.AnnData (which may be sparse)"
        )
    values = np.asarray(given)
    if values.dtype.kind not in "buif":
        raise TypeError(f"{caller}(x): the array has dtype {values.dtype}; pass one of numbers")
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(
            f"{caller}(x): an array of shape {values.shape}; pass samples in rows and features in "
            "columns (or pixels in further axes), none of them empty"
        )
    return values.reshape(len(values), -1)


def _of_anndata(adata: AnnData, layer: str | None, caller: str) -> Table:
    checks.check_arguments(adata, layer, None, caller)
    checks.check_shape(adata, 1, caller)
    labels = checks.Labels.of(adata, layer, caller)
    matrix = checks.check_type(open_matrix(adata, layer, labels.source), labels)
    parts = [x if isinstance(x, np.ndarray) else x.toarray() for _, x in matrix.blocks()]
    return Table(np.concatenate(parts), labels.cells, labels.genes, labels.argument)


def _chosen(table: Table, features: np.ndarray, caller: str) -> Table:
    """The features of a fit, in its order."""
    places = pd.Index(table.columns).get_indexer(pd.Index(features))
    missing = features[places < 0]
    if len(missing):
        raise ValueError(
            f"{table.given}: {len(missing)} of the {len(features)} features of the fit are not in "
            f'it, the first "{visible(missing[0])}"'
        )
    if table.given == f"{caller}(x)" and len(table.columns) != len(features):
        raise ValueError(
            f"{table.given}: {len(table.columns)} features, but the fit had {len(features)}"
        )
    return table._replace(values=table.values[:, places], columns=np.asarray(features))
