"""Formulas over columns of `adata.obs`: ``"~ treatment + percent_mito"`` to covariates of cells.

Formulas are parsed by formulaic; terms are columns and their interactions. Nothing of a formula is
evaluated as Python, since a formula may come from a file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula as Written
from formulaic import StructuredFormula
from formulaic.errors import FormulaicError
from jaxtyping import Float

from nbln.data.design import Categories, Numbers, holds_numbers, part_of
from nbln.text import visible

# C(column), C(column, Treatment("reference")): a column of categories, and which is the reference.
CATEGORIES = re.compile(
    r"""C\(\s*(?P<name>`[^`]+`|\w+)\s*
    (?:,\s*(?:contr\.treatment|Treatment)\(\s*(?:(?:base|reference)\s*=\s*)?
    (?P<quote>['"])(?P<reference>.*?)(?P=quote)\s*\)\s*)?\)""",
    re.VERBOSE,
)
INTERCEPT = "1"
# A covariate whose part beyond the others is smaller than this, relative to itself, is one of them.
COLLINEAR = 1e-6
FEWEST_CELLS = 2  # of a category: the effect of a single cell is that cell's residual


@dataclass(frozen=True)
class Formula:
    """What a fit knows of its covariates.

    Attributes
    ----------
    text
        The formula, with plain names of columns.
    parts
        Its columns: categories, of which the first is the reference, and numbers, standardised.
    """

    text: str
    parts: tuple[Categories | Numbers, ...]

    @classmethod
    def of(cls, text: str, obs: pd.DataFrame) -> "Formula":
        """What these columns hold, checked.

        Raises
        ------
        ValueError
            A constant column, one level, a level of a single cell, or collinear covariates.
        """
        plain, references = _without_references(text)
        parts = tuple(_part(text, obs[column], column, references) for column in columns_of(text))
        formula = cls(plain, parts)
        formula._check_rank(text, obs)
        return formula

    @cached_property
    def _spec(self) -> Any:
        """How formulaic makes columns of it, as it would for cells of all categories."""
        n = max(len(p.levels) if isinstance(p, Categories) else 2 for p in self.parts)
        examples = {
            part.column: pd.Categorical.from_codes(
                np.arange(n) % len(part.levels), categories=list(part.levels)
            )
            if isinstance(part, Categories)
            else np.arange(n, dtype=np.float64)
            for part in self.parts
        }
        return _parse(self.text).get_model_matrix(pd.DataFrame(examples)).model_spec

    @property
    def names(self) -> tuple[str, ...]:
        """Of the covariates: ``treatment[T.drug]``, the category against the reference."""
        return tuple(self._spec.column_names[1:])

    @property
    def units(self) -> Float[np.ndarray, " covariate"]:
        """Standard deviation of the numbers in each covariate, 1 for categories."""
        sd = {part.column: part.sd for part in self.parts if isinstance(part, Numbers)}
        units = np.ones(len(self._spec.column_names))
        for term, places in self._spec.term_indices.items():
            units[places] = np.prod([sd.get(factor.expr, 1.0) for factor in term.factors])
        return units[1:]

    def matrix(self, obs: pd.DataFrame, caller: str) -> Float[np.ndarray, "cell covariate"]:
        """The covariates of any cells.

        Raises
        ------
        ValueError
            A category that no cell of the fit had.
        """
        columns = {
            part.column: pd.Categorical.from_codes(
                part.codes(obs, caller), categories=list(part.levels)
            )
            if isinstance(part, Categories)
            else part.values(obs)
            for part in self.parts
        }
        made = self._spec.get_model_matrix(pd.DataFrame(columns, index=obs.index))
        return np.asarray(made, np.float32)[:, 1:]

    def plain(self) -> dict[str, Any]:
        """As plain values, which a file can hold."""
        return {"text": self.text, "parts": [vars(part) for part in self.parts]}

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> "Formula":
        """The reverse of `plain`."""
        parts = tuple(map(part_of, plain["parts"]))
        assert set(columns_of(plain["text"])) <= {part.column for part in parts}
        return cls(plain["text"], parts)

    def _check_rank(self, text: str, obs: pd.DataFrame) -> None:
        X = np.concatenate([np.ones((len(obs), 1)), self.matrix(obs, "fit")], axis=1)
        X = X / np.maximum(np.linalg.norm(X, axis=0), 1e-30)
        for i, name in enumerate(self.names, start=1):
            others, *_ = np.linalg.lstsq(X[:, :i], X[:, i])
            if np.linalg.norm(X[:, i] - X[:, :i] @ others) < COLLINEAR:
                raise ValueError(
                    f"fit(formula={text!r}): {visible(name)} follows from "
                    f"{', '.join(map(visible, ('the mean', *self.names[: i - 1])))}, so that its "
                    "effect cannot be told; leave it out"
                )


def columns_of(text: Any) -> tuple[str, ...]:
    """The columns of `obs` that a formula names; checks all that can be checked without data.

    Raises
    ------
    TypeError
        Not a string.
    ValueError
        Not a formula, or one of something else than columns and their interactions.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"fit(formula={text!r}): expected a formula over columns of adata.obs such as "
            f"'~ treatment + percent_mito', got {type(text).__name__}"
        )
    plain, _ = _without_references(text)
    try:
        terms = _parse(plain)
    except FormulaicError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ValueError(f"fit(formula={text!r}): not a formula: {visible(reason)}") from None
    if isinstance(terms, StructuredFormula):
        raise ValueError(f"fit(formula={text!r}): counts are what is explained; begin with '~'")
    written = [str(term) for term in terms]
    if INTERCEPT not in written:
        raise ValueError(
            f"fit(formula={text!r}): a model has a mean of each gene, so its formula has no '0 +' "
            "or '- 1'"
        )
    columns = {}
    for term in terms:
        for factor in term.factors:
            method = getattr(factor.eval_method, "value", None)
            if method == "lookup":
                columns[factor.expr] = True
            elif factor.expr != INTERCEPT:
                raise ValueError(
                    f"fit(formula={text!r}): {factor.expr!r} is not a column; terms are columns of "
                    "adata.obs, C(column, Treatment('reference')), and their interactions by ':' "
                    "and '*'. Make a column of anything else first"
                )
    if not columns:
        raise ValueError(f"fit(formula={text!r}): names no column; leave formula= out")
    return tuple(columns)


def _parse(plain: str) -> Any:
    """The terms of a formula; of another kind where it has two sides."""
    kind: Any = Written
    return kind(plain)


def _without_references(text: str) -> tuple[str, dict[str, str | None]]:
    """A formula with plain columns in place of C(...), and the reference of each of those."""
    references = {
        found["name"].strip("`"): found["reference"] for found in CATEGORIES.finditer(text)
    }
    return CATEGORIES.sub(lambda found: found["name"], text), references


