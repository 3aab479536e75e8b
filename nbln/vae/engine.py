"""Training: minibatches inside compiled blocks, until held-out cells stop improving.

What made the largest difference on real counts, in this order: to train until held-out cells stop
improving; dispersions started at moments, and with the output's bias at ten times the rate; one
cycle of the rate; weight decay.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from nbln.inference.checkpoint import OFF, Saver, Snapshot, Stage
from nbln.linalg.dtypes import strong
from nbln.progress import Progress
from nbln.vae.cells import Cells, Resident, batches, block_cells
from nbln.vae.config import TrainingConfig
from nbln.vae.cycle import Cycle, trainable
from nbln.vae.network import Network
from nbln.vae.objective import Objective, Terms
from nbln.vae.pools import Pools

MOST_HELD_OUT = 5_000  # cells; more would not judge better, only longer
# Cells of an epoch's last batch whose bound is told; all of them would take a tenth longer.
N_TRAINED = 32


class Epoch(NamedTuple):
    """What an epoch left, in nats a cell."""

    elbo_train: Float[Array, ""]  # of some cells of its last batch
    elbo_validation: Float[Array, ""]  # of held-out cells; of the last batch where there are none
    reconstruction: Float[Array, ""]  # expected log-probability of their counts
    divergence: Float[Array, ""]  # of their z from its prior


class VAEFit(NamedTuple):
    """What the engine returns."""

    model: Any  # of the kind that was given
    history: Epoch  # (epoch,) each
    best: int  # the epoch whose model this is, from 0
    held_out: np.ndarray  # numbers of the cells that training did not see
    stopped: bool  # whether held-out cells had stopped improving
    seconds: dict[str, float]


class State(NamedTuple):
    """All that one epoch passes to the next."""

    model: Network
    adam: Any
    step: Array
    best: Network
    best_elbo: Array


def fit_vae(
    model: Network,
    objective: Objective,
    cells: Cells,
    config: TrainingConfig,
    seed: int = 0,
    progress: bool = False,
    saver: Saver = OFF,
) -> VAEFit:
    """Train a model on all cells but some that are held out.

    Raises
    ------
    FloatingPointError
        A gradient became infinite or not a number; names the step and the parameters.
    """
    began = time.perf_counter()
    config = config.of(cells.counts.n_cells)
    # Cells on disk are seen in another order.
    data = cells.counts.fingerprint, cells.counts.on_disk
    stage = saver.stage("vae", *data, model, objective, config, seed)
    held_out, train = split(cells.counts.n_cells, config, seed)
    pools = Pools(cells, train, config, seed)
    judge = Judge(cells, held_out)
    n_epochs = config.n_epochs
    assert n_epochs is not None, "by default the number of cells decides"
    cycle = config.cycle(pools.n_steps)
    state, history = _restored(stage, _first(model, cycle))
    started, root = time.perf_counter(), jax.random.key(seed)
    with Progress("VAE", n_epochs, progress) as bar:
        bar.advance(steps=len(history))
        while len(history) < n_epochs and not (len(held_out) and stalled(history, config)):
            key = _fold_in(root, len(history))
            for resident, order in pools.of(len(history)):
                state, bad, key = _run(state, objective, resident, order, key, cycle)
                _check_finite(state.model, bad, config)
            state, epoch = judge(state, objective, resident, order[-1])
            history.append(epoch)
            bar.advance(f"elbo {float(epoch.elbo_validation):.1f}")
            stage.note(partial(_snapshot, state, history, len(history)))
    stage.finish(lambda: _snapshot(state, history, len(history)))
    if not len(held_out):
        state = state._replace(best=state.model)
    columns = Epoch(*map(np.array, zip(*history, strict=True)))
    seconds = {"start": started - began, "epochs": time.perf_counter() - started}
    best = int(np.argmax(columns.elbo_validation)) if len(held_out) else len(history) - 1
    return VAEFit(state.best, columns, best, held_out, len(history) < n_epochs, seconds)


def split(n_cells: int, config: TrainingConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the cells that are held out, and of the others, each in order."""
    n_held_out = min(round((config.validation_share or 0) * n_cells), MOST_HELD_OUT)
    shuffled = np.random.default_rng(seed).permutation(n_cells)
    return np.sort(shuffled[:n_held_out]), np.sort(shuffled[n_held_out:])


def stalled(history: list[Epoch], config: TrainingConfig) -> bool:
    """Whether held-out cells have not improved for as long as patience lasts."""
    values = [float(epoch.elbo_validation) for epoch in history]
    return len(values) > config.patience and int(np.argmax(values)) < len(values) - config.patience


@eqx.filter_jit
def _first(model: Network, cycle: Cycle) -> State:
    parameters, _ = trainable(model)
    adam = cycle.optimiser(parameters).init(parameters)
    return strong(State(model, adam, jnp.asarray(0), model, jnp.asarray(-jnp.inf)))


