"""Counts of a few genes held against the model: which genes, and histograms of their draws."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.questions.predictive import Draws

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


class Histograms:
    """How many cells of each draw have each count of some genes; nothing is binned.

    Attributes
    ----------
    genes
        Positions of the genes.
    values
        (gene, draw, count) numbers of cells.
    """

    def __init__(self, genes: Int[np.ndarray, " gene"], n_draws: int):
        self.genes = genes
        self.values = np.zeros((len(genes), n_draws, 1), np.int32)

    def watch(self, blocks: Iterable) -> Draws:
        """The same draws, whose counts are taken up as they pass."""
        for block, drawn in blocks:
            self._add(drawn[:, :, self.genes])
            yield block, drawn

    def _add(self, drawn: Int[np.ndarray, "draw cell gene"]) -> None:
        n_genes, n_draws, n_counts = self.values.shape
        if further := max(int(drawn.max(initial=0)) + 1 - n_counts, 0):
            self.values = np.pad(self.values, ((0, 0), (0, 0), (0, further)))
            n_counts += further
        rows = np.arange(n_genes) * n_draws + np.arange(n_draws)[:, None]
        place = drawn.astype(np.int64) + rows[:, None] * n_counts
        number = np.bincount(place.ravel(), minlength=self.values.size)
        self.values += number.reshape(self.values.shape).astype(np.int32)

    def of(self, genes: Int[np.ndarray, " asked"]) -> Int[np.ndarray, "asked draw count"] | None:
        """Those of some genes in their order; None where one was not watched."""
        place = {int(gene): i for i, gene in enumerate(self.genes)}
        if not all(int(gene) in place for gene in genes):
            return None
        return self.values[[place[int(gene)] for gene in genes]]
