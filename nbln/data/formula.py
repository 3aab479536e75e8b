"""Formulas over columns of `adata.obs`: ``"~ treatment + percent_mito"`` to covariates of cells.

Columns of random intercepts, donors say, are beside the formula: each level is a covariate.
Formulas are parsed by formulaic; terms are columns and their interactions. Nothing of a formula is
evaluated as Python, since a formula may come from a file.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula as Written
from formulaic import StructuredFormula
from formulaic.errors import FormulaicError
from jaxtyping import Float

from nbln.arguments import choose, choose_from
from nbln.data.design import Categories, Numbers, holds_numbers, part_of, texts
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
# Levels of random intercepts together. Every gene has a regression on all of them: with more,
# its products take gigabytes.
MOST_LEVELS = 200
MEAN_ALONE = "~ 1"


@dataclass(frozen=True)
class Formula:
    """What a fit knows of its covariates.

    Attributes
    ----------
    text
        The formula, with plain names of columns.
    parts
        Its columns: categories, of which the first is the reference, and numbers, standardised.
    random
        Columns of random intercepts.
    """

    text: str
    parts: tuple[Categories | Numbers, ...]
    random: tuple[Categories, ...] = ()

    @classmethod
    def of(cls, text: str | None, obs: pd.DataFrame, random: Sequence[str] = ()) -> "Formula":
        """What these columns hold, checked.

        Raises
        ------
        ValueError
            A constant column, one level, a level of a single cell, or collinear covariates; a
            random intercept of one level or of one for each cell.
        """
        if text is None:
            return cls(MEAN_ALONE, (), _random(obs, random))
        plain, references = _without_references(text)
        parts = tuple(_part(text, obs[column], column, references) for column in columns_of(text))
        formula = cls(plain, parts, _random(obs, random))
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
    def fixed(self) -> tuple[str, ...]:
        """Names of fixed covariates: ``treatment[T.drug]``, the category against the reference."""
        return tuple(self._spec.column_names[1:]) if self.parts else ()

    @property
    def n_levels(self) -> tuple[int, ...]:
        """Of each random intercept."""
        return tuple(len(part.levels) for part in self.random)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all covariates, fixed ones first: ``donor[d1]`` is a level of a random intercept."""
        random = (f"{part.column}[{level}]" for part in self.random for level in part.levels)
        return (*self.fixed, *random)

    @property
    def words(self) -> tuple[str, ...]:
        """The formula, then each column in a few words, with what it is compared with."""
        return (
            self.text,
            *(
                f"{part.column}: {len(part.levels)} categories, compared with {part.levels[0]}"
                if isinstance(part, Categories)
                else f"{part.column}: a number, mean {part.mean:.3g}, standard deviation "
                f"{part.sd:.3g}"
                for part in self.parts
            ),
            *(f"{part.column}: random, {len(part.levels)} levels" for part in self.random),
        )

    @property
    def comparisons(self) -> tuple[tuple[str, Any, Any], ...]:
        """Column, group and reference: each further category, a number one deviation higher."""
        return tuple(
            (part.column, group, _base_of(part))
            for part in self.parts
            for group in (
                part.levels[1:] if isinstance(part, Categories) else [part.mean + part.sd]
            )
        )

    @property
    def units(self) -> Float[np.ndarray, " fixed"]:
        """Standard deviation of the numbers in each fixed covariate, 1 for categories."""
        if not self.parts:
            return np.ones(0)
        sd = {part.column: part.sd for part in self.parts if isinstance(part, Numbers)}
        units = np.ones(len(self._spec.column_names))
        for term, places in self._spec.term_indices.items():
            units[places] = np.prod([sd.get(factor.expr, 1.0) for factor in term.factors])
        return units[1:]

    def matrix(self, obs: pd.DataFrame, caller: str) -> Float[np.ndarray, "cell covariate"]:
        """The covariates of any cells; a level that no cell of the fit had has no effect.

        Raises
        ------
        ValueError
            A category that no cell of the fit had, of a fixed covariate.
        """
        levels = [_indicators(part, obs) for part in self.random]
        return np.concatenate([self._fixed_matrix(obs, caller), *levels], axis=1)

    def _fixed_matrix(self, obs: pd.DataFrame, caller: str) -> Float[np.ndarray, "cell fixed"]:
        if not self.parts:
            return np.zeros((len(obs), 0), np.float32)
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

    @property
    def _by_column(self) -> dict[str, Categories | Numbers]:
        return {part.column: part for part in (*self.parts, *self.random)}

    def matrix_at(
        self, obs: pd.DataFrame, values: Mapping[str, Any]
    ) -> Float[np.ndarray, "cell covariate"]:
        """The covariates that cells would have with these values of some columns."""
        parts = self._by_column
        for column, value in values.items():
            given = f"get_denoised(at={{{column!r}: {value!r}}})"
            _check_value(given, parts[choose_from(list(parts), column, given, "column")], value)
        return self.matrix(obs.assign(**dict(values)), "get_denoised")

    def contrast(self, column: str, group: Any, reference: Any) -> Float[np.ndarray, " covariate"]:
        """Covariates of a cell in `group` less those of one in `reference`.

        All other columns are the same, categories the reference of the fit, numbers their mean.

        Parameters
        ----------
        column
            Of the formula, or of a random intercept.
        group, reference
            Two of its categories, or two numbers; `reference` may be None for the fit's, or for
            the mean.
        """
        call, parts = "differential_expression", self._by_column
        part = parts[choose(f"{call}(column", column, parts)]
        # Of a random intercept no level is a reference: without one, its effect is 0.
        base = {one.column: _base_of(one) for one in self.parts}
        base |= {one.column: "" for one in self.random}
        fallen_back = reference is None and part not in self.random
        pair = [group, base[column] if fallen_back else reference]
        for value in pair:
            _check_value(f"{call}({column!r}): {value!r}", part, value)
        if str(pair[0]) == str(pair[1]):
            raise ValueError(
                f"{call}({column!r}): {group!r} is compared with itself; name a reference"
                + (", since it is that of the fit" if fallen_back else "")
            )
        obs = pd.DataFrame({name: [value] * 2 for name, value in base.items()} | {column: pair})
        first, second = self.matrix(obs, call)
        return first - second

    def without_replicates(self, obs: pd.DataFrame) -> list[tuple[str, str]]:
        """Fixed covariates with the random intercept that leaves nothing to judge them by.

        They do not vary within its levels, and need as many parameters as there are levels.
        """
        found, fixed = [], self._fixed_matrix(obs, "fit")
        for part in self.random:
            indicators = _indicators(part, obs)
            means = indicators.T @ fixed / indicators.sum(axis=0)[:, None]
            between = np.ptp(fixed - indicators @ means, axis=0) < COLLINEAR
            design = np.column_stack([np.ones(len(means)), means[:, between]])
            if between.any() and np.linalg.matrix_rank(design) == len(design):
                found += [(name, part.column) for name in np.array(self.fixed)[between]]
        return found

    def plain(self) -> dict[str, Any]:
        """As plain values, which a file can hold."""
        parts, random = ([vars(part) for part in x] for x in (self.parts, self.random))
        return {"text": self.text, "parts": parts, "random": random}

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> "Formula":
        """The reverse of `plain`."""
        parts, random = (tuple(map(part_of, plain[name])) for name in ("parts", "random"))
        named = columns_of(plain["text"]) if parts else ()
        assert set(named) <= {part.column for part in parts}
        return cls(plain["text"], parts, random)

    def _check_rank(self, text: str, obs: pd.DataFrame) -> None:
        X = np.concatenate([np.ones((len(obs), 1)), self._fixed_matrix(obs, "fit")], axis=1)
        X = X / np.maximum(np.linalg.norm(X, axis=0), 1e-30)
        for i, name in enumerate(self.fixed, start=1):
            others, *_ = np.linalg.lstsq(X[:, :i], X[:, i])
            if np.linalg.norm(X[:, i] - X[:, :i] @ others) < COLLINEAR:
                raise ValueError(
                    f"fit(formula={text!r}): {visible(name)} follows from "
                    f"{', '.join(map(visible, ('the mean', *self.fixed[: i - 1])))}, so that its "
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
    if "|" in text:
        raise ValueError(
            f"fit(formula={text!r}): random intercepts are not written in the formula; in place of "
            "(1 | donor) give random=['donor']"
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


def _base_of(part: Categories | Numbers) -> Any:
    """The category of reference, or the mean."""
    return part.levels[0] if isinstance(part, Categories) else part.mean


def _check_value(given: str, part: Categories | Numbers, value: Any) -> None:
    """A category that the fit had, or a number; `given` is how the user wrote it."""
    if isinstance(part, Categories):
        # Categories are texts, those of a column of numbers or of truth values too.
        text = str(value) if isinstance(value, Integral | np.bool_) else value
        choose_from(list(part.levels), text, given, f"category of {part.column}")
    elif isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{given}: {part.column} is a number")


def _random(obs: pd.DataFrame, columns: Sequence[str]) -> tuple[Categories, ...]:
    """The levels of random intercepts, checked."""
    parts = tuple(Categories.of(obs, column) for column in columns)
    for part in parts:
        shown = f"fit(random={list(columns)!r}): adata.obs[{part.column!r}]"
        if len(part.levels) == 1:
            raise ValueError(f"{shown} is {visible(part.levels[0])!r} in every cell; leave it out")
        if len(part.levels) == len(obs):
            raise ValueError(f"{shown} has one level for each cell; a level needs several")
    if sum(len(part.levels) for part in parts) > MOST_LEVELS:
        raise ValueError(
            f"fit(random={list(columns)!r}): {sum(len(p.levels) for p in parts)} levels; random "
            f"intercepts can have {MOST_LEVELS} levels together"
        )
    return parts


def _indicators(part: Categories, obs: pd.DataFrame) -> Float[np.ndarray, "cell level"]:
    """1 in the column of a cell's level; nothing for a level that is not known."""
    codes = pd.Index(part.levels).get_indexer(pd.Index(texts(obs, part.column)))
    return (codes[:, None] == np.arange(len(part.levels))).astype(np.float32)


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
