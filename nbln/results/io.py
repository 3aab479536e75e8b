"""Results on disk: one NetCDF file (HDF5), no pickled objects.

A file is a tree of groups of named arrays. The root says what it is: ``format``, ``format_version``
and ``kind``, and the ``digest`` of the file; every group has its plain values as JSON in the
attribute ``values``. Version 4 is version 3 with a digest.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nbln import atomic
from nbln import vocabulary as names
from nbln.arguments import check_folder
from nbln.data.doors import COUNTS
from nbln.data.fitted import Fitted
from nbln.results import digest, rules, version2

FORMAT, VERSION, WITHOUT_DIGEST = "nbln", 4, 3
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
        "columns": list(fitted.columns),
        "by_name": fitted.by_name,
        "door": fitted.door,
    }
    labels = {
        "cell_names": ((names.CELL,), fitted.cell_names.astype(object)),
        "gene_names": ((names.GENE,), fitted.gene_names.astype(object)),
    }
    if fitted.library_size is not None:
        labels["library_size"] = ((names.CELL,), fitted.library_size)
    return group(labels, plain)


def to_fitted(dataset: xr.Dataset) -> Fitted:
    """The reverse of `of_fitted`; the counts are not in the file."""
    plain = values(dataset)
    return Fitted(
        dataset["cell_names"].values.astype(str),
        dataset["gene_names"].values.astype(str),
        dataset["library_size"].values if "library_size" in dataset else None,
        plain["fingerprint"],
        plain["has_other"],
        plain["layer"],
        plain["gene_coverage"],
        plain["settings"],
        plain["seconds"],
        tuple(plain.get("columns", ())),
        plain.get("by_name", False),
        plain.get("door", COUNTS),
    )


def nest(groups: Groups, under: str) -> Groups:
    """The groups of a result inside another."""
    return {f"{under}/{name}": dataset for name, dataset in groups.items()}


def nested(groups: Groups, under: str) -> Groups:
    """The groups of the result that `nest` put under a name; empty where there is none."""
    start = f"{under}/"
    return {n.removeprefix(start): d for n, d in groups.items() if n.startswith(start)}


def write(path: str | os.PathLike, kind: str, groups: Groups) -> None:
    """Write the groups of a result of this kind; the file appears whole or not at all.

    HDF5 works in memory, where it cannot meet a full disk, which it does not survive.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    OSError
        The file cannot be written; an old one is as it was.
    """
    call = f"save({str(path)!r})"
    check_folder(call, Path(path))
    blank = digest.blank()
    attributes = {"format": FORMAT, "format_version": VERSION, "kind": kind, "digest": blank}
    root = xr.Dataset(attrs=attributes)
    tree = xr.DataTree.from_dict({"/": root} | {f"/{n}": d for n, d in groups.items()})
    content = bytearray(tree.to_netcdf(engine=ENGINE))
    digest.fill(content, blank)
    try:
        atomic.write(path, memoryview(content))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{call}: {error.strerror or error}; nothing was changed on the disk. The result is "
            "still in memory: make room or choose another folder, and save it again",
        ) from error


def read(path: str | os.PathLike) -> tuple[str, Groups]:
    """Kind and groups of a saved result.

    Raises
    ------
    FileNotFoundError
        No such file.
    OSError
        The file cannot be read.
    ValueError
        The file is damaged, cut short or no NetCDF, not a result of nbln, of a newer format, or
        holds what no result can.
    """
    path = Path(path)
    call = f"load({str(path)!r})"
    if not path.exists():
        raise FileNotFoundError(f"{call}: no such file")
    # What is checked is what is read: the file may change on the disk in between.
    content = path.read_bytes()
    intact = digest.intact(content)
    root, groups = ({}, {}) if intact is False else _parse(call, content)
    # Text, since a file of another origin may have anything there.
    version = str(root.get("format_version"))
    if intact is False or (intact is None and _ours(root) and version == str(VERSION)):
        raise ValueError(
            f"{call}: the file is damaged: its contents do not match the digest it was saved with; "
            "it was cut short or changed. Fit again or restore a copy"
        )
    if not _ours(root):
        raise ValueError(
            f"{call}: a NetCDF file, but not a result that nbln saved; expected one "
            "written by result.save(path)"
        )
    readable = (version2.VERSION, WITHOUT_DIGEST, VERSION)
    if version not in map(str, readable):
        raise ValueError(
            f"{call}: saved in format version {version}; this nbln reads versions "
            f"{', '.join(map(str, readable))}. Use the nbln that wrote it, or fit again"
        )
    kind = str(root.get("kind"))
    with refusing(call):
        if version == str(version2.VERSION):
            groups = version2.upgrade(kind, groups)
        rules.check(groups)
    return kind, groups


@contextmanager
def refusing(call: str) -> Iterator[None]:
    """Turn whatever goes wrong with the groups of a file into one error that names the file.

    Raises
    ------
    ValueError
        Something went wrong.
    """
    try:
        yield
    except Exception as error:  # a file written by hand may break any assumption
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{call}: not a result that can be used: {reason}") from error


def _ours(root: dict[str, Any]) -> bool:
    return str(root.get("format")) == FORMAT


def _parse(call: str, content: bytes) -> tuple[dict[str, Any], Groups]:
    """Attributes of the root, and the groups."""
    try:
        with xr.open_datatree(BytesIO(content), engine=ENGINE) as tree:
            groups = {
                node.path.strip("/"): node.to_dataset().load()
                for node in tree.subtree
                if "values" in node.attrs
            }
            return {str(name): x for name, x in tree.attrs.items()}, groups
    except Exception as error:  # HDF5 and its readers raise almost anything on a damaged file
        raise ValueError(
            f"{call}: not a readable NetCDF file; it may be cut short or of another "
            f"format ({error})"
        ) from error
