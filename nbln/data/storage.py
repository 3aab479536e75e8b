"""Rows of a count matrix, read from memory or, on demand, from a file."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from nbln.data import damage
from nbln.data.damage import Source
from nbln.data.slices import slices
from nbln.data.stored import Block, DaskRows, DenseRows, SparseRows, Stored, is_dask

# Bytes of one float32 (rows, genes) block while a matrix is checked. Large enough that the
# overhead of a block vanishes, small beside any machine's memory even in float64.
_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """A cells × genes matrix of which rows can be read.

    Attributes
    ----------
    handle
        A dense array, a canonical CSR array, or what reads rows that are not in memory.
    source
        Where it came from, for messages.
    cells, genes
        Numbers of the stored rows and columns that are read, in that order; None for all. Only of
        what is not in memory.
    """

    handle: Any
    source: Source
    cells: np.ndarray | None = None
    genes: np.ndarray | None = None

    @property
    def on_disk(self) -> bool:
        """Whether rows are read from a file, or made by Dask, each time."""
        return isinstance(self.handle, Stored)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        n_cells, n_genes = self.handle.shape
        return (
            n_cells if self.cells is None else len(self.cells),
            n_genes if self.genes is None else len(self.genes),
        )

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored values."""
        return self.handle.dtype

    @property
    def is_sparse(self) -> bool:
        """Whether it is in memory as CSR."""
        return getattr(self.handle, "format", "") == "csr"

    def read(self, rows: slice | np.ndarray) -> Block:
        """Rows as they are stored, dense or canonical CSR.

        ``rows`` is a slice of step 1 or an array of row numbers from 0, in any order.

        Raises
        ------
        OSError
            The file is gone, cut short or closed.
        ValueError
            A sparse matrix on disk has an index out of range.
        """
        if not self.on_disk:
            return _block(self.handle[rows])
        if self.cells is not None:
            rows = self.cells[rows]
        block = _block(self._stored(rows))
        return block if self.genes is None else _block(block[:, self.genes])

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """All rows in order, as (first row, block) of bounded size."""
        # All columns of the file are read before some are selected, so all of them count.
        size = max(1, _BLOCK_BYTES // (4 * self.handle.shape[1]))
        for rows in slices(self.shape[0], size):
            yield rows.start, self.read(rows)

    def _stored(self, rows: slice | np.ndarray) -> Block:
        if isinstance(rows, slice):
            return self.handle.read(rows)
        if len(rows) == 0:
            return self.handle.read(slice(0, 0))
        # Files are read in the order of their rows, and consecutive rows fastest.
        wanted, back = np.unique(rows, return_inverse=True)
        if wanted[-1] - wanted[0] == len(wanted) - 1:
            wanted = slice(int(wanted[0]), int(wanted[-1]) + 1)
        block = self.handle.read(wanted)
        return block if np.array_equal(back, np.arange(len(rows))) else block[back]


def shelf_of(adata: Any) -> "Shelf | None":
    """The shelf that an AnnData is, or is a part of; None for any other."""
    parent = adata._adata_ref if adata.is_view else adata
    return parent if isinstance(parent, Shelf) else None


class Shelf(AnnData, abc.ABC):
    """An AnnData whose counts are elsewhere: names and tables of cells and genes are in memory.

    Attributes
    ----------
    paths
        Where its counts are.
    """

    paths: tuple[str, ...]

    @abc.abstractmethod
    def matrix(self, layer: str | None, source: Source) -> "Matrix | None":
        """The matrix of a layer, or X, all cells and genes; None where there is none."""

    @property
    @abc.abstractmethod
    def stored_layers(self) -> tuple[str, ...]:
        """Names of the layers."""

    @abc.abstractmethod
    def without(self, layer: str) -> str:
        """Where there is no such layer."""

    @property
    @abc.abstractmethod
    def file_of_cells(self) -> np.ndarray | None:
        """(cell,) name of the file that each is in; None where there is one."""


def open_matrix(adata: AnnData, layer: str | None, source: Source) -> Matrix | None:
    """Find the matrix of an AnnData without changing it, nor copying or reading without need.

    Parameters
    ----------
    adata
        In memory or backed, a view or not.
    layer
        An existing layer; None for ``adata.X``.
    source
        The call and the matrix, named in errors.

    Returns
    -------
    Matrix or None
        None where ``adata.X`` is absent.

    Raises
    ------
    TypeError
        The matrix is neither a NumPy array nor CSR or CSC, in memory or in an h5ad file.
    ValueError
        A sparse matrix with pointers or indices out of range.
    OSError
        The file of a backed AnnData is gone, cut short or closed.
    """
    parent: Any = adata._adata_ref if adata.is_view else adata
    whole: Any
    if adata.isbacked:
        source = source._replace(file=str(adata.filename))
        with damage.reading(source):
            if not adata.file.is_open:
                adata.file.open()
            whole = _in_file(adata, layer)
    elif (shelf := shelf_of(adata)) is not None:
        whole = shelf.matrix(layer, source)
    else:
        whole = parent.X if layer is None else parent.layers[layer]
    if adata.is_view and _is_stored(whole):
        # X of a view would be read whole into memory, so its parent is read instead. AnnData has
        # no public name for the parent and for the view's indices.
        n_cells, n_genes = whole.shape
        index = _numbers(adata._oidx, n_cells), _numbers(adata._vidx, n_genes)
        return matrix_of(whole, source, *index)
    if not adata.is_view or adata.isbacked:
        return matrix_of(whole, source)
    # A view is made by SciPy, which trusts the indices of the matrix that it is a view of.
    if sp.issparse(whole):
        damage.check_sparse(whole, source)
    return matrix_of(adata.X if layer is None else adata.layers[layer], source)


def _in_file(adata: Any, layer: str | None) -> Any:
    """What a backed AnnData has for a matrix, of all cells where it is a view and X is meant."""
    if layer is not None:
        return adata.layers[layer]
    if "X" not in adata.file:
        return None  # asking for it would be a KeyError
    return adata._adata_ref.X if adata.is_view else adata.X


def _is_stored(whole: Any) -> bool:
    """Whether a matrix is anything but an array or a sparse matrix in memory."""
    return whole is not None and not isinstance(whole, np.ndarray) and not sp.issparse(whole)


def matrix_of(
    whole: Any, source: Source, cells: np.ndarray | None = None, genes: np.ndarray | None = None
) -> Matrix | None:
    """A matrix in memory or on disk, its structure checked, and which part of it; None of None.

    Raises
    ------
    TypeError, ValueError, OSError
        As `open_matrix`.
    """
    if whole is None:
        return None
    if isinstance(whole, Matrix):
        return _part(whole, cells, genes)
    if sp.issparse(whole):
        damage.check_sparse(whole, source)
        return Matrix(canonical(whole), source)
    if isinstance(whole, np.ndarray) and not isinstance(whole, np.ma.MaskedArray):
        return Matrix(np.asarray(whole), source)
    if is_dask(whole):
        return Matrix(DaskRows(whole, source), source, cells, genes)
    held: Any = whole  # of HDF5 or zarr, or nothing known
    source = source if source.file else source._replace(file=_file_of(held))
    stored = getattr(held, "format", "")
    if stored in ("csr", "csc"):
        damage.check_pointers(whole, source)
    if stored == "csc":
        return Matrix(_read_columns(whole, cells, genes, source), source)
    if stored == "csr":
        return Matrix(SparseRows(held.group, held.shape, source), source, cells, genes)
    if isinstance(whole, h5py.Dataset) or type(whole).__module__.startswith("zarr."):
        return Matrix(DenseRows(whole, source), source, cells, genes)
    raise TypeError(
        f"{source.argument}: the counts are a {type(whole).__module__}."
        f"{type(whole).__name__}; NumPy arrays and CSR or CSC matrices are accepted, in memory, in "
        'an h5ad file opened with backed="r" or in a zarr store, and Dask arrays of either. '
        "Convert them, for instance by adata = adata.to_memory()"
    )


def _part(whole: Matrix, cells: np.ndarray | None, genes: np.ndarray | None) -> Matrix:
    """Some cells and genes of a matrix, read from where it is."""
    if whole.on_disk and whole.cells is None and whole.genes is None:
        return replace(whole, cells=cells, genes=genes)
    block = whole.handle
    block = block if cells is None else block[cells]
    return replace(whole, handle=_block(block if genes is None else block[:, genes]))


def _file_of(held: Any) -> str:
    """Name of the file or the store that an array or a sparse matrix of HDF5 or zarr is in."""
    held = getattr(held, "group", held)
    if hasattr(held, "file"):
        return str(held.file.filename)
    store = getattr(held, "store", None)
    return str(getattr(store, "root", getattr(store, "path", store)))


def canonical(matrix: Any) -> sp.csr_array:
    """CSR with sorted indices and no duplicates, sharing the input's arrays where it can."""
    # A new object, because SciPy stores flags on a matrix, and sorts it in place.
    csr = sp.csr_array(matrix)
    if csr.has_canonical_format:
        return csr
    # float64, because the sum of duplicates may overflow a small integer type.
    csr = sp.csr_array(csr.astype(np.float64, copy=True))
    csr.sum_duplicates()
    return csr


def as_type(block: Block, dtype: type) -> Block:
    """The same values as another type, not copied where they have it already."""
    if isinstance(block, np.ndarray):
        return block.astype(dtype, copy=False)
    return sp.csr_array(block.astype(dtype, copy=False))


def _block(raw: Any) -> Block:
    """Rows as a plain array or canonical CSR, whatever class they have."""
    return canonical(raw) if sp.issparse(raw) else np.asarray(raw)


def _numbers(index: Any, size: int) -> np.ndarray | None:
    """The numbers from 0 that an index selects; None where it selects all of them in order."""
    numbers = np.arange(size)[index]
    return None if np.array_equal(numbers, np.arange(size)) else numbers


def _read_columns(
    handle: Any, cells: np.ndarray | None, genes: np.ndarray | None, source: Source
) -> sp.csr_array:
    """A CSC file as CSR in memory.

    Reading any row of such a file takes all of the file. It is therefore read once, some
    columns at a time, and only its nonzero entries are held.
    """
    n_cells, n_genes = handle.shape
    size = max(1, _BLOCK_BYTES // (4 * n_cells))
    blocks = []
    for columns in slices(n_genes, size):
        with damage.reading(source):
            damage.check_length(handle.group)
            block = sp.csc_array(handle[:, columns])
        damage.check_sparse(block, source)
        blocks.append(block if cells is None else block[cells])
    csr: Any = sp.hstack(blocks, format="csr")
    return canonical(csr if genes is None else csr[:, genes])
