"""Negative-binomial totals shared out by a Dirichlet-multinomial: independent genes."""

from nbln.models.depth import Uncaptured
from nbln.models.independent import Canonical, IndependentGenes, by_name


class NBDM(IndependentGenes):
    """Totals are negative binomial, and compositions Dirichlet-multinomial given the total.

    L_c ~ NB(mean R p/(1 - p), R),  u_c | L_c ~ DirichletMultinomial(L_c, r),  R = Σ_g r_g

    ====== ===== ==========================================================
    site   shape meaning
    ====== ===== ==========================================================
    r      gene  dispersion, and concentration of the composition
    p            success probability, the same for all genes
    ====== ===== ==========================================================

    Gamma rates of one scale have a sum that is gamma and shares that are Dirichlet, independent
    of it; so this is the same as u_cg ~ NB(mean r_g p/(1 - p), r_g) for all genes by themselves,
    which is how the program is written. It is `NBVCP` in the parameterization ``canonical`` with
    a capture loss of 0 in all cells.

    References
    ----------
    Mosimann (1962), Biometrika 49: the compound multinomial distribution.
    """

    name = "nbdm"
    depth = Uncaptured()
    parameterizations = by_name(Canonical)
