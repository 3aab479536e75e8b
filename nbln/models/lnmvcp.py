"""The logistic-normal multinomial model with variable capture probability."""

from nbln.models.depth import CapturedTotals
from nbln.models.logistic_normal import LogisticNormalModel


class LNMVCP(LogisticNormalModel):
    """LNM whose totals are what was captured of each cell.

    x_c ~ N(μ, W Wᵀ + diag(d)),  L_c ~ NB(mean total_mean exp(-η_c), total_r),
    u_c ~ Multinomial(L_c, softmax x_c)

    The capture loss enters through one number of the cell, its total: the shares say nothing of
    it. So η_c is identified as far as its prior goes and no further. The prior is centred where the
    total itself is explained, so that total_mean comes out near M₀ and total_r large: neither says
    what cells hold before capture, nor how much they differ in it.

    ========== ============ =====================================================
    site       shape        meaning
    ========== ============ =====================================================
    W          gene, factor loadings, with column means 0
    d          gene         variance of the gene's own log-rate
    mu         gene         mean log-rate (natural log), with mean 0
    total_mean one number   mean of a cell's total at full capture (counts)
    total_r    one number   dispersion of totals: variance of one of mean m is m + m²/total_r
    eta        cell         capture loss, capture efficiency exp(-eta)
    x          cell, gene   log-rate, up to a constant of the cell
    ========== ============ =====================================================

    The scales of the loadings prior (``tau``, ``lambda``; ``gamma``, ``psi``) are sites as well.

    References
    ----------
    As of LNM; capture as in the model of independent genes (NBVCP).
    """

    name = "lnmvcp"
    depth = CapturedTotals()
