"""What log-normal models share; they differ in the channel, the distribution of a count."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.models.base import sample_capture, sample_site
from nbln.models.depth import Depth, InCounts
from nbln.posterior.mode import Augmentation
from nbln.priors.activity import DEGREES, TYPICAL, ActivityPrior
from nbln.priors.capture import Capture
from nbln.priors.effects import EffectScales, EffectsPrior
from nbln.priors.loadings import LoadingsPrior
from nbln.priors.univariate import InverseGamma, Normal, Prior
from nbln.vocabulary import Site

SITES = (
    Site(names.LOADINGS, (names.GENE, names.FACTOR), "loadings; only W less column means matters"),
    Site(names.RESIDUAL, (names.GENE,), "variance of the gene's own log-rate"),
    Site(names.MU, (names.GENE,), "mean log-rate (natural log)"),
)
EFFECTS = (
    Site(names.EFFECTS, (names.GENE, names.COVARIATE), "effect of a covariate on the log-rate"),
    Site(names.EFFECTS_VARIANCE, (names.GENE, names.TERM), "variance of the effects of a term"),
    Site(names.EFFECTS_TYPICAL, (names.TERM,), "its typical value over genes"),
)
ACTIVITIES = (
    Site(
        names.ACTIVITY_EFFECTS, (names.LEVEL, names.FACTOR), "effect of a level on log activities"
    ),
    Site(names.ACTIVITY_VARIANCE, (names.KEY,), "variance of the effects of a column's levels"),
)
LOG_RATE = Site(names.LOG_RATE, (names.CELL, names.GENE), "log-rate before capture")

# Chosen by recovery of known correlations, over sizes of simulated counts.
RESIDUAL_MODE = 0.1
CELLS_A_PSEUDOCELL = 50


class LogNormalModel(eqx.Module):
    """x ~ N(μ + β v, W Wᵀ + diag(d)), u ~ channel(x - η): log-rates are low-rank Gaussian.

    Covariates v of the cells, if there are any, have effects β of the prior `effects`. In each of
    several data sets columns of W are scaled by activities of the prior `activity`. A model of
    this kind is a name, a channel and a docstring; the Laplace engine fits it through the channel,
    the priors and `augment`.
    """

    name: ClassVar[str]
    channel: ClassVar[type[Channel]]
    depth: ClassVar[Depth] = InCounts()
    priors: dict[str, Prior]
    loadings: LoadingsPrior
    capture: Capture
    latent_dim: int = eqx.field(static=True)
    covariates: Float[Array, "cell covariate"] | None = None
    effects: EffectsPrior = EffectsPrior()
    datasets: Float[Array, "cell dataset"] | None = None
    activity: ActivityPrior = ActivityPrior()

    def __call__(self, counts: Float[Array, "cell gene"]) -> None:
        """The NumPyro program."""
        n_cells, n_genes = counts.shape
        scales = {}
        for site in self.loadings.sites(self.latent_dim):
            scales[site.name] = numpyro.sample(site.name, site.distribution(scales))
        shape = (n_genes, self.latent_dim)
        flat = dist.ImproperUniform(dist.constraints.real, (), event_shape=shape)
        W = numpyro.sample(names.LOADINGS, flat)
        numpyro.factor("W_prior", self.loadings.log_density(W, scales))
        d = sample_site(names.RESIDUAL, self.priors[names.RESIDUAL], (n_genes,))
        variance = jnp.sum(W**2, axis=1) + d
        mu = sample_site(names.MU, self.priors[names.MU].at(variance), (n_genes,))
        mu, W, _ = self.depth.fix(mu, W)
        values = {
            site.name: sample_site(
                site.name, self.priors[site.name].at(variance), (n_genes,) * len(site.dims)
            )
            for site in self.channel.sites
        }
        depth = self.sample_depth()
        mean = mu if self.covariates is None else mu + self._sample_effects(n_genes)
        with numpyro.plate(names.CELL, n_cells):
            scaled = W if self.datasets is None else W * self._sample_activities()[:, None]
            x = numpyro.sample(names.LOG_RATE, dist.LowRankMultivariateNormal(mean, scaled, d))
            self.observe(counts, x, self.channel.of(values), depth)

    def sample_depth(self):
        """Sample what the depths of the cells depend on; `observe` is given it."""
        return sample_capture(names.ETA, self.capture)

    def observe(self, counts, x: Array, channel: Channel, depth) -> None:
        """Observe the counts of the cells given their log-rates before capture."""
        count = channel.distribution(x - jnp.asarray(depth)[:, None])
        numpyro.sample(names.COUNTS, count.to_event(1), obs=counts)

    def _sample_effects(self, n_genes: int) -> Float[Array, "cell gene"]:
        """Sample what covariates do to each gene; β v of each cell."""
        start, half = self.effects.start(n_genes), 0.5 * self.effects.degrees
        flat = dist.ImproperUniform(dist.constraints.positive, (), start.typical.shape)
        typical = jnp.asarray(numpyro.sample(names.EFFECTS_TYPICAL, flat))
        own = dist.InverseGamma(half, half * typical).expand(start.variance.shape).to_event(2)
        scales = EffectScales(numpyro.sample(names.EFFECTS_VARIANCE, own), typical)
        prior = dist.Normal(0, self.effects.precision(scales) ** -0.5).to_event(2)
        return jnp.asarray(self.covariates) @ jnp.asarray(numpyro.sample(names.EFFECTS, prior)).T

    def _sample_activities(self) -> Float[Array, "cell factor"]:
        """Sample how active programs are in data sets; standard deviations of each cell's factors.

        Of each term one variance τ², whose prior is that of `ActivityPrior`.
        """
        prior, k = self.activity, self.latent_dim
        half = 0.5 * DEGREES
        own = dist.InverseGamma(half, half * TYPICAL**2).expand((len(prior.sizes),)).to_event(1)
        variance = jnp.asarray(numpyro.sample(names.ACTIVITY_VARIANCE, own))
        sd = jnp.sqrt(prior.by_level(variance))
        effect = dist.Normal(0, sd[:, None]).expand((len(sd), k)).to_event(2)
        effects = jnp.asarray(numpyro.sample(names.ACTIVITY_EFFECTS, effect))
        return jnp.exp(jnp.asarray(self.datasets) @ prior.log_activity(effects))

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites of the program."""
        scales = (
            Site(site.name, site.dims, "scale of the loadings")
            for site in self.loadings.sites(self.latent_dim)
        )
        effects = () if self.covariates is None else EFFECTS
        activities = () if self.datasets is None else ACTIVITIES
        sites = *SITES, *effects, *activities, *self.channel.sites
        return (*scales, *sites, *self.depth_sites, LOG_RATE)

    @property
    def depth_sites(self) -> tuple[Site, ...]:
        """Those of `sample_depth`."""
        return (names.ETA_SITE,)

    @classmethod
    def default_priors(cls, n_cells: int) -> dict[str, Prior]:
        """Weak priors, but for d where the channel has an overdispersion of its own.

        Counts say how large d + 1/r is, and next to nothing about its parts: log d and log r are
        correlated 0.9 and more at all depths. What they seem to say grows with the cells and is
        biased by the Laplace approximation, toward d; so the prior that decides grows as well: it
        is as informative as one pseudo-cell per 50 cells. Where counts are Poisson given their
        rates they determine d, and its prior is weak.
        """
        shape = 2.0
        if cls.channel.sites:
            shape += 0.5 * n_cells / CELLS_A_PSEUDOCELL
        return {
            names.MU: Normal(0.0, 10.0),
            **cls.channel.default_priors(),
            names.RESIDUAL: InverseGamma(shape, RESIDUAL_MODE * (shape + 1)),
        }

    @classmethod
    def augment(cls, capture: Capture) -> Augmentation:
        """How the capture loss enters the log-rates."""
        return cls.depth.augment(capture)

    @property
    def augmentation(self) -> Augmentation:
        """What is added to the log-rates of the model's own cells."""
        added = self.augment(self.capture)
        return added._replace(covariates=self.covariates, datasets=self.datasets)
