"""A fit of each group of cells: which groups, where their results go, and how they compare."""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

import nbln
from nbln.data.design import read_columns
from nbln.text import visible

GROUPS, COMPARED = "groups.csv", "compared_correlations.csv"
# A fit takes minutes: a column of so many values is more likely a measure than a grouping.
MOST_GROUPS = 50
LONGEST = 60  # characters of a directory's name, well within what file systems take
# Names that Windows keeps for devices, where results may be copied to.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Part(NamedTuple):
    """The cells of a group, and the directory of its results."""

    name: str
    folder: Path
    cells: Bool[np.ndarray, " cell"]


class Outcome(NamedTuple):
    """What became of a group; a row of the table of groups."""

    group: str
    directory: str
    cells: int
    genes: int = 0
    programs: int = 0
    converged: str = ""
    error: str = ""

    @classmethod
    def of(cls, part: Part, result, error: str) -> "Outcome":
        """Of the group's fit, which is None where there is none."""
        known = part.name, part.folder.name, int(part.cells.sum())
        if result is None:
            return cls(*known, error=error)
        programs = result.w_prior_diagnostics["effective_rank"] if result.has_programs else 0
        converged = "yes" if getattr(result, "converged", True) else "no"
        genes = int(result.fitted.real_genes.sum())
        return cls(*known, genes, int(programs), converged, error)


def parts(adata, column: str, out: Path) -> list[Part]:
    """The groups of a column of ``adata.obs``, in the order of their names.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        A cell without a value, a single group, or more than `MOST_GROUPS`.
    """
    values = read_columns(adata, [column], "fit")[column].astype(str).to_numpy(str)
    groups = sorted(set(values.tolist()))
    if len(groups) == 1:
        raise ValueError(
            f"--split-by {visible(column)}: is {visible(groups[0])!r} in every cell; leave it out"
        )
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f"--split-by {visible(column)}: has {len(groups):,} values, and each would have a fit; "
            f"name a column of {MOST_GROUPS} groups at most"
        )
    folders = safe_names(groups, taken=(GROUPS, COMPARED))
    return [
        Part(group, out / folder, values == group)
        for group, folder in zip(groups, folders, strict=True)
    ]


def safe_names(groups: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names of directories, one for each group, that no file system or shell minds.

    Letters of English, digits, ``-``, ``_`` and dots within stay; all else becomes ``_``. Names
    that would then be the same, in capital letters or not, are numbered.
    """
    used, names = {name.lower() for name in taken}, []
    for group in groups:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", group)[:LONGEST].strip("._-") or "group"
        if DEVICES.fullmatch(plain):
            plain = f"{plain}_"
        numbered = (f"{plain}_{i}" for i in itertools.count(2))
        name = next(x for x in itertools.chain([plain], numbered) if x.lower() not in used)
        used.add(name.lower())
        names.append(name)
    return names


def compared(draws: Mapping[str, Path], fdr: float) -> pd.DataFrame:
    """`nbln.compare_correlations` of each pair of groups, one below the other.

    Parameters
    ----------
    draws
        Files of draws, by group; two are read at a time.
    fdr
        Share of wrong calls that is accepted, of each pair of groups.
    """
    tables = []
    for first, second in itertools.combinations(draws, 2):
        table = nbln.compare_correlations(*map(nbln.load, (draws[first], draws[second])), fdr=fdr)
        table.insert(0, "first", first)
        table.insert(1, "second", second)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
