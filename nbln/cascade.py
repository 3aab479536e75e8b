"""The cascade: a fit of independent genes becomes priors, frozen and starting values.

Means and standard deviations of log r̄, log μ̄ and η under the source's posterior are the Gaussian
priors of r, μ and η in a log-normal model; a frozen key is no longer a parameter.
"""

import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd

from nbln import vocabulary as names
from nbln.arguments import find
from nbln.data.counts import Counts
from nbln.data.formula import Formula
from nbln.posterior.mode import Parameters
from nbln.priors.capture import Capture, KnownCapture, LatentCapture
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
class Cascade:
    """What a log-normal model takes over from a source."""

    priors: dict[str, Prior]
    capture: Capture | None  # None: the model's own capture prior
    mean: np.ndarray | None  # (gene,) starting value of e^μ; None: the source has none
    log_r: np.ndarray  # (gene,) starting value
    frozen: tuple[str, ...]
    source: SVIResult  # in the order of the counts


class Places(NamedTuple):
    """Where a source has what counts have.

    Of its genes, `pooled` are those that the last gene of the counts, `_other`, is the sum of;
    empty if it is one of `genes`, or there is none.
    """

    cells: np.ndarray
    genes: np.ndarray
    pooled: np.ndarray


def cascade(source: SVIResult, counts: Counts, config: CascadeConfig, seed: int) -> Cascade:
    """Priors, frozen and starting values from a fit of the same cells and of these genes or more.

    Genes are matched by name. The pool of the rarest has the mean and the variance of the sum of
    the source's genes that are in it.

    Raises
    ------
    ValueError
        The source was fitted to other cells, or lacks a gene.
    """
    whole, places = source, _places_of(source, counts)
    source = _for_counts(whole, counts, places)
    moments = _moments(whole, places, config.n_samples, seed)
    priors: dict[str, Prior] = {}
    log_r = moments[names.DISPERSION][0]
    wrap = {
        names.DISPERSION: MarginalDispersion,
        names.MU: lambda prior: MarginalMean(prior, log_r),
    }
    soft = {names.DISPERSION: LogNormal, names.MU: Normal}
    for site in soft.keys() & source.keys:
        loc, sd = moments[site]
        if site in config.freeze:
            priors[site] = Frozen(jnp.exp(loc) if site == names.DISPERSION else loc)
        elif math.isfinite(config.tau):
            priors[site] = soft[site](loc, _soften(sd, config.tau))
        if site in priors and config.match == MARGINAL:
            priors[site] = wrap[site](priors[site])
    loc, sd = moments[names.ETA]
    capture: Capture | None = None
    if names.ETA not in source.keys:
        capture = None
    elif names.ETA in config.freeze or source.known_eta is not None:
        capture = KnownCapture(loc)
    elif math.isfinite(config.tau):
        capture = LatentCapture(loc, _soften(sd, config.tau))
    return Cascade(
        priors,
        capture,
        np.exp(moments[names.MU][0]) if names.MU in source.keys else None,
        np.asarray(log_r),
        config.freeze,
        source,
    )


def check_formulas(source: SVIResult | None, formula: Formula | None) -> None:
    """Whether a source of other covariates says of means what the model takes it for.

    Raises
    ------
    ValueError
        The source has a formula that the model has not.
    """
    if source is None:
        return
    theirs = source.formula
    if theirs is None:
        if formula is not None and formula.fixed:
            log.info(
                "the source of independent genes has no formula: its means are those of all cells, "
                "and those of this model are at the reference"
            )
    elif formula is None or (theirs.text, theirs.fixed) != (formula.text, formula.fixed):
        raise ValueError(
            f"fit(informative_priors_from=): it was fitted with formula={theirs.text!r}, and its "
            "means and capture losses know of these covariates; give the same formula="
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


def _moments(source: SVIResult, places: Places, n_samples: int, seed: int):
    """(mean, sd) of log r̄, log μ̄ and η, of cells and genes at these places of the source."""
    cells, genes, pooled = places
    mean, r = source.sample_genes(n_samples, seed)
    if len(pooled):
        means, sizes = mean[:, pooled].astype(np.float64), r[:, pooled]
        total = means.sum(axis=1)
        pool = total**2 / (means**2 / sizes).sum(axis=1)
        mean = np.column_stack([mean[:, genes], total])
        r = np.column_stack([r[:, genes], pool])
    else:
        mean, r = mean[:, genes], r[:, genes]
    moments = {}
    for site, draws in ((names.DISPERSION, r), (names.MU, mean)):
        logs = np.log(draws)
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


def _places_of(source: SVIResult, counts: Counts) -> Places:
    """Where the source has the cells and genes of the counts."""
    fitted = source.fitted
    cells = _order(counts.cell_names, fitted.cell_names)
    real = fitted.gene_names[fitted.real_genes]
    wanted = counts.gene_names[: counts.n_genes - counts.has_other]
    genes = _places(wanted, real, "gene", fitted.has_other)
    pooled = np.arange(0)
    if counts.has_other:
        pooled = _pooled(source, counts, wanted, real)
        if len(pooled) == 1:
            genes, pooled = np.append(genes, pooled), np.arange(0)
    return Places(cells, genes, pooled)


def _for_counts(source: SVIResult, counts: Counts, places: Places) -> SVIResult:
    """The source for exactly the cells and genes of the counts, in their order."""
    cells, genes, pooled = places
    same = len(genes) == source.fitted.n_genes and not len(pooled)
    if same and np.all(np.diff(cells) == 1) and np.all(np.diff(genes) == 1):
        return source
    return source.in_order_of(counts, *places)


def _pooled(source: SVIResult, counts: Counts, wanted, real) -> np.ndarray:
    """Where the source has what the counts pool: genes of its own, and its own pool."""
    if not source.fitted.has_other:
        return _places(counts.pooled_names, real, "gene of the pool", False)
    foreign = np.setdiff1d(real, np.concatenate([wanted, counts.pooled_names]))
    if len(foreign):
        raise ValueError(
            f"informative_priors_from=: it has {len(foreign)} genes that these data have not, the "
            f"first {str(foreign[0])!r}, so what its pool {names.OTHER_GENE} holds is not known; "
            "fit it to the same AnnData, or without gene_coverage"
        )
    own = pd.Index(real).get_indexer(pd.Index(counts.pooled_names))
    return np.append(own[own >= 0], source.fitted.n_genes - 1)


def _places(wanted, real, what: str, pools: bool) -> np.ndarray:
    """Places of genes in the source, all of which it must have."""
    places = pd.Index(real).get_indexer(pd.Index(wanted))
    missing = wanted[places < 0]
    if len(missing):
        pool = f", or has them in its pool {names.OTHER_GENE}" if pools else ""
        raise ValueError(
            f"informative_priors_from=: not a fit of these genes: it lacks {len(missing)} of "
            f"{len(wanted)}{pool}, the first {what} {str(missing[0])!r}; fit the source to these "
            "genes or more, with a larger gene_coverage or none"
        )
    return places


def _order(wanted, labels) -> np.ndarray:
    """Where the source has each cell; the two must be the same set."""
    try:
        order = find(wanted, labels, "cells")
    except KeyError as error:
        raise ValueError(
            f"informative_priors_from=: not a fit of these cells: {error.args[0]}; fit the "
            "source to the same AnnData, with the same layer"
        ) from None
    if len(labels) != len(wanted):
        raise ValueError(
            f"informative_priors_from=: fitted to {len(labels)} cells, these data have "
            f"{len(wanted)}; fit the source to the same AnnData and layer"
        )
    return order
