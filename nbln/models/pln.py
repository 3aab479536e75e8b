"""The Poisson log-normal model."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist

from nbln.channels.poisson import Poisson
from nbln.models import log_normal
from nbln.priors.capture import Capture
from nbln.priors.loadings import LoadingsPrior
from nbln.priors.univariate import Prior


class PLN(eqx.Module):
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

    name: ClassVar[str] = "pln"
    priors: dict[str, Prior]
    loadings: LoadingsPrior
    capture: Capture
    latent_dim: int = eqx.field(static=True)

    def __call__(self, counts):
        """The NumPyro program."""
        log_normal.program(self, counts, (), lambda f: dist.Poisson(jnp.exp(f)))

    @property
    def sites(self):
        """Every site of the program."""
        return log_normal.sites(self, ())

    @property
    def augmentation(self):
        """How the capture loss enters the log-rates."""
        return log_normal.augmentation(self.capture)

    def start_channel(self, log_r):
        """Poisson, whatever the dispersion."""
        del log_r
        return Poisson()
