"""The Laplace engine: alternate the cells' posterior modes and the parameters until both stand.

Convergence is judged on the change of W_⊥W_⊥ᵀ, μ, log d and the channel's log parameters in one
iteration, not on an objective: with a loadings prior and parameter expansion the fixed point is
not the mode of likelihood x prior, and sums of millions of log-probabilities hide, in float32,
changes that matter.
"""

import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.inference.laplace import mstep, start
from nbln.inference.source import CHUNK_BYTES, Source
from nbln.linalg import gauge
from nbln.linalg.dtypes import strong
from nbln.models.base import LogNormalModel
from nbln.posterior import evidence, mode
from nbln.posterior.mode import Parameters
from nbln.progress import Progress

log = logging.getLogger("nbln")

FIRST_TOL, FIRST_STEPS = 0.1, 10  # of the modes at the first parameters


@dataclass(frozen=True)
class LaplaceConfig:
    """Settings of the Laplace engine.

    Attributes
    ----------
    n_steps
        Upper bound on iterations; a fit stops earlier when it has converged.
    tol
        Largest change of the parameters in one iteration at which a fit has converged: relative
        for W_⊥W_⊥ᵀ, root mean square over genes for μ, log d and log r.
    newton_tol
        A cell's mode is found when no log-rate moves by more than this (natural log).
    newton_steps
        Upper bound on the final Newton steps of a cell.
    resident_bytes
        Largest dense float32 matrix of counts that is kept in memory; larger ones, and files
        opened with ``backed="r"``, are streamed in every iteration.
    chunk_bytes
        Size of one chunk of counts.
    """

    n_steps: int = 200
    tol: float = 3e-3
    newton_tol: float = 1e-3
    newton_steps: int = 50
    resident_bytes: int = 2**31
    chunk_bytes: int = CHUNK_BYTES


class CellFit(NamedTuple):
    """What is kept of every cell (cell axis first)."""

    z: np.ndarray  # (cell, all_columns) coordinates at the mode
    eta: np.ndarray  # (cell,) capture loss, posterior mean
    eta_loc: np.ndarray  # (cell,) the same before truncation at 0
    eta_sd: np.ndarray  # (cell,) and its standard deviation; 0 where η is known
    log_evidence: np.ndarray  # (cell,) natural log
    gradient_norm: np.ndarray  # (cell,) in posterior standard deviations
    converged: np.ndarray  # (cell,) bool


class LaplaceFit(NamedTuple):
    """What the engine returns."""

    parameters: Parameters
    scales: dict[str, Array]
    loadings_precision: Float[Array, "gene factor"]  # of the prior that follows from the last rows
    cells: CellFit
    normal: Float[Array, "gene moments"]  # complete-data precision of [μ, W], packed
    log_r_sd: Float[Array, " gene"] | None  # conditional, by curvature
    trace: np.ndarray  # (iteration, 4) changes: loadings, mu, log d, channel
    converged: bool
    seconds: dict[str, float]


def fit_laplace(
    model: LogNormalModel,
    counts: Counts,
    mean: Float[np.ndarray, " gene"],
    log_r: Float[np.ndarray, " gene"],
    config: LaplaceConfig,
    seed: int = 0,
    progress: bool = False,
) -> LaplaceFit:
    """Fit a log-normal model; `mean` and `log_r` are first values of e^μ and of log dispersion."""
    began = time.perf_counter()
    source = Source(counts, model.augmentation, config.resident_bytes, config.chunk_bytes)
    tails = source.tails()
    state = _start(model, source, mean, log_r, seed)
    z = source.zeros(model.latent_dim + len(source.columns.value))
    _, z = source.scan(first_step, z, state.parameters, source.columns)
    started = time.perf_counter()
    state, z, sums, trace, converged = _iterate(model, source, state, z, tails, config, progress)
    iterated = time.perf_counter()
    cells = _finish(source, state, z, config)
    if not cells.converged.all():
        log.warning(
            "%d of %d cells did not reach their posterior mode",
            (~cells.converged).sum(),
            counts.n_cells,
        )
    seconds = {
        "start": started - began,
        "iterations": iterated - started,
        "cells": time.perf_counter() - iterated,
    }
    return LaplaceFit(
        state.parameters,
        state.scales,
        state.precision,
        cells,
        sums.normal,
        _log_r_sd(state.parameters.channel, sums.channel, tails, model.priors),
        trace,
        converged,
        seconds,
    )


