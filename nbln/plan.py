"""A fit as an object that is built, checked and run.

A plan is all that a fit needs but its counts. Each engine has its own kind of plan, which names the
keywords of `fit` that it uses; an engine joins by an entry in `PLANS`.
"""

import abc
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np

from nbln import cascade as cascades
from nbln import options, registry
from nbln import vocabulary as names
from nbln.arguments import choose, replace_settings
from nbln.cascade import CascadeConfig
from nbln.channels.negative_binomial import TYPICAL_R
from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.inference.checkpoint import OFF, Saver
from nbln.inference.laplace import engine as laplace_engine
from nbln.inference.laplace.engine import LaplaceConfig, LaplaceFit, fit_laplace
from nbln.inference.svi import engine as svi_engine
from nbln.inference.svi.engine import SVIConfig, fit_svi
from nbln.models.log_normal import LogNormalModel
from nbln.models.nbvcp import NBVCP
from nbln.options import Priors
from nbln.priors.capture import Capture, CaptureRule, KnownCapture
from nbln.priors.marginal import R_MAX
from nbln.priors.univariate import Prior
from nbln.questions.distributions import Spread
from nbln.registry import Row
from nbln.results.history import History
from nbln.results.laplace import LaplaceResult
from nbln.results.result import Result
from nbln.results.svi import SVIResult

log = logging.getLogger("nbln")

SOURCE = NBVCP.name  # the model that the pipeline fits first
COMMON = (
    "model", "inference_method", "layer", "priors", "gene_coverage", "seed", "progress",
)  # fmt: skip
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Plan(abc.ABC):
    """A checked, complete description of one fit.

    Attributes
    ----------
    row
        The model.
    priors
        What is believed of its sites.
    layer, gene_coverage
        How counts are read.
    seed, progress
        As in `fit`.
    """

    engine: ClassVar[str]
    title: ClassVar[str]  # of the engine, in messages
    uses: ClassVar[tuple[str, ...]]  # keywords of `fit` beside the common ones
    row: Row
    priors: Priors
    layer: str | None
    gene_coverage: float | None
    seed: int
    progress: bool

    @classmethod
    @abc.abstractmethod
    def of(cls, row: Row, arguments: Arguments) -> "Plan":
        """Check all that can be checked without counts.

        Raises
        ------
        TypeError, ValueError
            Names the argument, what came, what is accepted.
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of ``adata.obs`` that the model is told of; none as a rule."""
        return ()

    @abc.abstractmethod
    def run(self, counts: Counts, saver: Saver = OFF) -> Result:
        """Check the rest, and fit; `saver` keeps where the fit stands."""

    def fitted(self, counts: Counts, settings: dict, seconds: dict[str, float]) -> Fitted:
        """What the result remembers of the counts and of this plan."""
        own = {"model": self.row.name, "inference_method": self.engine, "seed": self.seed}
        own["priors"] = self.priors.written
        settings = own | settings
        return Fitted.of(counts, self.layer, self.gene_coverage, settings, seconds)

    @staticmethod
    def _common(row: Row, arguments: Arguments) -> dict[str, Any]:
        kept = ("layer", "gene_coverage", "seed", "progress")
        priors = Priors.of(row, arguments["priors"])
        return {"row": row, "priors": priors, **{name: arguments[name] for name in kept}}


