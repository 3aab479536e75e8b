"""The logistic-normal multinomial model."""

from nbln.models.depth import UncapturedTotals
from nbln.models.logistic_normal import LogisticNormalModel


class LNM(LogisticNormalModel):
    """Counts are shares of their cell's total, softmax of low-rank Gaussian log-rates.

    x_c ~ N(μ, W Wᵀ + diag(d)),  L_c ~ NB(mean total_mean, total_r),
    u_c ~ Multinomial(L_c, softmax x_c)

    A constant added to all log-rates of a cell changes nothing: Σ_g μ_g = 0, and columns of W have
    mean 0.

    ========== ============ =====================================================
    site       shape        meaning
    ========== ============ =====================================================
    W          gene, factor loadings, with column means 0
    d          gene         variance of the gene's own log-rate
    mu         gene         mean log-rate (natural log), with mean 0
    total_mean one number   mean of a cell's total (counts)
    total_r    one number   dispersion of totals: variance of one of mean m is m + m²/total_r
    x          cell, gene   log-rate, up to a constant of the cell
    ========== ============ =====================================================

    The scales of the loadings prior (``tau``, ``lambda``; ``gamma``, ``psi``) are sites as well.

    References
    ----------
    Aitchison & Shen (1980), Biometrika 67: logistic-normal distributions; Billheimer, Guttorp &
    Fagan (2001), J. Am. Stat. Assoc. 96: multinomial counts of them.
    """

    name = "lnm"
    depth = UncapturedTotals()
