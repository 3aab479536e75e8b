"""Read files of counts with plain errors, and write copies of them with results added."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData, read_h5ad, read_zarr

from nbln import atomic
from nbln.data.damage import Source
from nbln.data.shelf import Files, in_memory, is_zarr, reading, zarr_group
from nbln.data.storage import Matrix, open_matrix, shelf_of


def read(paths: Sequence[Path], backed: bool = False) -> AnnData:
    """Read an h5ad file or a zarr store, or several as one; with `backed` counts stay on disk.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not a file, or not a readable h5ad file or zarr store; several that do not go together.
    ModuleNotFoundError
        A zarr store, and no package to read it.
    """
    path, *others = paths
    if others or (backed and is_zarr(path)):
        files = Files.of(paths)
        return files if backed else in_memory(files)
    with reading(path):
        if path.is_dir():
            return read_zarr(zarr_group(path))
        return read_h5ad(path, backed="r" if backed else None)


def write_annotated(annotate: Callable[[AnnData], None], adata: AnnData, target: Path) -> None:
    """Write an h5ad file with what `annotate` adds to an AnnData.

    A backed AnnData is closed and its file copied, and what lies in other files is copied block by
    block, so that the counts are never in memory. The file appears whole or not at all.

    Parameters
    ----------
    annotate
        Writes results into the AnnData that it is given.
    adata
        The AnnData; one in memory is modified.
    target
        The file to write.
    """
    with atomic.beside(target) as partial:
        if shelf_of(adata) is not None:
            tables = adata.copy()  # which has no counts
            annotate(tables)
            tables.write_h5ad(partial)
            _copy_counts(adata, partial)
            return
        if not adata.isbacked:
            annotate(adata)
            adata.write_h5ad(partial)
            return
        original = adata.filename
        adata.file.close()
        shutil.copyfile(original, partial)
        copy = read_h5ad(partial, backed="r+")
        annotate(copy)
        copy.write_h5ad()
        copy.file.close()


def _copy_counts(adata: AnnData, target: Path) -> None:
    shelf = shelf_of(adata)
    with h5py.File(target, "r+") as file:
        for layer in (None, *(() if shelf is None else shelf.stored_layers)):
            name = "X" if layer is None else f"layers/{layer}"
            matrix = open_matrix(adata, layer, Source("fit(adata)", name))
            if matrix is None:
                continue
            if name in file:  # AnnData writes that there is none
                del file[name]
            _write_csr(file.create_group(name), matrix)


def _write_csr(group: h5py.Group, matrix: Matrix) -> None:
    """Rows as AnnData stores CSR (its on-disk format, version 0.1.0), block by block."""
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = matrix.shape
    grows = {"maxshape": (None,), "chunks": (2**16,), "compression": "lzf"}
    held = {
        name: group.create_dataset(name, (0,), kind, **grows)
        for name, kind in (("data", matrix.dtype), ("indices", np.int32))
    }
    pointers = [np.zeros(1, np.int64)]
    for _, block in matrix.blocks():
        csr = sp.csr_array(block)
        end = int(pointers[-1][-1])
        pointers.append(end + csr.indptr[1:].astype(np.int64))
        for name, entries in held.items():
            entries.resize((end + csr.nnz,))
            entries[end:] = getattr(csr, name)
    group.create_dataset("indptr", data=np.concatenate(pointers))