@dataclass(frozen=True)
class SVIPlan(Plan):
    """Independent genes by stochastic variational inference."""

    engine: ClassVar[str] = registry.SVI
    title: ClassVar[str] = "SVI"
    uses: ClassVar[tuple[str, ...]] = ("parameterization", "n_steps", "batch_size", "tol", "svi")
    parameterization: str
    config: SVIConfig

    @classmethod
    def of(cls, row, arguments):
        given = arguments["parameterization"]
        ways = row.parameterizations
        way = next(iter(ways)) if given is None else choose("fit(parameterization", given, ways)
        config = engine_settings(
            arguments, "svi", SVIConfig, svi_engine.RULES, ("n_steps", "batch_size", "tol")
        )
        return cls(**cls._common(row, arguments), parameterization=way, config=config)

    @classmethod
    def source_of(cls, plan: "LaplacePlan", config: SVIConfig) -> "SVIPlan":
        """The first stage of the pipeline: default priors, but the capture prior of the target."""
        row = registry.find(SOURCE)
        capture = plan.priors.capture_prior
        priors = replace(Priors.of(row, None), capture_prior=capture)
        common = (row, priors, plan.layer, plan.gene_coverage, plan.seed, plan.progress)
        return cls(*common, parameterization=next(iter(row.parameterizations)), config=config)

    def run(self, counts, saver=OFF):
        rule, note = self.priors.capture(counts.library_size)
        log.info(note)
        capture = rule.of(counts.library_size)
        way = self.row.parameterizations[self.parameterization]()
        beliefs = self.priors.sites(counts.n_cells)
        program = self.row.program(
            {s.name: beliefs[s.name] for s in self.row.program.gene_sites(way)}, capture, way
        )
        fit = fit_svi(program, counts, self.config, self.seed, self.progress, saver)
        settings = {"parameterization": self.parameterization, "guide": self.config.guide}
        return SVIResult(
            fitted=self.fitted(counts, settings, fit.seconds),
            model=self.row.name,
            parameterization=self.parameterization,
            posterior=fit.posterior,
            capture_rule=rule,
            known_eta=np.asarray(capture.eta) if isinstance(capture, KnownCapture) else None,
            losses=fit.losses,
            converged=fit.converged,
            n_steps=fit.n_steps,
        )


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
        "informative_priors_n_samples",
    )  # fmt: skip
    latent_dim: int
    config: LaplaceConfig
    cascade: CascadeConfig
    source: SVIResult | SVIPlan | None

    @classmethod
    def of(cls, row, arguments):
        common = cls._common(row, arguments)
        config = engine_settings(
            arguments, "laplace", LaplaceConfig, laplace_engine.RULES, ("n_steps", "tol")
        )
        cascade = options.use_of_source(row, arguments)
        given = arguments["informative_priors_from"]
        if isinstance(given, SVIResult):
            options.check_taken(common["priors"], cascade, given)
        plan = cls(
            **common,
            latent_dim=arguments["latent_dim"],
            config=config,
            cascade=cascade,
            source=given if isinstance(given, SVIResult) else None,
        )
        first_stage = given is None and not plan.priors.fixed_offset
        if arguments["svi"] is not None and not first_stage:
            raise ValueError(
                "fit(svi=): no NBVCP is fitted first, since informative_priors_from= or fixed "
                "offsets are given; leave svi= out"
            )
        if not first_stage:
            return plan
        svi = engine_settings(arguments, "svi", SVIConfig, svi_engine.RULES, ())
        starting = replace(cascade, tau=np.inf, freeze=(names.ETA,))
        return replace(plan, source=SVIPlan.source_of(plan, svi), cascade=starting)

    def run(self, counts, saver=OFF):
        latent_dim = options.check_latent_dim(self.latent_dim, counts.n_cells, counts.n_genes)
        source = self.source
        if isinstance(source, SVIPlan):
            source = source.run(counts, saver)
        began = time.perf_counter()
        beliefs = self._beliefs(counts, source)
        program: LogNormalModel = self.row.program(
            beliefs.priors, self.priors.loadings, beliefs.capture, latent_dim
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
        self._report_matching(fit, source)
        seconds = fit.seconds | {"total": time.perf_counter() - began}
        result = self._result(counts, program, fit, beliefs, seconds)
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
            return Beliefs(priors, capture, rule, _first_means(counts, capture), log_r)
        taken = cascades.cascade(source, counts, self.cascade, self.seed)
        priors |= {site: prior for site, prior in taken.priors.items() if site in priors}
        if taken.capture is not None:
            capture, note = taken.capture, "capture losses taken over from the source"
            rule = taken.source.capture_rule
        log.info(note)
        mean = _first_means(counts, capture) if taken.mean is None else taken.mean
        return Beliefs(priors, capture, rule, mean, taken.log_r, taken.frozen, taken.source)

    def _pooled(self, beliefs: Beliefs) -> bool:
        """Whether nobody said how overdispersed genes are: neither the user nor a source."""
        own = {names.RESIDUAL, *(site.name for site in self.row.program.channel.sites)}
        soft = beliefs.source is not None and np.isfinite(self.cascade.tau)
        return not soft and not own & {*self.priors.given, *beliefs.frozen}

    def _report_matching(self, fit: LaplaceFit, source: SVIResult | None) -> None:
        r = fit.parameters.channel.values().get(names.DISPERSION)
        if source is None or r is None or self.cascade.match != cascades.MARGINAL:
            return
        n_poisson = int((np.asarray(r) > 0.99 * R_MAX).sum())
        log.info(
            "marginal matching left no overdispersion to %d genes (r = %.0f)", n_poisson, R_MAX
        )

    def _result(
        self,
        counts: Counts,
        program: LogNormalModel,
        fit: LaplaceFit,
        beliefs: Beliefs,
        seconds: dict[str, float],
    ) -> LaplaceResult:
        info = fit.info
        residual_prior: Any = beliefs.priors[names.RESIDUAL]
        settings = {
            "latent_dim": program.latent_dim,
            "informative_priors_tau": self.cascade.tau,
            "informative_priors_match": self.cascade.match,
        }
        return LaplaceResult(
            fitted=self.fitted(counts, settings, seconds),
            model=self.row.name,
            parameters=_on_host(fit.parameters),
            cells=fit.cells,
            augmentation=_on_host(program.augmentation),
            loadings=_on_host(fit.loadings),
            spread=Spread(
                np.asarray(fit.normal),
                _on_host(fit.channel_sd),
                0.5 * counts.n_cells + float(residual_prior.shape),
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
        )


PLANS: dict[str, type[Plan]] = {plan.engine: plan for plan in (SVIPlan, LaplacePlan)}


def make(arguments: Arguments, defaults: Arguments) -> Plan:
    """The plan of a call of `fit`.

    Parameters
    ----------
    arguments
        The keywords of `fit`, given or default.
    defaults
        What they are where they are not given.

    Raises
    ------
    TypeError, ValueError
        Names the argument, what came, what is accepted; so does one that the model does not use.
    """
    row = registry.find(arguments["model"])
    engine = _engine(row, arguments["inference_method"])
    kind = PLANS[engine]
    for name, value in arguments.items():
        if name not in COMMON and name not in kind.uses and options.differs(value, defaults[name]):
            users = {other: plan for other, plan in PLANS.items() if name in plan.uses}
            models = [
                m for m, other in registry.MODELS.items() if users.keys() & set(other.engines)
            ]
            raise ValueError(
                f"fit({name}={value!r}): model {row.name} does not use it; it is for models fitted "
                f"by {', '.join(user.title for user in users.values())} ({', '.join(models)})"
            )
    return kind.of(row, arguments)


def _engine(row: Row, inference_method: Any) -> str:
    """The engine asked for, or the model's own; an error lists the pairs that exist."""
    if inference_method is None:
        return row.engines[0]
    choose("fit(inference_method", inference_method, sorted(PLANS))
    if inference_method not in row.engines:
        pairs = [f"{m} + {e}" for m, other in registry.MODELS.items() for e in other.engines]
        raise ValueError(
            f"fit(model={row.name!r}, inference_method={inference_method!r}): no such pair; "
            f"there are {', '.join(pairs)}"
        )
    return inference_method


def engine_settings(arguments: Arguments, keyword: str, kind, rules, overrides: tuple[str, ...]):
    """An engine's settings: defaults or those given, with the direct keywords on top."""
    given = kind() if arguments[keyword] is None else arguments[keyword]
    if not isinstance(given, kind):
        raise TypeError(
            f"fit({keyword}=): expected nbln.{kind.__name__}(...), got {type(given).__name__}"
        )
    return replace_settings(given, "fit", rules, **{name: arguments[name] for name in overrides})


def _first_means(counts: Counts, capture: Capture) -> np.ndarray:
    """Expression at full capture by the counts alone."""
    return counts.gene_totals / np.exp(-np.asarray(capture.start(), np.float64)).sum()


def _on_host(tree):
    """The same with NumPy arrays, which no device holds."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree)
