"""Files of counts that stay where they are: one h5ad file or zarr store, or several as one."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from nbln.data.damage import Source
from nbln.data.naming import checked_names
from nbln.data.storage import Matrix, Shelf, matrix_of, open_matrix, shelf_of
from nbln.data.stored import Stored, stacked
from nbln.text import first_line, visible

_log = logging.getLogger("nbln")

FILE = "file"  # the column of obs that says which file a cell is from
BESIDE = ("uns", "obsm", "varm", "obsp", "varp")  # of an AnnData, beside counts and tables


class _File(NamedTuple):
    """An open file, its tables, and the numbers of its genes that are read; None for all."""

    path: Path
    group: Any
    obs: pd.DataFrame
    var: pd.DataFrame
    genes: np.ndarray | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(sorted(self.group["layers"])) if "layers" in self.group else ()

    def matrix(self, layer: str | None, source: Source) -> Matrix | None:
        name = "X" if layer is None else f"layers/{layer}"
        source = source._replace(file=str(self.path))
        held = self.group.get(name)
        if held is not None and not hasattr(held, "dtype"):
            if held.attrs.get("encoding-type") == "null":  # as AnnData writes an X that is None
                return None
            held = sparse_dataset(held)
        return matrix_of(held, source, None, self.genes)


class _Below(Stored):
    """Matrices of files, one below the other."""

    def __init__(self, parts: list[Matrix]):
        self._parts = parts
        self._edges = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = int(self._edges[-1]), parts[0].shape[1]
        odd = [part.dtype for part in parts if part.dtype.kind not in "buif"]
        self.dtype = odd[0] if odd else reduce(np.promote_types, (p.dtype for p in parts))

    def read(self, rows):
        blocks = []
        for part, start, stop in zip(self._parts, self._edges, self._edges[1:], strict=False):
            if isinstance(rows, slice):
                first, last = max(rows.start, start), min(rows.stop, stop)
                own: Any = slice(int(first - start), int(last - start)) if first < last else None
            else:
                own = rows[(rows >= start) & (rows < stop)] - start
                own = own if len(own) else None
            if own is not None:
                blocks.append(part.read(own))
        return stacked(blocks, self.shape[1])


class Files(Shelf):
    """The cells of one or several files in order, with the genes that all of them have.

    It is an AnnData whose names and tables are in memory and whose counts are read when they are
    asked for. Of one file it has all but the counts; of several the columns of ``obs`` that all of
    them have, and `file`, the name of each cell's file.

    Attributes
    ----------
    paths
        The files.
    """

    def __init__(self, files: Sequence[_File]):
        self._files = tuple(files)
        self.paths = tuple(str(file.path) for file in files)
        first, *others = files
        if others:
            genes = first.var.index[np.asarray(first.genes)]
            super().__init__(obs=_tables(files), var=first.var.loc[genes])
            return
        held = {name: read_elem(first.group[name]) for name in BESIDE if name in first.group}
        super().__init__(obs=first.obs, var=first.var, **held)

    @classmethod
    def of(cls, paths: Sequence[str | Path]) -> "Files":
        """Open h5ad files or zarr stores.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            No file at all, one twice, one that cannot be read, repeated names in one, or no gene
            that all of them have.
        ModuleNotFoundError
            A zarr store, and no package to read it.
        """
        given = [Path(path) for path in paths]
        if not given:
            raise ValueError("no file; give the path of at least one")
        twice = {str(path) for path in given if given.count(path) > 1}
        if twice:
            raise ValueError(f"{min(twice)}: given twice; its cells would count double")
        files = [_opened(path) for path in given]
        make: Any = cls  # AnnData's metaclass hides the arguments
        return make(_common_genes(files) if len(files) > 1 else files)

    @property
    def stored_layers(self) -> tuple[str, ...]:
        """Names of the layers that all files have."""
        return reduce(
            lambda ours, theirs: tuple(name for name in ours if name in theirs),
            (file.layers for file in self._files),
        )

    def without(self, layer: str) -> str:
        """The first file that has no such layer."""
        return next(str(file.path) for file in self._files if layer not in file.layers)

    @property
    def file_of_cells(self) -> np.ndarray | None:
        """(cell,) the file of each, as `obs` has it; None where there is one."""
        return np.asarray(self.obs[FILE], str) if len(self._files) > 1 else None

    def matrix(self, layer: str | None, source: Source) -> Matrix | None:
        found = [file.matrix(layer, source) for file in self._files]
        parts = [part for part in found if part is not None]
        if len(found) == 1:
            return found[0]
        if len(parts) < len(found):
            lacking = self.paths[next(i for i, part in enumerate(found) if part is None)]
            raise ValueError(f"{source}: {lacking} has no X; name a layer that all files have")
        return Matrix(_Below(parts), source)


def opened(given: Any) -> Any:
    """What a path, or several, leads to; anything else as it is.

    Raises
    ------
    FileNotFoundError, ValueError, ModuleNotFoundError
        As `Files.of`.
    """
    if isinstance(given, str | os.PathLike):
        return Files.of([given])
    several = isinstance(given, list | tuple)
    return (
        Files.of(given)
        if several and all(isinstance(x, str | os.PathLike) for x in given)
        else given
    )


def in_memory(adata: AnnData) -> AnnData:
    """A copy of an AnnData, or of a part of one, that needs no file; sparse counts stay sparse."""
    shelf = shelf_of(adata)
    if shelf is None:
        return adata.to_memory() if adata.isbacked else adata.copy()
    made: Any = adata.copy()
    for layer in (None, *shelf.stored_layers):
        source = Source("fit(adata)", "adata.X" if layer is None else f"layer {visible(layer)!r}")
        matrix = open_matrix(adata, layer, source)
        if matrix is None:
            continue
        counts = stacked([block for _, block in matrix.blocks()], matrix.shape[1])
        if layer is None:
            made.X = counts
        else:
            made.layers[layer] = counts
    return made


def _opened(path: Path) -> _File:
    with reading(path):
        group: Any = zarr_group(path) if path.is_dir() else h5py.File(path, "r")
        return _File(path, group, read_elem(group["obs"]), read_elem(group["var"]))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in plain words why a file of counts, h5ad or zarr, cannot be read.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not a file, or not a readable h5ad file or zarr store.
    ModuleNotFoundError
        A zarr store, and no package to read it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file() and not is_zarr(path):
        raise ValueError(f"{path}: not a file; give an h5ad file of raw counts, or a zarr store")
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        # What anndata, h5py and zarr raise for a file of another kind depends on the file.
        raise ValueError(
            f"{path}: not a readable h5ad file or zarr store; write one with "
            f"adata.write_h5ad(path) ({type(error).__name__}: {first_line(error)})"
        ) from error


def is_zarr(path: Path) -> bool:
    """Whether a directory is a zarr store, of either version."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def zarr_group(path: Path) -> Any:
    """A zarr store, to be read.

    Raises
    ------
    ModuleNotFoundError
        No package to read it; says how to get it.
    """
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: to read zarr stores, install zarr: pip install 'nbln[zarr]'"
        ) from error
    return zarr.open_group(str(path), mode="r")


