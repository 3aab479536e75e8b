"""Draws of all sites of a model by NUTS: what `fit` gives for ``inference_method="mcmc"``."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import choose
from nbln.data.fitted import Fitted
from nbln.inference.sampler.engine import Draws, without_activity, without_effects
from nbln.priors.loadings import LoadingsPrior
from nbln.questions import intervals, sampling
from nbln.questions.chains import SAMPLE, Chains
from nbln.results import files, io, notebook
from nbln.results.drawn import Drawn
from nbln.results.drawn_programs import LEVEL, DrawnPrograms

ASKED_BY = f"inference_method={registry.MCMC!r}"
TOTALS = (names.TOTAL_MEAN, names.TOTAL_DISPERSION)


class DrawnSites:
    """What draws of sites by NUTS answer, whatever the model."""

    asked_by: ClassVar[str] = ASKED_BY
    fitted: Fitted
    model: str
    chains: Chains

    def _described(self) -> str:
        """Model, size and divergences."""
        n_chains, n_draws = self.chains.shape
        return (
            f"{self.model}, {n_chains} chains of {n_draws} draws, "
            f"{self.fitted.n_cells} cells x {self.fitted.n_genes} genes, "
            f"{self.n_divergences} divergences"
        )

    @property
    def n_divergences(self) -> int:
        """Draws whose trajectory diverged."""
        return self.chains.n_divergences

    @property
    def sites(self) -> xr.Dataset:
        """Draws of every site but log-rates, (chain, draw, ...), on its natural scale."""
        return self.chains.labelled(self.fitted)

    def get_site(self, site: str, level: float = LEVEL) -> xr.Dataset:
        """``mean``, ``sd``, ``low`` and ``high`` of one site over all draws.

        Parameters
        ----------
        site
            Its name in the model, or an alias: ``"mu"``, ``"mean"``, ``"r"``, ``"eta"`` ... Of
            ``"W"`` and ``"z"`` draws are not matched; see `MCMCPrograms.get_W_compositional`.
        level
            Probability that an interval covers, with equal tails.

        Raises
        ------
        ValueError
            No such site, or a level that is no probability.
        """
        intervals.check_level(level)
        name = registry.find(self.model).site(site)
        choose("get_site(site", name, map(str, self.chains.sites))
        return self.chains.summarised(self.fitted, name, level)


@dataclass(frozen=True, eq=False)
class MCMCGenes(DrawnSites, Drawn):
    """Draws of a model of independent genes by NUTS.

    Attributes
    ----------
    fitted, model
        Cells, genes and settings; name of the model.
    chains
        Draws of its sites, and how NUTS came to them.
    """

    kind: ClassVar[str] = "nuts_genes"
    fitted: Fitted
    model: str
    chains: Chains

    def __repr__(self):
        return f"MCMCGenes({self._described()})"

    def _repr_html_(self) -> str:
        return notebook.of_draws(self)

    @property
    def n_chains(self):
        return self.chains.shape[0]

    @property
    def n_draws(self):
        return self.chains.shape[1]

    def get_diagnostics(self):
        """Effective draws (``ess``), ``ess_per_draw`` and ``r_hat`` of every site, a row each.

        Of sites with many numbers the median of ess is given, and the r_hat that 95 % of them are
        below.
        """
        return sampling.chain_table(self.chains.varied())

    def _rows(self):
        return sampling.summary_of_chains(self)

    def to_datatree(self):
        return self.chains.tree(self.sites)

    def to_groups(self):
        return files.mcmc_groups(self)

    @classmethod
    def from_groups(cls, groups: io.Groups) -> "MCMCGenes":
        """From the groups of a file."""
        return cls(**files.mcmc_parts(groups))


@dataclass(frozen=True, eq=False)
class MCMCPrograms(DrawnSites, DrawnPrograms):
    """Draws of a log-normal model by NUTS.

    Entries of W and factors of cells may turn, or change order and sign, within and between
    chains: judge chains by what is the same in every turn (`get_diagnostics`).

    Attributes
    ----------
    fitted, model
        Cells, genes and settings; name of the model.
    chains
        Draws of its sites, and how NUTS came to them.
    prior
        Of the loadings.
    reference
        (gene, factor) loadings of the Laplace fit that the chains started from, and that programs
        are matched to.
    """

    kind: ClassVar[str] = "nuts"
    fitted: Fitted
    model: str
    chains: Chains
    prior: LoadingsPrior
    reference: Float[np.ndarray, "gene factor"]

    def __repr__(self):
        return f"MCMCPrograms({self._described()}, {self.reference.shape[1]} programs)"

    @cached_property
    def draws(self) -> Draws:
        """The parts that correlations and programs follow from."""
        sites = self.chains.values()
        scales = {site.name: sites[site.name] for site in self.prior.sites(self.reference.shape[1])}
        centre = sites[names.LOADINGS].mean(axis=2)
        if self.prior.centre is not None:
            centre = centre + scales[self.prior.centre]
        return Draws(
            sites[names.MU],
            *without_effects(sites[names.MU]),
            sites[names.LOADINGS],
            sites[names.RESIDUAL],
            {name: np.asarray(x) for name, x in self.channel.state().items()},
            centre,
            scales,
            np.zeros((*self.chains.shape, 0)),  # no pool: priors are of each gene
            self.chains.steps["accept_prob"].values[..., None],
            without_activity(sites[names.LOADINGS]),
        )

    @property
    def channel(self):
        """The count channel with the draws of its parameters, (chain, draw, ...)."""
        kind = registry.find(self.model).program.channel
        return kind.of({site.name: self.chains.sites[site.name].values for site in kind.sites})

    @cached_property
    def noise(self) -> Float[np.ndarray, "chain draw gene"]:
        """Squared coefficient of variation of the channel's own noise."""
        # Draw by draw, since a channel need not take more than one value of its parameters.
        kind, shape = registry.find(self.model).program.channel, self.chains.sites[names.MU].shape
        own = {site.name: self.chains.sites[site.name].values for site in kind.sites}
        noise = np.empty(shape)
        for draw in np.ndindex(shape[:2]):
            noise[draw] = kind.of({name: x[draw] for name, x in own.items()}).noise()
        return noise

    @property
    def z_mean(self) -> Float[np.ndarray, "cell factor"]:
        """Posterior mean of every cell's factors."""
        return self.chains.sites["z"].mean(SAMPLE).values

    @property
    def z_sd(self) -> Float[np.ndarray, "cell factor"]:
        """Posterior standard deviation of every cell's factors."""
        return self.chains.sites["z"].std(SAMPLE).values

    def get_diagnostics(self):
        """Effective draws (``ess``), ``ess_per_draw`` and ``r_hat`` of what matters, one row each.

        Correlations: of 200 pairs drawn at random and of the 200 strongest; total overdispersion of
        genes; sizes of the programs, in principal axes, which no turn changes; mean log-rates; d of
        genes; capture losses and totals. Of many numbers the median of ess is given, and the r_hat
        that 95 % of them are below.
        """
        W = self.draws.W - self.draws.W.mean(axis=2, keepdims=True)
        more = {
            "norms": np.linalg.svd(W, compute_uv=False),
            "means": self.draws.mu,
            "residuals": np.log(self.draws.d),
        }
        varied = self.chains.varied()
        more |= {n: varied[n] for n in (names.ETA, *TOTALS) if n in varied}
        return sampling.chain_table(sampling.groups(self) | more)

    def _rows(self):
        return sampling.summary_of_chains(self, programs=True)

    def to_datatree(self):
        """Draws for ArviZ: groups ``posterior`` and ``sample_stats``.

        ``posterior`` holds all sites but the log-rates, and W_compositional (matched).
        """
        dims = (*SAMPLE, names.GENE, names.FACTOR)
        return self.chains.tree(self.sites.assign(W_compositional=(dims, self._aligned_draws())))

    def to_groups(self):
        reference = {"reference": ((names.GENE, names.FACTOR), self.reference)}
        prior = io.group(reference, files.prior_values(self.prior))
        return {**files.mcmc_groups(self), "prior": prior}

    @classmethod
    def from_groups(cls, groups: io.Groups) -> "MCMCPrograms":
        """From the groups of a file."""
        prior = groups["prior"]
        parts = {"prior": files.prior_of(io.values(prior)), **io.arrays(prior)}
        return cls(**files.mcmc_parts(groups), **parts)
