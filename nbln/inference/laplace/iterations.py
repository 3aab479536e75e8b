"""The iterations of a Laplace fit: all cells take a step, then the parameters, until both stand.

Convergence is judged on the change of W_⊥W_⊥ᵀ, μ, log d and the channel's log parameters in one
iteration, not on an objective: with a loadings prior and parameter expansion the fixed point is
not the mode of likelihood x prior, and sums of millions of log-probabilities hide, in float32,
changes that matter.
"""

import logging
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nbln.data.histogram import CountTails
from nbln.inference.checkpoint import Stage
from nbln.inference.laplace import pooled, statistics
from nbln.inference.laplace.config import LaplaceConfig
from nbln.inference.laplace.run import CONVERGED, FITTING, LEARNING, REFITTING, STOPPED, Run
from nbln.inference.laplace.stalled import stalled
from nbln.inference.laplace.update import Change, Info, State, update
from nbln.inference.overdispersion import Overdispersion
from nbln.inference.stream import CellStream
from nbln.models.log_normal import LogNormalModel
from nbln.posterior import mode
from nbln.posterior.mode import Search
from nbln.progress import Progress

log = logging.getLogger("nbln")

# The first parameters are rough, so the modes at them need not be exact.
FIRST_SEARCH = Search(tol=0.1, max_steps=10)


class Task(NamedTuple):
    """What is iterated, and how."""

    model: LogNormalModel
    stream: CellStream
    tails: CountTails
    config: LaplaceConfig
    seed: int
    progress: bool
    stage: Stage
    schedule: pooled.Schedule | None = None  # of the overdispersion, if not the usual one

    def ended(self, run: Run) -> None:
        """Say where the stage has ended."""
        self.stage.finish(partial(run.snapshot, self.stream))


def begin(task: Task, state: State, coordinates: Overdispersion | None) -> Run:
    """The run that was interrupted, or one at its first modes."""
    at = None
    if coordinates is not None:
        at = pooled.first(coordinates, coordinates.pooling(), state.parameters)
    return at_modes(task, Run(state, None, at))


def at_modes(task: Task, run: Run) -> Run:
    """The run that was interrupted, or this one with the cells at their modes."""
    parameters, columns = run.state.parameters, task.stream.columns
    z = task.stream.zeros(parameters.W.shape[1] + len(columns.value))
    run = run._replace(z=z)
    if (saved := run.restored(task.stage, task.stream)) is not None:
        return saved
    return run._replace(z=task.stream.scan_once(first_step, z, parameters, columns)[1])


def go_on(task: Task, run: Run, coordinates: Overdispersion | None) -> Run:
    """The parts that are left."""
    run = fitted(task, run, coordinates)
    if run.part in (LEARNING, REFITTING):
        assert coordinates is not None, "only what can be learned is"
        run = learned(task, run, coordinates)
        assert run.at is not None, "learned by now"
        known = pooled.held(task.model, coordinates, run.at.psi)
        run = _iterate(task._replace(model=known), run)
    return run


def fitted(task: Task, run: Run, coordinates: Overdispersion | None) -> Run:
    """The run after its iterations at given priors."""
    if run.part != FITTING:
        return run
    run = _iterate(task, run)
    if coordinates is not None and run.part == CONVERGED:
        at = pooled.first(coordinates, coordinates.pooling(), run.state.parameters)
        run = run.next(LEARNING)._replace(at=at)
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
            state, info = stream.processes.agreed(update(model, run.state, sums, tails))
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


def learned(task: Task, run: Run, coordinates: Overdispersion) -> Run:
    """Steps of the overdispersion, each followed by an iteration."""
    if run.part != LEARNING:
        return run
    stream, pooling = task.stream, coordinates.pooling()
    state, z, at, history = run.state, run.z, run.at, run.history
    assert at is not None, "where the first step starts"
    schedule = task.schedule or pooled.schedule_of(at.psi)
    with Progress("Overdispersion", schedule.n_steps, task.progress) as bar:
        bar.advance(steps=run.step)
        for i in range(run.step, schedule.n_steps):
            state = pooled.moved(state, coordinates, at.psi)
            key = jax.random.fold_in(jax.random.key(task.seed), i)
            arguments = (key, schedule.stride(stream, i), state, coordinates, at.psi)
            slopes, _ = stream.scan(pooled.visit, z, *arguments, stream.columns)
            at = pooled.newton(pooling, at, slopes, schedule.gain(i))
            state = pooled.moved(state, coordinates, at.psi)
            known = pooled.held(task.model, coordinates, at.psi)
            sums, z = stream.scan(e_step, z, state, stream.columns)
            state, info = stream.processes.agreed(update(known, state, sums, task.tails))
            history, _ = _record(history, info, task.config)
            bar.advance(f"d about {np.median(state.parameters.d):.2f}")
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
