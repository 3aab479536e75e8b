"""What a fit has to say, as labelled sentences for a terminal; no statistics of its own."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from nbln.results.correlation import Covariance
from nbln.results.laplace import LaplaceResult
from nbln.results.svi import SVIResult

_MODELS = {
    "nbln": "nbln, negative-binomial log-normal counts",
    "pln": "pln, Poisson log-normal counts",
    "nbvcp": "nbvcp, negative-binomial counts of independent genes",
}

Line = tuple[str, str]  # label, sentence; an empty label continues the line above


class Truth(NamedTuple):
    """What `nbln.datasets.simulate` drew, for the genes of a fit."""

    n_programs: int
    correlation: pd.DataFrame  # (gene, gene) of log-rates, compositional

    @classmethod
    def of(cls, adata, genes: np.ndarray) -> "Truth":
        """The truth of a simulated data set, for some of its genes."""
        W = pd.DataFrame(np.asarray(adata.varm["W"]), index=adata.var_names).loc[genes].to_numpy()
        d = adata.var["d"].loc[genes].to_numpy()
        every = np.arange(len(genes))
        values = Covariance(W, d).correlation_block(every, every)
        return cls(W.shape[1], pd.DataFrame(values, index=genes, columns=genes))

    def recovery(self, result: LaplaceResult) -> tuple[float, float]:
        """Pearson r and slope of the fitted correlations on the true ones, over all pairs.

        The slope is that of a regression through the origin; 1 is unbiased.
        """
        upper = np.triu_indices(len(self.correlation), 1)
        fitted = result.get_correlation(genes=self.correlation.index.to_list()).to_numpy()[upper]
        true = self.correlation.to_numpy()[upper]
        return float(np.corrcoef(fitted, true)[0, 1]), float(fitted @ true / (true @ true))


def lines(result: SVIResult | LaplaceResult, truth: Truth | None = None) -> Iterator[Line]:
    """The report of a fit, line by line; with a truth, how well it was recovered."""
    yield "Model", _MODELS["nbvcp" if isinstance(result, SVIResult) else result.model]
    yield from _data(result)
    if isinstance(result, SVIResult):
        yield "Convergence", _svi_state(result)
        yield from _independent_genes(result)
        yield "Time", _svi_time(result)
    else:
        yield from _log_normal(result, truth)


def _data(result) -> Iterator[Line]:
    fitted = result.fitted
    pool = " and _other, the pool of the rarest" if fitted.has_other else ""
    yield "Data", f"{fitted.n_cells:,} cells x {int(fitted.real_genes.sum()):,} genes{pool}"
    low, middle, high = np.quantile(fitted.library_size, [0.05, 0.5, 0.95])
    yield "", f"counts a cell: median {middle:,.0f}; {low:,.0f} to {high:,.0f} in 90 % of cells"


def _svi_state(result: SVIResult) -> str:
    if result.converged:
        return f"SVI stage: converged after {result.n_steps:,} steps"
    return f"SVI stage: NOT converged in {result.n_steps:,} steps; its values are approximate"


def _svi_time(result: SVIResult) -> str:
    seconds = result.fitted.seconds
    return f"SVI {sum(seconds.values()):.1f} s: " + _parts(seconds)


def _parts(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    total = seconds.get("total")
    rest = "" if total is None else f", other {total - (sum(seconds.values()) - total):.1f}"
    return parts + rest


def _independent_genes(result: SVIResult) -> Iterator[Line]:
    low, middle, high = np.quantile(np.exp(-result.eta), [0.05, 0.5, 0.95])
    yield "Capture", f"median efficiency {middle:.2g}; {low:.2g} to {high:.2g} in 90 % of cells"
    low, middle, high = np.quantile(result.r, [0.05, 0.5, 0.95])
    yield "Dispersion r", f"median {middle:.2g}; {low:.2g} to {high:.2g} in 90 % of genes"
    yield "", "variance of a count = mean + mean² / r"


def _log_normal(result: LaplaceResult, truth: Truth | None) -> Iterator[Line]:
    n = len(result.trace)
    source = result.cascade_source
    state = f"converged after {n}" if result.converged else f"NOT converged in {n}"
    remedy = "" if result.converged else "; its values are approximate, try more steps"
    first = [] if source is None else [_svi_state(source)]
    for i, sentence in enumerate([*first, f"Laplace stage: {state} iterations{remedy}"]):
        yield "" if i else "Convergence", sentence
    bad = result.n_unconverged
    yield (
        "Cells",
        (
            f"{bad:,} of {result.fitted.n_cells:,} did not reach their posterior mode"
            if bad
            else "every cell reached its posterior mode"
        ),
    )
    rank = result.w_prior_diagnostics["effective_rank"]
    known = "" if truth is None else f" (truth: {truth.n_programs})"
    yield "Effective rank", f"{rank} of {result.latent_dim} programs offered carry signal{known}"
    if rank == result.latent_dim:
        yield "", "all of them: the data may hold more, offer more (latent_dim)"
    if rank:
        ratio = result.get_gauge_diagnostics()["gauge_contamination_ratio"]
        yield "Gauge ratio", f"{ratio:.2f}: variation shared by all genes, relative to the rest;"
        yield "", "correlations leave the shared part out"
    else:
        yield "", "no program was kept, so every correlation is zero; more cells or"
        yield "", "more genes may show programs that these do not"
        yield "Gauge ratio", "not defined without a program"
    if truth is not None:
        pearson, slope = truth.recovery(result)
        yield "Recovery", f"Pearson r {pearson:.3f} and slope {slope:.2f} of fitted on true"
        n_pairs = len(truth.correlation) * (len(truth.correlation) - 1) // 2
        yield "", f"correlations over all {n_pairs:,} gene pairs (perfect: 1 and 1)"
    seconds = result.fitted.seconds
    if source is not None:
        yield "Time", _svi_time(source)
    total = seconds.get("total", sum(seconds.values()))
    yield "Time" if source is None else "", f"Laplace {total:.1f} s: " + _parts(seconds)
    yield "", "(compilation included)"
