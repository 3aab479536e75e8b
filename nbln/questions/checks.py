"""Posterior predictive checks as numbers: what was counted beside what the model would count.

A statistic comes with a predictive p-value, the rank of the observed value among those of the
draws: (number of draws below + U (number of draws equal + 1)) / (draws + 1) with U uniform, so that
it is exactly uniform where the model is right, ties or no ties (Gelman, Meng & Stern 1996; Dunn &
Smyth 1996 for the residuals of single counts).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int
from scipy import stats

from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.data.histogram import bin_edges, bin_of, bin_table
from nbln.data.slices import slices
from nbln.linalg.products import host_dot
from nbln.questions.groups import Groups
from nbln.questions.predictive import Draws, block_cells

QUANTILE = 0.99
# A gene outside the central 99 % of the draws is a misfit: one gene in a hundred by chance.
EXTREME = 0.005
# Genes whose correlations are checked unless others are named: 1,225 pairs of abundant ones.
N_GENES = 50
RESIDUAL_BINS = 500  # ten for each two per cent: finer than the distances that tests resolve
QUANTITIES = ("observed", "predicted", "low", "high", "p_value")
GROUP = "group"
# What the panels of `nbln.pl.plot_ppc` compare, for a caption.
PANELS_SAY = (
    "they compare mean, variance, share of cells without a count, and the count that one cell in a "
    "hundred exceeds"
)
JUDGED = ("mean", "variance", "zero_fraction", "quantile_99", "residuals", "correlation")
LIBRARY = ("mean", "sd", "quantile_05", "median", "quantile_95")


class _Bins(NamedTuple):
    """Histograms of all genes laid end to end: gene g has the bins from start[g]."""

    edges: Float[np.ndarray, " edge"]
    start: Int[np.ndarray, " gene_and_end"]
    last: Int[np.ndarray, " gene"]  # largest count that has a bin of its own
    table: Int[np.ndarray, " count"]  # the bin of small counts

    @classmethod
    def up_to(cls, largest: Int[np.ndarray, " gene"]) -> "_Bins":
        edges = bin_edges(largest.max(initial=0))
        n_bins = bin_of(largest, edges) + 1
        start = np.concatenate([[0], np.cumsum(n_bins)])
        return cls(edges, start, largest, bin_table(edges))

    def count(self, counts: Int[np.ndarray, "cell gene"]) -> Int[np.ndarray, " bin"]:
        clipped = np.minimum(counts, self.last)
        few = self.last.max() < len(self.table)
        bins = self.table[clipped] if few else bin_of(clipped.ravel(), self.edges)
        position = bins.reshape(clipped.shape) + self.start[:-1]
        return np.bincount(position.ravel(), minlength=self.start[-1]).astype(np.int32)

    def quantile(self, histogram, n_cells: int) -> Float[np.ndarray, "draw gene"]:
        """The smallest count that a share `QUANTILE` of the cells does not exceed."""
        wanted = int(np.ceil(QUANTILE * n_cells))
        result = np.empty((len(histogram), len(self.last)))
        for g, (first, end) in enumerate(zip(self.start[:-1], self.start[1:], strict=True)):
            reached = np.cumsum(histogram[:, first:end], axis=1) >= wanted
            result[:, g] = self.edges[np.argmax(reached, axis=1)]
        return result


class _Sums:
    """Sums over cells from which the statistics of several data sets are made, draws first."""

    def __init__(self, n_draws: int, bins: _Bins, pair_genes: np.ndarray, typical_library: float):
        n_genes, n_paired = len(bins.last), len(pair_genes)
        self._bins, self._pair_genes, self._library = bins, pair_genes, typical_library
        self.n_cells = 0
        self._sum = np.zeros((n_draws, n_genes))
        self._square = np.zeros((n_draws, n_genes))
        self._histogram = np.zeros((n_draws, bins.start[-1]), np.int32)
        self._totals: list[np.ndarray] = []
        self._normalised = np.zeros((n_draws, n_paired))
        self._products = np.zeros((n_draws, n_paired, n_paired))

    def add(self, counts: Int[np.ndarray, "draw cell gene"]) -> None:
        self.n_cells += counts.shape[1]
        for i, one in enumerate(counts):
            values = one.astype(np.float64)
            self._sum[i] += values.sum(axis=0)
            self._square[i] += (values**2).sum(axis=0)
            self._histogram[i] += self._bins.count(one)
            total = np.maximum(values.sum(axis=1, keepdims=True), 1)
            normalised = np.log1p(values[:, self._pair_genes] / total * self._library)
            self._normalised[i] += normalised.sum(axis=0)
            self._products[i] += host_dot(normalised.T, normalised)
        self._totals.append(counts.sum(axis=2, dtype=np.float64))

    def statistics(self) -> dict[str, np.ndarray]:
        """Each statistic, draws first."""
        n = self.n_cells
        mean = self._sum / n
        totals = np.concatenate(self._totals, axis=1)
        low, middle, high = np.quantile(totals, [0.05, 0.5, 0.95], axis=1)
        return {
            "mean": mean,
            "variance": np.maximum(self._square / n - mean**2, 0) * n / (n - 1),
            "zero_fraction": self._histogram[:, self._bins.start[:-1]] / n,
            "quantile_99": self._bins.quantile(self._histogram, n),
            "library_size": np.stack([totals.mean(1), totals.std(1), low, middle, high], axis=1),
            "correlation": self._correlations(),
        }

    def _correlations(self):
        n = self.n_cells
        mean = self._normalised / n
        covariance = self._products / n - mean[:, :, None] * mean[:, None, :]
        sd = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 1e-300))
        first, second = np.triu_indices(len(self._pair_genes), 1)
        return covariance[:, first, second] / (sd[:, first] * sd[:, second])


class _Residuals:
    """Randomised quantile residuals: the rank of each count among its draws, in bins."""

    def __init__(self, n_genes: int, rng: np.random.Generator):
        self._histogram = np.zeros((n_genes, RESIDUAL_BINS), np.int64)
        self._rng = rng

    def add(self, observed, drawn) -> None:
        rank = ranks(observed, drawn, self._rng)
        index = np.minimum((rank * RESIDUAL_BINS).astype(np.int64), RESIDUAL_BINS - 1)
        index += np.arange(rank.shape[1]) * RESIDUAL_BINS
        number = np.bincount(index.ravel(), minlength=self._histogram.size)
        self._histogram += number.reshape(self._histogram.shape)

    def uniformity(self) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
        """Kolmogorov–Smirnov distance of each gene's residuals from uniform, and its p-value."""
        n_cells = self._histogram.sum(axis=1)
        shares = np.cumsum(self._histogram, axis=1) / n_cells[:, None]
        expected = np.arange(1, RESIDUAL_BINS + 1) / RESIDUAL_BINS
        distance = np.abs(shares - expected).max(axis=1)
        return distance, stats.kstwo.sf(distance, n_cells)


