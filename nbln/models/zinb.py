"""The zero-inflated negative binomial: independent genes with a gate each."""

from nbln.channels.zero_inflated import ZeroInflated
from nbln.models.depth import Uncaptured
from nbln.models.independent import IndependentGenes


class ZINB(IndependentGenes):
    """Counts of independent genes, some of them structural zeros.

    u_cg ~ 0 with probability gate_g, else NB(mean μ̄_g, r_g)

    ====== ===== ==========================================================
    site   shape meaning
    ====== ===== ==========================================================
    mean   gene  mean of a count, structural zeros aside
    r      gene  dispersion: variance is m + m²/r at mean m
    gate   gene  probability of a structural zero
    ====== ===== ==========================================================

    References
    ----------
    Greene (1994), New York University working paper EC-94-10: zero-inflated count models.
    """

    name = "zinb"
    channel = ZeroInflated
    depth = Uncaptured()
