"""What can be wrong with an AnnData, and what the user is told about it."""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import numpy as np
from anndata import AnnData
from jaxtyping import Float

from nbln.data.checksum import Checksum
from nbln.data.damage import Source
from nbln.data.naming import checked_names
from nbln.data.scaled import Scaling
from nbln.data.storage import Block, Matrix, as_type, shelf_of
from nbln.text import visible

_log = logging.getLogger("nbln")

# 2**24: float32, with its 24-bit significand, represents all whole numbers up to it.
LARGEST_COUNT = 2**24


class MissingLayerError(KeyError):
    """A layer that the AnnData does not have."""

    def __str__(self) -> str:
        # KeyError would print the message quoted.
        return self.args[0]


@dataclass(frozen=True, eq=False, slots=True)
class Labels:
    """What a message about a matrix needs to name.

    Attributes
    ----------
    cells, genes
        Names of rows and columns.
    layer
        Where the matrix came from; None for ``adata.X``.
    layers
        The layers that exist.
    backed
        Whether the AnnData is that of a file.
    caller
        The function that the user called.
    files
        The file that each cell is in, where there are several.
    """

    cells: np.ndarray
    genes: np.ndarray
    layer: str | None
    layers: tuple[str, ...]
    backed: bool
    caller: str
    files: np.ndarray | None = None

    @classmethod
    def of(cls, adata: AnnData, layer: str | None, caller: str) -> "Labels":
        """Of an AnnData; raises where names are impossible, as `checked_names`."""
        cells, genes = (checked_names(adata, axis, caller) for axis in ("obs", "var"))
        shelf = shelf_of(adata)
        files = None if shelf is None else shelf.file_of_cells
        if files is not None and adata.is_view:
            files = files[adata._oidx]
        return cls(cells, genes, layer, layer_names(adata), adata.isbacked, caller, files)

    def cell(self, number: int) -> str:
        """A cell by its name, with its file where there are several."""
        file = "" if self.files is None else f" of file {visible(self.files[number])}"
        return f'cell "{visible(self.cells[number])}"{file}'

    @property
    def argument(self) -> str:
        """The user's call with the argument at fault."""
        value = "adata" if self.layer is None else f'layer="{visible(self.layer)}"'
        return f"{self.caller}({value})"

    @property
    def matrix(self) -> str:
        """The matrix as the user writes it."""
        return "adata.X" if self.layer is None else f'adata.layers["{visible(self.layer)}"]'

    @property
    def source(self) -> Source:
        """Both, for messages about how the matrix is stored."""
        return Source(self.argument, self.matrix)


def layer_names(adata: AnnData) -> tuple[str, ...]:
    """Names of the layers; anndata from 0.13 on also lists ``adata.X`` there, as None."""
    if (shelf := shelf_of(adata)) is not None:
        return shelf.stored_layers
    return tuple(str(name) for name in adata.layers if name is not None)


def check_arguments(
    adata: Any, layer: str | None, gene_coverage: float | None, caller: str
) -> None:
    """Raise unless the arguments can be used; messages begin with the name of `caller`.

    Raises
    ------
    TypeError
        Not an AnnData, a layer that no name can be, or a coverage that is not a number.
    MissingLayerError
        No such layer.
    ValueError
        Coverage outside (0, 1].
    """
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"{caller}(adata): got a {type(adata).__name__}; pass an anndata.AnnData with cells in "
            "rows and genes in columns, as made by anndata.AnnData(X) or anndata.read_h5ad(path), "
            "or the path of an h5ad file or zarr store, or a list of paths"
        )
    if layer is not None and not isinstance(layer, Hashable):
        raise TypeError(
            f"{caller}(layer={layer!r}): got a {type(layer).__name__}; pass the name of a layer "
            f"({_layer_list(layer_names(adata))}), or None for adata.X"
        )
    if layer is not None and layer not in layer_names(adata):
        shelf = shelf_of(adata)
        where = "" if shelf is None else f" in {shelf.without(layer)}"
        raise MissingLayerError(
            f'{caller}(layer="{visible(layer)}"): no such layer{where}; '
            f"{_layer_list(layer_names(adata))}"
        )
    if gene_coverage is None:
        return
    if not isinstance(gene_coverage, Real) or isinstance(gene_coverage, bool):
        raise TypeError(
            f"{caller}(gene_coverage={gene_coverage!r}): got a {type(gene_coverage).__name__}; "
            "pass a number in (0, 1], or None to keep every gene"
        )
    if not 0 < gene_coverage <= 1:
        raise ValueError(
            f"{caller}(gene_coverage={gene_coverage!r}): must lie in (0, 1], the fraction of all "
            "counts that the kept genes hold; None keeps every gene"
        )


def check_shape(adata: AnnData, fewest: int, caller: str) -> None:
    """Raise unless there are a gene and at least `fewest` cells, one or two.

    Raises
    ------
    ValueError
        No cells, no genes, or a single cell.
    """
    n_cells, n_genes = adata.shape
    size = f"{caller}(adata): {n_cells} cells × {n_genes} genes"
    if n_cells == 0:
        raise ValueError(f"{size}: no cells; check the filter that made this AnnData")
    if n_genes == 0:
        raise ValueError(f"{size}: no genes; check the filter that made this AnnData")
    if n_cells < fewest:
        raise ValueError(f"{size}: fewer than two cells; variation needs at least two")


