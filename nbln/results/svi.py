"""The result of stochastic variational inference of independent genes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import xarray as xr
from jaxtyping import Float

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import check_number
from nbln.data.counts import Counts
from nbln.models.independent import Parameterization
from nbln.posterior.mode import SEARCH, Parameters
from nbln.posterior.variational import Posterior
from nbln.priors.coordinates import transform
from nbln.questions import arviz, effects, gates, predictive, scoring
from nbln.questions.convergence import Convergence, Curve
from nbln.questions.effects import GeneEffects
from nbln.results import export, files, story
from nbln.results.counted import CountedResult

FAINT = -10.0  # logit of the gate of a sum of genes
FROZEN_DRAWS = 1000  # of the source, for the distribution of a site that is frozen from it


@dataclass(frozen=True, eq=False)
class SVIResult(CountedResult):
    """A fitted model of independent genes.

    Attributes
    ----------
    parameterization
        Name of the parameterization.
    posterior
        Approximate posterior of each site.
    known_eta
        (cell,) capture loss where it was not inferred; None where it was.
    losses
        (block,) negative evidence lower bound (nats) at the end of each block of steps.
    converged, n_steps
        Whether the locations settled, and after how many steps.
    gene_effects
        Effects of covariates; None where there are none.
    """

    kind: ClassVar[str] = registry.SVI
    has_programs: ClassVar[bool] = False
    parameterization: str
    posterior: Posterior
    known_eta: np.ndarray | None
    losses: np.ndarray
    converged: bool
    n_steps: int
    gene_effects: GeneEffects | None = None

    def __repr__(self):
        return story.svi_line(self)

    @property
    def formula(self):
        return None if self.gene_effects is None else self.gene_effects.formula

    @property
    def covariates(self):
        return super().covariates if self.gene_effects is None else self.gene_effects.covariates

    @property
    def _beta(self) -> np.ndarray:
        none = np.zeros((self.fitted.n_genes, 0), np.float32)
        return none if self.gene_effects is None else self.gene_effects.mean

    @property
    def beta(self) -> xr.DataArray:
        """(gene, covariate) effects on the log mean; of numbers, by their standard deviation."""
        own = [] if self.formula is None else list(self.formula.fixed)
        labelled = self.fitted.label(self._beta, (names.GENE, names.COVARIATE), names.EFFECTS)
        return labelled.assign_coords({names.COVARIATE: own})

    def get_covariate_effects(self) -> xr.Dataset:
        """Effect of each covariate on each gene's log mean: ``mean`` and ``sd``, (gene, covariate).

        Units and prior are those of `LaplaceResult.get_covariate_effects`. The mode of the
        regressions in which the fit starts, and ``sd`` by curvature there, at given capture losses,
        dispersions and widths. Cells are taken for independent, also those of one donor.

        Raises
        ------
        ValueError
            The fit had no formula.
        """
        sd = self._beta if self.gene_effects is None else self.gene_effects.sd
        return effects.of_covariates(self.beta, sd, self.formula)

    # What was fitted, labelled

    @property
    def _row(self) -> registry.Row:
        return registry.find(self.model)

    @property
    def _way(self) -> Parameterization:
        return self._row.parameterizations[self.parameterization]()

    @property
    def _channel_sites(self) -> list[str]:
        return [site.name for site in self._row.program.channel.sites]

    def dims(self, site: str) -> tuple[str, ...]:
        """The dims of a site."""
        dims = {own.name: own.dims for own in self._row.program.gene_sites(self._way)}
        return {**dims, names.ETA: (names.CELL,)}.get(site, (names.GENE,))

    def _dataset(self, values: dict, leading: tuple[str, ...] = ()) -> xr.Dataset:
        return xr.Dataset(
            {
                name: self.fitted.label(value, (*leading, *self.dims(name)))
                for name, value in values.items()
            }
        )

    def _complete(self, values: dict) -> dict:
        """Add the mean and dispersion of each gene, and a known η."""
        mean, r = self._way.expand(values)
        complete = dict(values) | {names.MEAN: mean, names.DISPERSION: r}
        if self.known_eta is not None:
            shape = np.shape(mean)[:-1]
            complete[names.ETA] = np.broadcast_to(self.known_eta, (*shape, self.known_eta.shape[0]))
        return complete

    def get_map(self) -> xr.Dataset:
        """Location of the posterior of each site, and mean and dispersion of each gene."""
        located = self._dataset(self._complete(self.posterior.map()))
        return located.assign({names.EFFECTS: self.beta}) if self.has_effects else located

    def get_distributions(self) -> dict:
        """Marginal posterior of each site, as NumPyro distributions."""
        return self.posterior.distributions()

    def get_posterior_samples(self, n_samples: int = 1000, seed: int = 0) -> xr.Dataset:
        """Draws of all sites, with dims (chain, draw, ...)."""
        draws = self._complete(self.posterior.sample(jax.random.key(seed), n_samples))
        draws = {name: np.asarray(value)[None] for name, value in draws.items()}
        return self._dataset(draws, (names.CHAIN, names.DRAW))

    def sample_genes(self, n_samples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Mean and dispersion of each gene in `get_posterior_samples`, (draw, gene) each.

        With gates, those of the negative binomial that has the same mean and variance.
        """
        genes, _ = jax.random.split(jax.random.key(seed))
        mean, r = self._counted(self.posterior.sample_genes(genes, n_samples))
        return np.asarray(mean), np.asarray(r)

    @property
    def mean(self) -> xr.DataArray:
        """(gene,) mean expression at full capture (counts)."""
        return self.get_map()[names.MEAN]

    @property
    def r(self) -> xr.DataArray:
        """(gene,) dispersion: the variance is m + m²/r at mean m."""
        return self.get_map()[names.DISPERSION]

    @property
    def eta(self) -> xr.DataArray:
        """(cell,) capture loss, natural log."""
        return self.get_map()[names.ETA]

    def get_gate(self, fdr: float = 0.05, counts=None) -> xr.Dataset:
        """The gate of each gene, and whether the counts need one, (gene,).

        Each gene's maximal likelihood with a gate is compared with that without, capture losses
        held. Without need of a gate twice the logarithm of their ratio is 0 in half of the genes
        and χ² with one degree of freedom in the others (Self & Liang 1987), which gives p-values;
        they are corrected for the number of genes (Benjamini & Hochberg 1995).

        Parameters
        ----------
        fdr
            Share of wrong ones that is accepted among the genes called ``needed``.
        counts
            The AnnData of the fit; needed after loading.

        Returns
        -------
        ``mean`` and ``sd`` of the gate under the posterior, ``log_ratio`` (of likelihoods, nats),
        ``p_value``, ``q_value``, and ``needed``: q_value at most `fdr`. Genes that counts can tell
        nothing about have a small gate, by its prior, and a p-value of 1.

        Raises
        ------
        ValueError
            The model has no gates, or `fdr` is no probability.
        """
        check_number("get_gate(fdr", fdr, 0.0, 1.0, open_=True)
        if names.GATE not in self._channel_sites:
            raise ValueError(f"get_gate: model {self.model} has no gates; fit model='zinbvcp'")
        eta = self.get_map()[names.ETA].values
        tested = gates.test(self.parameters, self.fitted.data(counts), eta, fdr)
        moments = gates.moments(self.posterior.marginal()[names.GATE])
        return self._of_real_genes(moments | tested)

    def _of_real_genes(self, values: dict[str, np.ndarray]) -> xr.Dataset:
        labelled = {name: self.fitted.label(x, (names.GENE,)) for name, x in values.items()}
        return xr.Dataset(labelled).isel(gene=self.fitted.real_genes)

    @property
    def n_parameters(self) -> int:
        return self.fitted.n_genes * (1 + len(self._channel_sites)) + self._beta.size

    @property
    def parameters(self) -> Parameters:
        """Mean and dispersion at the posterior's location: no factors, no residuals."""
        located = self.get_map()
        mean = jnp.asarray(located[names.MEAN].values)
        channel = self._row.program.channel.of({str(n): x.values for n, x in located.items()})
        none = jnp.zeros((mean.size, 0)), jnp.zeros_like(mean)
        return Parameters(jnp.log(mean), *none, channel, self._beta)

    def _located(self):
        return self.parameters, SEARCH

    # What a cascade takes over

    @property
    def keys(self) -> tuple[str, ...]:
        """What it can hand to a log-normal model: of r, mu and eta.

        Without capture losses means are those of counts at each cell's own depth, and not of
        expression at full capture.
        """
        others = (names.MU, names.ETA) if self.has_capture else ()
        return (names.DISPERSION, *others)

    def in_order_of(
        self, counts: Counts, cells: np.ndarray, genes: np.ndarray, pooled: np.ndarray
    ) -> "SVIResult":
        """The same fit for the cells and genes of `counts`.

        Parameters
        ----------
        cells, genes
            Where they are in this fit.
        pooled
            Genes of this fit that `counts` have in their last one, `_other`; empty if it is one of
            `genes`, or there is none.
        """
        share = counts.library_size.sum() / self.fitted.library_size[cells].sum()
        fitted = replace(
            self.fitted,
            cell_names=counts.cell_names,
            gene_names=counts.gene_names,
            library_size=counts.library_size,
            fingerprint=counts.fingerprint,
            has_other=counts.has_other,
            counts=counts,
        )
        if len(pooled) and self.has_effects:
            raise ValueError(
                "informative_priors_from=: it has a formula, and genes that are pooled here; fit "
                "it with the same gene_coverage"
            )
        own = None if self.gene_effects is None else self.gene_effects.take(cells, genes)
        eta = None if self.known_eta is None else self.known_eta[cells]
        posterior = self.posterior.take(cells, genes)
        if len(pooled):
            posterior = posterior.with_gene(pooled, self._pool, self.posterior)
        rule = self.capture_rule.of_part(share)
        parts = {"posterior": posterior, "known_eta": eta, "capture_rule": rule}
        return replace(self, fitted=fitted, gene_effects=own, **parts)

    def _pool(self, coordinates: dict) -> dict:
        """Coordinates of the sum of genes: a negative binomial of the same mean and variance."""
        values = {name: transform(name)(x) for name, x in coordinates.items()}
        mean, r = self._counted(values)
        log_mean = jnp.log(mean)
        total = jax.scipy.special.logsumexp(log_mean)
        log_r = 2 * total - jax.scipy.special.logsumexp(2 * log_mean - jnp.log(r))
        pool = self._way.contract(total[None], log_r[None])
        own = {site.name: pool[site.name][0] for site in self._way.sites if site.dims}
        # The sum has next to no structural zeros: a gate that float32 tells from 0.
        further = [site for site in self._channel_sites if site in coordinates and site not in own]
        return own | {site: jnp.full((), FAINT) for site in further if site != names.DISPERSION}

    def _counted(self, values: dict) -> tuple[jax.Array, jax.Array]:
        """Mean and dispersion of the negative binomial with the counts' mean and variance."""
        mean, r = self._way.expand(values)
        channel = self._row.program.channel.of(dict(values) | {names.DISPERSION: r})
        log_mean, counted = channel.matched(jnp.log(mean))
        return jnp.exp(log_mean), counted.values()[names.DISPERSION]

    def get_frozen(self, site: str) -> dist.Distribution:
        """The posterior of a site that a log-normal model has frozen; μ is the log of the mean."""
        if site == names.ETA:
            if self.known_eta is not None:
                return dist.Delta(self.known_eta)
            return self.get_distributions()[names.ETA]
        mean, r = self.sample_genes(FROZEN_DRAWS)
        logs = np.log(mean if site == names.MU else r)
        loc, scale = logs.mean(axis=0), logs.std(axis=0)
        return dist.Normal(loc, scale) if site == names.MU else dist.LogNormal(loc, scale)

    def draw_frozen(
        self, sites: Sequence[str], n_samples: int, seed: int
    ) -> list[Mapping[str, np.ndarray]]:
        """For each draw, the sites that a log-normal model has frozen."""
        drawn = self.get_posterior_samples(n_samples, seed).isel(chain=0)
        mean, r = self._counted({str(name): x.values for name, x in drawn.items()})
        values = {names.DISPERSION: np.asarray(r), names.MU: np.log(np.asarray(mean))}
        values[names.ETA] = drawn[names.ETA].values
        return [{site: values[site][i] for site in sites} for i in range(n_samples)]

    def capture_losses(self, counts: Counts) -> Float[np.ndarray, " cell"]:
        """Posterior mean of η of any cells with the genes of the fit."""
        added = self._augment(counts, "transform")
        return scoring.independent(self.parameters, counts, added)[1]

    # What all results answer

    def _independent_draws(self, posterior: xr.Dataset):
        """Mean, channel and η of each draw."""
        drawn = posterior.isel(chain=0)
        mean, eta = (drawn[n].values for n in (names.MEAN, names.ETA))
        channel, sites = self._row.program.channel, self._channel_sites
        own = [{site: drawn[site].values[i] for site in sites} for i in range(len(mean))]
        return mean, [channel.of(values) for values in own], eta

    def _score(self, counts, n_samples, seed):
        del n_samples, seed  # the integral over η is exact
        return scoring.independent(self.parameters, counts, self._augment(counts, "score"))[0]

    def _sampler(self, ppc_level, n_samples, seed, counts):
        del counts
        posterior = self.get_posterior_samples(n_samples, seed)
        drawn = *self._independent_draws(posterior), self.covariates, self._beta
        return predictive.independent_sampler(*drawn, ppc_level)

    def _transform(self, counts):
        if not self.has_capture:
            raise ValueError(
                f"transform: model {self.model} has neither factors nor capture losses of cells"
            )
        return {names.ETA: ((names.CELL,), self.capture_losses(counts))}

    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        return self.get_posterior_samples(n_samples, seed)

    def cell_log_likelihood(self, posterior, data):
        drawn = *self._independent_draws(posterior), self.covariates, self._beta
        return arviz.log_prob_of_draws(data, *drawn)

    def _summary(self, counts, seed):
        del counts, seed
        return story.svi_summary(self)

    @property
    def convergence(self) -> Convergence:
        n = len(self.losses)
        steps = np.arange(1, n + 1)
        curves = (
            Curve("one batch", self.losses, joined=False),
            Curve("mean so far", np.cumsum(self.losses) / steps, marked=False),
        )
        return Convergence(
            "SVI",
            "step",
            "negative evidence bound (nats)",
            steps * (self.n_steps / max(n, 1)),
            curves,
            logarithmic=False,
        )

    @property
    def stages(self):
        return {"SVI": self.fitted.seconds}

    def story(self):
        return story.of_svi(self)

    def write_to(self, adata, key_added: str = "nbln") -> None:
        """Write mean, dispersion, effects and capture loss into `adata`: var, obs and uns."""
        located = self.get_map()
        genes = {name: located[name].values for name in (names.MEAN, *self._channel_sites)}
        genes |= export.effect_columns(self.beta)
        eta = located[names.ETA].values if self.has_capture else None
        notes = {"converged": bool(self.converged)}
        export.write(adata, key_added, self.fitted, genes, eta, notes)

    def to_groups(self):
        return files.svi_groups(self)

    @classmethod
    def from_groups(cls, groups):
        return cls(**files.svi_parts(groups))
