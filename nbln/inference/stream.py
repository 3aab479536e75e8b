"""The cells of an engine, chunk by chunk: from device memory, or read again each time.

Both give the same sums over the same chunks; only what is held at once differs. Where processes fit
together, each has a share of the chunks, and sums are those over all of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from nbln.data.chunks import chunk_cells, chunks
from nbln.data.counts import Counts
from nbln.data.histogram import CountTails
from nbln.inference.share import Share, tails_of
from nbln.posterior.cells import cells_of
from nbln.posterior.mode import Augmentation, Cells, Columns
from nbln.processes import Alone, Processes

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
    processes
        Those that share the cells. All that is asked of the stream is then asked in each of them.

    Raises
    ------
    ValueError
        There are not enough cells for so many processes.
    """

    def __init__(
        self,
        counts: Counts,
        augmentation: Augmentation,
        resident_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        processes: Processes | None = None,
    ):
        self.n_cells, self.n_genes = counts.n_cells, counts.n_genes
        self.processes = Alone() if processes is None else processes
        devices = jax.local_devices()
        size = chunk_cells(counts.n_cells, counts.n_genes, chunk_bytes * len(devices))
        self.size = _chunk_size(counts.n_cells, size, len(devices), self.processes.count)
        self._mesh = Mesh(np.array(devices), ("cell",)) if len(devices) > 1 else None
        n_chunks = -(-self.n_cells // self.size)
        self._counts = Share.of(counts, self.processes.share(n_chunks), self.size)
        self.columns = augmentation.columns
        whole = jax.tree.map(np.asarray, augmentation._replace(columns=Columns()))
        self._augmentation = jax.tree.map(lambda leaf: leaf[self._counts.cells], whole)
        self.offset, self.scale, _, covariates, _ = whole
        self.n_covariates = 0 if covariates is None else covariates.shape[1]
        own = self._counts.n_cells
        resident = not counts.on_disk and 4 * own * counts.n_genes <= resident_bytes
        self._resident = self._stack() if resident else None

    def tails(self) -> CountTails:
        """How far the counts of each gene reach, as channels take it."""
        tails = tails_of(self._counts, self.processes)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tails)

    @property
    def n_chunks(self) -> int:
        """Number of chunks, of this process."""
        return -(-self._counts.n_cells // self.size)

    def zeros(self, n_coordinates: int) -> list[Array] | Array:
        """Coordinates of this process's cells, at zero."""
        shape = (n_coordinates, self.size)
        if self._resident is not None:
            return self._put(np.zeros((self.n_chunks, *shape), np.float32), axis=2)
        return [self._put(np.zeros(shape, np.float32), axis=1) for _ in range(self.n_chunks)]

    def split(self, values: Float[np.ndarray, "... cell"]) -> list[Array] | Array:
        """Numbers of all cells, by chunk, as `scan` takes coordinates; padding has 0."""
        own = values[..., self._counts.cells]
        missing = self.n_chunks * self.size - own.shape[-1]
        padded = np.pad(own, (*((0, 0),) * (own.ndim - 1), (0, missing)))
        chunks = np.split(padded, self.n_chunks, axis=-1)
        if self._resident is not None:
            return self._put(np.stack(chunks), axis=own.ndim)
        return [self._put(chunk, axis=own.ndim - 1) for chunk in chunks]

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
            total, moved = _scan(visit, arguments, self._resident, coordinates)
            return self.processes.total(total), moved
        total, moved = None, []
        for cells, z in zip(self._streamed(), coordinates, strict=True):
            part, z = _visit(visit, arguments, cells, z)
            total = part if total is None else _add(total, part)
            moved.append(z)
        return self.processes.total(total), moved

    def join(self, parts) -> list[np.ndarray]:
        """Arrays with the cells first, as `scan` gave them by chunk, for all cells."""
        chunked = parts if self._resident is not None else zip(*parts, strict=True)
        joined = (np.concatenate([np.asarray(part) for part in array]) for array in chunked)
        own = (array[: self._counts.n_cells] for array in joined)
        return [np.concatenate(self.processes.gathered(array)) for array in own]

    def whole(self, coordinates) -> Float[np.ndarray, "coordinate cell"]:
        """Coordinates of all cells, as `scan` gave them by chunk: the reverse of `split`."""
        chunks = [np.asarray(chunk).T for chunk in self.chunks_of(coordinates)]
        own = np.concatenate(chunks)[: self._counts.n_cells]
        return np.concatenate(self.processes.gathered(own)).T

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


def _chunk_size(n_cells: int, size: int, n_devices: int, n_processes: int) -> int:
    """Cells of a chunk: as many on each device, and as many chunks as give each process some."""
    n_chunks = -(-n_cells // size)
    if n_processes > 1:
        n_chunks = -(-n_chunks // n_processes) * n_processes
        size = -(-n_cells // n_chunks)
    size = -(-size // n_devices) * n_devices
    if -(-n_cells // size) < n_processes:
        raise ValueError(
            f"fit: {n_cells} cells are too few for {n_processes} processes of {n_devices} devices "
            "each; start fewer"
        )
    return size


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
