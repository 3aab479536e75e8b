"""What can be wrong with how a matrix is stored, found before anything computes with it.

Compiled loops trust the indices of a sparse matrix: one out of range reads or writes beyond an
array, which gives wrong numbers or ends the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import scipy.sparse as sp

from nbln.text import first_line


class Source(NamedTuple):
    """Where a matrix came from, for messages.

    Attributes
    ----------
    argument, matrix
        The user's call with the argument at fault, and the matrix as the user writes it.
    file
        Name of the file, if it is in one.
    """

    argument: str
    matrix: str
    file: str | None = None

    def __str__(self):
        return f"{self.argument}: {self.matrix}"


AXES = {"csr": ("row", "column"), "csc": ("column", "row"), "bsr": ("row", "column")}


def check_sparse(matrix: Any, source: Source) -> None:
    """Raise unless a sparse matrix in memory is whole.

    Raises
    ------
    ValueError
        Names what is wrong: pointers that go back, or an index out of range.
    """
    fault = None
    if matrix.format in ("csr", "csc"):
        n_major, n_minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
        axes = AXES[matrix.format]
        stored = min(len(matrix.indices), len(matrix.data))
        fault = pointer_fault(matrix.indptr, n_major, stored, axes[0])
        fault = fault or index_fault(matrix.indices[: matrix.indptr[-1]], n_minor, axes[1])
    elif matrix.format == "coo":
        for axis, index, size in zip(AXES["csr"], matrix.coords, matrix.shape, strict=True):
            fault = fault or index_fault(index, size, axis)
    elif matrix.format == "bsr":
        fault = _block_fault(matrix)
    if fault:
        _refuse(fault, matrix.format, source)


def refuse_index(columns: np.ndarray, n_columns: int, source: Source) -> None:
    """Raise if an entry of CSR is in a column that is not there.

    Raises
    ------
    ValueError
        Names the column.
    """
    fault = index_fault(columns, n_columns, "column")
    if fault:
        _refuse(fault, "csr", source)


def check_pointers(handle: Any, source: Source) -> None:
    """Raise unless the pointers of a sparse matrix in a file are whole; `check_sparse` of each
    block that is read then looks at the indices.

    Raises
    ------
    ValueError
        Names what is wrong.
    OSError
        The file cannot be read.
    """
    with reading(source):
        check_length(handle.group)
        _check_chunks(handle)
        pointers = handle.group["indptr"][:]
        stored = min(handle.group["indices"].shape[0], handle.group["data"].shape[0])
        n_major = handle.shape[0 if handle.format == "csr" else 1]
    fault = pointer_fault(pointers, n_major, stored, AXES[handle.format][0])
    if fault:
        _refuse(fault, handle.format, source)


def _refuse(fault: str, form: str, source: Source) -> NoReturn:
    raise ValueError(
        f"{source} is a damaged {form.upper()} matrix: {fault}; make it again from its source"
    )


def pointer_fault(pointers: np.ndarray, n_major: int, stored: int, axis: str) -> str | None:
    """What is wrong with the pointers to rows (of CSR) or columns (of CSC), `axis`; else None."""
    if pointers.ndim != 1 or len(pointers) != n_major + 1:
        return f"indptr has {len(pointers)} numbers, where {n_major} {axis}s need {n_major + 1}"
    if pointers[0] != 0:
        return f"indptr begins with {pointers[0]}, not with 0"
    # Compared, not subtracted: a difference of unsigned numbers is never negative.
    back = pointers[1:] < pointers[:-1]
    if back.any():
        first = int(back.argmax())
        return f"indptr goes back from {pointers[first]} to {pointers[first + 1]} at {axis} {first}"
    if pointers[-1] > stored:
        return f"indptr ends with {pointers[-1]}, but {stored} entries are stored"
    return None


def index_fault(index: np.ndarray, size: int, axis: str) -> str | None:
    """The first index that is out of range, in words; else None."""
    if not len(index) or (index.min() >= 0 and index.max() < size):
        return None
    bad = int(index[((index < 0) | (index >= size)).argmax()])
    return f"it has an entry in {axis} {bad}, and {axis}s are 0 to {size - 1}"


def _block_fault(matrix: Any) -> str | None:
    """SciPy's own check of blocks, of a new object, since it may shorten arrays of the matrix."""
    try:
        same = sp.bsr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
        same.check_format(full_check=True)
    except ValueError as error:
        return str(error)
    return None


def check_length(held: Any) -> None:
    """Raise if an HDF5 file is shorter than it was when opened: zeros would be read beyond its end.

    Parameters
    ----------
    held
        A group or an array; those of zarr are many files, and pass.

    Raises
    ------
    EOFError
        Says how much is missing.
    """
    file = getattr(held, "file", None)
    if file is None:
        return
    path = Path(file.filename)
    if file.mode != "r" or not path.exists():
        return  # one that is written grows later; one that was deleted can still be read
    opened, now = file.id.get_filesize(), path.stat().st_size
    if now < opened:
        raise EOFError(f"{now:,} of {opened:,} bytes are there")


def _check_chunks(handle: Any) -> None:
    """Raise if zarr lacks chunks of a sparse matrix, in whose place zeros would be read."""
    n_minor = handle.shape[1 if handle.format == "csr" else 0]
    # Zarr leaves out chunks of zeros, which entries are not; but all may be in a single column.
    for name in ("data", "indices") if n_minor > 1 else ("data",):
        stored = handle.group[name]
        there = getattr(stored, "nchunks_initialized", None)
        if there is not None and there < stored.nchunks:
            raise EOFError(f"{there:,} of {stored.nchunks:,} chunks of {name} are there")


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Errors of reading from a file that was deleted, cut short or closed, as one that names it.

    Raises
    ------
    OSError
        Names the file.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # What h5py and anndata raise depends on which part of the file is gone.
        raise OSError(
            f"{source}: the file {source.file} cannot be read; it is gone, cut short or closed "
            'since it was opened. Open it again with anndata.read_h5ad(path, backed="r"), or give '
            "the path in its place "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
