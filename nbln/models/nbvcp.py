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

    u_cg ~ NB(mean μ̄_g exp(β_g x_c - η_c), r_g)

    Effects β_g of covariates x_c are there with a formula, and no site: they are held at the
    mode of the regressions in which the fit starts (`inference/svi/regression`).

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
    takes_covariates = True
    parameterizations = by_name(MeanDispersion, MeanOdds, Canonical)
