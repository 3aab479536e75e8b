"""Rows of a count matrix, read from memory or, on demand, from a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from nbln.data.slices import slices

Block = np.ndarray | sp.csr_array

# Bytes of one float32 (rows, genes) block while a matrix is checked. Large enough that the
# overhead of a block vanishes, small beside any machine's memory even in float64.
_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """A cells × genes matrix of which rows can be read.

    Attributes
    ----------
    handle
        A dense array, a canonical CSR array, or a handle on a file.
    on_disk
        Whether `handle` is a file.
    cells, genes
        Numbers of the file's rows and columns that are read, in that order; None for all.
    """

    handle: Any
    on_disk: bool
    cells: np.ndarray | None = None
    genes: np.ndarray | None = None

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
        """Whether rows come as CSR."""
        return getattr(self.handle, "format", "") == "csr"

    def read(self, rows: slice | np.ndarray) -> Block:
        """Rows as they are stored, dense or canonical CSR.

        ``rows`` is a slice of step 1 or an array of row numbers from 0, in any order.
        """
        if not self.on_disk:
            return _block(self.handle[rows])
        if self.cells is not None:
            rows = self.cells[rows]
        block = _read_file(self.handle, rows)
        return block if self.genes is None else _block(block[:, self.genes])

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """All rows in order, as (first row, block) of bounded size."""
        # All columns of the file are read before some are selected, so all of them count.
        size = max(1, _BLOCK_BYTES // (4 * self.handle.shape[1]))
        for rows in slices(self.shape[0], size):
            yield rows.start, self.read(rows)


def open_matrix(adata: AnnData, layer: str | None, caller: str) -> Matrix | None:
    """Find the matrix of an AnnData without changing it, nor copying or reading without need.

    Parameters
    ----------
    adata
        In memory or backed, a view or not.
    layer
        An existing layer; None for ``adata.X``.
    caller
        The function that the user called, named in errors.

    Returns
    -------
    Matrix or None
        None where ``adata.X`` is absent.

    Raises
    ------
    TypeError
        The matrix is neither a NumPy array nor CSR or CSC, in memory or in an h5ad file.
    """
    if adata.isbacked and not adata.file.is_open:
        adata.file.open()
    cells = genes = None
    if layer is not None:
        handle = adata.layers[layer]
    elif not adata.isbacked:
        handle = adata.X
    elif "X" not in adata.file:
        return None  # asking for it would be a KeyError
    elif adata.is_view:
        # X of a view would be read whole into memory, so its parent is read instead. AnnData
        # has no public name for the parent and for the view's indices.
        view: Any = adata
        handle = view._adata_ref.X
        cells = _numbers(view._oidx, handle.shape[0])
        genes = _numbers(view._vidx, handle.shape[1])
    else:
        handle = adata.X
    if handle is None:
        return None
    if sp.issparse(handle):
        return Matrix(canonical(handle), on_disk=False)
    if isinstance(handle, np.ndarray) and not isinstance(handle, np.ma.MaskedArray):
        return Matrix(np.asarray(handle), on_disk=False)
    stored = getattr(handle, "format", "")
    if stored == "csc":
        return Matrix(_read_columns(handle, cells, genes), on_disk=False)
    if stored == "csr" or isinstance(handle, h5py.Dataset):
        return Matrix(handle, True, cells, genes)
    raise TypeError(
        f"{caller}(adata): the counts are a {type(handle).__module__}.{type(handle).__name__}; "
        "NumPy arrays and CSR or CSC matrices are accepted, in memory or in an h5ad file opened "
        'with backed="r". Convert them, for instance by adata = adata.to_memory()'
    )


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


def _read_file(handle: Any, rows: slice | np.ndarray) -> Block:
    if isinstance(rows, slice):
        return _block(handle[rows])
    if len(rows) == 0:
        return _block(handle[:0])
    # h5py needs increasing row numbers without repeats, and reads consecutive rows fastest.
    wanted, back = np.unique(rows, return_inverse=True)
    in_order = np.array_equal(back, np.arange(len(rows)))
    if wanted[-1] - wanted[0] == len(wanted) - 1:
        block = _block(handle[int(wanted[0]) : int(wanted[-1]) + 1])
    else:
        block = _block(handle[wanted])
    return block if in_order else block[back]


def _read_columns(handle: Any, cells: np.ndarray | None, genes: np.ndarray | None) -> sp.csr_array:
    """A CSC file as CSR in memory.

    Reading any row of such a file takes all of the file. It is therefore read once, some
    columns at a time, and only its nonzero entries are held.
    """
    n_cells, n_genes = handle.shape
    size = max(1, _BLOCK_BYTES // (4 * n_cells))
    blocks = []
    for columns in slices(n_genes, size):
        block = sp.csc_array(handle[:, columns])
        blocks.append(block if cells is None else block[cells])
    csr: Any = sp.hstack(blocks, format="csr")
    return canonical(csr if genes is None else csr[:, genes])
