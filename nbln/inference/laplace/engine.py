"""The Laplace engine: alternate the cells' posterior modes and the parameters until both stand.

Where there are many cells, those of a sample go first; see `sample`.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.compiled import once_jit
from nbln.data.counts import Counts
from nbln.inference.checkpoint import OFF, Saver, Stage
from nbln.inference.laplace import hidden, pooled, staged, start, statistics
from nbln.inference.laplace.basis import Rotation
from nbln.inference.laplace.config import LaplaceConfig
from nbln.inference.laplace.iterations import Task, begin, go_on
from nbln.inference.laplace.orientation import Signed
from nbln.inference.laplace.rows import Damping
from nbln.inference.laplace.run import CONVERGED, Run
from nbln.inference.laplace.staged import Ended
from nbln.inference.laplace.update import Info, State, priors_at
from nbln.inference.overdispersion import Overdispersion
from nbln.inference.stream import CellStream
from nbln.linalg import gauge
from nbln.linalg.dtypes import strong
from nbln.models.log_normal import LogNormalModel
from nbln.posterior import evidence, mode
from nbln.posterior.cells import CellPosterior
from nbln.posterior.mode import Parameters, Search
from nbln.priors.activity import Activity
from nbln.priors.effects import EffectScales
from nbln.priors.loadings import FittedLoadings
from nbln.priors.shrinkage import Phase
from nbln.processes import current

log = logging.getLogger("nbln")

Stages = Callable[[str], Stage]  # of a checkpoint, by name


class LaplaceFit(NamedTuple):
    """What the engine returns."""

    parameters: Parameters
    loadings: FittedLoadings
    cells: CellPosterior
    # Complete-data precision of [μ, β, W], packed, summed at the final parameters in their basis.
    normal: Float[Array, "gene moments"]
    effects: EffectScales
    activity: Activity
    channel_sd: dict[str, Array]  # conditional, of the natural log of each channel parameter
    info: Info  # of all iterations, stacked
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
    pool: bool = False,
    saver: Saver = OFF,
) -> LaplaceFit:
    """Fit a log-normal model; `mean` and `log_r` are first values of e^μ and of log dispersion.

    Where `pool` is true, d and the channel's own overdispersion are then learned over all genes, in
    place of their priors; see `pooled`. `saver` keeps where the fit stands.
    """
    began = time.perf_counter()
    decides, near = (counts.fingerprint, config, seed, pool), (model, mean, log_r)

    def stages(name: str) -> Stage:
        return saver.stage(name, *decides, near=near)

    held = config.resident_bytes, config.chunk_bytes
    stream = CellStream(counts, model.augmentation, *held, current())
    # An update then moves nothing to the device.
    there = jax.tree.map(lambda x: jax.device_put(x) if isinstance(x, np.ndarray) else x, model)
    task = Task(there, stream, stream.tails(), config, seed, progress, stages("laplace"))
    coordinates = pooled.coordinates(model.channel.start(jnp.asarray(log_r))) if pool else None
    started = time.perf_counter()
    run, earlier = _run(task, First(mean, log_r, coordinates), stages)
    iterated = time.perf_counter()
    state = run.state
    sums, cells = _finish(stream, state, run.z, config)
    n_astray = int((~cells.converged).sum())
    if n_astray:
        log.warning("%d of %d cells did not reach their posterior mode", n_astray, counts.n_cells)
    seconds = {
        "start": started - began,
        "iterations": iterated - started,
        "cells": time.perf_counter() - iterated,
    }
    channel_sd = _channel_sd(model, state.parameters, sums.channel, task.tails)
    state, cells, normal, history = Ended(state, cells, sums.normal, run.history).widened(model)
    loadings = FittedLoadings(model.loadings, state.scales, state.precision)
    return LaplaceFit(
        *Signed(state.parameters, loadings, cells, normal).oriented(),
        state.effects,
        state.activity,
        channel_sd,
        jax.tree.map(lambda *leaves: np.stack(leaves), *earlier, *history),
        run.part == CONVERGED,
        seconds,
    )


class First(NamedTuple):
    """First values."""

    mean: Float[np.ndarray, " gene"]
    log_r: Float[np.ndarray, " gene"]
    coordinates: Overdispersion | None

    def state(self, task: Task) -> State:
        """The first state, by the cells of a task."""
        given = task.model, task.stream, self.mean, self.log_r, task.seed
        return task.stream.processes.agreed(first_state(*given))


def _run(task: Task, first: First, stages: Stages) -> tuple[Run, tuple[Info, ...]]:
    """The run at its end, and what iterations of a sample that it goes back to have done."""
    coordinates, begun = first.coordinates, _from_sample(task, first, stages)
    if begun is not None:
        run, earlier = begun
        run = go_on(task._replace(schedule=pooled.ERRORS), run, coordinates)
        task.ended(run)
        if not hidden.programs(task.stream, run, task.seed):
            return run, earlier
        log.info("all cells show programs that a sample of them did not: all of them begin")
        task = task._replace(stage=stages("laplace of all"))
    run = go_on(task, begin(task, first.state(task), coordinates), coordinates)
    task.ended(run)
    return run, ()


def _from_sample(task: Task, first: First, stages: Stages) -> tuple[Run, tuple[Info, ...]] | None:
    """All cells at the end of the fit of a sample, and what was done there; None without one."""
    size = staged.size_of(task.stream.n_cells, task.stream.n_genes)
    if size is None:
        return None
    sampled = staged.of_sample(task, size, stages("laplace of a sample"))
    return staged.begin(task, sampled, first.state(sampled), np.log(first.mean), first.coordinates)


def first_state(model, stream: CellStream, mean, log_r, seed: int) -> State:
    """Large loadings from a principal-component analysis of shrunken log-counts."""
    n_genes, k = stream.n_genes, model.latent_dim
    d = jnp.broadcast_to(model.priors[names.RESIDUAL].mode(), (n_genes,)).astype(jnp.float32)
    effects = jnp.zeros((n_genes, stream.n_covariates))
    channel = model.channel.start(jnp.asarray(log_r, jnp.float32))
    log_mean = jnp.log(jnp.asarray(mean, jnp.float32))
    # The marginal mean is what log-counts centre on; μ itself is lower by half the variance.
    log_activity = model.activity.log_activity(model.activity.start(k).effects)
    W = jnp.zeros((n_genes, k))
    plain = Parameters(log_mean, W, d, channel, effects, log_activity)
    probes, nothing = start.first_probes(n_genes, k, seed), stream.zeros(0)
    for _ in range(start.POWER_ITERATIONS):
        sums, _ = stream.scan_once(start.sketch, nothing, plain, probes)
        probes = start.orthonormal(sums, probes)
    sums, _ = stream.scan_once(start.sketch, nothing, plain, probes)
    return _first_state(model, plain, sums, probes)


@once_jit
def _first_state(model, plain: Parameters, sums, probes) -> State:
    n_genes, k = plain.W.shape
    W = start.loadings(sums, probes, k)
    variance = jnp.sum(W**2, axis=1) + plain.d
    prior = model.priors[names.MU].at(variance)
    mu = jnp.broadcast_to(prior.mode(), variance.shape) if prior.frozen else plain.mu - variance / 2
    mu, W, _ = model.depth.fix(mu, W)
    # All columns get the scale of the largest: a column must be able to fall, not to rise.
    norms = gauge.squared_norms(W)
    scales = model.loadings.start(jnp.full_like(norms, jnp.max(norms)), n_genes)
    precision = model.loadings.column_precision(scales, W.shape)
    further = plain.d, plain.channel, plain.effects, plain.log_activity
    parameters = Parameters(mu, W, *further)
    n_covariates = plain.effects.shape[1]
    return strong(
        State(
            Phase.start(),
            parameters,
            scales,
            model.effects.start(n_genes),
            model.activity.start(k),
            precision,
            Rotation.identity(k, n_covariates),
            Damping.start(n_genes),
        )
    )


@once_jit
def _channel_sd(model, parameters: Parameters, sums, tails) -> dict[str, Array]:
    priors = priors_at(model.priors, parameters)
    return parameters.channel.conditional_sd(sums, tails, priors)


def _finish(stream: CellStream, state: State, z, config: LaplaceConfig):
    """The sums, and each cell's mode, evidence and capture loss, at the final parameters."""
    sums, parts = stream.scan_once(finish_step, z, state, stream.columns, config.search)
    assert sums is not None, "counts have at least one chunk"
    return sums, CellPosterior(*stream.join(parts))


def finish_step(state: State, columns, search: Search, cells, z):
    """A chunk's sums, and what is kept of its cells, cell axis first."""
    parameters = state.parameters
    f = mode.conditional_rates(parameters, cells, columns, state.rotation(z, cells.covariates))
    mode_ = mode.find(parameters, cells, columns, f, search)
    step = mode.newton_step(parameters, cells, columns, mode_.f)
    return statistics.of_step(step, parameters, cells, columns), (
        mode_.z.T,
        *evidence.capture_loss(cells, columns, mode_.z, step.covariance),
        evidence.evidence_after(parameters, cells, columns, step),
        mode_.gradient_norm,
        mode_.converged,
    )
