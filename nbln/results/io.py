"""Results on disk: one NetCDF file (HDF5), no pickled objects.

A file is a tree of groups of named arrays. The root says what it is: ``format``, ``format_version``
and ``kind``; every group has its plain values as JSON in the attribute ``values``.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.arguments import check_folder
from nbln.data.fitted import Fitted
from nbln.results import version2

FORMAT, VERSION = "nbln", 3
ENGINE = "h5netcdf"
Groups = dict[str, xr.Dataset]


def group(
    variables: dict[str, tuple[tuple[str, ...], Any]], values: dict[str, Any] | None = None
) -> xr.Dataset:
    """A group of arrays given as (dims, values), with plain values beside them."""
    kept = {name: (dims, np.asarray(x)) for name, (dims, x) in variables.items() if x is not None}
    return xr.Dataset(kept, attrs={"values": json.dumps(values or {})})


def values(dataset: xr.Dataset) -> dict[str, Any]:
    """The plain values of a group."""
    return json.loads(dataset.attrs["values"])


def arrays(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """The arrays of a group."""
    return {str(name): dataset[name].values for name in dataset}


def of_fitted(fitted: Fitted) -> xr.Dataset:
    """The group that says which data were fitted, and how."""
    plain = {
        "fingerprint": fitted.fingerprint,
        "has_other": fitted.has_other,
        "layer": fitted.layer,
        "gene_coverage": fitted.gene_coverage,
        "settings": fitted.settings,
        "seconds": fitted.seconds,
    }
    labels = {
        "cell_names": ((names.CELL,), fitted.cell_names.astype(object)),
        "gene_names": ((names.GENE,), fitted.gene_names.astype(object)),
        "library_size": ((names.CELL,), fitted.library_size),
    }
    return group(labels, plain)


def to_fitted(dataset: xr.Dataset) -> Fitted:
    """The reverse of `of_fitted`; the counts are not in the file."""
    plain = values(dataset)
    return Fitted(
        dataset["cell_names"].values.astype(str),
        dataset["gene_names"].values.astype(str),
        dataset["library_size"].values,
        plain["fingerprint"],
        plain["has_other"],
        plain["layer"],
        plain["gene_coverage"],
        plain["settings"],
        plain["seconds"],
    )


def nest(groups: Groups, under: str) -> Groups:
    """The groups of a result inside another."""
    return {f"{under}/{name}": dataset for name, dataset in groups.items()}


def nested(groups: Groups, under: str) -> Groups:
    """The groups of the result that `nest` put under a name; empty where there is none."""
    start = f"{under}/"
    return {n.removeprefix(start): d for n, d in groups.items() if n.startswith(start)}


def write(path: str | os.PathLike, kind: str, groups: Groups) -> None:
    """Write the groups of a result of this kind; the file appears whole or not at all."""
    path = Path(path)
    check_folder(f"save({str(path)!r})", path)
    root = xr.Dataset(attrs={"format": FORMAT, "format_version": VERSION, "kind": kind})
    tree = xr.DataTree.from_dict({"/": root} | {f"/{n}": d for n, d in groups.items()})
    partial = path.with_name(path.name + ".partial")
    try:
        tree.to_netcdf(partial, engine=ENGINE)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> tuple[str, Groups]:
    """Kind and groups of a saved result.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is cut short or no NetCDF, not a result of nbln, or of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"load({str(path)!r}): no such file")
    try:
        with xr.open_datatree(path, engine=ENGINE) as tree:
            root = dict(tree.attrs)
            groups = {
                node.path.strip("/"): node.to_dataset().load()
                for node in tree.subtree
                if "values" in node.attrs
            }
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"load({str(path)!r}): not a readable NetCDF file; it may be cut short or of another "
            f"format ({error})"
        ) from error
    if root.get("format") != FORMAT:
        raise ValueError(
            f"load({str(path)!r}): a NetCDF file, but not a result that nbln saved; expected one "
            "written by result.save(path)"
        )
    kind, version = str(root.get("kind")), root.get("format_version")
    if version == version2.VERSION:
        return kind, version2.upgrade(kind, groups)
    if version != VERSION:
        raise ValueError(
            f"load({str(path)!r}): saved in format version {version}; this nbln reads versions "
            f"{version2.VERSION} and {VERSION}. Use the nbln that wrote it, or fit again"
        )
    return kind, groups
