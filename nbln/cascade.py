"""The cascade: a fit of independent genes becomes priors, frozen and starting values.

Means and standard deviations of log r̄, log μ̄ and η under the source's posterior are the Gaussian
priors of r, μ and η in a log-normal model; a frozen key is no longer a parameter.
"""

import logging
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from nbln import vocabulary as names
from nbln.arguments import find
from nbln.data.counts import Counts
from nbln.posterior.mode import Parameters
from nbln.priors.capture import Capture, CaptureRule, KnownCapture, LatentCapture
from nbln.priors.marginal import R_MAX, MarginalDispersion, MarginalMean
from nbln.priors.univariate import Frozen, LogNormal, Normal, Prior
from nbln.results.svi import SVIResult

log = logging.getLogger("nbln")

KEYS = (names.DISPERSION, names.MU, names.ETA)
VERBATIM, MARGINAL = "verbatim", "marginal"
MATCHES = (VERBATIM, MARGINAL)
SMALLEST_SD = 1e-4  # of a prior: below it, float32 gradients of its density are noise


@dataclass(frozen=True)
class CascadeConfig:
    """How a source is used.

    Attributes
    ----------
    tau
        Factor on the source's standard deviations; ``inf`` uses the source for starting values
        and frozen keys only.
    freeze
        Keys held at the source's posterior mean: ``"r"``, ``"mu"``, ``"eta"`` or aliases.
    match
        ``"verbatim"``: r = r̄, μ = log μ̄, as they are. ``"marginal"``: r and μ follow r̄, μ̄ and
        the current Σ_gg so that mean and variance of the counts agree.
    n_samples
        Posterior draws of the source for means and standard deviations.
    """

    tau: float = 1.0
    freeze: tuple[str, ...] = (names.DISPERSION, names.ETA)
    match: str = VERBATIM
    n_samples: int = 1000


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
class Cascade:
    """What a log-normal model takes over from a source."""

    priors: dict[str, Prior]
    capture: Capture | None  # None: the model's own capture prior
    mean: np.ndarray  # (gene,) starting value of e^μ
    log_r: np.ndarray  # (gene,) starting value
    frozen: tuple[str, ...]
    source: SVIResult  # in the order of the counts


def cascade(source: SVIResult, counts: Counts, config: CascadeConfig, seed: int) -> Cascade:
    """Priors, frozen and starting values from a fit of the same cells and genes.

    Raises
    ------
    ValueError
        The source was fitted to other cells or genes.
    """
    cells = _order(counts.cell_names, source.fitted.cell_names, "cells")
    genes = _order(counts.gene_names, source.fitted.gene_names, "genes")
    moments = _moments(source, cells, genes, config.n_samples, seed)
    if np.any(np.diff(cells) != 1) or np.any(np.diff(genes) != 1):
        source = source.in_order_of(counts, cells, genes)
    priors: dict[str, Prior] = {}
    log_r = moments[names.DISPERSION][0]
    wrap = {
        names.DISPERSION: MarginalDispersion,
        names.MU: lambda prior: MarginalMean(prior, log_r),
    }
    soft = {names.DISPERSION: LogNormal, names.MU: Normal}
    for site in (names.DISPERSION, names.MU):
        loc, sd = moments[site]
        if site in config.freeze:
            priors[site] = Frozen(jnp.exp(loc) if site == names.DISPERSION else loc)
        elif math.isfinite(config.tau):
            priors[site] = soft[site](loc, _soften(sd, config.tau))
        if site in priors and config.match == MARGINAL:
            priors[site] = wrap[site](priors[site])
    loc, sd = moments[names.ETA]
    capture: Capture | None = None
    if names.ETA in config.freeze or source.known_eta is not None:
        capture = KnownCapture(loc)
    elif math.isfinite(config.tau):
        capture = LatentCapture(loc, _soften(sd, config.tau))
    return Cascade(
        priors,
        capture,
        np.exp(moments[names.MU][0]),
        np.asarray(log_r),
        config.freeze,
        source,
    )


def report_matching(parameters: Parameters, config: CascadeConfig) -> None:
    """Say how many genes marginal matching left without an overdispersion."""
    r = parameters.channel.values().get(names.DISPERSION)
    if r is None or config.match != MARGINAL:
        return
    n_poisson = int((np.asarray(r) > 0.99 * R_MAX).sum())
    log.info("marginal matching left no overdispersion to %d genes (r = %.0f)", n_poisson, R_MAX)


def _soften(sd, tau):
    return jnp.maximum(sd * tau, SMALLEST_SD)


def _moments(source: SVIResult, cells, genes, n_samples: int, seed: int):
    """(mean, sd) of log r̄, log μ̄ and η, for cells and genes at these places of the source."""
    mean, r = source.sample_genes(n_samples, seed)
    moments = {}
    for site, draws in ((names.DISPERSION, r), (names.MU, mean)):
        logs = np.log(draws[:, genes])
        moments[site] = logs.mean(axis=0), logs.std(axis=0)
    if source.known_eta is not None:
        eta = source.known_eta[cells]
        moments[names.ETA] = eta, np.zeros_like(eta)
    else:
        mean, sd = source.posterior.eta_moments()
        moments[names.ETA] = mean[cells], sd[cells]
    return {
        site: tuple(jnp.asarray(x, jnp.float32) for x in pair) for site, pair in moments.items()
    }


def _order(wanted, labels, what):
    """Where the source has each cell or gene; the two must be the same set."""
    try:
        order = find(wanted, labels, what)
    except KeyError as error:
        raise ValueError(
            f"informative_priors_from=: not a fit of these {what}: {error.args[0]}; fit the "
            "source to the same AnnData, with the same layer and gene_coverage"
        ) from None
    if len(labels) != len(wanted):
        raise ValueError(
            f"informative_priors_from=: fitted to {len(labels)} {what}, these data have "
            f"{len(wanted)}; fit the source to the same AnnData, layer and gene_coverage"
        )
    return order