class _Part(NamedTuple):
    """What is summed over a group of cells, or over all."""

    observed: _Sums
    predicted: _Sums
    residuals: _Residuals

    def add(self, observed: Int[np.ndarray, "cell gene"], drawn) -> None:
        self.observed.add(observed[None])
        self.predicted.add(drawn)
        self.residuals.add(observed, drawn)


def ranks(observed, drawn, rng: np.random.Generator):
    """Predictive p-values, ties randomised; draws along the first axis of `drawn`."""
    below = (drawn < observed).sum(axis=0)
    equal = (drawn == observed).sum(axis=0)
    return (below + rng.random(np.shape(observed)) * (equal + 1)) / (len(drawn) + 1)


def predictive_checks(
    fitted: Fitted,
    data: Counts,
    blocks: Draws,
    genes: Sequence[str] | None,
    ppc_level: str,
    n_samples: int,
    seed: int,
    groups: Groups | None = None,
) -> xr.Dataset:
    """See `Result.check`; `blocks` are the predictive draws."""
    pair_genes = _pair_genes(fitted, data.gene_totals, genes)
    bins = _Bins.up_to(_largest(data, n_samples))
    library = float(np.median(fitted.library_size))
    rng = np.random.default_rng([seed, 1])
    codes = np.zeros(data.n_cells, np.int64) if groups is None else groups.codes
    parts = [
        _Part(
            _Sums(1, bins, pair_genes, library),
            _Sums(n_samples, bins, pair_genes, library),
            _Residuals(fitted.n_genes, rng),
        )
        for _ in range(codes.max() + 1)
    ]
    for block, drawn in blocks:
        here = data.rows(block).astype(np.int64)
        for number in np.unique(codes[block]):
            mine = codes[block] == number
            # A part that is all of the block is not copied.
            cells = slice(None) if mine.all() else mine
            parts[number].add(here[cells], drawn[:, cells])
    found = [_dataset(fitted, pair_genes, part, rng) for part in parts]
    checks = found[0] if groups is None else xr.concat(found, pd.Index(groups.names, name=GROUP))
    return checks.assign_attrs(ppc_level=ppc_level, n_samples=n_samples)


def _largest(data: Counts, n_samples: int) -> Int[np.ndarray, " gene"]:
    """Where histograms end: well above the largest count of each gene."""
    largest = np.zeros(data.n_genes, np.int64)
    for block in slices(data.n_cells, block_cells(n_samples, data.n_cells, data.n_genes)):
        largest = np.maximum(largest, data.rows(block).max(axis=0).astype(np.int64))
    return 4 * largest + 16