def _part(
    text: str, values: pd.Series, column: str, references: Mapping[str, str | None]
) -> Categories | Numbers:
    """What a column holds: numbers, unless it is of another type or written C(column)."""
    shown = f"fit(formula={text!r}): adata.obs[{column!r}]"
    if holds_numbers(values) and column not in references:
        if np.ptp(values.to_numpy(np.float64)) == 0:
            raise ValueError(f"{shown} is {values.iloc[0]} in every cell; leave it out")
        return Numbers.of(values.to_frame(column), column)
    counted = values.astype(str).value_counts()
    levels = sorted(counted.index[counted > 0])
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = [level for level in map(str, values.cat.categories) if level in levels]
    if len(levels) == 1:
        raise ValueError(f"{shown} is {visible(levels[0])!r} in every cell; leave it out")
    for level in levels:
        if counted[level] < FEWEST_CELLS:
            raise ValueError(
                f"{shown} is {visible(level)!r} in a single cell, so that its effect cannot be "
                "told from that cell; leave the cell out, or merge categories"
            )
    reference = references.get(column)
    if reference is not None:
        if reference not in levels:
            known = ", ".join(map(visible, levels[:10]))
            raise ValueError(f"{shown} has no category {reference!r}; it has {known}")
        levels = [reference, *(level for level in levels if level != reference)]
    return Categories(column, tuple(levels))
