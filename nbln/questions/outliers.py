"""Cells that are unlike all others, by one count, by their depth or since nothing but counting
varies in them: a fit bears with them, but a reader should know them.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln, xlogy

from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.data.slices import slices
from nbln.posterior.mode import Parameters
from nbln.questions.diagnostics import Row
from nbln.text import visible

# A count is wild where six standard deviations of its gene's log-rate and six of counting together
# do not lead to it: no count simulated from the model is, nor any of three real data sets; of
# 40,000 cells of a cell line two are.
REACH = 6.0
FEW = 10.0  # counts that are never wild, however rare the gene
# A count is wild, too, where beside the counts of its cell's other genes it is so many times what
# it is in any other cell: in small data it may have made all of its gene's variance, which then
# reaches it, and its cell's depth.
LONE, FEW_LONE = 100.0, 1_000.0
# A cell has a wild depth where its total is off the median by this factor and by so many robust
# standard deviations of log totals.
FACTOR, DEVIATIONS = 5.0, 3.5
BLOCK = 2**22  # counts looked at together
N_NAMED = 5


def rows(
    fitted: Fitted,
    counts: Counts,
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    covariates: Float[np.ndarray, "cell covariate"] | None = None,
) -> Iterator[Row]:
    """Cells with a wild count, and cells of a wild depth, for a summary."""
    every = wild_counts(counts, parameters, eta, covariates)
    found = [one for one in every if fitted.real_genes[one[1]]]  # the pool of the rarest is none
    named = ", ".join(
        f"{visible(fitted.cell_names[cell])} ({count:,.0f} of {visible(fitted.gene_names[gene])})"
        for cell, gene, count in found[:N_NAMED]
    )
    note = f"counts that no cell should have: {named}; look at these cells, or leave them out"
    yield Row.judged("wild_count_cells", len({cell for cell, _, _ in found}), bool(found), note)
    for quantity, cells in zip(("shallow_cells", "deep_cells"), wild_depths(fitted), strict=True):
        yield _naming(quantity, "totals unlike the others'", fitted, cells)


def ambient(
    fitted: Fitted, counts: Counts, log_evidence: Float[np.ndarray, " cell"]
) -> Iterator[Row]:
    """Droplets of ambient RNA, for a summary; `log_evidence` is the model's, of each cell."""
    what = "no more than draws from the mean of all cells, as droplets without a cell are"
    yield _naming("ambient_cells", what, fitted, flat(counts, log_evidence))


def doublets(fitted: Fitted, probability: Float[np.ndarray, " cell"]) -> Row:
    """Cells that are likelier two than one, the likeliest first, for a summary."""
    order = np.argsort(-probability, kind="stable")
    found = order[probability[order] > 0.5]
    single = np.sum(1 - probability[found])
    what = f"likelier the sum of two cells than one, though {single:.1f} may be one cell"
    return _naming("doublet_cells", what, fitted, found)


def _naming(quantity: str, what: str, fitted: Fitted, cells: Int[np.ndarray, " some"]) -> Row:
    """How many cells there are of which one says `what`, and the names of the first."""
    named = ", ".join(visible(name) for name in fitted.cell_names[cells[:N_NAMED]])
    return Row(quantity, len(cells), note=f"{what}: {named}" if named else "")


def flat(counts: Counts, log_evidence: Float[np.ndarray, " cell"]) -> np.ndarray:
    """Cells whose counts are likelier as draws from the mean profile of all, the clearest first.

    That is by so much that fewer than one cell of the model would be: of cells that the model
    describes the ratio of these likelihoods is below -t with a probability of at most e^-t.
    """
    profile = np.log(np.maximum(counts.gene_totals, 1) / counts.gene_totals.sum())
    drawn = np.empty(counts.n_cells)
    for block in slices(counts.n_cells, max(1, BLOCK // counts.n_genes)):
        values = np.asarray(counts.rows(block), np.float64)
        total = values.sum(axis=1)
        many = values > 1  # of 0 and of 1 the logarithm of the factorial is 0
        which = np.nonzero(many)[0]
        factorials = np.bincount(which, gammaln(values[many] + 1), len(total))
        drawn[block] = values @ profile + xlogy(total, total) - total - factorials
    ratio = log_evidence - drawn
    order = np.argsort(ratio, kind="stable")
    return order[ratio[order] < -np.log(counts.n_cells)]


def log_own_total(total: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Log-probability of a Poisson count at its own mean: of a total that nothing predicts."""
    return xlogy(total, total) - total - gammaln(total + 1)


def wild_counts(
    counts: Counts,
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    covariates: Float[np.ndarray, "cell covariate"] | None = None,
) -> list[tuple[int, int, float]]:
    """Cell, gene and count of each wild count, the largest first.

    What a gene may reach follows from its own mean and variance, the cell's covariates and its
    capture loss, not from the cell's factors, which a wild count draws along; and from what other
    cells have, since it draws mean, variance and depth along as well.
    """
    mu, W, d = (np.asarray(x, np.float64) for x in (parameters.mu, parameters.W, parameters.d))
    variance = np.sum(W**2, axis=1) + d + np.log1p(parameters.channel.noise())
    highest = mu + REACH * np.sqrt(variance)
    effects = np.asarray(parameters.effects)
    losses, found = np.asarray(eta, np.float64)[:, None], set()
    most, second = np.zeros((2, counts.n_genes))  # odds of a gene, and whose the most is
    whose, size = np.zeros(counts.n_genes, int), np.zeros(counts.n_genes)
    for block in slices(counts.n_cells, max(1, BLOCK // counts.n_genes)):
        values = counts.rows(block)
        known = 0.0 if covariates is None else covariates[block] @ effects.T
        rate = np.exp(highest + known - losses[block])
        cells, genes = np.nonzero(values > rate + REACH * np.sqrt(rate) + FEW)
        wild = values[cells, genes]
        found |= set(
            zip((cells + block.start).tolist(), genes.tolist(), wild.tolist(), strict=True)
        )
        of_cell = values / (counts.library_size[block][:, None] - values + 1)
        top = np.argmax(of_cell, axis=0)
        best = np.take_along_axis(of_cell, top[None], 0)[0]
        np.put_along_axis(of_cell, top[None], 0.0, 0)
        higher = best > most
        second = np.maximum(np.minimum(best, most), np.maximum(second, of_cell.max(axis=0)))
        whose = np.where(higher, top + block.start, whose)
        size = np.where(higher, np.take_along_axis(values, top[None], 0)[0], size)
        most = np.maximum(best, most)
    lone = np.flatnonzero((most > LONE * second) & (size > FEW_LONE))
    found |= set(zip(whose[lone].tolist(), lone.tolist(), size[lone].tolist(), strict=True))
    return sorted(found, key=lambda one: -one[2])


def wild_depths(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """Cells with far fewer counts than the others, and with far more, the extreme ones first."""
    depth = np.log(fitted.library_size)
    away = depth - np.median(depth)
    least = max(np.log(FACTOR), DEVIATIONS * robust_sd(away))
    order = np.argsort(away, kind="stable")
    return order[away[order] < -least], order[away[order] > least][::-1]


def robust_sd(away: Float[np.ndarray, " any"]) -> float:
    """Standard deviation of the Gaussian with this median distance from the middle."""
    return 1.4826 * float(np.median(np.abs(away)))
