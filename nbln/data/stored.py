"""Rows of a matrix that is not in memory: in an h5ad file, a zarr store, or made by Dask."""

import abc
from typing import Any

import numpy as np
import scipy.sparse as sp

from nbln.data import damage
from nbln.data.damage import Source

Block = np.ndarray | sp.csr_array

# Entries between two rows that are read with them. Of 12,800 random rows of a million, compressed,
# the time is the same from 2**12 to 2**18; plain files are read faster with more, with less memory
# for fewer.
_GAP = 2**15
_LONGEST_RUN = 2**22  # entries that are read at once where rows are picked: 32 MiB


class Stored(abc.ABC):
    """A cells × genes matrix of which rows can be read.

    Attributes
    ----------
    shape
        Numbers of cells and genes.
    dtype
        Type of the stored values.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    @abc.abstractmethod
    def read(self, rows: slice | np.ndarray) -> Block:
        """Rows as they are stored, dense or CSR: of a slice, or of increasing row numbers.

        Raises
        ------
        OSError
            The file is gone, cut short or closed; a block cannot be made.
        ValueError
            A sparse matrix has an index out of range.
        """


class SparseRows(Stored):
    """CSR in a group of HDF5 or zarr.

    Pointers stay in memory, so that rows are one slice of the entries and one of their columns.

    Parameters
    ----------
    group
        Holds ``data``, ``indices`` and ``indptr``.
    shape
        Numbers of cells and genes.
    """

    def __init__(self, group: Any, shape: tuple[int, int], source: Source):
        self._source, self.shape = source, shape
        with damage.reading(source):
            self._data, self._indices = group["data"], group["indices"]
            self._pointers = np.asarray(group["indptr"][:]).astype(np.int64)
        self.dtype = self._data.dtype

    def read(self, rows):
        return _in_runs(self._slice, rows, self._pointers)

    def _slice(self, start: int, stop: int) -> sp.csr_array:
        pointers = self._pointers[start : stop + 1]
        first, last = int(pointers[0]), int(pointers[-1])
        with damage.reading(self._source):
            damage.check_length(self._data)
            values, columns = self._data[first:last], self._indices[first:last]
        damage.refuse_index(columns, self.shape[1], self._source)
        # SciPy copies columns where pointers are wider.
        narrow = columns.dtype != np.int64 and last - first < 2**31
        pointers = (pointers - first).astype(np.int32 if narrow else np.int64)
        return sp.csr_array((values, columns, pointers), shape=(stop - start, self.shape[1]))


class DenseRows(Stored):
    """An array of HDF5 or zarr."""

    def __init__(self, array: Any, source: Source):
        self._array, self._source = array, source
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, rows):
        return _in_runs(self._slice, rows, np.arange(self.shape[0] + 1) * self.shape[1])

    def _slice(self, start: int, stop: int) -> np.ndarray:
        with damage.reading(self._source):
            damage.check_length(self._array)
            return np.asarray(self._array[start:stop])


class DaskRows(Stored):
    """A Dask array, whose blocks of rows are made one at a time.

    The last block stays, so that a pass in small steps makes each block once.
    """

    def __init__(self, array: Any, source: Source):
        self._array, self._source = array, source
        self.shape, self.dtype = array.shape, array.dtype
        self._edges = np.concatenate([[0], np.cumsum(array.chunks[0])])
        self._last: tuple[int, Any] = (-1, None)

    def read(self, rows):
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        numbers = np.searchsorted(self._edges, rows, side="right") - 1
        parts = [
            self._made(int(number))[rows[numbers == number] - self._edges[number]]
            for number in np.unique(numbers)
        ]
        return stacked(parts, self.shape[1])

    def _made(self, number: int) -> Block:
        last, block = self._last  # one tuple: another thread may read too
        if last == number:
            return block
        try:
            made = self._array[self._edges[number] : self._edges[number + 1]].compute()
        except MemoryError:
            raise
        except Exception as error:  # what the functions of the array raise is theirs
            raise OSError(
                f"{self._source}: rows {self._edges[number]:,} to {self._edges[number + 1]:,} of "
                f"the Dask array cannot be made ({type(error).__name__}: {error})"
            ) from error
        block = sp.csr_array(made) if sp.issparse(made) else np.asarray(made)
        if isinstance(block, sp.csr_array):
            damage.check_sparse(block, self._source)
        self._last = number, block
        return block


def is_dask(array: Any) -> bool:
    """Whether it is a Dask array, which is not imported for that."""
    return type(array).__module__.startswith("dask.array")


def stacked(parts: list[Block], n_genes: int) -> Block:
    """Rows of all parts, one below the other; dense only if all are."""
    if not parts:
        return np.zeros((0, n_genes), np.float32)
    if len(parts) == 1:
        return parts[0]
    dense = [part for part in parts if isinstance(part, np.ndarray)]
    if len(dense) == len(parts):
        return np.concatenate(dense)
    rows: Any = sp.vstack([sp.csr_array(part) for part in parts], format="csr")
    return sp.csr_array(rows)


def _in_runs(read, rows: slice | np.ndarray, edges: np.ndarray) -> Block:
    """Rows by few reads of slices, which hold little else; `edges` counts entries before a row."""
    if isinstance(rows, slice):
        return read(rows.start, rows.stop)
    if not len(rows):
        return read(0, 0)
    begins, ends = edges[rows], edges[rows + 1]
    far = begins[1:] - ends[:-1] > _GAP
    full = begins[1:] // _LONGEST_RUN != begins[:-1] // _LONGEST_RUN
    parts = []
    for run in np.split(rows, np.flatnonzero(far | full) + 1):
        start, stop = int(run[0]), int(run[-1]) + 1
        block = read(start, stop)
        parts.append(block if len(run) == stop - start else block[run - start])
    return stacked(parts, 0)
