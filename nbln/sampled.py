"""The plan of models whose posterior is drawn by NUTS, for small data."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import xarray as xr

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import choose
from nbln.channels.negative_binomial import TYPICAL_R
from nbln.data.counts import Counts
from nbln.inference.checkpoint import OFF
from nbln.inference.mcmc import engine as mcmc_engine
from nbln.inference.mcmc.engine import SECONDS_OF_GENES, SECONDS_WITH_RATES, MCMCConfig, Samples
from nbln.inference.mcmc.noncentred import FACTORS
from nbln.log_normal import LaplacePlan, first_means
from nbln.plan import PLANS, Plan, engine_settings
from nbln.priors.capture import LatentCapture
from nbln.priors.coordinates import transform
from nbln.questions.chains import SAMPLE, Chains
from nbln.questions.diagnostics import doubts
from nbln.results.laplace import LaplaceResult
from nbln.results.mcmc import MCMCGenes, MCMCPrograms

log = logging.getLogger("nbln")


@dataclass(frozen=True)
class MCMCPlan(Plan):
    """All sites of a model by NUTS on its own program."""

    engine: ClassVar[str] = registry.MCMC
    title: ClassVar[str] = "NUTS"
    uses: ClassVar[tuple[str, ...]] = ("latent_dim", "parameterization", "mcmc")
    settings: ClassVar[tuple[str, type]] = ("mcmc", MCMCConfig)
    config: MCMCConfig
    parameterization: str | None  # of independent genes
    start: LaplacePlan | None  # of a log-normal model: the fit that its chains start from

    @classmethod
    def uses_of(cls, row):
        other = "parameterization" if row.has_loadings else "latent_dim"
        return tuple(name for name in cls.uses if name != other)

    @classmethod
    def of(cls, row, arguments):
        common = cls._common(row, arguments)
        config = engine_settings(arguments, "mcmc", MCMCConfig, mcmc_engine.RULES, ())
        if row.has_loadings:
            start = LaplacePlan.of(row, {**arguments, "informative_priors_from": False})
            return cls(**common, config=config, parameterization=None, start=start)
        given, ways = arguments["parameterization"], row.parameterizations
        way = next(iter(ways)) if given is None else choose("fit(parameterization", given, ways)
        return cls(**common, config=config, parameterization=way, start=None)

    def run(self, counts, saver=OFF):
        sizes = counts.n_cells, counts.n_genes
        if self.start is None:
            remedy = f"leave inference_method out, or give inference_method={self.row.engines[0]!r}"
            self.config.check_size(*sizes, SECONDS_OF_GENES, remedy)
            result = self._genes(counts, saver)
        else:
            remedy = "leave inference_method out, and ask the fit for sample_posterior()"
            self.config.check_size(*sizes, SECONDS_WITH_RATES, remedy)
            result = self._programs(counts, self.start.run(counts, saver), saver)
        for doubt in doubts(result.summary()):
            log.warning("fit(inference_method='mcmc'): %s", doubt)
        return result

    def _genes(self, counts: Counts, saver) -> MCMCGenes:
        rule, note = self.priors.capture(counts.library_size)
        log.info(note)
        capture = rule.of(counts.library_size)
        way = self.row.parameterizations[self.parameterization]()
        sites = self.row.program.gene_sites(way)
        beliefs = self.priors.sites(counts.n_cells)
        priors = {site.name: beliefs[site.name] for site in sites}
        program = self.row.program(priors, capture, way)
        means = first_means(counts, capture)
        moments = way.contract(jnp.log(means), jnp.full(counts.n_genes, np.log(TYPICAL_R)))
        start = {
            site.name: jnp.broadcast_to(priors[site.name].mode(), means.shape) for site in sites
        }
        start |= {name: transform(name)(x) for name, x in moments.items()}
        if isinstance(capture, LatentCapture):
            start[names.ETA] = capture.start()
        samples = self._sample(program, counts, start, saver)
        settings = {"parameterization": self.parameterization}
        return MCMCGenes(
            self.fitted(counts, settings, {"NUTS": samples.seconds}),
            self.row.name,
            _chains(program, samples),
        )

    def _programs(self, counts: Counts, fit: LaplaceResult, saver) -> MCMCPrograms:
        """From a Laplace fit, with the columns of its loadings that carry signal."""
        n_columns = max(1, fit.w_prior_diagnostics["effective_rank"])
        columns = slice(0, n_columns)
        capture = fit.capture_rule.of(counts.library_size)
        program = self.row.program(fit.priors, fit.loadings.prior, capture, n_columns)
        parameters, scales = fit.parameters, fit.loadings.scales
        start = {
            names.MU: parameters.mu,
            names.LOADINGS: parameters.W[:, columns],
            names.RESIDUAL: parameters.d,
            **parameters.channel.values(),
            **{name: x[columns] if np.ndim(x) else x for name, x in scales.items()},
            FACTORS: fit.cells.z[:, columns],
        }
        if isinstance(capture, LatentCapture) and fit.has_capture:
            start[names.ETA] = np.maximum(fit.cells.eta, capture.start() / 10)
        if fit.totals is not None:
            start |= {names.TOTAL_MEAN: fit.totals.mean, names.TOTAL_DISPERSION: fit.totals.r}
        samples = self._sample(program, counts, start, saver)
        sites = dict(samples.sites)
        fixed = program.depth.fix(sites[names.MU], sites[names.LOADINGS])
        sites[names.MU], sites[names.LOADINGS] = (np.asarray(x) for x in fixed[:2])
        seconds = {**fit.fitted.seconds, "NUTS": samples.seconds}
        return MCMCPrograms(
            self.fitted(counts, {"latent_dim": n_columns}, seconds),
            self.row.name,
            _chains(program, samples._replace(sites=sites)),
            fit.loadings.prior,
            np.asarray(parameters.W[:, columns]),
        )

    def _sample(self, program, counts: Counts, start: dict[str, Any], saver) -> Samples:
        given = program, counts, start, self.config, self.seed, self.progress, saver
        return mcmc_engine.sample(*given)


PLANS[MCMCPlan.engine] = MCMCPlan


def _chains(program, samples: Samples) -> Chains:
    """Draws with the names of their dims."""
    dims = {site.name: site.dims for site in program.sites}
    dims[FACTORS] = (names.CELL, names.FACTOR)
    sites = {name: ((*SAMPLE, *dims[name]), x) for name, x in samples.sites.items()}
    steps = {name: (SAMPLE, x) for name, x in samples.steps._asdict().items()}
    return Chains(xr.Dataset(sites), xr.Dataset(steps))
