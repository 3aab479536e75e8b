"""Read h5ad files with plain errors, and write copies of them with results added."""

import shutil
from collections.abc import Callable
from pathlib import Path

from anndata import AnnData, read_h5ad

from nbln import atomic
from nbln.text import first_line


def read(path: Path, backed: bool = False) -> AnnData:
    """Read an h5ad file; with `backed` its counts stay on disk.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not a file, or not a readable h5ad file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: not a file; give an h5ad file of raw counts")
    try:
        return read_h5ad(path, backed="r" if backed else None)
    except Exception as error:
        # What anndata and h5py raise for a file of another kind depends on the file.
        raise ValueError(
            f"{path}: not a readable h5ad file; write one with adata.write_h5ad(path) "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def write_annotated(annotate: Callable[[AnnData], None], adata: AnnData, target: Path) -> None:
    """Write an h5ad file with what `annotate` adds to an AnnData.

    A backed AnnData is closed and its file copied, so that its counts are never in memory. The file
    appears whole or not at all.

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
