"""The cells that a training sees, epoch by epoch."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nbln.vae.cells import Cells, Resident, batches
from nbln.vae.config import TrainingConfig

RUN = 512  # consecutive cells of a file that are read together


class Pools:
    """The cells that training sees, epoch by epoch: all at once, or some runs after others."""

    def __init__(self, cells: Cells, train: np.ndarray, config: TrainingConfig, seed: int):
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
            self._edges = np.linspace(0, counts.n_cells, self._n_runs + 1).astype(int)
            self._run = int(np.diff(self._edges).max())
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

    def of(self, epoch: int) -> Iterator[tuple[Resident, np.ndarray]]:
        """Cells, and their numbers among these batch by batch; each cell once."""
        rng = np.random.default_rng((self._seed, epoch))
        if self._all is not None:
            order = rng.permutation(len(self._train))
            yield self._all, batches(order, self._config.batch_size)
            return
        for part in np.array_split(rng.permutation(self._n_runs), self._n_pools):
            yield self._pool(np.sort(part), rng)

    def _pool(self, runs: np.ndarray, rng: np.random.Generator) -> tuple[Resident, np.ndarray]:
        """Cells of some runs, in random order; all pools have one shape."""
        cells, most, edges = self._cells, self._pool_cells, self._edges
        parts = [np.arange(int(edges[run]), int(edges[run + 1])) for run in runs]
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
        return Resident(jnp.asarray(rows), known), dealt
