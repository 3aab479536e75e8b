"""`fit` and `load`: arguments -> counts -> model -> engine -> result."""

import inspect
import logging
import time
from typing import Any

import numpy as np

from nbln import options
from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.inference import cascade as cascades
from nbln.inference.laplace.engine import LaplaceConfig, LaplaceFit, fit_laplace
from nbln.inference.svi import SVIConfig, fit_svi
from nbln.models.nbln import NBLN
from nbln.models.nbvcp import NBVCP
from nbln.models.pln import PLN
from nbln.priors.capture import KnownCapture
from nbln.priors.marginal import R_MAX
from nbln.results import io
from nbln.results.base import Fitted, check_whole
from nbln.results.laplace import LaplaceResult
from nbln.results.svi import SVIResult

log = logging.getLogger("nbln")

LOG_NORMAL = {"nbln": NBLN, "pln": PLN}
RESULTS = {"svi": SVIResult, "laplace": LaplaceResult}
FIRST_LOG_R = float(np.log(5.0))  # without a source


def fit(
    adata,
    *,
    model: str = "nbln",
    inference_method: str | None = None,
    layer: str | None = None,
    latent_dim: int = 16,
    priors: dict[str, Any] | None = None,
    parameterization: str | None = None,
    informative_priors_from: SVIResult | bool | None = None,
    informative_priors_tau: float = 1.0,
    informative_priors_freeze: tuple[str, ...] | str | None = None,
    informative_priors_match: str = "verbatim",
    informative_priors_n_samples: int = 1000,
    gene_coverage: float | None = None,
    n_steps: int | None = None,
    batch_size: int | None = None,
    tol: float | None = None,
    seed: int = 0,
    progress: bool = True,
    svi: SVIConfig | None = None,
    laplace: LaplaceConfig | None = None,
    **unknown,
) -> SVIResult | LaplaceResult:
    """Fit a model of single-cell counts.

    ``fit(adata)`` alone runs the recommended pipeline: NBVCP by SVI, then NBLN by Laplace with
    capture losses frozen from it, dispersions and means learned, sparse horseshoe loadings.

    Parameters
    ----------
    adata
        An AnnData of counts, cells in rows; dense, CSR or CSC, in memory or ``backed="r"``. It is
        not changed.
    model
        ``"nbln"``, ``"pln"`` or ``"nbvcp"``.
    inference_method
        ``"svi"`` or ``"laplace"``; by default the model's own.
    layer
        Name of the layer with the counts; by default ``adata.X``.
    latent_dim
        Number of gene programs offered; shrinkage of the loadings decides how many are used.
    priors
        By site: ``mean``, ``r`` and ``phi`` (mean and sd of the natural log), ``mu`` (mean, sd),
        ``d`` (shape, rate of an inverse gamma), ``p`` (a, b of a beta); ``capture_efficiency``:
        (log_M0, sigma_M), or None for fixed offsets by library size; ``loadings``:
        ``{"type": "horseshoe_sparse", "tau_scale": 1.0}``, ``horseshoe_columnwise`` (tau_scale),
        ``neg_columnwise`` (alpha, beta), ``gaussian`` (scale) or ``none``.
    parameterization
        Of nbvcp: ``"mean_disp"`` (default), ``"mean_odds"`` or ``"canonical"``.
    informative_priors_from
        A fitted NBVCP of the same cells and genes. By default one is fitted first, for capture
        losses and starting values; ``False`` fits the model on its own, capture losses latent.
    informative_priors_tau
        Factor on the source's standard deviations; ``inf``: starting values only.
    informative_priors_freeze
        What is held at the source's values: of ``"r"``, ``"mu"``, ``"eta"``; by default r and eta
        (PLN: eta).
    informative_priors_match
        ``"verbatim"``, or ``"marginal"`` to match the moments of the counts.
    informative_priors_n_samples
        Draws of the source for its means and standard deviations.
    gene_coverage
        Keep the most abundant genes that hold this share of all counts, pool the others as
        ``_other``; all genes by default.
    n_steps, batch_size, tol
        Upper bound on steps, cells in an SVI step, tolerance of convergence; see `SVIConfig` and
        `LaplaceConfig`.
    seed
        Same seed, same numbers on the same machine.
    progress
        Show a progress bar.
    svi, laplace
        Finer settings of the engines.

    Returns
    -------
    SVIResult for nbvcp, LaplaceResult for pln and nbln.

    Raises
    ------
    TypeError
        Not an AnnData, or an unknown keyword.
    KeyError
        No such layer.
    ValueError
        Counts or arguments that cannot be fitted; the message says which and what to do.
    FloatingPointError
        The fit diverged; the message names the step and the parameter.
    """
    check_whole("fit(seed", seed, 0)
    options.check_unknown(unknown, [k for k in inspect.signature(fit).parameters if k != "unknown"])
    engine = options.check_engine(model, inference_method)
    kind = options.check_parameterization(model, parameterization)
    chosen = options.Priors(model, priors)
    settings = {
        "model": model,
        "inference_method": engine,
        "layer": layer,
        "gene_coverage": gene_coverage,
        "priors": None if priors is None else repr(priors),
        "seed": seed,
    }
    if model == "nbvcp":
        config = options.configure(
            SVIConfig, svi, "svi", n_steps=n_steps, batch_size=batch_size, tol=tol
        )
        counts = Counts.from_anndata(adata, layer=layer, gene_coverage=gene_coverage)
        return _fit_nbvcp(counts, chosen, kind, config, seed, progress, settings)
    if batch_size is not None:
        raise ValueError("fit(batch_size=): only SVI takes batches; set svi=SVIConfig(batch_size=)")
    config = options.configure(LaplaceConfig, laplace, "laplace", n_steps=n_steps, tol=tol)
    transfer = options.cascade_config(
        model,
        informative_priors_tau,
        informative_priors_freeze,
        informative_priors_match,
        informative_priors_n_samples,
    )
    source = _check_source(informative_priors_from)
    if not isinstance(source, SVIResult) and transfer != options.cascade_config(
        model, 1.0, None, "verbatim", informative_priors_n_samples
    ):
        raise ValueError(
            "fit(informative_priors_tau/freeze/match=): these say how a source is used; give one "
            "with informative_priors_from=nbln.fit(adata, model='nbvcp')"
        )
    counts = Counts.from_anndata(adata, layer=layer, gene_coverage=gene_coverage)
    latent_dim = options.check_latent_dim(latent_dim, counts.n_cells, counts.n_genes)
    svi_config = options.configure(SVIConfig, svi, "svi")
    if source is None and not chosen.fixed_offset:
        source = _pipeline_source(counts, chosen, svi_config, seed, progress, settings)
        transfer = cascades.CascadeConfig(tau=np.inf, freeze=(names.ETA,))
    settings |= {
        "latent_dim": latent_dim,
        "informative_priors_tau": transfer.tau,
        "informative_priors_match": transfer.match,
    }
    source = source if isinstance(source, SVIResult) else None
    return _fit_log_normal(
        model, counts, chosen, latent_dim, source, transfer, config, seed, progress, settings
    )


