"""Data sets within an AnnData, by columns of `adata.obs`: conditions, donors, technologies.

Cells that agree in all columns are a data set. Each column is a term by which data sets differ, and
so is their combination where no column tells all of them apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from nbln.arguments import choose_from, hint
from nbln.data.design import BETWEEN, CROSSED, Categories, part_of, texts
from nbln.text import visible

# A data set has scales of all programs: with more than these, effects of donors say the same.
MOST_DATASETS = 50
# Of a data set: the spread of a factor over fewer cells is not known to a quarter of itself.
FEWEST_CELLS = 10


@dataclass(frozen=True)
class Datasets:
    """Which data sets a fit had.

    Attributes
    ----------
    keys
        The columns, with their levels.
    members
        Of each data set, the level in each column.
    """

    keys: tuple[Categories, ...]
    members: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, obs: pd.DataFrame, columns: Sequence[str]) -> "Datasets":
        """The data sets that cells are in, checked.

        Raises
        ------
        ValueError
            One data set, more than `MOST_DATASETS`, or one of fewer than `FEWEST_CELLS` cells; a
            column with one level.
        """
        keys = tuple(Categories.of(obs, column) for column in columns)
        shown = f"fit(dataset_key={list(columns)!r})"
        for key in keys:
            if len(key.levels) == 1:
                raise ValueError(
                    f"{shown}: adata.obs[{key.column!r}] is {visible(key.levels[0])!r} in every "
                    "cell; leave it out"
                )
        counted = obs[list(columns)].astype(str).value_counts()
        members = sorted(tuple(map(str, index)) for index in counted.index)
        if len(members) > MOST_DATASETS:
            raise ValueError(
                f"{shown}: {len(members)} data sets; there can be {MOST_DATASETS}. For many donors "
                "give the condition alone here, and donors in random="
            )
        if counted.min() < FEWEST_CELLS:
            small = BETWEEN.join(map(str, counted.index[-1]))
            raise ValueError(
                f"{shown}: {visible(small)!r} has {counted.min()} cells; a data set needs "
                f"{FEWEST_CELLS}. Leave these cells out, or merge data sets"
            )
        return cls(keys, tuple(members))

    def __len__(self):
        return len(self.members)

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names in `obs`."""
        return tuple(key.column for key in self.keys)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the data sets: levels, with a slash between them."""
        return tuple(BETWEEN.join(levels) for levels in self.members)

    @property
    def terms(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Terms by which data sets differ, each with its levels."""
        own = tuple((key.column, key.levels) for key in self.keys)
        if any(len(levels) == len(self) for _, levels in own):
            return own
        return (*own, (CROSSED.join(self.columns), self.names))

    @property
    def levels(self) -> Float[np.ndarray, "dataset level"]:
        """1 where a data set has the level of a term, terms after one another."""
        rows = [(*levels, name) for levels, name in zip(self.members, self.names, strict=True)]
        parts = [
            np.array([[row[i] == level for level in levels] for row in rows])
            for i, (_, levels) in enumerate(self.terms)
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    @property
    def centred(self) -> Float[np.ndarray, "dataset level"]:
        """What log-activities of the data sets are of effects of levels: less their mean."""
        return self.levels - self.levels.mean(axis=0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of levels of each term."""
        return tuple(len(levels) for _, levels in self.terms)

    def codes(self, obs: pd.DataFrame, caller: str) -> Int[np.ndarray, " cell"]:
        """(cell,) number of each cell's data set.

        Raises
        ------
        ValueError
            Cells of a data set that the fit did not have.
        """
        found = texts(obs[list(self.columns)], CROSSED.join(self.columns))
        codes = pd.Index(self.names).get_indexer(pd.Index(found))
        if (codes < 0).any():
            new = found.iloc[int(np.argmax(codes < 0))]
            raise ValueError(
                f"{caller}(adata): a cell is of {visible(new)!r} ({', '.join(self.columns)}), a "
                f"data set that the fit did not have{hint(new, self.names, quoted=True)}"
            )
        return codes.astype(np.int32)

    def indicators(self, obs: pd.DataFrame, caller: str) -> Float[np.ndarray, "cell dataset"]:
        """1 in the column of a cell's data set."""
        return np.eye(len(self), dtype=np.float32)[self.codes(obs, caller)]

    def weights(self, name: Any, call: str) -> Float[np.ndarray, " level"]:
        """What log-activities of a data set, or at a level of a column, are of effects of levels.

        Parameters
        ----------
        name
            A data set, or a level that one column alone has.
        call
            How the user asked, for messages.

        Raises
        ------
        ValueError
            Neither; the message lists both.
        """
        text = name if isinstance(name, str) else str(name)
        if text in self.names:
            return self.centred[self.names.index(text)]
        columns = [key.column for key in self.keys if text in key.levels]
        if len(columns) == 1:
            return self.contrast(call, columns[0], text)
        known = [*(level for key in self.keys for level in key.levels), *self.names]
        choose_from(list(dict.fromkeys(known)), text, call, "data set or level")
        raise ValueError(f"{call}: {', '.join(columns)} have this level; name a data set")

    def contrast(self, call: str, column: str, level: Any) -> Float[np.ndarray, " level"]:
        """What log-activities at a level of a column are of the effects of all levels.

        All other terms are at 0; activities are relative to their mean over data sets.
        """
        names = [name for name, _ in self.terms]
        term = names.index(choose_from(names, column, f"{call}(column={column!r})", "column"))
        levels = list(self.terms[term][1])
        text = level if isinstance(level, str) else str(level)
        choose_from(levels, text, f"{call}({column!r}, {level!r})", f"level of {column}")
        weight = np.zeros(sum(self.sizes))
        begin = sum(self.sizes[:term])
        weight[begin + levels.index(text)] = 1
        inside = slice(begin, begin + len(levels))
        weight[inside] -= self.levels[:, inside].mean(axis=0)
        return weight

    def plain(self) -> dict[str, Any]:
        """As plain values, which a file can hold."""
        return {
            "keys": [vars(key) for key in self.keys],
            "members": [list(levels) for levels in self.members],
        }

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> "Datasets":
        """The reverse of `plain`."""
        keys: Any = tuple(map(part_of, plain["keys"]))
        return cls(keys, tuple(map(tuple, plain["members"])))
