"""The negative-binomial log-normal model."""

from typing import ClassVar

import equinox as eqx

from nbln import vocabulary as names
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.distributions.negative_binomial import NegativeBinomialLogMean
from nbln.models import log_normal
from nbln.models.base import Site
from nbln.priors.capture import Capture
from nbln.priors.loadings import LoadingsPrior
from nbln.priors.univariate import Prior


class NBLN(eqx.Module):
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

    name: ClassVar[str] = "nbln"
    priors: dict[str, Prior]
    loadings: LoadingsPrior
    capture: Capture
    latent_dim: int = eqx.field(static=True)

    def __call__(self, counts):
        """The NumPyro program."""
        log_normal.program(
            self, counts, (names.DISPERSION,), lambda f, r: NegativeBinomialLogMean(f, r)
        )

    @property
    def sites(self):
        """Every site of the program."""
        dispersion = Site(names.DISPERSION, (names.GENE,), "dispersion of the counts")
        return log_normal.sites(self, (dispersion,))

    @property
    def augmentation(self):
        """How the capture loss enters the log-rates."""
        return log_normal.augmentation(self.capture)

    def start_channel(self, log_r):
        """Negative binomial of this dispersion."""
        return NegativeBinomial(log_r)
