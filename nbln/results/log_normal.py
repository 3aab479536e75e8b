"""The parts of a fitted log-normal model, and their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from nbln import registry
from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.data.datasets import Datasets
from nbln.data.formula import Formula
from nbln.linalg import gauge
from nbln.models.depth import Depth
from nbln.posterior.cells import CellPosterior
from nbln.posterior.mode import Augmentation, Parameters, Search
from nbln.posterior.totals import Totals, log_shares_constant
from nbln.priors.activity import FittedActivity
from nbln.priors.loadings import FittedLoadings, Scales
from nbln.priors.univariate import Prior
from nbln.questions import (
    activity,
    correlation,
    distributions,
    effects,
    moments,
    outliers,
    programs,
)
from nbln.questions.distributions import Spread
from nbln.questions.predictive import CellDesign
from nbln.results.counted import CountedResult
from nbln.results.history import History
from nbln.results.svi import SVIResult

LARGEST_MATRIX = 2**32  # bytes, of genes by genes


@dataclass(frozen=True, eq=False)
class LogNormalResult(CountedResult):
    """A fitted log-normal model: its parts, labelled.

    Parts are what was fitted; accessors label them or ask questions of them. The factors are
    largest first: under a prior of sparse loadings (the default) in the basis in which the loadings
    are sparse, which identifies them up to sign; under the others in the principal axes of W_⊥.

    Attributes
    ----------
    parameters
        mu (gene,), W (gene, factor), d (gene,), and the channel with its own.
    cells
        What is known of each cell: coordinates at the mode, capture loss, evidence.
    augmentation
        Offsets of the cells, and columns of the design beyond the gene programs.
    loadings
        The loadings prior with its learned scales.
    spread
        How far the parameters may be off.
    history, converged
        What each iteration did, and whether the parameters settled.
    search
        When the search for a cell's mode ends.
    frozen, match
        Sites that were frozen from `cascade_source`; how they follow it, ``"verbatim"`` or
        ``"marginal"``.
    cascade_source
        The fit of independent genes that gave priors, frozen or starting values.
    priors
        What was believed of each site; None in files that do not say.
    formula
        What is known of the covariates; None where there are none.
    pooled
        Whether overdispersion is learned over all genes, not under priors of d and r by gene.
    totals
        The distribution of cells' totals; None where totals are the sums of counts, no more.
    datasets
        The data sets in which programs are more or less active; None where there is one.
    activity
        How active they are.
    """

    has_programs: ClassVar[bool] = True
    parameters: Parameters
    cells: CellPosterior
    augmentation: Augmentation
    loadings: FittedLoadings
    spread: Spread
    history: History
    search: Search
    converged: bool
    frozen: tuple[str, ...] = ()
    match: str = "verbatim"
    cascade_source: SVIResult | None = None
    priors: dict[str, Prior] | None = None
    pooled: bool = False
    formula: Formula | None = None
    totals: Totals | None = None
    datasets: Datasets | None = None
    activity: FittedActivity | None = None

    @property
    def has_activities(self) -> bool:
        return self.datasets is not None

    @property
    def _depth(self) -> Depth:
        return registry.find(self.model).program.depth

    @property
    def predicts_depth(self) -> bool:
        return self._depth.has_totals or super().predicts_depth

    @property
    def n_parameters(self) -> int:
        """μ, d and what the channel has; of loadings and effects what the counts determine."""
        a_gene = 2 + len(self.parameters.channel.values())
        determined = distributions.n_determined(self.spread, self.loadings)
        return self.fitted.n_genes * a_gene + round(determined)

    @property
    def totals_alone(self) -> bool:
        return self._depth.has_totals and not self._depth.has_capture

    @property
    def _total_losses(self) -> np.ndarray:
        """Capture losses in the means of totals."""
        return self.cells.eta if self.has_capture else np.zeros_like(self.cells.eta)

    def get_count_moments(self):
        if self.totals is None:
            return super().get_count_moments()
        given = self.parameters, self.totals, self._total_losses
        return moments.share_moments(*given, self.design)

    def _of_totals(self, counts: Counts, totals: Totals) -> np.ndarray:
        """What the totals of cells add to the evidence of their counts (nats)."""
        library = counts.library_size
        capture = self._depth.of_totals(self.capture_rule.of(library))
        return log_shares_constant(library) + totals.log_prob(library, capture)

    def _score(self, counts, n_samples, seed):
        values = super()._score(counts, n_samples, seed)
        return values if self.totals is None else values + self._of_totals(counts, self.totals)

    def _outliers(self, counts):
        yield from super()._outliers(counts)
        evidence, library = self.log_evidence, counts.library_size
        if self.totals is not None:  # which the means of shares say nothing about
            evidence = evidence + log_shares_constant(library) + outliers.log_own_total(library)
        yield from outliers.ambient(self.fitted, counts, evidence)

    @property
    def latent_dim(self) -> int:
        """Number of factors offered."""
        return self.parameters.W.shape[1]

    @property
    def mu(self) -> xr.DataArray:
        """(gene,) mean log-rate."""
        return self.fitted.label(self.parameters.mu, (names.GENE,), names.MU)

    @property
    def covariates(self) -> Float[np.ndarray, "cell covariate"]:
        """Covariates of the cells of the fit, numbers standardised."""
        given = self.augmentation.covariates
        return super().covariates if given is None else np.asarray(given)

    @property
    def design(self) -> CellDesign:
        given = self.augmentation.datasets
        if given is None:
            return super().design
        return CellDesign(self.covariates, np.exp(given @ np.asarray(self.parameters.log_activity)))

    @property
    def beta(self) -> xr.DataArray:
        """(gene, covariate) effects on the log-rate; of numbers, by their standard deviation."""
        labelled = self.fitted.label(
            self.parameters.effects, (names.GENE, names.COVARIATE), names.EFFECTS
        )
        own = () if self.formula is None else self.formula.names
        return labelled.assign_coords({names.COVARIATE: list(own)})

    @property
    def d(self) -> xr.DataArray:
        """(gene,) variance of the gene's own log-rate."""
        return self.fitted.label(self.parameters.d, (names.GENE,), names.RESIDUAL)

    @property
    def channel_parameters(self) -> xr.Dataset:
        """The channel's own parameters, by site."""
        values = self.parameters.channel.values()
        dims = {site.name: site.dims for site in self.parameters.channel.sites}
        return xr.Dataset({n: self.fitted.label(x, dims[n], n) for n, x in values.items()})

    @property
    def r(self) -> xr.DataArray:
        """(gene,) dispersion; infinite where the channel has no r (see `channel_parameters`)."""
        r = self.parameters.channel.values().get(names.DISPERSION, np.inf)
        return self.fitted.label(np.full(self.fitted.n_genes, r), (names.GENE,), names.DISPERSION)

    @property
    def W(self) -> xr.DataArray:
        """(gene, factor) loadings; see `get_W_compositional` for the part that is identified."""
        return self.fitted.label(self.parameters.W, (names.GENE, names.FACTOR), names.LOADINGS)

    @property
    def eta(self) -> xr.DataArray:
        """(cell,) capture loss, natural log; capture efficiency is exp(-eta).

        Of a model without capture losses (lnm), what log-rates lack of those of the counts, whose
        mean over genes is that of x: the cell's depth with the other sign.
        """
        return self.fitted.label(self.cells.eta, (names.CELL,), names.ETA)

    @property
    def _losses(self):
        columns = self.augmentation.columns
        if not self._depth.has_totals:
            return self.cells.eta
        extra = self.cells.z[:, self.latent_dim :]
        rise = (extra * self.augmentation.scale) @ np.asarray(columns.value, np.float32)
        return -(self.augmentation.offset + rise)

    @property
    def scales(self) -> Scales:
        """Learned scales of the loadings prior, by site."""
        return self.loadings.scales

    @property
    def trace(self) -> Float[np.ndarray, "iteration 4"]:
        """Change in each iteration of W_⊥W_⊥ᵀ, mu, log d and the channel's log parameters."""
        return self.history.changes

    @property
    def cell_converged(self) -> Bool[np.ndarray, " cell"]:
        """Whether each cell's mode was reached."""
        return self.cells.converged

    @property
    def unconverged_cell_mask(self) -> xr.DataArray:
        """(cell,) True where the cell's mode was not reached."""
        return self.fitted.label(~self.cells.converged, (names.CELL,), "unconverged")

    @property
    def gradient_norm(self) -> Float[np.ndarray, " cell"]:
        """Gradient at each cell's mode, in posterior standard deviations."""
        return self.cells.gradient_norm

    @property
    def log_evidence(self) -> Float[np.ndarray, " cell"]:
        """Laplace evidence of each cell (nats)."""
        return self.cells.log_evidence

    @property
    def n_unconverged(self) -> int:
        """Number of cells whose posterior mode was not reached."""
        return int((~self.cells.converged).sum())

    def get_mu(self) -> xr.DataArray:
        """The property `mu`, (gene,)."""
        return self.mu

    def get_W(self) -> xr.DataArray:
        """The property `W`, (gene, factor)."""
        return self.W

    def get_d(self) -> xr.DataArray:
        """The property `d`, (gene,)."""
        return self.d

    def get_sigma(self, genes: Sequence[str] | None = None) -> xr.DataArray:
        """Covariance W Wᵀ + diag(d) of log-rates as fitted, ``(gene, gene_)``, natural log squared.

        It holds the part that all genes share, which capture cannot be told from;
        ``get_covariance()`` leaves it out, and knows other kinds.

        Parameters
        ----------
        genes
            Names; by default all, without the pool of the rarest.

        Raises
        ------
        KeyError
            An unknown gene.
        ValueError
            So many genes that the matrix would take more than 4 GiB.
        """
        real = self.fitted.real_genes
        labels = self.fitted.gene_names[real]
        rows = self.fitted.find(genes, labels)
        size = 8 * len(rows) ** 2
        if size > LARGEST_MATRIX:
            raise ValueError(
                f"get_sigma(): a matrix of {len(rows):,} x {len(rows):,} genes takes "
                f"{size / 2**30:,.0f} GiB; name some with genes=, or take get_W() and get_d(), of "
                "which it is made"
            )
        W, d = (np.asarray(x)[real] for x in (self.parameters.W, self.parameters.d))
        values = correlation.Covariance(W, d, "log_rate").block(rows, rows)
        return correlation.gene_matrix(values, labels[rows], "sigma")

    def get_latent(self) -> xr.DataArray:
        """z, (cell, factor): posterior mode of each cell's factors."""
        z = self.cells.z[:, : self.latent_dim]
        return self.fitted.label(z, (names.CELL, names.FACTOR), "z")

    def get_W_compositional(self) -> xr.DataArray:
        """W_⊥, (gene, factor): loadings less their column means, which no capture loss changes."""
        centred = gauge.compositional(self.parameters.W)
        return self.fitted.label(centred, (names.GENE, names.FACTOR), "W_compositional")

    def get_map(self) -> xr.Dataset:
        """All fitted parameters and latent variables."""
        values = [self.mu, self.W, self.d, self.eta, self.get_latent()]
        if self.formula is not None:
            values.append(self.beta)
        if self.totals is not None:
            pair = names.TOTAL_MEAN, names.TOTAL_DISPERSION
            values += [xr.DataArray(x, name=n) for n, x in zip(pair, self.totals, strict=False)]
        return self.channel_parameters.merge({value.name: value for value in values})

    def get_covariate_effects(self) -> xr.Dataset:
        """Effect of each covariate on each gene's log-rate: ``mean`` and ``sd``, (gene, covariate).

        Natural log; of a number, by one unit of its column, of a category, against the reference.
        Effects are relative to what depth explains: where capture losses come from totals, a
        category in which all genes double shows none. They are shrunken toward 0 by as much as the
        counts of a gene leave open, under a Student prior of a width learned for each covariate.
        ``sd`` is conditional on the cells' factors and takes cells for independent, unless what
        they share, a donor, is in ``fit(random=)``.

        Raises
        ------
        ValueError
            The fit had no formula.
        """
        sd = distributions.effects_sd(self.spread, self.loadings)
        return effects.of_covariates(self.beta, sd, self.formula)

    def get_random_effects(self, column: str | None = None) -> xr.Dataset:
        """Effects of the levels of a random intercept on each gene's log-rate (natural log).

        ``mean`` and ``sd``, (gene, level), and ``between``, (gene,), the standard deviation between
        levels that was learned. `column` is one of ``fit(random=)``, which may be left out where
        there is one.

        Raises
        ------
        ValueError
            The fit had no random intercepts, or not this one.
        """
        sd = distributions.effects_sd(self.spread, self.loadings)
        variance = () if self.spread.effects is None else self.spread.effects.scales.variance
        return effects.of_levels(self.beta, sd, variance, self.formula, column)

    def get_program_activity(self) -> xr.DataArray:
        """How active each program is in each data set, (dataset, factor).

        The standard deviation of the factor there, with a geometric mean of 1 over data sets; draws
        say how sure that is.

        Raises
        ------
        ValueError
            The fit had no `dataset_key`.
        """
        datasets = activity.check_any(self.datasets, "get_program_activity()")
        return activity.table(datasets, np.asarray(self.parameters.log_activity))

    def _moved_to(self, at: Mapping[str, Any], counts) -> np.ndarray:
        formula = effects.check_any(self.formula, "get_denoised(at=)")
        return formula.matrix_at(counts.obs, at) - self.covariates

    @property
    def w_prior_diagnostics(self) -> dict:
        """Column norms and scales of W_⊥, and how many columns carry signal by each.

        A column counts when its norm exceeds 5 % of the largest and a hundredth of a natural log
        in each gene; ``scale_effective_rank`` counts column scales in the same way.

        Returns
        -------
        By column, in the order of the factors: ``column_frobenius_compositional`` and
        ``column_frobenius_raw``, Euclidean norms of W_⊥ and of W; ``sigma_k``, standard deviation
        of a loading as the prior has learned it. ``effective_rank`` (also by its longer name,
        ``column_norm_effective_rank``) and ``scale_effective_rank``. What else the loadings prior
        has: ``tau``, scale of the standard deviations (horseshoe_sparse, horseshoe_columnwise);
        ``psi_k``, variances by column, and their rate ``gamma`` (neg_columnwise); the standard
        deviation ``scale`` that was given (gaussian). Natural log.
        """
        return programs.column_diagnostics(np.asarray(self.parameters.W), self.loadings)
