"""Whether the fit is to be believed, for the page: figures in the order of a reader's questions."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from nbln import pl
from nbln.pl.genes import genes_in_turn
from nbln.questions.checks import PANELS_SAY, extreme
from nbln.webpage.parts import pictures

HISTOGRAM_DRAWS = 20  # of all counts, for a band from 5 % to 95 %
# Genes of the corner of shares: with more the panels are too small for a narrow page.
CORNER_GENES = 3
FAR_VARIANCE = 10.0  # ratio of the model's variance to the data's that the caption tells of


def figures(result, checks, counts) -> list:
    """The figures of the section."""
    return pictures(_figures(result, checks, counts))


def _figures(result, checks, counts) -> Iterator[tuple[str, str, Any]]:
    yield (
        "Does the model describe the data?",
        f"Each point is a gene; {PANELS_SAY}. Points on the line agree; {2 * extreme(checks):.0%} "
        "of genes lie outside the draws of the model by chance (orange). The last panel is about "
        "whole distributions: a gene right of the dashed line has counts spread otherwise than the "
        "model says.",
        pl.plot_ppc(result, checks=checks),
    )
    yield (
        "Mean and variance",
        f"Variance of each gene's counts against their mean. {_heavy(checks)}",
        pl.plot_mean_variance(result, counts=counts),
    )
    yield (
        "Counts of single genes",
        "Genes from rare to abundant. Bars are shares of cells in the data; the band holds 90 % of "
        "draws from the model. The last bin holds all larger counts.",
        pl.plot_gene_ppc(result, n_samples=HISTOGRAM_DRAWS, counts=counts),
    )
    if result.has_programs:
        yield from _programs(result, counts)
    if result.has_capture:
        yield (
            "Capture",
            "The share of a cell's mRNA that was counted is e to the minus capture loss. Each "
            "point is a cell; the line and the band are what its library size leads one to expect.",
            pl.plot_capture(result),
        )
    yield "Convergence", "How the fit settled.", pl.plot_loss(result)
    if result.earlier is not None:
        yield (
            "Convergence of the independent genes",
            "The first stage, whose capture losses and starting values the fit took over.",
            pl.plot_loss(result.earlier),
        )


def _programs(result, counts):
    yield (
        "How many programs?",
        "Sizes of the programs that were offered, largest first; shrinkage removes those that the "
        "data do not ask for, and only those above the line are counted.",
        pl.plot_w_shrinkage_spectrum(result),
    )
    yield (
        "Shares of genes in a cell",
        "Cells carry counting noise, the model does not: its contours hold half and nine tenths of "
        "its draws. Pseudobulks, sums of about 25 similar cells, are in between.",
        pl.plot_compositional_corner_ppc(
            result, list(genes_in_turn(result, CORNER_GENES)), counts=counts
        ),
    )


def _heavy(checks) -> str:
    """What to make of genes whose variance the model puts far above the data's."""
    observed, predicted = (
        checks["variance"].sel(quantity=q).values for q in ("observed", "predicted")
    )
    n = int(np.sum(predicted > FAR_VARIANCE * np.maximum(observed, np.finfo(float).tiny)))
    if not n:
        return "Model and data agree where their points lie on each other."
    return (
        f"In {n:,} genes draws from the model vary more than ten times as much as the data; what "
        "is beyond the frame lies on it. Few cells hold most of the counts of such a gene, and a "
        "log-normal tail allows more such cells than were sampled: its mean and correlations are "
        "uncertain."
    )
