"""Plans of amortised models: auto-encoders with or without a prior, and with counts as code."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from nbln import registry
from nbln.arguments import check_whole, choose, one_of, optional
from nbln.data.counts import Counts
from nbln.data.design import Design, column_name, column_names
from nbln.data.doors import DOORS, Data
from nbln.inference.checkpoint import OFF
from nbln.plan import PLANS, Plan, engine_settings
from nbln.results.laplace import LaplaceResult
from nbln.vae import config as config_rules
from nbln.vae import decoded, start
from nbln.vae.cells import Cells, library_prior
from nbln.vae.codes import RELAXATIONS
from nbln.vae.config import VAEConfig
from nbln.vae.engine import fit_vae
from nbln.vae.likelihoods import DISPERSIONS, LIKELIHOODS
from nbln.vae.negbio import answers
from nbln.vae.negbio import config as negbio_config
from nbln.vae.negbio import start as negbio_start
from nbln.vae.negbio.config import NegBioConfig
from nbln.vae.negbio.model import CodedArchitecture
from nbln.vae.negbio.observed import OBSERVED
from nbln.vae.negbio.result import NegBioResult
from nbln.vae.negbio.words import CODES, ELBOS, CodeKind
from nbln.vae.objective import OBJECTIVES, EncoderBound
from nbln.vae.result import VAEResult
from nbln.vae.scvi import SCVI, Architecture

log = logging.getLogger("nbln")

DECODERS = ("mlp", "linear")
LIBRARIES = ("observed", "latent")
NB, EXACT, GUMBEL, GAUSSIAN = "nb", "exact", "gumbel", "gaussian"
MOMENTS = "moments"
FEWEST_A_BATCH = 10  # cells, on average; with fewer the column is hardly one of batches


@dataclass(frozen=True)
class Kind:
    """What an amortised model is made of, by the names that `fit` has for it."""

    gene_likelihood: str
    dispersion: str
    decoder: str
    library: str


# Keywords of scvi-tools, and where what they set is set here.
SPELLINGS = {
    "n_latent": "give latent_dim=",
    "max_epochs": "give vae=nbln.VAEConfig(n_epochs=...)",
    "dropout_rate": "give vae=nbln.VAEConfig(dropout=...)",
    "lr": "give vae=nbln.VAEConfig(learning_rate=...)",
    "n_epochs_kl_warmup": "give vae=nbln.VAEConfig(warmup_epochs=...)",
    "early_stopping": (
        "give vae=nbln.VAEConfig(validation_share=0.1): a fit stops when held-out cells no longer "
        "improve"
    ),
    "early_stopping_patience": "give vae=nbln.VAEConfig(patience=...)",
    "train_size": "give the share of cells held out, vae=nbln.VAEConfig(validation_share=...)",
    "validation_size": "give vae=nbln.VAEConfig(validation_share=...)",
    "plan_kwargs": (
        "give vae=nbln.VAEConfig(learning_rate=..., weight_decay=..., warmup_epochs=...)"
    ),
    "categorical_covariate_keys": "give covariates=[...]",
    "continuous_covariate_keys": "give covariates=[...]",
    "use_observed_lib_size": "give library='observed' or library='latent'",
    **dict.fromkeys(
        ("use_gpu", "accelerator", "devices"),
        "JAX uses an accelerator where its package for one is installed; the variable "
        "JAX_PLATFORMS=cpu keeps it from that",
    ),
}

RULES = {
    "gene_likelihood": one_of(LIKELIHOODS),
    "dispersion": one_of(DISPERSIONS),
    "decoder": one_of(DECODERS),
    "library": one_of(LIBRARIES),
}
CODE_RULES = {
    "code": one_of(CODES),
    "elbo": one_of(ELBOS),
    "reparameterization": one_of(RELAXATIONS),
    "likelihood": optional(one_of(OBSERVED)),
}


@dataclass(frozen=True)
class VAEPlan(Plan):
    """An amortised model by a variational auto-encoder."""

    engine: ClassVar[str] = registry.VAE
    title: ClassVar[str] = "VAE"
    uses: ClassVar[tuple[str, ...]] = (
        "latent_dim", "batch_key", "covariates", "labels_key", "gene_likelihood", "dispersion",
        "decoder", "library", "start", "vae",
    )  # fmt: skip
    settings: ClassVar[tuple[str, type]] = ("vae", VAEConfig)
    latent_dim: int
    kind: Kind
    batch_key: str | None
    labels_key: str | None
    covariates: tuple[str, ...]
    start: LaplaceResult | None
    config: VAEConfig

    @classmethod
    def of(cls, row, arguments):
        if arguments["priors"] is not None:
            raise ValueError(
                f"fit(priors=): model {row.name} has none to set; leave it out (weights are held "
                "back by VAEConfig(weight_decay=...))"
            )
        words = {name: arguments[name] for name in RULES}
        for name, rule in RULES.items():
            rule(f"fit({name}", words[name])
        config = engine_settings(arguments, "vae", VAEConfig, config_rules.OWN_RULES, ())
        OBJECTIVES[cls.engine].of_draws(config.n_importance)  # an objective may refuse them
        return cls(
            **cls._common(row, arguments),
            latent_dim=arguments["latent_dim"],
            kind=Kind(**words),
            batch_key=column_name("batch_key", arguments["batch_key"]),
            labels_key=_labels(arguments["labels_key"], words, arguments["batch_key"]),
            covariates=_covariates(arguments["covariates"], arguments["batch_key"]),
            start=_start(arguments["start"]),
            config=config,
        )

    @property
    def columns(self):
        keys = (self.batch_key, self.labels_key, *self.covariates)
        return tuple(dict.fromkeys(key for key in keys if key is not None))

    def run(self, counts, saver=OFF):
        began = time.perf_counter()
        design = Design.of(counts.obs, self.batch_key, self.labels_key, self.covariates)
        if design.n_batches > 1 and counts.n_cells < FEWEST_A_BATCH * design.n_batches:
            log.warning(
                f"fit(batch_key={self.batch_key!r}): {design.n_batches:,} batches of "
                f"{counts.n_cells:,} cells in all; are batches in another column?"
            )
        cells = Cells.of(counts, design, "fit")
        of = self._architecture(counts, design, cells)
        prior = library_prior(cells.known, of.n_batches)
        model = SCVI.start(jax.random.key(self.seed), of, prior)
        model = start.at_moments(model, *start.moments(cells))
        if self.start is not None:
            model = start.at_loadings(model, self.start, counts.gene_names)
        config = self.config.of(counts.n_cells, self.start is not None)
        if self.start is not None:
            known = fit_vae(model, EncoderBound(), cells, config.approach, self.seed)
            model = known.model
        objective = OBJECTIVES[self.engine].of_draws(self.config.n_importance)
        if not objective.has_prior:
            model = start.without_draws(model)
        fit = fit_vae(model, objective, cells, config, self.seed, self.progress, saver)
        found = decoded.latents(fit.model, cells)
        settings = {"latent_dim": of.latent_dim, **vars(self.kind), "batch_key": self.batch_key}
        seconds = fit.seconds | {"total": time.perf_counter() - began}
        return VAEResult(
            fitted=self.fitted(counts, settings, seconds),
            model=self.row.name,
            network=fit.model,
            architecture=of,
            design=design,
            known=cells.known,
            latents=found,
            epochs=fit.history,
            best=fit.best,
            held_out=fit.held_out,
            stopped=fit.stopped,
            inference_method=self.engine,
        )

    def _architecture(self, counts: Counts, design: Design, cells: Cells) -> Architecture:
        most = counts.n_genes - 1
        k = self.latent_dim
        whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
        if not whole or not 1 <= k <= most:
            raise ValueError(
                f"fit(latent_dim={k!r}): must be a whole number from 1 to {most}, fewer than the "
                f"{counts.n_genes} genes (16 where it is not given)"
            )
        linear = self.kind.decoder == DECODERS[1]
        return Architecture(
            n_genes=counts.n_genes,
            n_columns=cells.known.design.shape[1],
            n_batches=design.n_batches,
            n_labels=design.n_labels,
            latent_dim=int(k),
            n_hidden=int(self.config.n_hidden),
            n_layers=int(self.config.n_layers),
            dropout=float(self.config.dropout),
            gene_likelihood=self.kind.gene_likelihood,
            dispersion=self.kind.dispersion,
            linear=linear,
            skip=self.start is not None and not linear,
            latent_library=self.kind.library == LIBRARIES[1],
        )


class AEPlan(VAEPlan):
    """An amortised model by an auto-encoder: no prior, no draws, weight decay alone."""

    engine: ClassVar[str] = registry.AE
    title: ClassVar[str] = "AE"


@dataclass(frozen=True)
class CodePlan(Plan):
    """An auto-encoder whose code may be counts."""

    engine: ClassVar[str] = registry.CODE_VAE
    settings: ClassVar[tuple[str, type]] = ("negbio", NegBioConfig)
    title: ClassVar[str] = "code VAE"
    uses: ClassVar[tuple[str, ...]] = (
        "latent_dim", "code", "elbo", "reparameterization", "likelihood", "negbio",
    )  # fmt: skip
    latent_dim: int
    code: str
    elbo: str
    reparameterization: str
    likelihood: str | None
    config: NegBioConfig

    @classmethod
    def of(cls, row, arguments):
        if arguments["priors"] is not None:
            raise ValueError(f"fit(priors=): model {row.name} has none to set; leave it out")
        words = {name: arguments[name] for name in CODE_RULES}
        for name, rule in CODE_RULES.items():
            rule(f"fit({name}", words[name])
        if words["code"] != NB and words["elbo"] != EXACT:
            raise ValueError(
                f"fit(elbo={words['elbo']!r}): the divergence of code={words['code']!r} has one "
                "form; leave it out"
            )
        config = engine_settings(arguments, "negbio", NegBioConfig, negbio_config.RULES, ())
        latent_dim = check_whole("fit(latent_dim", arguments["latent_dim"])
        return cls(**cls._common(row, arguments), latent_dim=latent_dim, **words, config=config)

    def read(self, given, strict):
        door = OBSERVED[self._likelihood(given)].door
        data = DOORS[door].read(given, self.layer, self.gene_coverage, self.columns, strict)
        return Given(data, self._likelihood(given), np.shape(given)[1:])

    def _likelihood(self, given: Any) -> str:
        """What was asked for, or what the data are as a rule."""
        if self.likelihood is not None:
            return self.likelihood
        return GAUSSIAN if hasattr(given, "__array__") else NB

    def run(self, counts, saver=OFF):
        began = time.perf_counter()
        data, likelihood, shape = counts
        config = self.config.of(data.n_cells)
        of = self._architecture(data.n_genes, likelihood)
        cells = answers.cells_of(data)
        network = negbio_start.network(of, negbio_start.Moments.of(cells), self.seed)
        objective = config.bound(self.reparameterization, self.latent_dim)
        fit = fit_vae(network, objective, cells, config, self.seed, self.progress, saver)
        said = answers.heads(fit.model, cells)
        settings = {
            "latent_dim": self.latent_dim, "code": self.code, "elbo": self.elbo,
            "reparameterization": self.reparameterization, "likelihood": likelihood,
            "objective": config.objective, "beta": config.beta,
        }  # fmt: skip
        seconds = fit.seconds | {"total": time.perf_counter() - began}
        fitted = replace(self.fitted(data, settings, seconds), door=OBSERVED[likelihood].door)
        return NegBioResult(
            fitted=fitted,
            model=self.row.name,
            network=fit.model,
            epochs=fit.history,
            best=fit.best,
            held_out=fit.held_out,
            stopped=fit.stopped,
            architecture=of,
            said=said,
            shape=tuple(shape) if np.prod(shape) == data.n_genes else (data.n_genes,),
        )

    def _architecture(self, n_features: int, likelihood: str) -> CodedArchitecture:
        c = self.config
        kind = CodeKind(self.code, self.elbo, c.n_draws, c.n_terms, float(c.dispersion))
        return CodedArchitecture(
            n_features=n_features,
            latent_dim=self.latent_dim,
            n_hidden=c.n_hidden,
            n_layers=c.n_layers,
            dropout=float(c.dropout),
            likelihood=likelihood,
            kind=kind,
        )


class Given(NamedTuple):
    """Data of a model with a code, checked."""

    data: Data
    likelihood: str
    shape: tuple[int, ...]  # of a sample, before it was flattened


PLANS.update({plan.engine: plan for plan in (VAEPlan, AEPlan, CodePlan)})


def _labels(value: Any, words: dict[str, str], batch_key: str | None) -> str | None:
    """The column of labels, which only a dispersion by label uses."""
    dispersion = words["dispersion"]
    if words["gene_likelihood"] == "poisson" and dispersion != "gene":
        raise ValueError(f"fit(dispersion={dispersion!r}): Poisson counts have no dispersion")
    if dispersion == "gene-batch" and batch_key is None:
        raise ValueError("fit(dispersion='gene-batch'): name the column of batches with batch_key=")
    needs = dispersion == "gene-label"
    if needs and value is None:
        raise ValueError("fit(dispersion='gene-label'): name the column of labels with labels_key=")
    if value is not None and not needs:
        raise ValueError(
            f"fit(labels_key={value!r}): nothing depends on labels but dispersion='gene-label'"
        )
    return column_name("labels_key", value)


def _covariates(value: Any, batch_key: str | None) -> tuple[str, ...]:
    names = column_names("covariates", value)
    if batch_key in names:
        raise ValueError(f"fit(covariates={list(value)!r}): {batch_key!r} is given twice")
    return names


def _start(value: Any) -> LaplaceResult | None:
    if isinstance(value, LaplaceResult):
        return value
    if not isinstance(value, str):
        raise TypeError(
            "fit(start=): expected 'moments', or the result of nbln.fit(adata, model='nbln'); got "
            f"{type(value).__name__}"
        )
    choose("fit(start", value, (MOMENTS,))
    return None