# Compiled, as all that an epoch computes: an operation on its own takes as long as four cells.
_fold_in = jax.jit(jax.random.fold_in)


@eqx.filter_jit
def _run(state: State, objective: Objective, resident: Resident, order, key, cycle: Cycle):
    """One step a batch of `order`; the first step gone bad, with the parameters it hit; a key."""
    following_key, key = jax.random.split(key)
    adam = cycle.optimiser(trainable(state.model)[0])

    def step(carry, given):
        model, memory, count, bad = carry
        i, index = given
        batch, own = resident.batch(index), jax.random.fold_in(key, i)
        parameters, known = trainable(model)
        now = cycle.now(count)

        def loss(parameters):
            whole = eqx.combine(parameters, known)
            terms, moments = objective.terms(whole, batch, own, now)
            value = objective.value(terms, now)
            return -jnp.sum(value * batch.weight) / jnp.sum(batch.weight), moments

        # The value itself is not asked for, and so never computed: half of the work.
        gradient, moments = eqx.filter_grad(loss, has_aux=True)(parameters)
        finite = jnp.stack([jnp.isfinite(jnp.sum(g)) for g in jax.tree.leaves(gradient)])
        moves, memory = adam.update(gradient, memory, parameters)
        model = eqx.combine(eqx.apply_updates(parameters, moves), known).following(moments)
        first = (bad[0] < 0) & ~jnp.all(finite)
        bad = jnp.where(first, count, bad[0]), jnp.where(first, finite, bad[1])
        return strong((model, memory, count + 1, bad)), None

    n_leaves = len(jax.tree.leaves(trainable(state.model)[0]))
    start = state.model, state.adam, state.step, (jnp.asarray(-1), jnp.ones(n_leaves, bool))
    numbered = jnp.arange(len(order)), order
    (model, memory, count, bad), _ = lax.scan(step, strong(start), numbered)
    return state._replace(model=model, adam=memory, step=count), bad, following_key


def _check_finite(model: Network, bad, config: TrainingConfig) -> None:
    step = int(bad[0])
    if step < 0:
        return
    paths, _ = jax.tree_util.tree_flatten_with_path(trainable(model)[0])
    names = [jax.tree_util.keystr(path).strip(".") for path, _ in paths]
    wrong = [name for name, fine in zip(names, np.asarray(bad[1]), strict=True) if not fine]
    raise FloatingPointError(
        f"fit(model={model.name!r}): step {step + 1} gave a gradient that is not finite in "
        f"{', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}; lower "
        f"{type(config).__name__}(learning_rate=...), or leave out cells with extreme counts "
        "(summary() of a model='nbvcp' fit names them)"
    )


class Judge:
    """Says after each epoch how well cells are described that training does not see."""

    def __init__(self, cells: Cells, held_out: np.ndarray):
        self._resident, self._order = None, None
        self._key = jax.random.key(0)  # the same noise each time: what differs is the model
        if len(held_out):
            self._resident = Resident.of(cells, held_out)
            size = block_cells(len(held_out), cells.counts.n_genes)
            self._order = jnp.asarray(batches(np.arange(len(held_out)), size))

    def __call__(self, state: State, objective: Objective, last: Resident, index: np.ndarray):
        """The state with the best model so far, and the epoch's figures."""
        train = _evaluate(state.model, objective, last, index[None, :N_TRAINED], self._key)
        if self._resident is None:
            judged = train
        else:
            judged = _evaluate(state.model, objective, self._resident, self._order, self._key)
        if float(judged.elbo) > float(state.best_elbo):
            state = state._replace(best=state.model, best_elbo=judged.elbo)
        figures = (train.elbo, judged.elbo, judged.reconstruction, judged.divergence)
        return state, Epoch(*(np.asarray(x) for x in figures))


@eqx.filter_jit
def _evaluate(model: Network, objective: Objective, resident: Resident, order, key) -> Terms:
    """Means over cells."""

    def block(given):
        i, index = given
        batch = resident.batch(index)
        terms, _ = objective.terms(model, batch, jax.random.fold_in(key, i), None)
        return jax.tree.map(lambda x: jnp.sum(x * batch.weight), terms)

    sums = lax.map(block, (jnp.arange(len(order)), order))
    return jax.tree.map(lambda x: jnp.sum(x) / jnp.sum(order >= 0), sums)


def _snapshot(state: State, history: list[Epoch], n: int) -> Snapshot:
    """After `n` epochs; the list may have grown since."""
    return Snapshot(eqx.filter(state, eqx.is_array), history[:n])


def _restored(stage: Stage, state: State) -> tuple[State, list[Epoch]]:
    """The state and the epochs of a snapshot, or at the start."""
    arrays, rest = eqx.partition(state, eqx.is_array)
    saved = stage.restore(arrays, Epoch(0.0, 0.0, 0.0, 0.0))
    if saved is None:
        return state, []
    return eqx.combine(strong(saved.tree), rest), list(saved.items)
