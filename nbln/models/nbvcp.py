"""The negative binomial with variable capture probability: independent genes."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.channels.negative_binomial import NegativeBinomial
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


PARAMETERIZATIONS = {p.name: p for p in (MeanDispersion, MeanOdds, Canonical)}


class NBVCP(eqx.Module):
    """Counts of independent genes, each cell captured at its own efficiency.

    u_cg ~ NB(mean μ̄_g exp(-η_c), r_g)

    ====== ===== ==========================================================
    site   shape meaning
    ====== ===== ==========================================================
    mean   gene  mean expression at full capture (counts)
    r      gene  dispersion: variance is m + m²/r at mean m
    eta    cell  capture loss, capture efficiency exp(-eta)
    ====== ===== ==========================================================

    The parameterizations ``mean_odds`` and ``canonical`` have one number for all genes in place
    of one of the first two: ``phi`` (r = mean φ) or ``p`` (mean = r p / (1 - p)).
    """

    name: ClassVar[str] = "nbvcp"
    channel: ClassVar[type[Channel]] = NegativeBinomial
    depth: ClassVar[Depth] = InCounts()
    priors: dict[str, Prior]
    capture: Capture
    parameterization: Parameterization

    def __call__(self, counts: Float[Array, "cell gene"]) -> None:
        """The NumPyro program."""
        mean, r = self.sample_genes(counts.shape[1])
        self.observe(counts, self.capture, mean, r)

    def sample_genes(self, n_genes: int):
        """Sample the sites of all genes; their mean and dispersion."""
        values = {}
        for site in self.parameterization.sites:
            shape = (n_genes,) if site.dims else ()
            values[site.name] = sample_site(site.name, self.priors[site.name], shape)
        return self.parameterization.expand(values)

    def observe(self, counts, capture: Capture, mean, r) -> None:
        """Sample the capture loss of these cells and observe their counts."""
        eta = sample_capture(names.ETA, capture)
        with numpyro.plate(names.CELL, counts.shape[0]):
            f = jnp.log(mean) - jnp.asarray(eta)[:, None]
            count = self.channel.of({names.DISPERSION: r}).distribution(f)
            numpyro.sample(names.COUNTS, count.to_event(1), obs=counts)

    @property
    def sites(self):
        """All sites of the program."""
        return (*self.parameterization.sites, names.ETA_SITE)

    @classmethod
    def default_priors(cls, n_cells: int) -> dict[str, Prior]:
        """Weak priors on the sites of all parameterizations."""
        del n_cells
        return {
            names.MEAN: LogNormal(0.0, 10.0),
            **cls.channel.default_priors(),
            names.ODDS: LogNormal(0.0, 10.0),
            names.PROBABILITY: Beta(1.0, 1.0),
        }

    @classmethod
    def augment(cls, capture: Capture) -> Augmentation:
        """How the capture loss enters the log-rates."""
        return cls.depth.augment(capture)
