"""Groups of the cells of a fit, within which it is checked."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from nbln.data.design import read_columns
from nbln.data.doors import Data
from nbln.text import visible

# With fewer cells the 99 % quantile is their largest count, and a correlation of two genes has a
# standard error above a third: nothing that a model could be held against.
FEWEST_CELLS = 10


class Groups(NamedTuple):
    """Names of groups, and the number of each cell's."""

    names: np.ndarray
    codes: Int[np.ndarray, " cell"]

    @classmethod
    def of(cls, groupby: Any, data: Data, given: Any, call: str) -> "Groups":
        """Groups by a column of ``obs``, or by a value for each cell.

        Parameters
        ----------
        groupby
            The name of a column that the fit knows or that `given` has; or the values, in the order
            of the cells of the fit (a Series is put into it by its index).
        data
            The counts of the fit.
        given
            What the user passed as ``counts=``.
        call
            Name of the function that the user called.

        Raises
        ------
        KeyError
            No such column.
        ValueError
            Not one value for each cell, a missing value, a single group, or a group of few cells.
        """
        if isinstance(groupby, str):
            shown = f"{call}(groupby={groupby!r})"
            values = _column(groupby, data, given, call)
        else:
            shown = f"{call}(groupby=)"
            values = _values(groupby, data, shown)
        names, codes = np.unique(values.astype(str).to_numpy(str), return_inverse=True)
        if len(names) == 1:
            raise ValueError(
                f"{shown}: all cells are in one group, {visible(names[0])!r}; leave groupby out"
            )
        sizes = np.bincount(codes)
        if sizes.min() < FEWEST_CELLS:
            small = int(np.argmin(sizes))
            raise ValueError(
                f"{shown}: group {visible(names[small])!r} has {sizes[small]} "
                f"cell{'s' if sizes[small] > 1 else ''}, and each of the {len(names)} groups needs "
                f"{FEWEST_CELLS} at least; give an array in which small groups are joined"
            )
        return cls(names, codes)


def _column(column: str, data: Data, given: Any, call: str) -> pd.Series:
    obs: Any = getattr(data, "obs", pd.DataFrame())
    if column in obs:
        return obs[column]
    if given is None or isinstance(given, Data):
        known = ", ".join(map(visible, obs.columns))
        raise KeyError(
            f"{call}(groupby={column!r}): the fit was not told of this column"
            + (f", only of {known}" if known else "")
            + f"; pass the AnnData that has it, counts=adata, or groupby=adata.obs[{column!r}]"
        )
    read: Any = read_columns(given, [column], call)
    return read[column]


def _values(groupby: Any, data: Data, shown: str) -> pd.Series:
    """One value for each cell, in the order of the fit."""
    if isinstance(groupby, pd.Series) and set(data.cell_names) <= set(groupby.index):
        groupby = groupby.loc[data.cell_names]
    values = np.asarray(groupby)
    if values.shape != (data.n_cells,):
        raise ValueError(
            f"{shown}: expected the name of a column of adata.obs, or one value for each of the "
            f"{data.n_cells:,} cells; got {type(groupby).__name__} of shape {values.shape}"
        )
    missing = np.asarray(pd.isna(values))
    if missing.any():
        raise ValueError(
            f"{shown}: {int(missing.sum())} cells have no value; give them one, such as 'other'"
        )
    return pd.Series(values)