def load(path) -> SVIResult | LaplaceResult:
    """Load a result that `save` wrote.

    The counts are not in the file; pass them again where they are needed (``counts=adata``).

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is cut short, of another kind, or of another format version.
    """
    kind, groups = io.read(path)
    if kind not in RESULTS:
        raise ValueError(
            f"load({str(path)!r}): holds a {kind!r}; this nbln reads {', '.join(RESULTS)}"
        )
    return RESULTS[kind].from_groups(groups)


def _check_source(source):
    if source is None or source is False or isinstance(source, SVIResult):
        return source
    raise TypeError(
        "fit(informative_priors_from=): expected the result of nbln.fit(adata, model='nbvcp'), "
        f"None or False; got {type(source).__name__}"
    )


def _pipeline_source(counts, chosen, config, seed, progress, settings) -> SVIResult:
    kind = options.check_parameterization("nbvcp", None)
    stage = settings | {"model": "nbvcp", "inference_method": "svi"}
    own = options.Priors("nbvcp", None)
    own.take_capture(chosen)
    return _fit_nbvcp(counts, own, kind, config, seed, progress, stage)


def _fit_nbvcp(counts, chosen, kind, config, seed, progress, settings) -> SVIResult:
    rule, note = chosen.capture(counts.library_size)
    capture = rule.of(counts.library_size)
    log.info(note)
    every = chosen.sites(counts.n_cells)
    sites = {site.name: every[site.name] for site in kind.sites}
    model = NBVCP(sites, capture, kind)
    fitted = fit_svi(model, counts, config, seed, progress)
    known = np.asarray(capture.eta) if isinstance(capture, KnownCapture) else None
    settings = settings | {"parameterization": kind.name, "guide": config.guide}
    settings |= {"capture": rule._asdict()}
    return SVIResult(
        fitted=Fitted.of(counts, settings, fitted.seconds),
        parameterization=kind.name,
        posterior=fitted.posterior,
        known_eta=known,
        losses=fitted.losses,
        converged=fitted.converged,
        n_steps=fitted.n_steps,
    )


