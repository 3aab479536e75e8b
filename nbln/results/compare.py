"""Fitted models compared by their evidence for the same cells; correlations of two fits."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nbln.questions import differences
from nbln.results.drawn_programs import LEVEL, DrawnPrograms, checked
from nbln.results.result import OWN_DEPTH, Result

log = logging.getLogger("nbln")

# Standard errors by which the score of a model may fall short of the best for it to be chosen, and
# by how much it may be larger than the smallest such one, since parameters are counted roughly. Of
# twenty simulated data sets of pln 19 then had it chosen, of ten of nbln, lnm and nbvcp all; by the
# best score alone 2 to 4 of ten where a larger family contains the true one.
NEAR, AS_SMALL = 2.5, 1.05


def compare(
    results: Mapping[str, Any],
    adata,
    layer: str | None = None,
    n_samples: int = 1,
    depth: str = OWN_DEPTH,
) -> pd.DataFrame:
    """Compare fitted models by their evidence for the same, preferably held-out, cells.

    Parameters
    ----------
    results
        Fitted models by name, of the same genes.
    adata
        The cells, with the genes of the fits.
    layer
        The layer that holds the counts; by default that of each fit.
    n_samples
        1: Laplace evidence; more: importance sampling with so many draws a cell.
    depth
        What is known of a cell's depth before its counts, as in `Result.score`: ``"own"``, or
        ``"population"``, which puts models of capture losses and models of totals on one footing.

    Returns
    -------
    One row a model, best first: ``log_evidence``, summed over cells (nats); ``per_cell``, its mean;
    ``difference`` to the best model and the ``standard_error`` of that difference over cells;
    ``n_parameters`` of genes; and ``chosen``, true of one: the model of fewest parameters among
    those within 2.5 standard errors of the best (of about as many, the one that scores highest).
    A larger model may contain a smaller one, so that on counts of the smaller both score alike.

    Raises
    ------
    ValueError
        No results, or results of different genes.
    """
    if not isinstance(results, Mapping) or not results:
        raise ValueError("compare(results=): give a dict of fitted models by name, {'nbln': res}")
    for name, result in results.items():
        if not isinstance(result, Result):
            raise TypeError(f"compare(results=): {name!r} is a {type(result).__name__}, not a fit")
    first, *others = results.items()
    genes = set(first[1].fitted.gene_names)
    for name, result in others:
        if set(result.fitted.gene_names) != genes:
            raise ValueError(
                f"compare(results=): {first[0]!r} and {name!r} were fitted to different genes, so "
                "their evidence is not comparable; fit both with the same genes and gene_coverage"
            )
    alone = {result.totals_alone for result in results.values()}
    if depth == OWN_DEPTH and len(alone) > 1:
        log.warning(
            "compare(results=): some fits have a capture prior that is centred by each cell's own "
            "depth, and some a distribution of totals; compare(..., depth='population') puts them "
            "on one footing"
        )
    elif len({result.predicts_depth for result in results.values()}) > 1:
        log.warning(
            "compare(results=): some fits have fixed offsets and some a capture prior; those with "
            "offsets are given each cell's depth, the others have to predict it"
        )
    scores = pd.DataFrame(
        {
            name: np.asarray(result.score(adata, n_samples, layer, depth=depth), np.float64)
            for name, result in results.items()
        }
    )
    total = scores.sum().sort_values(ascending=False)
    difference = scores.sub(scores[total.index[0]], axis=0)
    table = pd.DataFrame(
        {
            "log_evidence": total,
            "per_cell": scores.mean(),
            "difference": difference.sum(),
            "standard_error": difference.std(ddof=1) * np.sqrt(len(scores)),
        }
    )
    table = table.loc[total.index].rename_axis("model")
    table["n_parameters"] = [results[name].n_parameters for name in table.index]
    near = table["difference"] >= -NEAR * table["standard_error"]
    small = table["n_parameters"] <= AS_SMALL * table["n_parameters"][near].min()
    # The best model is always near, and models are sorted by their score.
    table["chosen"] = table.index == table.index[near & small][0]
    return table


def compare_correlations(
    first: DrawnPrograms,
    second: DrawnPrograms,
    min_abs: float = 0.2,
    fdr: float = 0.05,
    kind: str = "compositional",
    level: float = LEVEL,
) -> pd.DataFrame:
    """Pairs of genes whose correlation differs between two groups of cells, surest first.

    Each group has a fit and draws of its own. Cells are the units: what differs between two donors
    differs between two groups of one donor each.

    Parameters
    ----------
    first, second
        Of `LaplaceResult.sample_posterior`. Genes that only one of them has are left out;
        compositional correlations are relative to all genes of a fit, so fit the same genes.
    min_abs
        Size of a difference that matters; 0 asks for its sign alone.
    fdr, kind, level
        As in `PosteriorDraws.pairs`.

    Returns
    -------
    gene_a, gene_b; ``mean``, ``low`` and ``high`` of first less second, under a prior of the
    differences of all pairs that is learned from them (adaptive shrinkage, Stephens 2017);
    ``mean_first`` and ``mean_second``, without it; ``lfsr``, ``error_probability`` and ``q`` as in
    `PosteriorDraws.pairs`, ``lfsr`` with no difference among the wrong signs. Memory is 32 bytes a
    pair of genes.

    Raises
    ------
    TypeError
        Not draws of a posterior.
    ValueError
        Fewer than two genes that both have.
    """
    for name, post in {"first": first, "second": second}.items():
        if not isinstance(post, DrawnPrograms):
            raise TypeError(
                f"compare_correlations({name}=): expected what res.sample_posterior() gives, got "
                f"{type(post).__name__}"
            )
    limits = checked("compare_correlations", min_abs, fdr, level)
    one, other = (post.correlation_draws(kind) for post in (first, second))
    genes = one.gene_names[np.isin(one.gene_names, other.gene_names)]
    alone = len(one.gene_names) + len(other.gene_names) - 2 * len(genes)
    if len(genes) < 2:
        raise ValueError("compare_correlations: the two fits have fewer than two genes in common")
    if alone:
        log.info("compare_correlations: %d genes that only one fit has are left out", alone)
    return differences.table(one, other, genes, *limits)
