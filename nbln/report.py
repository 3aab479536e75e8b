"""What a fit has to say, as labelled sentences for a terminal; no statistics of its own."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from nbln.data.fitted import Fitted
from nbln.questions.correlation import Covariance
from nbln.questions.diagnostics import WARNING
from nbln.results.laplace import LaplaceResult
from nbln.results.log_normal import LogNormalResult
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


# What warnings of a summary mean for a reader, by how their quantities begin; the gravest first.
MEANS = {
    "source_converged": "its first stage did not converge",
    "converged": "it did not converge",
    "best_epoch_at_the_end": "it was still improving when it stopped",
    "effective_rank": "all programs that were offered are used, so that there may be more",
    "unconverged_cells": "the factors of some cells were not found",
    "wild_count_cells": "some counts are like no other",
    "far_genes": "the model is far off for a few genes",
    "misfit": "the model does not describe the counts of many genes well",
    "pareto_k": "factors of many cells are approximate",
    "gauge": "most of what genes share is a cell's depth",
}
GRAVE = ("source_converged", "converged")
GOOD, CAUTION, BAD = "good", "caution", "bad"


class Verdict(NamedTuple):
    """Whether to believe a fit, in a word and in a sentence or two."""

    level: str  # good, caution or bad
    sentence: str


def verdict(result: Result, summary: pd.DataFrame, of_draws: pd.DataFrame | None = None) -> Verdict:
    """What was found, and whether it is to be believed; summaries of the fit and of its draws."""
    cells = f"{result.fitted.n_cells:,} {'cells' if result.fitted.counted else 'samples'}"
    found = f"{result.title} was fitted to {cells} and {result.fitted.n_genes:,} genes."
    rank = None
    if isinstance(result, LogNormalResult):
        rank = result.w_prior_diagnostics["effective_rank"]
    if rank is not None:
        many = "One gene program was" if rank == 1 else f"{rank or 'No'} gene programs were"
        found = f"{many} found in {cells} and {int(result.fitted.real_genes.sum()):,} genes."
    warned = summary.index[summary["status"] == WARNING].tolist()
    if rank == 0:
        warned = [name for name in warned if name != "effective_rank"]
        found += " So all correlations are 0; more cells or more genes may show some."
    reasons = [
        meaning for start, meaning in MEANS.items() if any(x.startswith(start) for x in warned)
    ]
    if of_draws is not None and (of_draws["status"] == WARNING).any():
        reasons.insert(0, "the draws have not settled, so that intervals and calls are rough")
        warned.append("draws")
    if any(name in GRAVE for name in warned):
        return Verdict(BAD, f"{found} Do not rely on it yet: {'; '.join(reasons[:3])}.")
    if warned:
        told = "; ".join(reasons[:3]) or ", ".join(warned[:3])
        return Verdict(CAUTION, f"{found} Read it with caution: {told}.")
    if "misfit_mean" not in summary.index:
        return Verdict(GOOD, f"{found} Nothing speaks against it.")
    return Verdict(GOOD, f"{found} It converged, and the model describes the counts.")


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