def _common_genes(files: list[_File]) -> list[_File]:
    """The files with the numbers of their genes that all have, in the order of the first."""
    for file in files:
        names = AnnData(obs=file.obs, var=file.var)
        try:
            for axis in ("obs", "var"):
                checked_names(names, axis, "fit")
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from None
    first, *others = (file.var.index for file in files)
    kept = first[reduce(np.logical_and, (first.isin(other) for other in others))]
    if not len(kept):
        own = ", ".join(f"{file.path} {visible(str(file.var.index[0]))!r}" for file in files[:2])
        raise ValueError(
            f"the {len(files)} files have no gene in common (the first genes are: {own}); name "
            "genes in the same way in all of them"
        )
    dropped = len(reduce(lambda a, b: a.union(b), others, first)) - len(kept)
    if dropped:
        _log.info("%s of the genes are not in all files and are left out", f"{dropped:,}")
    return [file._replace(genes=file.var.index.get_indexer(kept)) for file in files]


def _tables(files: Sequence[_File]) -> pd.DataFrame:
    """Tables of cells, one below the other: common columns, the file; names that differ."""
    shared = [c for c in files[0].obs if c != FILE and all(c in file.obs for file in files)]
    if any(FILE in file.obs for file in files):
        _log.info("the column %r of obs gives way to the names of files", FILE)
    labels = _labels([file.path for file in files])
    names = [file.obs.index.astype(str) for file in files]
    repeated = names[0].append(names[1:]).has_duplicates
    parts = []
    for file, label, own in zip(files, labels, names, strict=True):
        # Categories of one file are not those of another.
        part = file.obs[shared].astype({c: object for c in shared if _categorical(file, c)})
        part.index = own + f"-{label}" if repeated else own
        parts.append(part.assign(**{FILE: label}))
    table = pd.concat(parts)
    text = {c: "category" for c in shared if all(_categorical(file, c) for file in files)}
    return table.astype({**text, FILE: "category"})


def _categorical(file: _File, column: str) -> bool:
    return isinstance(file.obs[column].dtype, pd.CategoricalDtype)


def _labels(paths: Sequence[Path]) -> list[str]:
    """What files are called: their names without ending, with their folders where these repeat."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]
