"""What logistic-normal multinomial models share: counts are shares of their cell's total."""

import math

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from nbln import vocabulary as names
from nbln.channels.negative_binomial import TYPICAL_R
from nbln.channels.poisson import Poisson
from nbln.distributions import NegativeBinomialLogMean
from nbln.models.base import sample_capture, sample_site
from nbln.models.log_normal import LogNormalModel
from nbln.priors.univariate import LogNormal
from nbln.vocabulary import Site

TOTAL_SITES = (
    Site(names.TOTAL_MEAN, (), "mean of a cell's total at full capture (counts)"),
    Site(names.TOTAL_DISPERSION, (), "dispersion of totals: variance m + m²/total_r at mean m"),
)


class LogisticNormalModel(LogNormalModel):
    """x ~ N(μ, W Wᵀ + diag(d)), u ~ Multinomial(L, softmax x): a total, and shares of it.

    The Laplace engine fits the shares through the Poisson channel with a flat column, as
    `nbln.models.depth` says; the totals have two parameters of their own.
    """

    channel = Poisson

    def sample_depth(self):
        """The two numbers of the totals, and the capture loss of each cell where there is one."""
        totals = [sample_site(site.name, self.priors[site.name], ()) for site in TOTAL_SITES]
        eta = sample_capture(names.ETA, self.capture) if self.depth.has_capture else 0.0
        return *totals, eta

    def observe(self, counts, x, channel, depth):
        del channel  # of rates; given the total only their shares matter
        mean, r, eta = depth
        total = jnp.sum(counts, axis=1)
        log_mean = jnp.broadcast_to(jnp.log(mean) - eta, total.shape)
        numpyro.sample(names.TOTAL, NegativeBinomialLogMean(log_mean, r), obs=total)
        shares = dist.MultinomialLogits(x, total.astype(int))
        numpyro.sample(names.COUNTS, shares, obs=counts)

    @property
    def depth_sites(self):
        eta = (names.ETA_SITE,) if self.depth.has_capture else ()
        return (*TOTAL_SITES, *eta)

    @classmethod
    def default_priors(cls, n_cells):
        return {
            **super().default_priors(n_cells),
            # As weak as those of a gene's mean and dispersion in the model of independent genes.
            names.TOTAL_MEAN: LogNormal(0.0, 10.0),
            names.TOTAL_DISPERSION: LogNormal(math.log(TYPICAL_R), 2.0),
        }
