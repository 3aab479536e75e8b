"""Columns of `adata.obs` that a model is told of: batches, labels, covariates.

A `Design` is what a fit makes of them, so that new cells are read as its own were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from nbln.arguments import hint
from nbln.text import visible

CROSSED = ":"  # joins columns whose levels together are categories
BETWEEN = " / "  # joins those levels


@dataclass(frozen=True)
class Categories:
    """A column of categories, in the order of the fit."""

    column: str
    levels: tuple[str, ...]

    @classmethod
    def of(cls, obs: pd.DataFrame, column: str) -> "Categories":
        """The categories that cells have; of columns joined by colons, those of both together."""
        return cls(column, tuple(sorted(set(texts(obs, column)))))

    @property
    def width(self) -> int:
        """Columns of the design."""
        return len(self.levels)

    def extended(self, obs: pd.DataFrame) -> "Categories":
        """The same with the categories that only these cells have after its own."""
        further = set(obs[self.column].astype(str)) - set(self.levels)
        return Categories(self.column, (*self.levels, *sorted(further)))

    def codes(self, obs: pd.DataFrame, caller: str) -> Int[np.ndarray, " cell"]:
        """(cell,) number of each cell's category.

        Raises
        ------
        ValueError
            A category that no cell of the fit had.
        """
        values = obs[self.column].astype(str)
        codes = pd.Index(self.levels).get_indexer(pd.Index(values))
        if (codes < 0).any():
            new = values.iloc[int(np.argmax(codes < 0))]
            shown = ", ".join(map(visible, self.levels[:10]))
            raise ValueError(
                f"{caller}(adata): adata.obs[{self.column!r}] has {visible(new)!r}, which no cell "
                f"of the fit had; it knew {shown}{', ...' if len(self.levels) > 10 else ''}"
                f"{hint(new, self.levels, quoted=True)}"
            )
        return codes.astype(np.int32)


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, standardised by the cells of the fit."""

    column: str
    mean: float
    sd: float

    @classmethod
    def of(cls, obs: pd.DataFrame, column: str) -> "Numbers":
        """By mean and standard deviation; a constant column is only centred."""
        values = obs[column].to_numpy(np.float64)
        if np.ptp(values) == 0:  # whose standard deviation is rounding
            return cls(column, float(values[0]), 1.0)
        return cls(column, float(values.mean()), float(values.std()))

    @property
    def width(self) -> int:
        """Columns of the design."""
        return 1

    def extended(self, obs: pd.DataFrame) -> "Numbers":
        """The same: numbers are standardised as those of the fit."""
        del obs
        return self

    def values(self, obs: pd.DataFrame) -> Float[np.ndarray, " cell"]:
        """(cell,) standardised values."""
        values = (obs[self.column].to_numpy(np.float64) - self.mean) / self.sd
        return values.astype(np.float32)


