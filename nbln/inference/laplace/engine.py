"""The Laplace engine: alternate the cells' posterior modes and the parameters until both stand.

Convergence is judged on the change of W_⊥W_⊥ᵀ, μ, log d and the channel's log parameters in one
iteration, not on an objective: with a loadings prior and parameter expansion the fixed point is
not the mode of likelihood x prior, and sums of millions of log-probabilities hide, in float32,
changes that matter.
"""

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.arguments import check_settings, number, whole
from nbln.data.counts import Counts
from nbln.data.histogram import CountTails
from nbln.inference.checkpoint import OFF, Saver, Stage
from nbln.inference.laplace import pooled, start, statistics
from nbln.inference.laplace.basis import Rotation
from nbln.inference.laplace.orientation import Signed
from nbln.inference.laplace.rows import Damping
from nbln.inference.laplace.run import CONVERGED, FITTING, LEARNING, REFITTING, STOPPED, Run
from nbln.inference.laplace.stalled import stalled
from nbln.inference.laplace.update import Change, Info, State, priors_at, update
from nbln.inference.overdispersion import Overdispersion
from nbln.inference.stream import CHUNK_BYTES, CellStream
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
from nbln.progress import Progress

log = logging.getLogger("nbln")

# The first parameters are rough, so the modes at them need not be exact.
FIRST_SEARCH = Search(tol=0.1, max_steps=10)

RULES = {
    "n_steps": whole(1),
    "tol": number(0.0),
    "newton_tol": number(0.0, open_=True),
    "newton_steps": whole(1),
    "resident_bytes": whole(0),
    "chunk_bytes": whole(1),
}


@dataclass(frozen=True)
class LaplaceConfig:
    """Settings of the Laplace engine.

    Attributes
    ----------
    n_steps
        Upper bound on iterations; a fit stops earlier when it has converged. It holds once more for
        the iterations after overdispersion has been learned over all genes.
    tol
        Largest change of the parameters in one iteration at which a fit has converged: relative
        for W_⊥W_⊥ᵀ, root mean square over genes for μ, log d and log r.
    newton_tol
        A cell's mode is reached when no log-rate moves by more than this (natural log).
    newton_steps
        Upper bound on the final Newton steps of a cell.
    resident_bytes
        Largest dense float32 matrix of counts that is kept in memory; larger ones, and files
        opened with ``backed="r"``, are streamed in each iteration.
    chunk_bytes
        Size of one chunk of counts.

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    n_steps: int = 200
    tol: float = 3e-3
    newton_tol: float = 1e-3
    newton_steps: int = 50
    resident_bytes: int = 2**31
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self):
        check_settings(self, RULES)

    @property
    def search(self) -> Search:
        """When the search for a cell's mode ends."""
        return Search(float(self.newton_tol), int(self.newton_steps))


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
    began, processes = time.perf_counter(), current()
    decides, source = (counts.fingerprint, config, seed, pool), (model, mean, log_r)
    stage = saver.stage("laplace", *decides, near=source)
    held = config.resident_bytes, config.chunk_bytes
    stream = CellStream(counts, model.augmentation, *held, processes)
    task = Task(model, stream, stream.tails(), config, seed, progress, stage)
    coordinates = pooled.coordinates(model.channel.start(jnp.asarray(log_r))) if pool else None
    first = processes.agreed(first_state(model, stream, mean, log_r, seed))
    run = _begin(task, first, coordinates)
    started = time.perf_counter()
    run = _go_on(task, run, coordinates)
    if saver.active:
        stage.finish(run.snapshot(stream))
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
    loadings = FittedLoadings(model.loadings, state.scales, state.precision)
    return LaplaceFit(
        *Signed(state.parameters, loadings, cells, sums.normal).oriented(),
        state.effects,
        state.activity,
        _channel_sd(model, state.parameters, sums.channel, task.tails),
        jax.tree.map(lambda *leaves: np.stack(leaves), *run.history),
        run.part == CONVERGED,
        seconds,
    )


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
        sums, _ = stream.scan(start.sketch, nothing, plain, probes)
        probes = start.orthonormal(sums, probes)
    sums, _ = stream.scan(start.sketch, nothing, plain, probes)
    return _first_state(model, plain, sums, probes)


@eqx.filter_jit
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


class Task(NamedTuple):
    """What is iterated, and how."""

    model: LogNormalModel
    stream: CellStream
    tails: CountTails
    config: LaplaceConfig
    seed: int
    progress: bool
    stage: Stage


def _begin(task: Task, state: State, coordinates: Overdispersion | None) -> Run:
    """The run that was interrupted, or one at its first modes."""
    z = task.stream.zeros(task.model.latent_dim + len(task.stream.columns.value))
    at = None
    if coordinates is not None:
        at = pooled.first(coordinates, coordinates.pooling(), state.parameters)
    run = Run(state, z, at)
    if (saved := run.restored(task.stage, task.stream)) is not None:
        return saved
    _, z = task.stream.scan(first_step, z, state.parameters, task.stream.columns)
    return run._replace(z=z)


def _go_on(task: Task, run: Run, coordinates: Overdispersion | None) -> Run:
    """The parts that are left."""
    if run.part == FITTING:
        run = _iterate(task, run)
        if coordinates is not None and run.part == CONVERGED:
            at = pooled.first(coordinates, coordinates.pooling(), run.state.parameters)
            run = run.next(LEARNING)._replace(at=at)
    if run.part in (LEARNING, REFITTING):
        assert coordinates is not None, "only what can be learned is"
        if run.part == LEARNING:
            run = _learn_overdispersion(task, run, coordinates)
        assert run.at is not None, "learned by now"
        known = pooled.held(task.model, coordinates, run.at.psi)
        run = _iterate(task._replace(model=known), run)
    return run


