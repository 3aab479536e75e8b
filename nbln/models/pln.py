"""The Poisson log-normal model."""

from nbln.channels.poisson import Poisson
from nbln.models.log_normal import LogNormalModel


class PLN(LogNormalModel):
    """Counts are Poisson given log-rates that are low-rank Gaussian.

    x_c ~ N(μ, W Wᵀ + diag(d)),  u_cg ~ Poisson(exp(x_cg - η_c))

    ====== ============ =====================================================
    site   shape        meaning
    ====== ============ =====================================================
    W      gene, factor loadings; W less its column means is what is identified
    d      gene         variance of the gene's own log-rate
    mu     gene         mean log-rate (natural log)
    eta    cell         capture loss, capture efficiency exp(-eta)
    x      cell, gene   log-rate before capture
    ====== ============ =====================================================

    The scales of the loadings prior (``tau``, ``lambda``; ``gamma``, ``psi``) are sites as well.

    References
    ----------
    Aitchison & Ho (1989), Biometrika 76; Chiquet, Mariadassou & Robin (2018), Ann. Appl. Stat. 12.
    """

    name = "pln"
    channel = Poisson
