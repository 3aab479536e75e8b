"""What a fit has to say, as labelled sentences for a terminal; no statistics of its own."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from nbln.data.fitted import Fitted
from nbln.questions.correlation import Covariance
from nbln.results.laplace import LaplaceResult
from nbln.results.result import Result
from nbln.results.story import Line


class Truth(NamedTuple):
    """What `nbln.datasets.simulate` drew, for the genes of a fit."""

    n_programs: int
    correlation: pd.DataFrame  # (gene, gene) of log-rates, compositional

    @classmethod
    def of(cls, adata, genes: np.ndarray) -> "Truth":
        """The truth of a simulated data set, for some of its genes."""
        W = pd.DataFrame(np.asarray(adata.varm["W"]), index=adata.var_names).loc[genes].to_numpy()
        d = adata.var["d"].loc[genes].to_numpy()
        rows = np.arange(len(genes))
        values = Covariance(W, d).correlation_block(rows, rows)
        return cls(W.shape[1], pd.DataFrame(values, index=genes, columns=genes))

    def recovery(self, result: LaplaceResult) -> tuple[float, float]:
        """Pearson r and slope of the fitted correlations on the true ones, over all pairs.

        The slope is that of a regression through the origin; 1 is unbiased.
        """
        upper = np.triu_indices(len(self.correlation), 1)
        fitted = result.get_correlation(genes=self.correlation.index.to_list()).to_numpy()[upper]
        true = self.correlation.to_numpy()[upper]
        return float(np.corrcoef(fitted, true)[0, 1]), float(fitted @ true / (true @ true))


def lines(result: Result, truth: Truth | None = None) -> Iterator[Line]:
    """The report of a fit, line by line; with a truth, how well it was recovered."""
    yield "Model", result.title
    yield from _data(result.fitted)
    yield from result.story()
    if truth is not None and isinstance(result, LaplaceResult):
        yield from _recovery(result, truth)
    for i, (stage, seconds) in enumerate(result.stages.items()):
        yield "" if i else "Time", _time(stage, seconds)
    yield "", "(compilation included)"


def _data(fitted: Fitted) -> Iterator[Line]:
    pool = " and _other, the pool of the rarest" if fitted.has_other else ""
    yield "Data", f"{fitted.n_cells:,} cells x {int(fitted.real_genes.sum()):,} genes{pool}"
    if not fitted.counted:
        return
    low, middle, high = np.quantile(fitted.library_size, [0.05, 0.5, 0.95])
    yield "", f"counts a cell: median {middle:,.0f}; {low:,.0f} to {high:,.0f} in 90 % of cells"


def _recovery(result: LaplaceResult, truth: Truth) -> Iterator[Line]:
    yield "Truth", f"{truth.n_programs} programs"
    pearson, slope = truth.recovery(result)
    yield "Recovery", f"Pearson r {pearson:.3f} and slope {slope:.2f} of fitted on true"
    n_pairs = len(truth.correlation) * (len(truth.correlation) - 1) // 2
    yield "", f"correlations over all {n_pairs:,} gene pairs (perfect: 1 and 1)"


def _time(stage: str, seconds: dict[str, float]) -> str:
    parts = {name: value for name, value in seconds.items() if name != "total"}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
    total = seconds.get("total", sum(parts.values()))
    other = f", other {total - sum(parts.values()):.1f}" if "total" in seconds else ""
    return f"{stage} {total:.1f} s: {shown}{other}"
