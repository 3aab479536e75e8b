"""What names of cells and genes may be: strings that are told apart, shown and saved."""

from typing import Any

import numpy as np
import pandas as pd

from nbln.text import visible

# Characters. Arrays of names take four bytes for each of the longest, so that a single name of
# 100,000 characters would cost gigabytes.
LONGEST = 1_000


def checked_names(adata: Any, axis: str, caller: str) -> np.ndarray:
    """Names of the cells (axis ``"obs"``) or genes (``"var"``) as an array of strings.

    Raises
    ------
    ValueError
        Names of several levels, a missing name, a name twice, one that no file can hold, or one
        that is too long.
    """
    names = getattr(adata, f"{axis}_names")
    shown, what = f"adata.{axis}_names", {"obs": "cell", "var": "gene"}[axis]
    if isinstance(names, pd.MultiIndex):
        raise ValueError(
            f"{caller}(adata): {shown} has {names.nlevels} levels; make each name one string, for "
            f'instance by {shown} = ["_".join(map(str, name)) for name in {shown}]'
        )
    missing = names.isna()
    if missing.any():
        raise ValueError(
            f"{caller}(adata): {what} name number {int(missing.argmax())} of {shown} is missing, "
            f"one of {int(missing.sum()):,}; give each {what} a name"
        )
    names = names.astype(str)
    repeated = names.duplicated()
    if repeated.any():
        name = visible(names[repeated.argmax()])
        raise ValueError(
            f'{caller}(adata): {what} name "{name}" occurs more than once '
            f"in {shown}; make them unique with adata.{axis}_names_make_unique()"
        )
    for position, name in enumerate(names):
        fault = _fault(name)
        if fault:
            raise ValueError(
                f"{caller}(adata): {what} name {name[:40]!a} (number {position} of {shown}) "
                f"{fault}; rename it"
            )
    return names.to_numpy(dtype=str)


def _fault(name: str) -> str | None:
    if len(name) > LONGEST:
        return f"has {len(name):,} characters, of which the first are shown; {LONGEST:,} are taken"
    if "\0" in name:
        return "has a character NUL, which no file can hold"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not Unicode (half of a surrogate pair), so that no file can hold it"
    return None
