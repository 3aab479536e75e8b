"""The plan of log-normal models by the Laplace engine, with or without a source of its priors."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np

from nbln import cascade as cascades
from nbln import options, registry
from nbln import vocabulary as names
from nbln.cascade import CascadeConfig
from nbln.channels.negative_binomial import TYPICAL_R
from nbln.data.counts import Counts
from nbln.data.datasets import Datasets
from nbln.data.design import column_names
from nbln.data.formula import Formula, columns_of
from nbln.inference.checkpoint import OFF
from nbln.inference.laplace import config as laplace_config
from nbln.inference.laplace.config import LaplaceConfig
from nbln.inference.laplace.engine import LaplaceFit, fit_laplace
from nbln.inference.svi import engine as svi_engine
from nbln.inference.svi.engine import SVIConfig
from nbln.inference.totals import beside as totals_beside
from nbln.models.log_normal import LogNormalModel
from nbln.plan import PLANS, Plan, SVIPlan, engine_settings
from nbln.priors.activity import ActivityPrior, FittedActivity
from nbln.priors.capture import Capture, CaptureRule
from nbln.priors.effects import EffectsPrior, FittedEffects
from nbln.priors.univariate import Prior
from nbln.questions.distributions import Spread
from nbln.results.history import History
from nbln.results.laplace import LaplaceResult
from nbln.results.svi import SVIResult

log = logging.getLogger("nbln")

# The first stage gives capture losses and first values alone, and these stand where steps of SVI
# would begin: on simulated and real counts correlations were the same within .001 after 450 steps.
FIRST_STAGE = SVIConfig(n_steps=0)


@dataclass(frozen=True)
class Beliefs:
    """What a log-normal model starts from: priors, capture, first values."""

    priors: dict[str, Prior]
    capture: Capture
    rule: CaptureRule
    mean: np.ndarray  # (gene,) first value of e^μ
    log_r: np.ndarray  # (gene,) first value of the log dispersion
    frozen: tuple[str, ...] = ()
    source: SVIResult | None = None  # in the order of the counts


@dataclass(frozen=True)
class LaplacePlan(Plan):
    """A log-normal model by the Laplace engine, with or without a source of independent genes."""

    engine: ClassVar[str] = registry.LAPLACE
    title: ClassVar[str] = "Laplace"
    uses: ClassVar[tuple[str, ...]] = (
        "latent_dim", "n_steps", "tol", "svi", "laplace", "informative_priors_from",
        "informative_priors_tau", "informative_priors_freeze", "informative_priors_match",
        "informative_priors_n_samples", "formula", "random", "dataset_key",
    )  # fmt: skip
    settings: ClassVar[tuple[str, type]] = ("laplace", LaplaceConfig)
    shares_cells: ClassVar[bool] = True
    latent_dim: int
    formula: str | None
    random: tuple[str, ...]
    dataset_key: tuple[str, ...]
    config: LaplaceConfig
    cascade: CascadeConfig
    source: SVIResult | SVIPlan | None

    @classmethod
    def of(cls, row, arguments):
        common = cls._common(row, arguments)
        config = engine_settings(
            arguments, "laplace", LaplaceConfig, laplace_config.RULES, ("n_steps", "tol")
        )
        cascade = options.use_of_source(row, arguments)
        given, keys = arguments["informative_priors_from"], arguments["dataset_key"]
        if isinstance(given, SVIResult):
            options.check_taken(common["priors"], cascade, given)
        plan = cls(
            **common,
            latent_dim=arguments["latent_dim"],
            formula=arguments["formula"],
            random=column_names("random", arguments["random"]),
            dataset_key=column_names("dataset_key", [keys] if isinstance(keys, str) else keys),
            config=config,
            cascade=cascade,
            source=given if isinstance(given, SVIResult) else None,
        )
        alone = plan.priors.fixed_offset or not row.program.depth.begins_with_source
        first_stage = given is None and not alone
        if arguments["svi"] is not None and not first_stage:
            why = f"model {row.name} is fitted on its own"
            if row.program.depth.begins_with_source:
                why = "informative_priors_from= or fixed offsets are given"
            raise ValueError(f"fit(svi=): no NBVCP is fitted first, since {why}; leave svi= out")
        if not first_stage:
            return plan
        asked = {"svi": FIRST_STAGE if arguments["svi"] is None else arguments["svi"]}
        svi = engine_settings(asked, "svi", SVIConfig, svi_engine.RULES, ())
        starting = replace(cascade, tau=np.inf, freeze=(names.ETA,))
        return replace(plan, source=SVIPlan.source_of(plan, svi, plan.formula), cascade=starting)

    @property
    def columns(self):
        fixed = () if self.formula is None else columns_of(self.formula)
        for column in self.random:
            if column in fixed:
                raise ValueError(
                    f"fit(random={list(self.random)!r}): {column!r} is in the formula too, and "
                    "effects of its levels are either fixed or random; leave one out"
                )
        return tuple(dict.fromkeys((*fixed, *self.random, *self.dataset_key)))

    def _levels(self, datasets: Datasets | None) -> tuple[str, ...]:
        """Columns of random intercepts: means of data sets, where the formula has them not."""
        given = (*self.random, *(() if self.formula is None else columns_of(self.formula)))
        terms = () if datasets is None else (name for name, _ in datasets.terms)
        return (*self.random, *(name for name in terms if name not in given))

    def run(self, counts, saver=OFF):
        datasets = Datasets.of(counts.obs, self.dataset_key) if self.dataset_key else None
        formula = None
        if self.columns:
            formula = Formula.of(self.formula, counts.obs, self._levels(datasets))
            for covariate, column in formula.without_replicates(counts.obs):
                log.warning(
                    "there are no replicates: %s does not vary within a level of %s, and of these "
                    "there are no more than the covariates need; how sure its effects are is a "
                    "matter of the priors",
                    covariate,
                    column,
                )
        latent_dim = options.check_latent_dim(self.latent_dim, counts.n_cells, counts.n_genes)
        source = self.source
        if isinstance(source, SVIPlan):
            source = source.run(counts, saver)
        cascades.check_formulas(source, formula)
        began = time.perf_counter()
        beliefs = self._beliefs(counts, source)
        program: LogNormalModel = self.row.program(
            beliefs.priors,
            self.priors.loadings,
            beliefs.capture,
            latent_dim,
            *_design(formula, datasets, counts),
        )
        fit = fit_laplace(
            program,
            counts,
            beliefs.mean,
            beliefs.log_r,
            self.config,
            self.seed,
            self.progress,
            self._pooled(beliefs),
            saver,
        )
        if source is not None:
            cascades.report_matching(fit.parameters, self.cascade)
        seconds = fit.seconds | {"total": time.perf_counter() - began}
        result = self._result(counts, program, fit, beliefs, (formula, datasets), seconds)
        if fit.converged and result.w_prior_diagnostics["effective_rank"] == 0:
            log.warning(
                "no gene program was found: the counts show no correlation between genes beyond "
                "what depth explains, or there are too few cells to see it"
            )
        return result

    def _beliefs(self, counts: Counts, source: SVIResult | None) -> Beliefs:
        rule, note = self.priors.capture(counts.library_size)
        capture = rule.of(counts.library_size)
        priors = self.priors.sites(counts.n_cells)
        if source is None:
            log.info(note)
            log_r = np.full(counts.n_genes, np.log(TYPICAL_R))
            return Beliefs(priors, capture, rule, first_means(counts, capture), log_r)
        taken = cascades.cascade(source, counts, self.cascade, self.seed)
        sites = priors.keys() & {*self.row.program.depth.takes}
        priors |= {site: prior for site, prior in taken.priors.items() if site in sites}
        if taken.capture is not None:
            capture, note = taken.capture, "capture losses taken over from the source"
            rule = taken.source.capture_rule
        log.info(note)
        mean = first_means(counts, capture) if taken.mean is None else taken.mean
        return Beliefs(priors, capture, rule, mean, taken.log_r, taken.frozen, taken.source)

    def _pooled(self, beliefs: Beliefs) -> bool:
        """Whether nobody said how overdispersed genes are: neither the user nor a source."""
        own = {names.RESIDUAL, *(site.name for site in self.row.program.channel.sites)}
        soft = beliefs.source is not None and np.isfinite(self.cascade.tau)
        soft = soft and names.MU in self.row.program.depth.takes  # not of capture losses alone
        return not soft and not own & {*self.priors.given, *beliefs.frozen}

    def _result(
        self,
        counts: Counts,
        program: LogNormalModel,
        fit: LaplaceFit,
        beliefs: Beliefs,
        design: tuple[Formula | None, Datasets | None],
        seconds: dict[str, float],
    ) -> LaplaceResult:
        info, (formula, datasets) = fit.info, design
        residual_prior: Any = beliefs.priors[names.RESIDUAL]
        settings = {
            "latent_dim": program.latent_dim,
            "informative_priors_tau": self.cascade.tau,
            "informative_priors_match": self.cascade.match,
            "formula": self.formula,
            "random": list(self.random),
            "dataset_key": list(self.dataset_key),
        }
        totals, cells = totals_beside(program, counts.library_size, fit.cells)
        return LaplaceResult(
            fitted=self.fitted(counts, settings, seconds),
            model=self.row.name,
            parameters=_on_host(fit.parameters),
            cells=cells,
            augmentation=_on_host(program.augmentation),
            loadings=_on_host(fit.loadings),
            spread=Spread(
                np.asarray(fit.normal),
                _on_host(fit.channel_sd),
                0.5 * counts.n_cells + float(residual_prior.shape),
                None if formula is None else FittedEffects(program.effects, _on_host(fit.effects)),
            ),
            history=History(
                np.stack(info.change, axis=1),
                info.column_sd,
                info.shrank,
                info.further_steps,
                info.damped,
            ),
            capture_rule=beliefs.rule,
            search=self.config.search,
            converged=fit.converged,
            frozen=beliefs.frozen,
            match=self.cascade.match,
            cascade_source=beliefs.source,
            priors=beliefs.priors,
            pooled=self._pooled(beliefs),
            formula=formula,
            totals=totals,
            datasets=datasets,
            activity=FittedActivity(program.activity, _on_host(fit.activity)),
        )


PLANS[LaplacePlan.engine] = LaplacePlan


def _design(
    formula: Formula | None, datasets: Datasets | None, counts: Counts
) -> tuple[np.ndarray | None, EffectsPrior, np.ndarray | None, ActivityPrior]:
    """Covariates of the cells and which of their effects are random; their data sets."""
    covariates, effects, indicators, activity = None, EffectsPrior(), None, ActivityPrior()
    if formula is not None:
        covariates = formula.matrix(counts.obs, "fit")
        effects = EffectsPrior(len(formula.fixed), formula.n_levels)
    if datasets is not None:
        indicators = datasets.indicators(counts.obs, "fit")
        activity = ActivityPrior(datasets.levels, datasets.sizes)
    return covariates, effects, indicators, activity


def first_means(counts: Counts, capture: Capture) -> np.ndarray:
    """Expression at full capture by the counts alone."""
    return counts.gene_totals / np.exp(-np.asarray(capture.start(), np.float64)).sum()


def _on_host(tree):
    """The same with NumPy arrays, which no device holds."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree)
