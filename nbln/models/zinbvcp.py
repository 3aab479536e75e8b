"""The zero-inflated negative binomial with variable capture probability: independent genes."""

from nbln.channels.zero_inflated import ZeroInflated
from nbln.models.independent import IndependentGenes


class ZINBVCP(IndependentGenes):
    """Counts of independent genes, some structural zeros, each cell captured at its own efficiency.

    u_cg ~ 0 with probability gate_g, else NB(mean μ̄_g exp(-η_c), r_g)

    ====== ===== ==========================================================
    site   shape meaning
    ====== ===== ==========================================================
    mean   gene  mean expression at full capture (counts), structural zeros aside
    r      gene  dispersion: variance is m + m²/r at mean m
    gate   gene  probability of a structural zero
    eta    cell  capture loss, capture efficiency exp(-eta)
    ====== ===== ==========================================================

    References
    ----------
    Greene (1994), New York University working paper EC-94-10: zero-inflated count models.
    """

    name = "zinbvcp"
    channel = ZeroInflated