def _iterate(task: Task, run: Run) -> Run:
    """Iterate until converged; reads what an iteration did while the next one runs."""
    model, stream, tails, config = task.model, task.stream, task.tails, task.config
    converged, told = False, False
    begun = len(run.history) + len(run.pending) - run.step  # where this part began
    with Progress("Laplace", config.n_steps, task.progress) as bar:
        bar.advance(steps=run.step)
        while run.step < config.n_steps and not converged:
            sums, z = stream.scan(e_step, run.z, run.state, stream.columns)
            state, info = stream.processes.agreed(m_step(model, run.state, sums, tails))
            history = run.history
            if run.pending:
                history, converged = _record(history, run.pending[0], config)
                bar.advance(f"change {max(history[-1].change):.1e}")
                told = told or _tell_stalled(history[begun:], config)
            run = run._replace(
                state=state, z=z, history=history, pending=(info,), step=run.step + 1
            )
            task.stage.note(partial(run.snapshot, stream))
        if not converged:
            history, converged = _record(run.history, run.pending[0], config)
            run = run._replace(history=history)
    if not converged:
        log.warning(
            "the Laplace fit did not converge in n_steps=%d iterations; the last one changed the "
            "parameters by %.1e (tol=%.1e)",
            config.n_steps,
            max(run.history[-1].change),
            config.tol,
        )
    return run.next(CONVERGED if converged else STOPPED)


def _tell_stalled(history: tuple[Info, ...], config: LaplaceConfig) -> bool:
    """Say it if the iterations of this part go in circles; whether they do."""
    what = stalled(history, config.tol)
    if what is not None:
        log.warning("the Laplace fit has not come closer for some iterations: %s", what)
    return what is not None


def _learn_overdispersion(task: Task, run: Run, coordinates: Overdispersion) -> Run:
    """Steps of the overdispersion, each followed by an iteration."""
    stream, pooling = task.stream, coordinates.pooling()
    state, z, at, history = run.state, run.z, run.at, run.history
    assert at is not None, "where the first step starts"
    n_steps = pooled.steps_of(at.psi)
    with Progress("Overdispersion", n_steps, task.progress) as bar:
        bar.advance(steps=run.step)
        for i in range(run.step, n_steps):
            state = pooled.moved(state, coordinates, at.psi)
            key = jax.random.fold_in(jax.random.key(task.seed), i)
            stride = pooled.stride_of(stream, n_steps - i)
            arguments = (key, stride, state, coordinates, at.psi)
            slopes, _ = stream.scan(pooled.visit, z, *arguments, stream.columns)
            at = pooled.newton(pooling, at, slopes, pooled.gain_of(i))
            state = pooled.moved(state, coordinates, at.psi)
            known = pooled.held(task.model, coordinates, at.psi)
            sums, z = stream.scan(e_step, z, state, stream.columns)
            state, info = stream.processes.agreed(m_step(known, state, sums, task.tails))
            history, _ = _record(history, info, task.config)
            bar.advance(f"d about {float(jnp.median(state.parameters.d)):.2f}")
            run = Run(state, z, at, history, (), LEARNING, i + 1)
            task.stage.note(partial(run.snapshot, stream))
    return run.next(REFITTING)


def _record(
    history: tuple[Info, ...], info: Info, config: LaplaceConfig
) -> tuple[tuple[Info, ...], bool]:
    """The history with what an iteration did; whether it was the last that is needed."""
    info = jax.device_get(info)
    history = (*history, info)
    if not np.isfinite(info.change).all():
        raise FloatingPointError(_diverged(len(history), info.change))
    return history, bool(info.may_stop) and float(max(info.change)) <= config.tol


def _diverged(iteration: int, change: Change) -> str:
    pairs = zip(change._fields, change, strict=True)
    names_ = [name for name, value in pairs if not np.isfinite(value)]
    return (
        f"fit(inference_method='laplace'): iteration {iteration} gave a value that is not finite "
        f"in {', '.join(names_)}; check the counts for cells or genes of extreme size. If priors "
        "of mu are very tight, widen them; else set a tighter prior on r or d"
    )


def first_step(parameters, columns, cells, z):
    """The modes at the first parameters, roughly, from the counts themselves."""
    start_f = jnp.log(cells.counts + 0.5)
    return (), mode.find(parameters, cells, columns, start_f, FIRST_SEARCH).z


def e_step(state: State, columns, cells, z):
    """A chunk's part of an iteration: turn its coordinates, take a Newton step, sum."""
    return statistics.advance(state.parameters, cells, columns, state.rotation(z, cells.covariates))


m_step = eqx.filter_jit(update)


@eqx.filter_jit
def _channel_sd(model, parameters: Parameters, sums, tails) -> dict[str, Array]:
    priors = priors_at(model.priors, parameters)
    return parameters.channel.conditional_sd(sums, tails, priors)


def _finish(stream: CellStream, state: State, z, config: LaplaceConfig):
    """The sums, and each cell's mode, evidence and capture loss, at the final parameters."""
    sums, parts = stream.scan(finish_step, z, state, stream.columns, config.search)
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