def _start(model, source, mean, log_r, seed) -> mstep.State:
    """Large loadings from a principal-component analysis of shrunken log-counts."""
    n_genes, k = source.n_genes, model.latent_dim
    d = jnp.broadcast_to(model.priors[names.RESIDUAL].mode(), (n_genes,)).astype(jnp.float32)
    channel = model.start_channel(jnp.asarray(log_r, jnp.float32))
    log_mean = jnp.log(jnp.asarray(mean, jnp.float32))
    # The marginal mean is what log-counts centre on; μ itself is lower by half the variance.
    plain = Parameters(log_mean, jnp.zeros((n_genes, k)), d, channel)
    probes, nothing = start.first_probes(n_genes, k, seed), source.zeros(0)
    for _ in range(start.POWER_ITERATIONS):
        sums, _ = source.scan(start.sketch, nothing, plain, probes)
        probes = start.orthonormal(sums, probes)
    sums, _ = source.scan(start.sketch, nothing, plain, probes)
    return _first_state(model, plain, sums, probes)


@eqx.filter_jit
def _first_state(model, plain: Parameters, sums, probes) -> mstep.State:
    n_genes, k = plain.W.shape
    W = start.loadings(sums, probes, k)
    variance = jnp.sum(W**2, axis=1) + plain.d
    prior = model.priors[names.MU].at(variance)
    mu = jnp.broadcast_to(prior.mode(), variance.shape) if prior.frozen else plain.mu - variance / 2
    # The scales of columns that are all as large as the largest.
    norms = gauge.squared_norms(W)
    scales = model.loadings.start(jnp.full_like(norms, jnp.max(norms)), n_genes)
    precision = model.loadings.column_precision(scales, W.shape)
    rotation = mstep.Rotation(jnp.eye(k), jnp.zeros(k))
    zero = jnp.zeros((), jnp.int32)
    parameters = Parameters(mu, W, plain.d, plain.channel)
    damping = mstep.Damping.start(n_genes)
    return strong(mstep.State(zero, parameters, scales, precision, zero, rotation, damping))


def _iterate(model, source, state, z, tails, config, progress):
    """Iterate until converged; reads each iteration's change while the next one runs."""
    trace, previous, converged, sums = [], None, False, None

    def record(change, sharpening):
        """Note an iteration's change, and whether it was the last that is needed."""
        trace.append([float(x) for x in change])
        # Sparse loadings have converged only with the scales of their entries.
        final = not model.loadings.sparse or int(sharpening) >= mstep.SHARP
        return final and max(trace[-1]) <= config.tol

    with Progress("Laplace", config.n_steps, progress) as bar:
        for _ in range(config.n_steps):
            sums, z = source.scan(e_step, z, state, source.columns)
            state, change = m_step(model, state, sums, tails)
            if previous is not None:
                converged = record(*previous)
                bar.advance(f"change {max(trace[-1]):.1e}")
                if not np.isfinite(trace[-1]).all():
                    raise FloatingPointError(_diverged(len(trace), trace[-1]))
                if converged:
                    break
            previous = change, state.sharpening
        if not converged and previous is not None:
            converged = record(*previous)
    if not converged:
        log.warning(
            "the Laplace fit did not converge in n_steps=%d iterations; the last one changed the "
            "parameters by %.1e (tol=%.1e)",
            config.n_steps,
            max(trace[-1]),
            config.tol,
        )
    return state, z, sums, np.array(trace), converged


def _diverged(iteration, change):
    which = [n for n, x in zip(mstep.Change._fields, change, strict=True) if not np.isfinite(x)]
    return (
        f"fit(inference_method='laplace'): iteration {iteration} gave a value that is not finite "
        f"in {', '.join(which)}; check the counts for cells or genes of extreme size, or set a "
        "tighter prior on r or d"
    )


def first_step(parameters, columns, cells, z):
    """The modes at the first parameters, roughly, from the counts themselves."""
    found = mode.find(
        parameters, cells, columns, jnp.log(cells.counts + 0.5), FIRST_TOL, FIRST_STEPS
    )
    return (), found.z


def e_step(state: mstep.State, columns, cells, z):
    """A chunk's part of an iteration: turn its coordinates, take a Newton step, sum."""
    return mstep.statistics(state.parameters, cells, columns, mstep.rotate(z, state.rotation))


m_step = eqx.filter_jit(mstep.update)


@eqx.filter_jit
def _log_r_sd(channel, sums, tails, priors):
    return channel.log_r_sd(sums, tails, priors)


def _finish(source: Source, state: mstep.State, z, config: LaplaceConfig) -> CellFit:
    """Every cell's mode, evidence and capture loss at the final parameters."""
    _, parts = source.scan(
        finish_step, z, state, source.columns, config.newton_tol, config.newton_steps
    )
    return CellFit(*source.join(parts))


def finish_step(state, columns, tol, max_steps, cells, z):
    """What is kept of a chunk's cells, cell axis first."""
    parameters = state.parameters
    f = mode.conditional_rates(parameters, cells, columns, mstep.rotate(z, state.rotation))
    found = mode.find(parameters, cells, columns, f, tol, max_steps)
    covariance = mode.newton_step(parameters, cells, columns, found.f).covariance
    return (), (
        found.z.T,
        *evidence.capture_loss(cells, columns, found.z, covariance),
        evidence.evidence(parameters, cells, columns, found.f),
        found.gradient_norm,
        found.converged,
    )
