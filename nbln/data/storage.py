"""Rows of a count matrix, read from memory or, on demand, from a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from nbln.data import damage
from nbln.data.damage import Source
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
    source
        Where it came from, for messages.
    """

    handle: Any
    on_disk: bool
    source: Source
    cells: np.ndarray | None = None
    genes: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        with damage.reading(self.source):
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
        block = self._read_file(rows)
        return block if self.genes is None else _block(block[:, self.genes])

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """All rows in order, as (first row, block) of bounded size."""
        # All columns of the file are read before some are selected, so all of them count.
        with damage.reading(self.source):
            size = max(1, _BLOCK_BYTES // (4 * self.handle.shape[1]))
        for rows in slices(self.shape[0], size):
            yield rows.start, self.read(rows)

    def _read_file(self, rows: slice | np.ndarray) -> Block:
        if isinstance(rows, slice):
            return self._of_file(rows)
        if len(rows) == 0:
            return self._of_file(slice(0, 0))
        # h5py needs increasing row numbers without repeats, and reads consecutive rows fastest.
        wanted, back = np.unique(rows, return_inverse=True)
        in_order = np.array_equal(back, np.arange(len(rows)))
        if wanted[-1] - wanted[0] == len(wanted) - 1:
            block = self._of_file(slice(int(wanted[0]), int(wanted[-1]) + 1))
        else:
            block = self._of_file(wanted)
        return block if in_order else block[back]

    def _of_file(self, rows: slice | np.ndarray) -> Block:
        with damage.reading(self.source):
            damage.check_length(self.handle)
            raw = self.handle[rows]
        if sp.issparse(raw):
            damage.check_sparse(raw, self.source)
        return _block(raw)


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
    if not adata.isbacked:
        if adata.is_view:
            # A view is made by SciPy, which trusts the indices of the matrix that it is a view of.
            parent: Any = adata._adata_ref
            whole = parent.X if layer is None else parent.layers[layer]
            if sp.issparse(whole):
                damage.check_sparse(whole, source)
        return _matrix(adata.X if layer is None else adata.layers[layer], None, None, source)
    source = source._replace(file=str(adata.filename))
    with damage.reading(source):
        if not adata.file.is_open:
            adata.file.open()
        handle, cells, genes = _in_file(adata, layer)
    return _matrix(handle, cells, genes, source)


def _in_file(adata: Any, layer: str | None) -> tuple[Any, np.ndarray | None, np.ndarray | None]:
    """What a backed AnnData has for a matrix, and which rows and columns of it are meant."""
    if layer is not None:
        return adata.layers[layer], None, None
    if "X" not in adata.file:
        return None, None, None  # asking for it would be a KeyError
    if not adata.is_view:
        return adata.X, None, None
    # X of a view would be read whole into memory, so its parent is read instead. AnnData has no
    # public name for the parent and for the view's indices.
    handle = adata._adata_ref.X
    n_cells, n_genes = handle.shape
    return handle, _numbers(adata._oidx, n_cells), _numbers(adata._vidx, n_genes)


def _matrix(handle: Any, cells, genes, source: Source) -> Matrix | None:
    """The matrix behind a handle, its structure checked; None where there is none."""
    if handle is None:
        return None
    if sp.issparse(handle):
        damage.check_sparse(handle, source)
        return Matrix(canonical(handle), False, source)
    if isinstance(handle, np.ndarray) and not isinstance(handle, np.ma.MaskedArray):
        return Matrix(np.asarray(handle), False, source)
    stored = getattr(handle, "format", "")
    if stored in ("csr", "csc"):
        damage.check_pointers(handle, source)
    if stored == "csc":
        return Matrix(_read_columns(handle, cells, genes, source), False, source)
    if stored == "csr" or isinstance(handle, h5py.Dataset):
        return Matrix(handle, True, source, cells, genes)
    raise TypeError(
        f"{source.argument}: the counts are a {type(handle).__module__}."
        f"{type(handle).__name__}; NumPy arrays and CSR or CSC matrices are accepted, in memory or "
        'in an h5ad file opened with backed="r". Convert them, for instance by '
        "adata = adata.to_memory()"
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
            damage.check_length(handle)
            block = sp.csc_array(handle[:, columns])
        damage.check_sparse(block, source)
        blocks.append(block if cells is None else block[cells])
    csr: Any = sp.hstack(blocks, format="csr")
    return canonical(csr if genes is None else csr[:, genes])
