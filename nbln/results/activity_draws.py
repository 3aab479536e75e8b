"""Answers about several data sets that draws of the programs' activities give."""

from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.arguments import check_number
from nbln.data.datasets import Datasets
from nbln.data.fitted import Fitted
from nbln.questions import activity, intervals
from nbln.questions.intervals import DifferenceDraws
from nbln.results.drawn_programs import LEVEL, checked
from nbln.results.effect_draws import EffectDraws


class ActivityDraws(EffectDraws):
    """Draws of programs, and of how active they are in each of several data sets."""

    fitted: Fitted
    datasets: Datasets | None

    @property
    def has_activities(self) -> bool:
        return self.datasets is not None

    def _levels(self, weights: Float[np.ndarray, "any level"]) -> Float[np.ndarray, "draw any k"]:
        """Sums of the effects of levels on log-activities, chains one after the other."""
        return np.einsum("hl,dlk->dhk", weights, self._flat(self.draws.activity.effects))

    def _activities(self, datasets: Datasets) -> Float[np.ndarray, "draw dataset k"]:
        """s of every data set, programs matched to those of the fit, chains after one another."""
        s = np.exp(self._levels(datasets.centred))
        return np.take_along_axis(s, self._alignment.order[:, None], axis=2)

    def _between(self, call: str, column: str, levels: tuple[Any, Any]):
        """Log-activities at two levels of a column, (draw, 2, factor); programs as drawn."""
        datasets = activity.check_any(self.datasets, call)
        if str(levels[0]) == str(levels[1]):
            raise ValueError(f"{call}({column!r}): {levels[0]!r} is compared with itself")
        return self._levels(np.stack([datasets.contrast(call, column, one) for one in levels]))

    def get_program_activity(self, level: float = LEVEL) -> xr.Dataset:
        """How active each program is in each data set, (dataset, factor), with its uncertainty.

        The standard deviation of the factor there, with a geometric mean of 1 over data sets:
        ``mean``, ``sd``, ``low`` and ``high`` (ends of the interval of probability `level`).
        Programs are matched to those of the fit.

        Raises
        ------
        ValueError
            The fit had no `dataset_key`.
        """
        datasets = activity.check_any(self.datasets, "get_program_activity()")
        drawn = self._activities(datasets)
        summary = intervals.summarise(drawn, intervals.check_level(level))._asdict()
        del summary["prob_sign"]  # a standard deviation is positive
        dims = (names.DATASET, names.FACTOR)
        return xr.Dataset(
            {name: (dims, np.float32(x)) for name, x in summary.items()},
            coords={names.DATASET: list(datasets.names)},
            attrs={"level": level},
        )

    def differential_activity(
        self,
        column: str,
        group: Any,
        reference: Any,
        delta: float = 0.25,
        fdr: float = 0.05,
        level: float = LEVEL,
    ) -> pd.DataFrame:
        """Programs that are more or less active at one level of a column than at another.

        Where donors are a further column of ``fit(dataset_key=)`` they are the replicates: effects
        of their levels stand beside those of the condition, with a variance that is learned.

        Parameters
        ----------
        column
            Of ``fit(dataset_key=)``.
        group, reference
            Two of its levels.
        delta
            Smallest change that matters, log2. 0 asks for the sign alone, which programs have that
            do not differ at all.
        fdr, level
            As in `differential_expression`.

        Returns
        -------
        One row a program, numbered from 1 as in `get_program_stability`, surest first: ``lfc_mean``
        and so on, log2 ratio of the factor's standard deviations, ``lfsr``,
        ``error_probability``, ``q``, and ``is_called`` (``q <= fdr``).

        Raises
        ------
        ValueError
            The fit had no `dataset_key`, or not this column or level.
        """
        call = "differential_activity"
        delta = check_number(f"{call}(delta", delta, 0.0, np.inf, open_=False)
        fdr = check_number(f"{call}(fdr", fdr, 0.0, 1.0, open_=True)
        first, second = self._between(call, column, (group, reference)).swapaxes(0, 1)
        change = np.take_along_axis(first - second, self._alignment.order, axis=1) / np.log(2)
        index = pd.RangeIndex(1, 1 + change.shape[1], name="program")
        table = intervals.changes(change, None, delta, fdr, level, index)
        table["is_called"] = table["q"] <= fdr
        table.attrs |= {"column": column, "group": group, "reference": reference}
        return table

    def differential_pairs(
        self,
        column: str,
        group: Any,
        reference: Any,
        min_abs: float = 0.2,
        fdr: float = 0.05,
        kind: str = "compositional",
        level: float = LEVEL,
    ) -> pd.DataFrame:
        """Pairs of genes whose correlation differs, since programs differ in activity.

        Parameters
        ----------
        column, group, reference
            As in `differential_activity`.
        min_abs
            Size of a difference that matters; 0 asks for its sign alone.
        fdr, kind, level
            As in `pairs`.

        Returns
        -------
        gene_a, gene_b, ``mean``, ``low`` and ``high`` of the correlation at `group` less that at
        `reference`, ``lfsr``, ``error_probability`` and ``q``, as in `pairs`; ``mean_group`` and
        ``mean_reference``.

        Raises
        ------
        ValueError
            As in `differential_activity`; an unknown kind.
        """
        call = "differential_pairs"
        both = self._between(call, column, (group, reference)).swapaxes(0, 1)
        draws = [self._scaled(one).correlation_draws(kind) for one in both]
        table = intervals.pairs(DifferenceDraws(*draws), *checked(call, min_abs, fdr, level))
        places = pd.Index(draws[0].gene_names)
        called = [places.get_indexer(table[name]) for name in ("gene_a", "gene_b")]
        for name, one in zip(("group", "reference"), draws, strict=True):
            table[f"mean_{name}"] = one.of_pairs(*called).mean(axis=0)
        table.attrs |= {"column": column, "group": group, "reference": reference}
        return table

    def in_dataset(self, name: str) -> Self:
        """The same draws as the cells of one data set have them, with programs of its size.

        What they answer is of that data set: correlations, pairs, loadings. `name` is that of a
        data set, as in `get_program_activity`, or a level of a column, a condition over all of its
        donors.

        Raises
        ------
        ValueError
            The fit had no `dataset_key`, or not this data set.
        """
        call = f"in_dataset({name!r})"
        datasets = activity.check_any(self.datasets, call)
        return self._scaled(self._levels(datasets.weights(name, call)[None])[:, 0])

    def _scaled(self, log_activity: Float[np.ndarray, "draw factor"]) -> Self:
        """Draws whose programs are as large as in a data set of these activities."""
        s = np.exp(log_activity).reshape(*self.draws.W.shape[:2], 1, -1).astype(np.float32)
        centre = self.draws.centre * s[:, :, 0]
        draws = self.draws._replace(W=self.draws.W * s, centre=centre)
        here: Any = self
        return replace(here, draws=draws, datasets=None)