@dataclass(frozen=True)
class Design:
    """What a fit knows of columns of `obs`.

    Attributes
    ----------
    batch, label
        Categories that have names of their own; None where there are none.
    covariates
        Further columns.
    """

    batch: Categories | None
    label: Categories | None
    covariates: tuple[Categories | Numbers, ...]

    @classmethod
    def of(
        cls, obs: pd.DataFrame, batch: str | None, label: str | None, covariates: Sequence[str]
    ) -> "Design":
        """What these columns hold."""

        def further(column: str) -> Categories | Numbers:
            kind = Numbers if holds_numbers(obs[column]) else Categories
            return kind.of(obs, column)

        first, second = (None if c is None else Categories.of(obs, c) for c in (batch, label))
        return cls(first, second, tuple(further(column) for column in covariates))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in `obs`."""
        parts = (self.batch, self.label, *self.covariates)
        return tuple(dict.fromkeys(part.column for part in parts if part is not None))

    @property
    def has_categories(self) -> bool:
        """Whether new cells can have a value that no cell of the fit had."""
        parts = (self.batch, self.label, *self.covariates)
        return any(isinstance(part, Categories) for part in parts)

    @property
    def n_batches(self) -> int:
        """Number of batches; 1 without any."""
        return 1 if self.batch is None else len(self.batch.levels)

    @property
    def n_labels(self) -> int:
        """Number of labels; 1 without any."""
        return 1 if self.label is None else len(self.label.levels)

    def batch_codes(self, obs: pd.DataFrame, caller: str) -> Int[np.ndarray, " cell"]:
        """(cell,) number of each cell's batch; 0 without batches."""
        return _codes(self.batch, obs, caller)

    def label_codes(self, obs: pd.DataFrame, caller: str) -> Int[np.ndarray, " cell"]:
        """(cell,) number of each cell's label; 0 without labels."""
        return _codes(self.label, obs, caller)

    def matrix(self, obs: pd.DataFrame, caller: str) -> Float[np.ndarray, "cell column"]:
        """Batches and covariates: 0 or 1 for each category, standardised numbers."""
        parts = [np.zeros((len(obs), 0), np.float32)]
        for part in (self.batch, *self.covariates):
            if isinstance(part, Categories):
                one_hot = np.eye(len(part.levels), dtype=np.float32)
                parts.append(one_hot[part.codes(obs, caller)])
            elif part is not None:
                parts.append(part.values(obs)[:, None])
        return np.concatenate(parts, axis=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of `matrix` for the batch, if there is one, and for each covariate."""
        parts = (self.batch, *self.covariates)
        return tuple(part.width for part in parts if part is not None)

    def extended(self, obs: pd.DataFrame) -> "Design":
        """The design with the categories that only these cells have, each after its column's."""
        batch, label = (p and p.extended(obs) for p in (self.batch, self.label))
        return Design(batch, label, tuple(part.extended(obs) for part in self.covariates))

    def plain(self) -> dict[str, Any]:
        """As plain values, which a file can hold."""

        def of(part):
            return None if part is None else vars(part)

        return {
            "batch": of(self.batch),
            "label": of(self.label),
            "covariates": [of(part) for part in self.covariates],
        }

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> "Design":
        """The reverse of `plain`."""

        batch, label = (values and part_of(values) for values in (plain["batch"], plain["label"]))
        return cls(batch, label, tuple(map(part_of, plain["covariates"])))


def holds_numbers(values: pd.Series) -> bool:
    """Whether a column holds numbers: truth values are categories."""
    dtypes = pd.api.types
    return dtypes.is_numeric_dtype(values) and not dtypes.is_bool_dtype(values)


def texts(obs: pd.DataFrame, column: str) -> pd.Series:
    """The category of each cell; of columns joined by colons, their levels together."""
    if column in obs:
        return pd.Series(obs[column]).astype(str)
    first, *others = (pd.Series(obs[one]).astype(str) for one in column.split(CROSSED))
    return reduce(lambda joined, further: joined + BETWEEN + further, others, first)


def part_of(plain: Mapping[str, Any]) -> Any:
    """Categories or numbers from the plain values that a file has for them."""
    if "levels" in plain:
        return Categories(plain["column"], tuple(plain["levels"]))
    return Numbers(**plain)


def _codes(part: Categories | None, obs: pd.DataFrame, caller: str) -> Int[np.ndarray, " cell"]:
    return np.zeros(len(obs), np.int32) if part is None else part.codes(obs, caller)


def column_name(argument: str, value: Any) -> str | None:
    """The name of a column of `obs`, or None.

    Raises
    ------
    TypeError
        Not a string.
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(
            f"fit({argument}={value!r}): expected the name of a column of adata.obs, got "
            f"{type(value).__name__}"
        )
    return value


def column_names(argument: str, value: Any) -> tuple[str, ...]:
    """Names of columns of `obs`; none for None.

    Raises
    ------
    TypeError
        Not a list of strings.
    ValueError
        A name that is given twice.
    """
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            f"fit({argument}={value!r}): expected a list of names of columns of adata.obs, as in "
            f"{argument}=['donor']"
        )
    listed = tuple(column_name(argument, one) for one in value)
    if None in listed:
        raise TypeError(f"fit({argument}={list(value)!r}): each is the name of a column")
    for one in listed:
        if listed.count(one) > 1:
            raise ValueError(f"fit({argument}={list(value)!r}): {one!r} is given twice")
    return tuple(one for one in listed if one is not None)


def read_columns(adata: Any, columns: Sequence[str], caller: str) -> pd.DataFrame:
    """Columns of `adata.obs`, checked and copied.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        A cell without a value.
    """
    for column in columns:
        if column not in adata.obs.columns:
            known = list(map(str, adata.obs.columns))
            shown = ", ".join(map(visible, known[:20])) or "none"
            raise KeyError(
                f"{caller}(adata): adata.obs has no column {column!r}"
                f"{hint(column, known, quoted=True)}; it has {shown}"
            )
        values = adata.obs[column]
        missing = values.isna().to_numpy()
        if pd.api.types.is_numeric_dtype(values) and not missing.any():
            missing = ~np.isfinite(values.to_numpy(np.float64))
        if missing.any():
            cell = visible(adata.obs_names[int(np.argmax(missing))])
            raise ValueError(
                f"{caller}(adata): adata.obs[{column!r}] has no value in {int(missing.sum())} "
                f'cells, the first "{cell}"; fill it in, or leave these cells out'
            )
    return adata.obs[list(columns)].copy()
