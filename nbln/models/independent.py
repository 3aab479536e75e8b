"""What models of independent genes share; they differ in the channel and in capture."""

import abc
import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.linalg.products import dot
from nbln.models.base import sample_capture, sample_site
from nbln.models.depth import Depth, InCounts
from nbln.posterior.mode import Augmentation
from nbln.priors.capture import Capture
from nbln.priors.coordinates import transform
from nbln.priors.univariate import Beta, LogNormal, Prior
from nbln.vocabulary import Site

Values = dict[str, jax.Array]
MEAN = Site(names.MEAN, (names.GENE,), "mean expression at full capture (counts)")
(DISPERSION,) = NegativeBinomial.sites


class Parameterization(eqx.Module):
    """Which numbers stand for the mean and the dispersion of each gene.

    In unconstrained coordinates (log, logit) both are sums of coordinates, with coefficients 1.
    """

    name: ClassVar[str]
    sites: ClassVar[tuple[Site, ...]]

    @abc.abstractmethod
    def expand_log(self, coordinates: Values) -> tuple[jax.Array, jax.Array]:
        """Log mean and log dispersion of each gene (any leading axes)."""

    @abc.abstractmethod
    def contract(self, log_mean: Array, log_r: Array) -> Values:
        """Coordinates that come near a log mean and a log dispersion."""

    @abc.abstractmethod
    def shift(self, coordinates: Values, delta: Array) -> Values:
        """Multiply all means by e^delta and leave all dispersions as they are."""

    def expand(self, values: Values) -> tuple[jax.Array, jax.Array]:
        """Mean and dispersion of each gene from the sites' values (any leading axes)."""
        inverse = {site.name: transform(site.name).inv for site in self.sites}
        log_mean, log_r = self.expand_log({n: inv(values[n]) for n, inv in inverse.items()})
        return jnp.exp(log_mean), jnp.exp(log_r)


class MeanDispersion(Parameterization):
    """A mean and a dispersion for each gene."""

    name = "mean_disp"
    sites = (MEAN, DISPERSION)

    def expand_log(self, coordinates):
        return coordinates[names.MEAN], coordinates[names.DISPERSION]

    def contract(self, log_mean, log_r):
        return {names.MEAN: log_mean, names.DISPERSION: log_r}

    def shift(self, coordinates, delta):
        return coordinates | {names.MEAN: coordinates[names.MEAN] + delta}


class MeanOdds(Parameterization):
    """A mean for each gene and one odds ratio φ for all: r = mean φ."""

    name = "mean_odds"
    sites = (MEAN, Site(names.ODDS, (), "r / mean, the same for all genes"))

    def expand_log(self, coordinates):
        log_mean = coordinates[names.MEAN]
        return log_mean, log_mean + coordinates[names.ODDS][..., None]

    def contract(self, log_mean, log_r):
        return {names.MEAN: log_mean, names.ODDS: jnp.median(log_r - log_mean)}

    def shift(self, coordinates, delta):
        return {
            names.MEAN: coordinates[names.MEAN] + delta,
            names.ODDS: coordinates[names.ODDS] - delta,
        }


class Canonical(Parameterization):
    """A dispersion for each gene and one success probability p for all: mean = r p / (1 - p)."""

    name = "canonical"
    sites = (DISPERSION, Site(names.PROBABILITY, (), "success probability, the same for all genes"))

    def expand_log(self, coordinates):
        log_r = coordinates[names.DISPERSION]
        return log_r + coordinates[names.PROBABILITY][..., None], log_r

    def contract(self, log_mean, log_r):
        odds = jnp.median(log_r - log_mean)
        return {names.DISPERSION: log_mean + odds, names.PROBABILITY: -odds}

    def shift(self, coordinates, delta):
        return coordinates | {names.PROBABILITY: coordinates[names.PROBABILITY] + delta}


def by_name(*ways: type[Parameterization]) -> dict[str, type[Parameterization]]:
    """Parameterizations by their names; the first is the default."""
    return {way.name: way for way in ways}


class IndependentGenes(eqx.Module):
    """u_cg ~ channel(log mean_g + β_g x_c - η_c): genes share nothing but the capture loss.

    Effects β of covariates x of the cells are there where a formula says so, and known to the
    program: the regressions in which SVI starts learn them (`inference/svi/regression`).

    A model of this kind is a name, a channel and a docstring; `depth` says whether cells have
    capture losses. SVI fits it through its sites: the parameterization's, which stand for the mean
    and the dispersion, and what the channel has beside the dispersion.
    """

    name: ClassVar[str]
    channel: ClassVar[type[Channel]] = NegativeBinomial
    depth: ClassVar[Depth] = InCounts()
    parameterizations: ClassVar[dict[str, type[Parameterization]]] = by_name(MeanDispersion)
    takes_covariates: ClassVar[bool] = False  # whether SVI learns effects of covariates
    priors: dict[str, Prior]
    capture: Capture
    parameterization: Parameterization
    covariates: Float[Array, "cell covariate"] | None = None
    effects: Float[Array, "gene covariate"] | None = None  # β, known to the program

    def __call__(self, counts: Float[Array, "cell gene"]) -> None:
        """The NumPyro program."""
        self.observe(counts, *self.sample_genes(counts.shape[1]))

    def take(self, cells: Array) -> "IndependentGenes":
        """The model of these cells alone."""
        covariates = None if self.covariates is None else self.covariates[cells]
        return dataclasses.replace(self, capture=self.capture.take(cells), covariates=covariates)

    def sample_genes(self, n_genes: int) -> tuple[jax.Array, Channel]:
        """Sample the sites of all genes; their means and the channel of their counts."""
        values = {}
        for site in self.gene_sites(self.parameterization):
            shape = (n_genes,) if site.dims else ()
            values[site.name] = sample_site(site.name, self.priors[site.name], shape)
        mean, r = self.parameterization.expand(values)
        return mean, self.channel.of(values | {names.DISPERSION: r})

    def observe(self, counts, mean, channel: Channel) -> None:
        """Sample the capture loss of the cells and observe their counts."""
        capture = self.capture
        eta = sample_capture(names.ETA, capture) if self.depth.has_capture else capture.start()
        with numpyro.plate(names.CELL, counts.shape[0]):
            f = jnp.log(mean) - jnp.asarray(eta)[:, None]
            if self.covariates is not None and self.effects is not None:
                f = f + dot(self.covariates, self.effects.T)
            numpyro.sample(names.COUNTS, channel.distribution(f).to_event(1), obs=counts)

    @classmethod
    def gene_sites(cls, way: "Parameterization | type[Parameterization]") -> tuple[Site, ...]:
        """The sites of genes in this parameterization."""
        return (*way.sites, *(site for site in cls.channel.sites if site.name != names.DISPERSION))

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites of the program."""
        cells = (names.ETA_SITE,) if self.depth.has_capture else ()
        return (*self.gene_sites(self.parameterization), *cells)

    @classmethod
    def default_priors(cls, n_cells: int) -> dict[str, Prior]:
        """Weak priors on the sites of all its parameterizations."""
        del n_cells
        weak = {
            names.MEAN: LogNormal(0.0, 10.0),
            **cls.channel.default_priors(),
            names.ODDS: LogNormal(0.0, 10.0),
            names.PROBABILITY: Beta(1.0, 1.0),
        }
        ways = cls.parameterizations.values()
        has = {site.name for way in ways for site in cls.gene_sites(way)}
        return {site: prior for site, prior in weak.items() if site in has}

    @classmethod
    def augment(cls, capture: Capture) -> Augmentation:
        """How the capture loss enters the log-rates."""
        return cls.depth.augment(capture)
