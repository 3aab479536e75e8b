"""Training: minibatches inside compiled blocks, until held-out cells stop improving.

What made the largest difference on real counts, in this order: to train until held-out cells stop
improving; dispersions started at moments, and with the output's bias at ten times the rate; one
cycle of the rate; weight decay.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from nbln.arguments import check_settings, number, optional, whole
from nbln.inference.checkpoint import OFF, Saver, Snapshot, Stage
from nbln.linalg.dtypes import strong
from nbln.progress import Progress
from nbln.vae.cells import Cells, Resident, batches, block_cells
from nbln.vae.layers import Moments
from nbln.vae.objective import Objective, Terms, following
from nbln.vae.scvi import SCVI, Gaussian

log = logging.getLogger("nbln")

# Dispersions and the output's bias start near their places, and have one number a gene: they bear
# ten times the rate of weights, and must not wait for them. Measured on PBMC: 16 nats a cell.
FASTER = 10.0
MOST_HELD_OUT = 5_000  # cells; more would not judge better, only longer

RULES = {
    "n_hidden": whole(1),
    "n_layers": whole(1),
    "dropout": number(most=0.95),
    "n_epochs": optional(whole(1)),
    "batch_size": whole(3),  # of 2, an odd cell would be a batch of its own
    "learning_rate": number(open_=True),
    "weight_decay": optional(number()),
    "warmup_epochs": whole(0),
    "validation_share": optional(number(most=0.5)),
    "patience": whole(1),
    "resident_bytes": whole(0),
}


@dataclass(frozen=True)
class VAEConfig:
    """Settings of amortised models and their training.

    Attributes
    ----------
    n_hidden, n_layers
        Units of a hidden layer; hidden layers of encoder and decoder.
    dropout
        Share of the encoder's hidden units that a step leaves out.
    n_epochs
        Passes over the cells, at most where cells are held out. By default 120, and from 5,000
        cells on 600,000 by their number, at least 10.
    batch_size
        Cells in a step.
    learning_rate
        Of Adam, at the top of its cycle.
    weight_decay
        Decoupled (Loshchilov & Hutter 2019), of weights; biases and dispersions have none. By
        default 2,000 by the number of cells: what a prior on weights would do.
    warmup_epochs
        Epochs until the divergence from the prior has its full weight; at most a third of all.
    validation_share
        Share of the cells that are held out, at most 5,000, to stop when they no longer improve
        and to keep the best epoch; 0 trains on all cells, to the end. By default a tenth from 5,000
        cells on, and 0 of fewer, where every cell counts and weight decay alone holds back.
    patience
        Epochs without improvement of held-out cells before a fit stops.
    resident_bytes
        Largest dense float32 matrix of counts kept in memory. Larger ones, and files opened with
        ``backed="r"``, are read in each epoch, in parts of at most an eighth of this size.

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    n_hidden: int = 128
    n_layers: int = 1
    dropout: float = 0.1
    n_epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float | None = None
    warmup_epochs: int = 20
    validation_share: float | None = None
    patience: int = 30
    resident_bytes: int = 2**31

    def __post_init__(self):
        check_settings(self, RULES)

    def of(self, n_cells: int) -> "VAEConfig":
        """The same with what so many cells decide."""
        by_default = {
            "n_epochs": int(np.clip(round(EPOCH_CELLS / n_cells), *EPOCHS)),
            "weight_decay": DECAY_CELLS / n_cells,
            "validation_share": 0.1 if n_cells >= MANY_CELLS else 0.0,
        }
        left = {name: x for name, x in by_default.items() if getattr(self, name) is None}
        return replace(self, **left)


# Chosen by the evidence of held-out cells of four data sets of 219 to 8,000 cells: twice or half as
# many epochs, or as much decay, cost at most a nat a cell, but in the smallest.
EPOCH_CELLS, EPOCHS = 600_000, (10, 120)
DECAY_CELLS, MANY_CELLS = 2_000, 5_000
RUN = 512  # consecutive cells of a file that are read together


class Epoch(NamedTuple):
    """What an epoch left, in nats a cell."""

    elbo_train: Float[Array, ""]  # of its last batch
    elbo_validation: Float[Array, ""]  # of held-out cells; of the last batch where there are none
    reconstruction: Float[Array, ""]  # expected log-probability of their counts
    divergence: Float[Array, ""]  # of their z from its prior