def check_type(matrix: Matrix | None, labels: Labels) -> Matrix:
    """The matrix, if it is there and holds numbers.

    Raises
    ------
    ValueError
        ``adata.X`` is None.
    TypeError
        Values are not integers, floats or booleans.
    """
    if matrix is None:
        raise ValueError(
            f"{labels.caller}(adata): adata.X is None; put the counts in adata.X or name a layer "
            f"with layer= ({_layer_list(labels.layers)})"
        )
    if matrix.dtype.kind not in "buif":
        raise TypeError(
            f"{labels.argument}: {labels.matrix} has dtype {matrix.dtype}; counts are integers, "
            f"whole floats or booleans. Convert with {labels.matrix}.astype(float)"
        )
    return matrix


class Totals(NamedTuple):
    """What one pass over checked counts gives.

    Attributes
    ----------
    cells, genes
        Total counts of each.
    checksum
        A number that changes when the counts do.
    """

    cells: Float[np.ndarray, " cell"]
    genes: Float[np.ndarray, " gene"]
    checksum: int


def checked_totals(matrix: Matrix, labels: Labels, strict: bool = False) -> Totals:
    """Total counts of each cell and of each gene, after checking that all values are counts.

    The matrix is read in blocks of rows, sparse where it is stored so, to bound the memory.
    Counts that look scaled and rounded are a warning in the log, with `strict` an error.

    Raises
    ------
    ValueError
        A value that is not a count (the first in row-major order is named), a cell without
        counts, or with `strict` counts that look scaled.
    """
    n_cells, n_genes = matrix.shape
    cells, genes = np.empty(n_cells), np.zeros(n_genes)
    checksum, scaling = Checksum(n_genes), Scaling()
    for start, block in matrix.blocks():
        # Sums of small integers would overflow in their own type; float64 sums them exactly.
        block = as_type(block, np.float64)
        _check_values(block, start, labels)
        sums = block.sum(axis=1)
        cells[start : start + len(sums)] = sums
        genes += block.sum(axis=0)
        checksum.add(block)
        scaling.add(block)
    empty = cells == 0
    if empty.any():
        _no_counts(empty, labels)
    sign = scaling.sign(cells)
    if sign is not None:
        _looks_scaled(sign, labels, strict)
    return Totals(cells, genes, checksum.value)


def checksum(matrix: Matrix) -> int:
    """The checksum alone, as `checked_totals` gave it if nothing has changed."""
    made = Checksum(matrix.shape[1])
    for _, block in matrix.blocks():
        made.add(block)
    return made.value


def _looks_scaled(sign: str, labels: Labels, strict: bool) -> None:
    message = (
        f"{labels.argument}: {sign}; these do not look like raw counts, whose noise is what the "
        f"model knows. Pass raw counts, in adata.X or by layer= ({_layer_list(labels.layers)}); "
        "of cells that were downsampled, those before that"
    )
    if strict:
        raise ValueError(f"{message}. strict=False fits them all the same")
    _log.warning(
        "%s%s", message, ". strict=True makes this an error" if labels.caller == "fit" else ""
    )


def _check_values(block: Block, start: int, labels: Labels) -> None:
    values = block if isinstance(block, np.ndarray) else block.data
    # NaN fails the first condition, −∞ too, and +∞ the third.
    bad = ~(values >= 0) | (values != np.floor(values)) | (values > LARGEST_COUNT)
    if not bad.any():
        return
    # An index in row-major order, also of CSR, whose column indices are sorted.
    first = int(bad.argmax())
    if isinstance(block, np.ndarray):
        row, column = divmod(first, block.shape[1])
    else:
        row = int(np.searchsorted(block.indptr, first, side="right")) - 1
        column = int(block.indices[first])
    _not_a_count(float(values.flat[first]), start + row, column, labels)


def _not_a_count(value: float, cell: int, gene: int, labels: Labels) -> NoReturn:
    name = visible(labels.genes[gene])
    where = f'{labels.cell(cell)}, gene "{name}"'
    raw = f"pass raw counts, in adata.X or by layer= ({_layer_list(labels.layers)})"
    if not np.isfinite(value):
        why = f"counts are finite; {raw}"
    elif value < 0:
        why = f"counts are not negative, this looks like scaled data; {raw}"
    elif value != np.floor(value):
        why = f"counts are whole numbers, this looks like normalised data; {raw}"
    else:
        why = (
            f"counts above 2**24 = {LARGEST_COUNT} are not exact in float32; leave the gene out, "
            f'for instance by adata[:, adata.var_names != "{name}"]'
        )
    raise ValueError(f"{labels.argument}: {where} of {labels.matrix} is {value:.12g}; {why}")


def _no_counts(empty: np.ndarray, labels: Labels) -> NoReturn:
    n_empty, cell = int(empty.sum()), labels.cell(int(empty.argmax()))
    # A matrix on disk has no method `sum`, and its AnnData no copy without a file name.
    load = "adata = adata.to_memory(); " if labels.backed else ""
    raise ValueError(
        f"{labels.argument}: {cell} has no counts in {labels.matrix} ({n_empty} of "
        f"{len(empty)} cells have none); leave such cells out with "
        f"{load}adata = adata[np.asarray({labels.matrix}.sum(axis=1)).ravel() > 0].copy()"
    )


def _layer_list(layers: tuple[str, ...]) -> str:
    named = ", ".join(visible(name) for name in layers)
    return f"adata has layers {named}" if named else "adata has no layers"
