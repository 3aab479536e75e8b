"""The negative binomial with variable capture probability: independent genes."""

from nbln.models.independent import (
    Canonical,
    IndependentGenes,
    MeanDispersion,
    MeanOdds,
    by_name,
)


class NBVCP(IndependentGenes):
    """Counts of independent genes, each cell captured at its own efficiency.

    u_cg ~ NB(mean μ̄_g exp(-η_c), r_g)

    ====== ===== ==========================================================
    site   shape meaning
    ====== ===== ==========================================================
    mean   gene  mean expression at full capture (counts)
    r      gene  dispersion: variance is m + m²/r at mean m
    eta    cell  capture loss, capture efficiency exp(-eta)
    ====== ===== ==========================================================

    The parameterizations ``mean_odds`` and ``canonical`` have one number for all genes in place
    of one of the first two: ``phi`` (r = mean φ) or ``p`` (mean = r p / (1 - p)).
    """

    name = "nbvcp"
    parameterizations = by_name(MeanDispersion, MeanOdds, Canonical)
