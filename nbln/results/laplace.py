"""The result of a Laplace fit of a log-normal model: the face of the questions it answers."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpyro.distributions as dist
import xarray as xr

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import check_whole
from nbln.inference.sampler.engine import SamplerConfig
from nbln.posterior.cells import CellsAtMode
from nbln.posterior.totals import Totals
from nbln.questions import (
    arviz,
    denoised,
    diagnostics,
    distributions,
    doublets,
    outliers,
    predictive,
)
from nbln.questions.convergence import Convergence
from nbln.results import export, files, halves, io, new_cells, one_dataset, sampling, story
from nbln.results.fitted_programs import FittedPrograms
from nbln.results.posterior import PosteriorDraws
from nbln.results.svi import SVIResult


@dataclass(frozen=True, eq=False)
class LaplaceResult(FittedPrograms):
    """A log-normal model fitted by the Laplace engine, and what it answers."""

    kind: ClassVar[str] = registry.LAPLACE

    def __repr__(self):
        return story.laplace_line(self)

    def sample_posterior(
        self,
        n_draws: int = 400,
        n_chains: int = 2,
        *,
        n_warmup: int = 60,
        seed: int = 0,
        capture: str = sampling.LATENT,
        progress: bool = True,
        checkpoint=None,
        counts=None,
    ) -> PosteriorDraws:
        """Draw everything from its exact posterior: how sure each answer is.

        Markov chains start at the fit. A sweep draws factors and capture losses of the cells,
        means and loadings of the genes, their overdispersion and its split between d and the
        channel, and the scales of the programs; Metropolis steps correct every approximation but
        the quadrature over each gene's own residual.

        Parameters
        ----------
        n_draws, n_chains, n_warmup
            Draws that each chain keeps, one a sweep; chains; sweeps before them.
        seed
            Of all draws.
        capture
            ``"latent"``: capture losses are drawn under the model's capture prior, also where the
            fit took them from a source; ``"source"``: they are drawn by the source, whatever the
            programs say of them. Offsets that are fixed stay fixed.
        progress
            Whether to show a bar, with effective draws and R-hat as they come.
        checkpoint
            A file that says where the chains stand, as in `nbln.fit`: a run that was killed goes on
            from it with the same draws.
        counts
            The AnnData of the fit; needed after loading.

        Raises
        ------
        ValueError
            A number out of its range; counts are missing; a checkpoint of another run.
        """
        config = SamplerConfig(n_draws, n_chains, n_warmup, seed)
        return sampling.sample(self, config, capture, progress, checkpoint, counts)

    def in_dataset(self, name: str) -> "LaplaceResult":
        """The same fit as the cells of one data set have it, with programs of its size.

        What it answers is of that data set: correlations, covariances, loadings, predictive draws.
        `name` is that of a data set, as in `get_program_activity`, or a level of a column, a
        condition over all of its donors.

        Raises
        ------
        ValueError
            The fit had no `dataset_key`, or not this data set.
        """
        return one_dataset.alone(self, name)

    def rank_stability(self, n_halves: int = 3, seed: int = 0, counts=None) -> xr.Dataset:
        """The same fit of random halves of the cells: which programs are found again.

        Each half costs about half of the fit. Settings and seed are those of the fit, `seed` is of
        the halves; `counts` the AnnData of the fit, where it is not held.

        Returns
        -------
        ``effective_rank``, ``converged`` (half,); ``cosine`` and ``span`` (half, program): of the
        fit's column of W_⊥ with its match in the half, and with the space of all programs there
        (1: found again; 0: not). ``attrs["effective_rank"]`` is that of the fit.

        Raises
        ------
        ValueError
            A result that was loaded, which has not all settings; too few cells; not half of them
            can be fitted, with the reason.
        """
        return halves.rank_stability(self, n_halves, seed, counts)

    def get_distributions(self) -> dict:
        """Posterior of each parameter and of η, as NumPyro distributions.

        Frozen sites have the distribution of `cascade_source`, or under marginal matching their
        fitted value. The others are conditional on the cells' factors and on each other, which
        understates their spread: standard deviations are 0.74 to 0.83 of the joint marginal ones
        for loadings.
        """
        posterior = distributions.of_parameters(self.parameters, self.spread, self.loadings)
        posterior[names.ETA] = distributions.of_eta(self.cells, self.has_capture)
        posterior |= distributions.of_totals(self.totals)
        if self.cascade_source is None:
            return posterior
        held = {site: dist.Delta(self.get_map()[site].values) for site in self.frozen}
        drawn = {site: self.cascade_source.get_frozen(site) for site in self._drawn_by_source}
        return posterior | held | drawn

    def get_compositional_samples(self, n_samples: int = 100, seed: int = 0) -> xr.DataArray:
        """Softmax of fresh log-rates, (chain, draw, gene): compositions without counting noise."""
        predictive.check_draws(predictive.MARGINAL, n_samples)
        # Of what a source draws, compositions depend on μ alone.
        drawn = names.MU in self._drawn_by_source
        frozen = self._frozen_draws(n_samples, seed) if drawn else [{}] * n_samples
        given = self.fitted, self.parameters, self.design
        return predictive.compositions(*given, frozen, seed)

    def get_denoised(
        self,
        scale: str = "rate",
        genes: Sequence[str] | None = None,
        counts=None,
        at: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Posterior ``mean`` and ``sd`` of each cell's expression at full capture, (cell, gene).

        Made chunk by chunk; memory is 8 bytes x cells x genes asked for.

        Parameters
        ----------
        scale
            ``"rate"``: expected counts at full capture; ``"log_rate"``: their natural log;
            ``"composition"``: shares of the cell's total.
        genes
            Names; all genes by default.
        counts
            The AnnData of the fit; needed after loading.
        at
            Columns of the formula, or of random intercepts, with the value that every cell is to
            have: ``{"treatment": "vehicle"}`` for expression as if. All else of a cell stays.
        """
        at_mode = self._at_mode(counts)
        moved = None if at is None else self._moved_to(at, at_mode.counts)
        return denoised.denoised(self.fitted, self.parameters, at_mode, scale, genes, moved)

    def get_pareto_k(self, n_cells: int = 40, seed: int = 0, counts=None) -> xr.DataArray:
        """Pareto k̂ of importance ratios in z, (cell,), of a random sample of cells.

        Below 0.7 the Laplace approximation of a cell's factors can be trusted or corrected
        (Vehtari et al. 2024).
        """
        given = self.fitted, self.parameters, self._at_mode(counts), n_cells, seed
        make = partial(diagnostics.pareto_k, *given)
        return self._kept.once(("pareto_k", n_cells, seed), make).copy()

    def get_doublet_probability(self, n_cells: int | None = None, counts=None) -> xr.DataArray:
        """Probability that a cell is two, (cell,): that its counts are the sum of two of the model.

        Before the counts two cells in a hundred are. A doublet is seen by its depth, by programs
        of two cells, and by genes that vary less than in one cell; where cells form no types, the
        first and the last are all there is. It is 0 of cells no deeper than the median, and of
        those that are not looked at; the 1,000 most abundant genes are.

        Parameters
        ----------
        n_cells
            How many of the deepest cells are looked at. By default as many as have 2,000,000
            counts, zeros included: half a minute's work.
        counts
            The AnnData of the fit; needed after loading.
        """
        if n_cells is not None:
            n_cells = check_whole("get_doublet_probability(n_cells", n_cells)
        data, real = self.fitted.data(counts), np.flatnonzero(self.fitted.real_genes)
        given = data, self.parameters, self._losses, self.design, real, n_cells
        make = partial(doublets.probabilities, *given)
        found = self._kept.once(("doublets", n_cells), make).copy()
        return self.fitted.label(found, (names.CELL,), "doublet_probability")

    def _outliers(self, counts):
        yield from super()._outliers(counts)
        probability = self.get_doublet_probability(counts=counts)
        yield outliers.doublets(self.fitted, probability.to_numpy())

    def _located(self):
        return self.parameters, self.search

    def _covariates(self, counts, caller):
        return None if self.formula is None else self.formula.matrix(counts.obs, caller)

    def _datasets(self, counts, caller):
        return None if self.datasets is None else self.datasets.indicators(counts.obs, caller)

    def _at_mode(self, counts) -> CellsAtMode:
        return CellsAtMode(self.fitted.data(counts), self.augmentation, self.cells.z)

    def _frozen_draws(self, n_samples: int, seed: int) -> predictive.Frozen:
        """For each draw, the frozen sites as the source's own posterior has them."""
        if self.cascade_source is None or not self._drawn_by_source:
            return [{}] * n_samples
        return self.cascade_source.draw_frozen(self._drawn_by_source, n_samples, seed)

    @property
    def _drawn_by_source(self) -> list[str]:
        """Frozen sites that the source draws; under marginal matching r and μ follow Σ_gg."""
        return [s for s in self.frozen if self.match == "verbatim" or s == names.ETA]

    def _sampler(self, ppc_level, n_samples, seed, counts):
        if ppc_level == predictive.PER_CELL:
            at_mode, given_total = self._at_mode(counts), self._depth.has_totals
            return predictive.own_sampler(at_mode, self.parameters, n_samples, seed, given_total)
        frozen = self._frozen_draws(n_samples, seed)
        eta = self.cells.eta if self.totals is None else self._total_losses
        given = self.parameters, eta, self.design
        return predictive.fresh_sampler(*given, frozen, ppc_level, self.totals)

    def _transform(self, counts):
        z, eta = new_cells.latent(self, counts)
        return {names.ETA: ((names.CELL,), eta), "z": ((names.CELL, names.FACTOR), z)}

    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        dims = {
            names.MU: (names.GENE,),
            names.LOADINGS: (names.GENE, names.FACTOR),
            names.EFFECTS: (names.GENE, names.COVARIATE),
            names.RESIDUAL: (names.GENE,),
            names.ETA: (names.CELL,),
            **dict.fromkeys((names.TOTAL_MEAN, names.TOTAL_DISPERSION), ()),
            **{site.name: site.dims for site in self.parameters.channel.sites},
        }
        drawn = distributions.draw(self.fitted, self.get_distributions(), dims, n_samples, seed)
        rows = [n for n in (names.MU, names.EFFECTS, names.LOADINGS) if n in drawn]
        *fixed, _ = self._depth.fix(*(drawn[name].values for name in rows))
        fixed = {n: drawn[n].copy(data=np.asarray(x)) for n, x in zip(rows, fixed, strict=True)}
        return drawn.assign(fixed)

    def cell_log_likelihood(self, posterior, data):
        drawn = arviz.parameters_of_draws(self.parameters, posterior)
        values = arviz.evidence_of_draws(self._at_mode(data), drawn)
        if self.totals is None:
            return values
        pair = (posterior[n].values[0] for n in (names.TOTAL_MEAN, names.TOTAL_DISPERSION))
        totals = itertools.starmap(Totals, zip(*pair, strict=True))
        return values + np.stack([self._of_totals(data, one) for one in totals])

    def _summary(self, counts, seed):
        return story.laplace_summary(self, counts, seed)

    @property
    def convergence(self) -> Convergence:
        sites = [site.name for site in self.parameters.channel.sites]
        return self.history.convergence(sites)

    @property
    def earlier(self):
        return self.cascade_source

    @property
    def stages(self):
        earlier = {} if self.cascade_source is None else self.cascade_source.stages
        return earlier | {"Laplace": self.fitted.seconds}

    def story(self):
        return story.of_laplace(self)

    def write_to(self, adata, key_added: str = "nbln", layers: bool = False, counts=None) -> None:
        """Write factors, loadings, parameters and capture losses into `adata`; the only writer.

        ``obsm["X_nbln"]``, ``varm["nbln_loadings"]``, ``var["nbln_mu"]`` and so on,
        ``obs["nbln_eta"]``, ``uns["nbln"]``; with `layers` also the denoised expression,
        ``layers["nbln_rate"]`` and ``layers["nbln_rate_sd"]``, dense. Genes left out of the fit
        get NaN. `counts` is the AnnData of the fit, needed for `layers` after loading.
        """
        export.write_laplace(self, adata, key_added)
        if layers:
            export.write_denoised(self.get_denoised(counts=counts), adata, key_added)

    def to_groups(self):
        return files.laplace_groups(self)

    @classmethod
    def from_groups(cls, groups):
        source = io.nested(groups, "cascade_source")
        chained = SVIResult.from_groups(source) if source else None
        return cls(**files.laplace_parts(groups), cascade_source=chained)