class VAEFit(NamedTuple):
    """What the engine returns."""

    model: SCVI
    history: Epoch  # (epoch,) each
    best: int  # the epoch whose model this is, from 0
    held_out: np.ndarray  # numbers of the cells that training did not see
    stopped: bool  # whether held-out cells had stopped improving
    seconds: dict[str, float]


class State(NamedTuple):
    """All that one epoch passes to the next."""

    model: SCVI
    adam: Any
    step: Array
    best: SCVI
    best_elbo: Array


def fit_vae(
    model: SCVI,
    objective: Objective,
    cells: Cells,
    config: VAEConfig,
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
    stage = saver.stage("vae", cells.counts.fingerprint, model, objective, config, seed)
    held_out, train = split(cells.counts.n_cells, config, seed)
    pools = Pools(cells, train, config, seed)
    judge = Judge(cells, held_out)
    n_epochs = config.n_epochs
    assert n_epochs is not None, "by default the number of cells decides"
    cycle = Cycle.of(pools.n_steps, n_epochs, config)
    state, history = _restored(stage, _first(model, cycle))
    started = time.perf_counter()
    with Progress("VAE", n_epochs, progress) as bar:
        bar.advance(steps=len(history))
        while len(history) < n_epochs and not (len(held_out) and stalled(history, config)):
            key = jax.random.fold_in(jax.random.key(seed), len(history))
            for resident, order in pools.of(len(history)):
                key, own = jax.random.split(key)
                state, bad = _run(state, objective, resident, order, own, cycle)
                _check_finite(state.model, bad)
            state, epoch = judge(state, objective, resident, order[-1])
            history.append(epoch)
            bar.advance(f"elbo {float(epoch.elbo_validation):.1f}")
            stage.note(partial(_snapshot, state, history, len(history)))
    stage.finish(_snapshot(state, history, len(history)))
    if not len(held_out):
        state = state._replace(best=state.model)
    columns = Epoch(*map(np.array, zip(*history, strict=True)))
    seconds = {"start": started - began, "epochs": time.perf_counter() - started}
    best = int(np.argmax(columns.elbo_validation)) if len(held_out) else len(history) - 1
    return VAEFit(state.best, columns, best, held_out, len(history) < n_epochs, seconds)


def split(n_cells: int, config: VAEConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the cells that are held out, and of the others, each in order."""
    n_held_out = min(round((config.validation_share or 0) * n_cells), MOST_HELD_OUT)
    shuffled = np.random.default_rng(seed).permutation(n_cells)
    return np.sort(shuffled[:n_held_out]), np.sort(shuffled[n_held_out:])


def stalled(history: list[Epoch], config: VAEConfig) -> bool:
    """Whether held-out cells have not improved for as long as patience lasts."""
    values = [float(epoch.elbo_validation) for epoch in history]
    return len(values) > config.patience and int(np.argmax(values)) < len(values) - config.patience


class Cycle(eqx.Module):
    """How the rate and the weight of the divergence go over the steps of a fit."""

    n_steps: int = eqx.field(static=True)
    warm_steps: int = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)

    @classmethod
    def of(cls, steps_an_epoch: int, n_epochs: int, config: VAEConfig) -> "Cycle":
        """Of a fit of so many epochs."""
        n_steps = steps_an_epoch * n_epochs
        # A weight that never reaches 1 would train another model.
        warm = min(steps_an_epoch * config.warmup_epochs, n_steps // 3)
        decay = float(config.weight_decay or 0)
        return cls(n_steps, warm, float(config.learning_rate), decay)

    def warmth(self, step: Array) -> Array:
        """Weight of the divergence."""
        return jnp.minimum(1.0, (step + 1) / max(self.warm_steps, 1))

    def optimiser(self, parameters: SCVI) -> optax.GradientTransformation:
        """AdamW on one cycle (Smith 2018), levels faster."""
        level, weight = _levels(parameters), _weights(parameters)
        schedule = optax.cosine_onecycle_schedule(self.n_steps, self.learning_rate)
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, weight),
            optax.scale_by_learning_rate(schedule),
            optax.masked(optax.scale(FASTER), level),
        )


def _trainable(model: SCVI) -> tuple[SCVI, SCVI]:
    """What is learned, and the rest: running moments and what is known of libraries."""

    def learned(node):
        return not isinstance(node, Moments | Gaussian) and eqx.is_inexact_array(node)

    known = jax.tree.map(learned, model, is_leaf=lambda x: isinstance(x, Moments | Gaussian))
    return eqx.partition(model, known)


def _levels(parameters: SCVI) -> SCVI:
    """True for dispersions and the output's bias."""
    none = jax.tree.map(lambda _: False, parameters)
    marked = eqx.tree_at(lambda m: m.decoder.share.bias, none, True)
    if parameters.likelihood.dispersion is None:
        return marked
    return eqx.tree_at(lambda m: m.likelihood.dispersion.level, marked, True)


def _weights(parameters: SCVI) -> SCVI:
    """True for weights of linear layers."""

    def is_weight(path, _):
        return getattr(path[-1], "name", "") == "weight"

    return jax.tree_util.tree_map_with_path(is_weight, parameters)


@eqx.filter_jit
def _first(model: SCVI, cycle: Cycle) -> State:
    parameters, _ = _trainable(model)
    adam = cycle.optimiser(parameters).init(parameters)
    return strong(State(model, adam, jnp.asarray(0), model, jnp.asarray(-jnp.inf)))


@eqx.filter_jit
def _run(state: State, objective: Objective, resident: Resident, order, key, cycle: Cycle):
    """One step a batch of `order`; and the first step gone bad, with the parameters it hit."""
    adam = cycle.optimiser(_trainable(state.model)[0])

    def step(carry, given):
        model, memory, count, bad = carry
        i, index = given
        batch, own = resident.batch(index), jax.random.fold_in(key, i)
        parameters, known = _trainable(model)

        def loss(parameters):
            whole = eqx.combine(parameters, known)
            terms, moments = objective.terms(whole, batch, own, True)
            value = objective.value(terms, cycle.warmth(count))
            return -jnp.sum(value * batch.weight) / jnp.sum(batch.weight), moments

        # The value itself is not asked for, and so never computed: half of the work.
        gradient, moments = eqx.filter_grad(loss, has_aux=True)(parameters)
        finite = jnp.stack([jnp.isfinite(jnp.sum(g)) for g in jax.tree.leaves(gradient)])
        moves, memory = adam.update(gradient, memory, parameters)
        model = following(eqx.combine(eqx.apply_updates(parameters, moves), known), moments)
        first = (bad[0] < 0) & ~jnp.all(finite)
        bad = jnp.where(first, count, bad[0]), jnp.where(first, finite, bad[1])
        return strong((model, memory, count + 1, bad)), None

    n_leaves = len(jax.tree.leaves(_trainable(state.model)[0]))
    start = state.model, state.adam, state.step, (jnp.asarray(-1), jnp.ones(n_leaves, bool))
    numbered = jnp.arange(len(order)), order
    (model, memory, count, bad), _ = lax.scan(step, strong(start), numbered)
    return state._replace(model=model, adam=memory, step=count), bad


def _check_finite(model: SCVI, bad) -> None:
    step = int(bad[0])
    if step < 0:
        return
    paths, _ = jax.tree_util.tree_flatten_with_path(_trainable(model)[0])
    names = [jax.tree_util.keystr(path).strip(".") for path, _ in paths]
    wrong = [name for name, fine in zip(names, np.asarray(bad[1]), strict=True) if not fine]
    raise FloatingPointError(
        f"fit(model={model.name!r}): step {step + 1} gave a gradient that is not finite in "
        f"{', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}; lower "
        "VAEConfig(learning_rate=...), or leave out cells with extreme counts (summary() of a "
        "model='nbvcp' fit names them)"
    )


class Judge:
    """Says after each epoch how well cells are described that training does not see."""

    def __init__(self, cells: Cells, held_out: np.ndarray):
        self._resident, self._order = None, None
        if len(held_out):
            self._resident = Resident.of(cells, held_out)
            size = block_cells(len(held_out), cells.counts.n_genes)
            self._order = jnp.asarray(batches(np.arange(len(held_out)), size))

    def __call__(self, state: State, objective: Objective, last: Resident, index: Array):
        """The state with the best model so far, and the epoch's figures."""
        key = jax.random.key(0)  # the same noise each time: what differs is the model
        train = _evaluate(state.model, objective, last, index[None], key)
        if self._resident is None:
            judged = train
        else:
            judged = _evaluate(state.model, objective, self._resident, self._order, key)
        better = judged.elbo > state.best_elbo
        if better:
            state = state._replace(best=state.model, best_elbo=judged.elbo)
        figures = (train.elbo, judged.elbo, judged.reconstruction, judged.divergence)
        return state, Epoch(*(np.asarray(x) for x in figures))


@eqx.filter_jit
def _evaluate(model: SCVI, objective: Objective, resident: Resident, order, key) -> Terms:
    """Means over cells."""

    def block(given):
        i, index = given
        batch = resident.batch(index)
        terms, _ = objective.terms(model, batch, jax.random.fold_in(key, i), False)
        return jax.tree.map(lambda x: jnp.sum(x * batch.weight), terms)

    sums = lax.map(block, (jnp.arange(len(order)), order))
    return jax.tree.map(lambda x: jnp.sum(x) / jnp.sum(order >= 0), sums)


class Pools:
    """The cells that training sees, epoch by epoch: all at once, or some runs after others."""

    def __init__(self, cells: Cells, train: np.ndarray, config: VAEConfig, seed: int):
        self._cells, self._train, self._config, self._seed = cells, train, config, seed
        counts = cells.counts
        row_bytes = 4 * counts.n_genes
        whole = not counts.on_disk and row_bytes * len(train) <= config.resident_bytes
        self._all = Resident.of(cells, train) if whole else None
        self._n_pools = 1
        if not whole:
            part = max(config.resident_bytes // 8, row_bytes * max(RUN, config.batch_size))
            # Runs are as long as each other: a short last one could be a pool of its own.
            self._n_runs = -(-counts.n_cells // RUN)
            self._run = -(-counts.n_cells // self._n_runs)
            self._n_runs = -(-counts.n_cells // self._run)
            self._n_pools = min(self._n_runs, -(-row_bytes * counts.n_cells // part))
            self._pool_cells = -(-self._n_runs // self._n_pools) * self._run
            self._sees = np.zeros(counts.n_cells, bool)
            self._sees[train] = True

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        if self._all is not None:
            return -(-len(self._train) // self._config.batch_size)
        return self._n_pools * self._batches_a_pool

    @property
    def _batches_a_pool(self) -> int:
        return -(-self._pool_cells // self._config.batch_size)

    def of(self, epoch: int) -> Iterator[tuple[Resident, Array]]:
        """Cells, and their numbers among these batch by batch; each cell once."""
        rng = np.random.default_rng((self._seed, epoch))
        if self._all is not None:
            order = rng.permutation(len(self._train))
            yield self._all, jnp.asarray(batches(order, self._config.batch_size))
            return
        for part in np.array_split(rng.permutation(self._n_runs), self._n_pools):
            yield self._pool(np.sort(part), rng)

    def _pool(self, runs: np.ndarray, rng: np.random.Generator) -> tuple[Resident, Array]:
        """Cells of some runs, in random order; all pools have one shape."""
        cells, most, size = self._cells, self._pool_cells, self._run
        parts = [np.arange(run * size, min((run + 1) * size, len(self._sees))) for run in runs]
        index = np.concatenate(parts)
        rows = np.zeros((most, cells.counts.n_genes), np.float32)
        place = 0
        for part in parts:  # consecutive rows of a file are read fastest
            rows[place : place + len(part)] = cells.counts.rows(slice(part[0], part[-1] + 1))
            place += len(part)
        spare = np.pad(index, (0, most - len(index)))
        known = jax.tree.map(jnp.asarray, cells.known.take(spare))
        order = rng.permutation(np.flatnonzero(self._sees[index]))
        dealt = batches(order, self._config.batch_size, self._batches_a_pool)
        return Resident(jnp.asarray(rows), known), jnp.asarray(dealt)


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
