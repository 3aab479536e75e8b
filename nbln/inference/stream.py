"""The cells of an engine, chunk by chunk: from device memory, or read again each time.

Both give the same sums over the same chunks; only what is held at once differs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from nbln.data.chunks import chunk_cells, chunks
from nbln.data.counts import Counts
from nbln.data.histogram import CountTails, count_tails
from nbln.inference.sample import Sample
from nbln.posterior.cells import cells_of
from nbln.posterior.mode import Augmentation, Cells, Columns

# The dozen arrays of this size that an iteration makes of a chunk stay near the cache of a core.
CHUNK_BYTES = 4 * 2**20


class CellStream:
    """Chunks of cells with their offsets, spread over the devices along the cells.

    Parameters
    ----------
    counts
        The data.
    augmentation
        Offsets and scales of all cells.
    resident_bytes
        Largest dense float32 matrix that is kept on the devices; anything larger, and anything on
        disk, is read again in each iteration.
    chunk_bytes
        Size of one chunk of counts.
    """

    def __init__(
        self,
        counts: Counts,
        augmentation: Augmentation,
        resident_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
    ):
        self.n_cells, self.n_genes = counts.n_cells, counts.n_genes
        devices = jax.devices()
        size = chunk_cells(counts.n_cells, counts.n_genes, chunk_bytes * len(devices))
        self.size = -(-size // len(devices)) * len(devices)
        self._mesh = Mesh(np.array(devices), ("cell",)) if len(devices) > 1 else None
        self._counts, self._chunk_bytes = counts, chunk_bytes
        self.columns = augmentation.columns
        self._augmentation = jax.tree.map(np.asarray, augmentation._replace(columns=Columns()))
        self.offset, self.scale, _, covariates, _ = self._augmentation
        self.n_covariates = 0 if covariates is None else covariates.shape[1]
        resident = not counts.on_disk and 4 * counts.n_cells * counts.n_genes <= resident_bytes
        self._resident = self._stack() if resident else None

    def sample(self, n_cells: int, seed: int) -> "CellStream":
        """A stream of so many cells, drawn at random, in memory."""
        sample = Sample.of(self._counts, n_cells, seed)
        added = jax.tree.map(lambda leaf: leaf[sample.cells], self._augmentation)
        added = added._replace(columns=self.columns)
        return CellStream(sample, added, sample.counts.nbytes, self._chunk_bytes)

    def tails(self) -> CountTails:
        """How far the counts of each gene reach, as channels take it."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), count_tails(self._counts))

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.n_cells // self.size)

    def zeros(self, n_coordinates: int) -> list[Array] | Array:
        """Coordinates of all cells, at zero."""
        shape = (n_coordinates, self.size)
        if self._resident is not None:
            return self._put(np.zeros((self.n_chunks, *shape), np.float32), axis=2)
        return [self._put(np.zeros(shape, np.float32), axis=1) for _ in range(self.n_chunks)]

    def split(self, values: np.ndarray) -> list[Array] | Array:
        """One number for each cell, by chunk, as `scan` takes coordinates; padding has 0."""
        padded = np.zeros(self.n_chunks * self.size, np.float32)
        padded[: self.n_cells] = values
        chunked = padded.reshape(self.n_chunks, self.size)
        if self._resident is not None:
            return self._put(chunked, axis=1)
        return [self._put(chunk, axis=0) for chunk in chunked]

    def chunks_of(self, coordinates) -> list:
        """The coordinates of each chunk, as `scan` gave them."""
        if self._resident is None:
            return coordinates
        return [jax.tree.map(lambda leaf, i=i: leaf[i], coordinates) for i in range(self.n_chunks)]

    def together(self, coordinates: list):
        """The reverse of `chunks_of`."""
        if self._resident is None:
            return coordinates
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *coordinates)

    def scan(self, visit: Callable, coordinates, *arguments) -> tuple[Any, Any]:
        """Call ``visit(*arguments, cells, z) -> (sums, z)`` for each chunk: total sums, all z.

        In place of z, `visit` may give anything that has an axis of cells; see `join`. It must be
        a module-level function: it is compiled once for its identity.
        """
        if self._resident is not None:
            return _scan(visit, arguments, self._resident, coordinates)
        total, moved = None, []
        for cells, z in zip(self._streamed(), coordinates, strict=True):
            part, z = _visit(visit, arguments, cells, z)
            total = part if total is None else _add(total, part)
            moved.append(z)
        return total, moved

    def join(self, parts) -> list[np.ndarray]:
        """Arrays with the cells first, as `scan` gave them by chunk, for all cells."""
        chunked = parts if self._resident is not None else zip(*parts, strict=True)
        joined = (np.concatenate([np.asarray(part) for part in array]) for array in chunked)
        return [array[: self.n_cells] for array in joined]

    def _streamed(self) -> Iterator[Cells]:
        for cells in self._on_host():
            yield jax.tree.map(lambda leaf: self._put(leaf, axis=0), cells)

    def _on_host(self) -> Iterator[Cells]:
        read = chunks(self._counts, self.size)
        return (cells_of(chunk, self._augmentation) for chunk in read)

    def _stack(self) -> Cells:
        return jax.tree.map(lambda *leaves: self._put(np.stack(leaves), axis=1), *self._on_host())

    def _put(self, array: np.ndarray, axis: int) -> Array:
        if self._mesh is None:
            return jnp.asarray(array)
        spec = PartitionSpec(*(None,) * axis, "cell")
        return jax.device_put(array, NamedSharding(self._mesh, spec))


@eqx.filter_jit
def _scan(visit, arguments, cells, coordinates):
    def body(total, chunk):
        part, z = visit(*arguments, *chunk)
        return jax.tree.map(jnp.add, total, part), z

    first = jax.tree.map(lambda leaf: leaf[0], (cells, coordinates))
    shapes = eqx.filter_eval_shape(lambda chunk: visit(*arguments, *chunk)[0], first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(body, zeros, (cells, coordinates))


@eqx.filter_jit
def _visit(visit, arguments, cells, z):
    return visit(*arguments, cells, z)


@jax.jit
def _add(total, part):
    return jax.tree.map(jnp.add, total, part)