def _pair_genes(fitted: Fitted, totals, genes) -> Int[np.ndarray, " pair_gene"]:
    """The genes whose correlations are checked."""
    if genes is not None:
        positions = fitted.find(genes)
        if len(positions) < 2:
            raise ValueError(f"check(genes={genes!r}): name two genes at least, or none")
        return positions
    real = np.flatnonzero(fitted.real_genes)
    return np.sort(real[np.argsort(-totals[real], kind="stable")[:N_GENES]])


def _dataset(fitted, pair_genes, part: _Part, rng) -> xr.Dataset:
    observed, predicted = part.observed.statistics(), part.predicted.statistics()
    first, second = np.triu_indices(len(pair_genes), 1)
    labels = fitted.gene_names[pair_genes]
    dims = {"library_size": "library", "correlation": "pair"}
    variables = {}
    for name, draws in predicted.items():
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        one = observed[name][0]
        values = [one, draws.mean(axis=0), low, high, ranks(one, draws, rng)]
        variables[name] = (("quantity", dims.get(name, names.GENE)), np.stack(values))
    distance, p_value = part.residuals.uniformity()
    variables["residual_distance"] = ((names.GENE,), distance)
    variables["residual_p_value"] = ((names.GENE,), p_value)
    variables["n_cells"] = ((), part.observed.n_cells)
    coordinates = {
        "quantity": list(QUANTITIES),
        names.GENE: fitted.gene_names,
        "library": list(LIBRARY),
        "gene_a": ("pair", labels[first]),
        "gene_b": ("pair", labels[second]),
    }
    return xr.Dataset(variables, coords=coordinates)


def extreme(checks: xr.Dataset) -> float:
    """Distance of a predictive p-value from 0 or 1 at which a gene is a misfit.

    Below 199 draws the 0.5 % tails are unresolved; only genes outside all draws are flagged.
    """
    return max(EXTREME, 1 / (checks.attrs["n_samples"] + 1))


def misfits(checks: xr.Dataset, statistic: str) -> np.ndarray:
    """(gene,) which genes lie outside the draws, or fail by ``"residuals"``; (pair,) of pairs.

    Outside all draws, or outside the central 99 % where there are 199 draws or more; by chance
    the share 2/(draws + 1), or 1 %, does.
    """
    if statistic == "residuals":
        return checks["residual_p_value"].values < 2 * EXTREME
    level = extreme(checks)
    p = checks[statistic].sel(quantity="p_value").values
    return (p < level) | (p > 1 - level)


def by_group(checks: xr.Dataset) -> Iterator[tuple[str | None, xr.Dataset]]:
    """The checks of each group of cells with its name; of all cells with none."""
    if GROUP not in checks.dims:
        yield None, checks
        return
    for i, name in enumerate(checks[GROUP].values):
        yield str(name), checks.isel({GROUP: i}).drop_vars(GROUP)


def summarise_checks(checks: xr.Dataset) -> pd.DataFrame:
    """Predictive checks as a table: how much of each group of cells the model describes.

    Parameters
    ----------
    checks
        What ``res.check(groupby=...)`` gave; of ``res.check()`` the table has one row.

    Returns
    -------
    One row a group: ``cells``; the share of genes that lie outside the draws by ``mean``,
    ``variance``, ``zero_fraction`` and ``quantile_99``, and that fail by ``residuals``; the share
    of pairs whose ``correlation`` does. By chance 2/(draws + 1) do, or 1 % from 199 draws on, and
    1 % by residuals.

    Raises
    ------
    TypeError
        Not what `check` gave.
    """
    if not isinstance(checks, xr.Dataset) or "residual_p_value" not in checks:
        raise TypeError(
            "summarise_checks(checks=): expected what res.check() gave, got "
            f"{type(checks).__name__}"
        )
    rows = {}
    for name, one in by_group(checks):
        shares = {what: float(misfits(one, what).mean()) for what in JUDGED}
        rows["all cells" if name is None else name] = {"cells": int(one["n_cells"]), **shares}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(GROUP)


def worst_genes(checks: xr.Dataset, statistic: str, n: int = 10) -> pd.DataFrame:
    """The genes that the model describes worst by one statistic: observed, predicted, p-value."""
    values = checks[statistic].transpose("quantity", names.GENE).values
    observed, predicted, low, high, p = values
    extreme = np.abs(p - 0.5)
    misfit = np.abs(observed - predicted) / np.maximum(high - low, 1e-12)
    order = np.lexsort([-misfit, -extreme])[:n]
    genes = pd.Index(checks[names.GENE].values[order], name=names.GENE)
    return pd.DataFrame(values[:, order].T, index=genes, columns=list(QUANTITIES))
