"""A fit as an object that is built, checked and run.

A plan is all that a fit needs but its counts. Each engine has its own kind of plan, which names the
keywords of `fit` that it uses; an engine joins by an entry in `PLANS`.
"""

import abc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nbln import options, registry
from nbln.arguments import choose, replace_settings, setting_of
from nbln.data.doors import COUNTS, DOORS, Data
from nbln.data.fitted import Fitted
from nbln.data.formula import Formula, columns_of
from nbln.inference.checkpoint import OFF, Saver
from nbln.inference.svi import engine as svi_engine
from nbln.inference.svi.engine import SVIConfig, fit_svi
from nbln.models.nbvcp import NBVCP
from nbln.options import Priors
from nbln.priors.capture import KnownCapture
from nbln.questions.effects import GeneEffects
from nbln.registry import Row
from nbln.results.drawn import Drawn
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
    settings: ClassVar[tuple[str, type]]  # keyword and class of the engine's finer settings
    shares_cells: ClassVar[bool] = False  # whether several processes may fit together
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

    @classmethod
    def uses_of(cls, row: Row) -> tuple[str, ...]:
        """Of `uses`, the keywords of this model; all as a rule."""
        del row
        return cls.uses

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of ``adata.obs`` that the model is told of; none as a rule."""
        return ()

    def read(self, given: Any, strict: bool) -> Any:
        """What was given to `fit`, checked: counts of an AnnData, as a rule."""
        return DOORS[COUNTS].read(given, self.layer, self.gene_coverage, self.columns, strict)

    @abc.abstractmethod
    def run(self, counts: Any, saver: Saver = OFF) -> Result | Drawn:
        """Check the rest, and fit; `saver` keeps where the fit stands."""

    def fitted(self, counts: Data, settings: dict, seconds: dict[str, float]) -> Fitted:
        """What the result remembers of the counts and of this plan."""
        own = {"model": self.row.name, "inference_method": self.engine, "seed": self.seed}
        own["priors"] = self.priors.written
        if files := getattr(counts, "files", ()):
            own["files"] = list(files)
        settings = own | settings
        fitted = Fitted.of(counts, self.layer, self.gene_coverage, settings, seconds)
        return replace(fitted, again=replace(self, progress=False).run)

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
    uses: ClassVar[tuple[str, ...]] = (
        "parameterization", "n_steps", "batch_size", "tol", "svi", "formula",
    )  # fmt: skip
    settings: ClassVar[tuple[str, type]] = ("svi", SVIConfig)
    shares_cells: ClassVar[bool] = True
    parameterization: str
    config: SVIConfig
    formula: str | None = None

    @classmethod
    def uses_of(cls, row):
        takes = row.program.takes_covariates
        return tuple(name for name in cls.uses if takes or name != "formula")

    @classmethod
    def of(cls, row, arguments):
        given = arguments["parameterization"]
        ways = row.parameterizations
        way = next(iter(ways)) if given is None else choose("fit(parameterization", given, ways)
        config = engine_settings(
            arguments, "svi", SVIConfig, svi_engine.RULES, ("n_steps", "batch_size", "tol")
        )
        common, formula = cls._common(row, arguments), arguments["formula"]
        if formula is not None and way != next(iter(ways)):
            raise ValueError(
                f"fit(formula={formula!r}, parameterization={way!r}): it ties a gene's dispersion "
                "to its mean, of which covariates make several; leave parameterization out"
            )
        return cls(**common, parameterization=way, config=config, formula=formula)

    @property
    def columns(self):
        return () if self.formula is None else columns_of(self.formula)

    @classmethod
    def source_of(cls, plan: Plan, config: SVIConfig, formula: str | None = None) -> "SVIPlan":
        """The first stage of the pipeline: default priors, but the capture prior of the target.

        `formula` is that of the target, so that capture losses and means know of its covariates.
        """
        row = registry.find(SOURCE)
        capture = plan.priors.capture_prior
        priors = replace(Priors.of(row, None), capture_prior=capture)
        common = (row, priors, plan.layer, plan.gene_coverage, plan.seed, plan.progress)
        way = next(iter(row.parameterizations))
        return cls(*common, parameterization=way, config=config, formula=formula)

    def run(self, counts, saver=OFF):
        rule, note = self.priors.capture(counts.library_size)
        log.info(note)
        capture = rule.of(counts.library_size)
        way = self.row.parameterizations[self.parameterization]()
        beliefs = self.priors.sites(counts.n_cells)
        priors = {s.name: beliefs[s.name] for s in self.row.program.gene_sites(way)}
        formula = None if self.formula is None else Formula.of(self.formula, counts.obs)
        covariates = None if formula is None else formula.matrix(counts.obs, "fit")
        program = self.row.program(priors, capture, way, covariates)
        fit = fit_svi(program, counts, self.config, self.seed, self.progress, saver)
        settings = {"parameterization": self.parameterization, "guide": self.config.guide}
        effects = None
        if formula is not None and fit.effects is not None:
            settings["formula"] = self.formula
            mean, sd, scales = fit.effects
            effects = GeneEffects(formula, mean, sd, scales.typical, covariates)
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
            gene_effects=effects,
        )


PLANS: dict[str, type[Plan]] = {plan.engine: plan for plan in (SVIPlan,)}


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
    uses = (*COMMON, *kind.uses_of(row))
    for name, value in arguments.items():
        if name not in uses and options.differs(value, defaults[name]):
            own = setting_of(name, [kind.settings])
            by = "" if engine == row.engines[0] else f" by inference_method={engine!r}"
            raise ValueError(
                f"fit({name}={value!r}): model {row.name}{by} does not use it; "
                + (f"give {own}" if own else _users(name, row))
            )
    return kind.of(row, arguments)


def _users(name: str, asked: Row) -> str:
    """A sentence that says by which engine this model uses a keyword, or which others do."""
    for engine in asked.engines:
        if name in PLANS[engine].uses_of(asked):
            return f"it is for inference_method={engine!r}"
    users = [kind for kind in PLANS.values() if name in kind.uses]
    rows = [
        row
        for row in registry.MODELS.values()
        if any(kind.engine in row.engines and name in kind.uses_of(row) for kind in users)
    ]
    # Where one of them is the model's own engine, the others need not be told.
    own = {row.engines[0] for row in rows}
    titles = [kind.title for kind in users if kind.engine in own] or [k.title for k in users]
    models = ", ".join(row.name for row in rows)
    return f"it is for models fitted by {', '.join(titles)} ({models})"


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