def _fit_log_normal(
    model, counts, chosen, latent_dim, source, transfer, config, seed, progress, settings
) -> LaplaceResult:
    began = time.perf_counter()
    rule, note = chosen.capture(counts.library_size)
    capture = rule.of(counts.library_size)
    sites, frozen = chosen.sites(counts.n_cells), ()
    mean, log_r = None, np.full(counts.n_genes, FIRST_LOG_R)
    if source is not None:
        taken = cascades.cascade(source, counts, transfer, seed)
        sites |= {site: prior for site, prior in taken.priors.items() if site in sites}
        if taken.capture is not None:
            capture, note = taken.capture, "capture losses taken over from the source"
            rule = source.capture_rule
        mean, log_r, frozen = taken.mean, taken.log_r, taken.frozen
    if mean is None:
        mean = counts.gene_totals / np.exp(-np.asarray(capture.start(), np.float64)).sum()
    log.info(note)
    program = LOG_NORMAL[model](sites, chosen.loadings, capture, latent_dim)
    fitted = fit_laplace(program, counts, mean, log_r, config, seed, progress)
    if source is not None and transfer.match == "marginal" and model == "nbln":
        poisson = int((np.asarray(fitted.parameters.channel.r) > 0.99 * R_MAX).sum())
        log.info("marginal matching left no overdispersion to %d genes (r = %.0f)", poisson, R_MAX)
    seconds = fitted.seconds | {"total": time.perf_counter() - began}
    settings = settings | {"d_shape": float(sites[names.RESIDUAL].shape)}
    settings |= {"capture": rule._asdict()}
    result = _laplace_result(
        model, Fitted.of(counts, settings, seconds), program, fitted, frozen, source
    )
    if fitted.converged and result.w_prior_diagnostics["effective_rank"] == 0:
        log.warning(
            "no gene program was found: the counts show no correlation between genes beyond what "
            "depth explains, or there are too few cells to see it"
        )
    return result


def _laplace_result(model, fitted, program, fit: LaplaceFit, frozen, source) -> LaplaceResult:
    parameters, cells = fit.parameters, fit.cells
    k = program.latent_dim
    arrays = {
        names.MU: parameters.mu,
        names.LOADINGS: parameters.W,
        names.RESIDUAL: parameters.d,
        "z": cells.z[:, :k],
        "coordinates": cells.z[:, k:],
        "offset": program.augmentation.offset,
        "scale": program.augmentation.scale,
        names.ETA: cells.eta,
        "eta_loc": cells.eta_loc,
        "eta_sd": cells.eta_sd,
    }
    if model == "nbln":
        arrays[names.DISPERSION] = parameters.channel.r
    return LaplaceResult(
        fitted=fitted,
        model=model,
        arrays={name: np.asarray(value) for name, value in arrays.items()},
        columns=program.augmentation.columns,
        scales={name: np.asarray(value) for name, value in fit.scales.items()},
        precision=np.asarray(fit.normal),
        loadings_precision=np.asarray(fit.loadings_precision),
        log_r_sd=None if fit.log_r_sd is None else np.asarray(fit.log_r_sd),
        trace=fit.trace,
        converged=fit.converged,
        cell_converged=cells.converged,
        gradient_norm=cells.gradient_norm,
        log_evidence=cells.log_evidence,
        frozen=frozen,
        cascade_source=source,
    )
