"""How results come to their predictive checks: what was drawn before is not drawn again."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from nbln.data.counts import Counts
from nbln.questions.checks import predictive_checks
from nbln.questions.groups import Groups
from nbln.questions.histograms import Histograms, spread
from nbln.questions.predictive import MARGINAL
from nbln.results.kept import Asked, Checked

WATCHED = 6  # genes whose histograms are kept beside checks: those that `plot_gene_ppc` shows


def made(
    result, data: Counts, genes: Sequence[str] | None, ppc_level: str, n_samples: int, seed: int
) -> Checked:
    """Checks of all cells, with histograms of a few genes: kept ones, or new ones, then kept."""
    named = None if genes is None else tuple(map(str, genes))
    asked = Asked(ppc_level, seed, n_samples, named)
    found = result._kept.get(asked)
    if found is None:
        blocks = result._draws(ppc_level, n_samples, seed, data)
        watched = Histograms(data, spread(result.fitted, data, WATCHED), n_samples)
        watching = watched.watch(blocks)
        given = genes, ppc_level, n_samples, seed
        checks = predictive_checks(result.fitted, data, watching, *given)
        found = Checked(checks, watched)
        result._kept.add(asked, found)
    return found


def histograms(
    result, genes: Sequence[str], ppc_level: str, n_samples: int, counts
) -> list[Int[np.ndarray, "draw bin"]]:
    """See `Result.get_count_histograms`."""
    data, positions = result.fitted.data(counts), result.fitted.find(genes)
    for found in result._kept.best(ppc_level, 0, n_samples):
        if (values := found.histograms.of(positions)) is not None:
            return values
    watched = Histograms(data, positions, n_samples)
    for _ in watched.watch(result._draws(ppc_level, n_samples, 0, data)):
        pass
    return watched.values


def groups(groupby, data: Counts, counts, ppc_level: str) -> Groups:
    """The groups of `Result.check`."""
    if ppc_level == MARGINAL:
        raise ValueError(
            f"check(ppc_level={ppc_level!r}, groupby=): such draws are of cells like any "
            "of the fit, not of one group; leave ppc_level out, or give 'per_cell'"
        )
    return Groups.of(groupby, data, counts, "check")
