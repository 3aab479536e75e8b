"""The negative-binomial log-normal model."""

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.models.log_normal import LogNormalModel


class NBLN(LogNormalModel):
    """Counts are negative binomial given log-rates that are low-rank Gaussian.

    x_c ~ N(μ, W Wᵀ + diag(d)),  u_cg ~ NB(mean exp(x_cg - η_c), r_g)

    ====== ============ =====================================================
    site   shape        meaning
    ====== ============ =====================================================
    W      gene, factor loadings; W less its column means is what is identified
    d      gene         variance of the gene's own log-rate
    mu     gene         mean log-rate (natural log)
    r      gene         dispersion: variance of a count of mean m is m + m²/r
    eta    cell         capture loss, capture efficiency exp(-eta)
    x      cell, gene   log-rate before capture
    ====== ============ =====================================================

    The scales of the loadings prior (``tau``, ``lambda``; ``gamma``, ``psi``) are sites as well.

    References
    ----------
    Aitchison & Ho (1989), Biometrika 76: multivariate Poisson log-normal distributions; here with
    a gamma-distributed rate for each count.
    """

    name = "nbln"
    channel = NegativeBinomial
