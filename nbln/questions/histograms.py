"""Counts of a few genes held against the model: which genes, and histograms of their draws."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.data.slices import slices
from nbln.questions.predictive import Draws

MOST_BINS = 16  # of a histogram: what a panel has room for, zeros and the last bin included
TAIL = 0.995  # share of cells below the last bin, which holds all larger counts
BLOCK = 512  # cells read at a time
RARE = 0.05  # mean count below which a histogram is nearly all zeros


def spread(fitted: Fitted, data: Counts, n: int) -> Int[np.ndarray, " gene"]:
    """Positions of genes at equal steps of log mean, of those that are not nearly all zeros."""
    real = np.flatnonzero(fitted.real_genes)
    means = data.gene_totals[real] / data.n_cells
    order = np.argsort(-means, kind="stable")[: max(n, int((means >= RARE).sum()))]
    logs, chosen = np.log(means[order]), []
    for target in np.linspace(logs[-1], logs[0], min(n, len(order))):
        distance = np.abs(logs - target)
        distance[chosen] = np.inf
        chosen.append(int(np.argmin(distance)))
    return real[order[np.sort(chosen)[::-1]]]


def counts_of(data: Counts, positions: Int[np.ndarray, " gene"]) -> Int[np.ndarray, "cell gene"]:
    """Counts of these genes, read block by block."""
    blocks = slices(data.n_cells, BLOCK)
    return np.concatenate([data.rows(block)[:, positions] for block in blocks]).astype(np.int64)


def bin_starts(observed: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " bin"]:
    """The least count of each bin of a gene: 0, then equal steps, the last without an end."""
    tail = max(np.quantile(observed, TAIL), 1)
    step = int(np.ceil(tail / (MOST_BINS - 2)))
    return np.concatenate([[0], np.arange(1, tail + step, step)]).astype(np.int64)


def binned(
    counts: Int[np.ndarray, "draw cell"], starts: Int[np.ndarray, " bin"]
) -> Int[np.ndarray, "draw bin"]:
    """Numbers of cells in each bin, whatever the largest count: draws of a log-normal know none."""
    bins = np.searchsorted(starts, counts, side="right") - 1
    bins += np.arange(len(counts))[:, None] * len(starts)
    return np.bincount(bins.ravel(), minlength=len(counts) * len(starts)).reshape(len(counts), -1)


class Histograms:
    """How many cells of each draw have counts of some genes in the bins of their data.

    Attributes
    ----------
    genes
        Positions of the genes.
    starts
        For each gene, the least count of each of its bins.
    values
        For each gene, (draw, bin) numbers of cells.
    """

    def __init__(self, data: Counts, genes: Int[np.ndarray, " gene"], n_draws: int):
        self.genes = genes
        self.starts = [bin_starts(one) for one in counts_of(data, genes).T]
        self.values = [np.zeros((n_draws, len(one)), np.int64) for one in self.starts]

    def watch(self, blocks: Iterable) -> Draws:
        """The same draws, whose counts are taken up as they pass."""
        for block, drawn in blocks:
            for i, (gene, starts) in enumerate(zip(self.genes, self.starts, strict=True)):
                self.values[i] += binned(drawn[:, :, gene], starts)
            yield block, drawn

    def of(self, genes: Int[np.ndarray, " asked"]) -> list[Int[np.ndarray, "draw bin"]] | None:
        """Those of some genes in their order; None where one was not watched."""
        place = {int(gene): i for i, gene in enumerate(self.genes)}
        if not all(int(gene) in place for gene in genes):
            return None
        return [self.values[place[int(gene)]] for gene in genes]
