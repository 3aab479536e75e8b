"""The cells of an engine, chunk by chunk: from device memory, or read again each time.

Both give the same sums over the same chunks, in the same order; only what is held at once differs.
Where processes fit together, each has a share of the chunks, and sums are those over all of them.
"""

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from nbln.compiled import once_jit
from nbln.data.ahead import ahead, n_cores
from nbln.data.chunks import Chunk, chunk_cells
from nbln.data.counts import Counts
from nbln.data.histogram import CountTails
from nbln.data.kept import Kept
from nbln.inference.sample import Sample
from nbln.inference.share import Share, tails_of
from nbln.posterior.cells import cells_of
from nbln.posterior.mode import Augmentation, Cells, Columns
from nbln.processes import Alone, Processes

# The dozen arrays of this size that an iteration makes of a chunk stay in the cache of a core: with
# chunks of 4 MiB an iteration took half as long again.
CHUNK_BYTES = 2**20
# Chunks that are computed by one call, in bytes of their counts. A call allocates those arrays
# anew, and to touch new memory costs more than to read counts: on two cores 20 ns an entry where
# each chunk of 4 MiB has a call of its own, 5 for eight of them, 2 for sixteen, as for more.
GROUP_BYTES = 64 * 2**20
# Cores that compute a group each. XLA shares an operation out too, but not one that is this small.
MOST_LANES = 16
# Counts up to which a pass that a fit makes a few times is not optimised: a first fit of so many
# takes 11 for 14 s, and each further one of that shape 2.4 for 2.2.
FEW_ENTRIES = 1e6
# XLA takes an array of the host without a copy where its address is a multiple of so many bytes.
ALIGNMENT = 64


class CellStream:
    """Chunks of cells with their offsets, spread over the devices along the cells.

    Parameters
    ----------
    counts
        The data.
    augmentation
        Offsets and scales of all cells.
    resident_bytes
        Largest dense float32 matrix that is kept on the devices. Anything larger, and anything on
        disk, is brought there again in each iteration, group by group; of what is on disk, as much
        is kept in memory, narrow and sparse, as this holds.
    chunk_bytes
        Size of one chunk of counts.
    processes
        Those that share the cells. All that is asked of the stream is then asked in each of them.
    like
        A stream of more cells, whose programs then need not be compiled again for this one.

    Attributes
    ----------
    kept
        Where chunks of this process that are not on the devices come from.

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
        like: "CellStream | None" = None,
    ):
        self.n_cells, self.n_genes = counts.n_cells, counts.n_genes
        self.processes = Alone() if processes is None else processes
        devices = jax.local_devices()
        size = chunk_cells(counts.n_cells, counts.n_genes, chunk_bytes * len(devices))
        if like is None or self.processes.count > 1:
            self.size = _chunk_size(counts.n_cells, size, len(devices), self.processes.count)
        else:
            self.size = like.size
        self._mesh = Mesh(np.array(devices), ("cell",)) if len(devices) > 1 else None
        self._counts, self._chunk_bytes = counts, chunk_bytes
        self._share = Share.of(counts, self.processes, self.size)
        self.columns = augmentation.columns
        whole = jax.tree.map(np.asarray, augmentation._replace(columns=Columns()))
        self._of_all = whole
        self._augmentation = jax.tree.map(lambda leaf: leaf[self._share.cells], whole)
        self.offset, self.scale, _, covariates, _ = whole
        self.n_covariates = 0 if covariates is None else covariates.shape[1]
        together = max(1, GROUP_BYTES // (4 * self.size * counts.n_genes))
        self._lanes = _lanes(len(devices))
        self._n_groups = max(-(-self.n_chunks // together), min(self._lanes, self.n_chunks))
        # Chunks of a group, the last of which have no cells; groups are almost equally full.
        self._per_group = -(-self.n_chunks // self._n_groups)
        first = self._per_group * np.arange(self._n_groups)
        sizes = np.minimum(self._per_group, self.n_chunks - first).astype(np.int32)
        self._sizes = [jax.device_put(size) for size in sizes]  # chunks of each group
        self._room = self._per_group
        if like is not None and like.size == self.size:
            self._room = max(self._room, like._room)
        self.kept = Kept(self._share, self.size, resident_bytes)
        own = self._share.n_cells
        resident = not counts.on_disk and 4 * own * counts.n_genes <= resident_bytes
        self._held = self._beside()
        self._resident = None
        if resident:
            self._resident = [self._read(i, self._buffer()) for i in range(self._n_groups)]

    def sample(self, n_cells: int, seed: int) -> "CellStream":
        """A stream of so many cells, drawn at random, in memory."""
        sample = Sample.of(self._counts, n_cells, seed)
        added = jax.tree.map(lambda leaf: leaf[sample.cells], self._of_all)
        added = added._replace(columns=self.columns)
        held = sample.counts.nbytes, self._chunk_bytes
        return CellStream(sample, added, *held, self.processes, like=self)

    def tails(self) -> CountTails:
        """How far the counts of each gene reach, as channels take it."""
        tails = tails_of(self._share, self.processes)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tails)

    @property
    def n_chunks(self) -> int:
        """Number of chunks, of this process."""
        return -(-self._share.n_cells // self.size)

    def zeros(self, n_coordinates: int) -> list[Array]:
        """Coordinates of this process's cells, at zero."""
        shape = (self._room, n_coordinates, self.size)
        return [self._put(np.zeros(shape, np.float32), axis=2) for _ in range(self._n_groups)]

    def split(self, values: Float[np.ndarray, "... cell"]) -> list[Array]:
        """Numbers of all cells, by chunk, as `scan` takes coordinates; padding has 0."""
        own, shape = values[..., self._share.cells], (self._n_groups, self._per_group, self.size)
        missing = int(np.prod(shape)) - own.shape[-1]
        padded = np.pad(own, (*((0, 0),) * (own.ndim - 1), (0, missing)))
        chunked = padded.reshape(*own.shape[:-1], *shape)
        chunked = np.moveaxis(chunked, (-3, -2), (0, 1))
        return [self._put(self._roomy(group), axis=own.ndim) for group in chunked]

    def _roomy(self, group: np.ndarray) -> np.ndarray:
        """A group with room for as many chunks as others have."""
        missing = ((0, self._room - len(group)), *((0, 0),) * (group.ndim - 1))
        return np.ascontiguousarray(np.pad(group, missing))

    def chunks_of(self, coordinates) -> list:
        """The coordinates of each chunk, as `scan` gave them."""
        places = [divmod(i, self._per_group) for i in range(self.n_chunks)]
        return [jax.tree.map(lambda leaf, i=i: leaf[i], coordinates[group]) for group, i in places]

    def together(self, coordinates: list):
        """The reverse of `chunks_of`."""
        per_group, last = self._per_group, coordinates[-1]
        filled = [*coordinates, *[last] * (self._n_groups * per_group - len(coordinates))]
        unused = [last] * (self._room - per_group)
        groups = (filled[i : i + per_group] for i in range(0, len(filled), per_group))
        return [jax.tree.map(lambda *x: jnp.stack(x), *group, *unused) for group in groups]

    def scan(self, visit: Callable, coordinates, *arguments) -> tuple[Any, Any]:
        """Call ``visit(*arguments, cells, z) -> (sums, z)`` for each chunk: total sums, all z.

        In place of z, `visit` may give anything that has an axis of cells; see `join`. It must be
        a module-level function: it is compiled once for its identity.
        """
        return self._scan(_often, visit, coordinates, arguments)

    def scan_once(self, visit: Callable, coordinates, *arguments) -> tuple[Any, Any]:
        """The same of a visit that a fit pays once to four times: not optimised for few counts."""
        few = self.n_cells * self.n_genes <= FEW_ENTRIES
        return self._scan(_once if few else _often, visit, coordinates, arguments)

    def _scan(self, program: Callable, visit: Callable, coordinates, arguments) -> tuple[Any, Any]:
        buffers = SimpleQueue()
        for _ in range(0 if self._resident else min(self._lanes, self._n_groups)):
            buffers.put(self._buffer())

        def group(number: int):
            n = self._sizes[number]
            if self._resident:
                return program(visit, arguments, self._resident[number], coordinates[number], n)
            # Reading in one lane goes on beside computing in others.
            buffer = buffers.get()
            try:
                cells = self._read(number, buffer)
                done = program(visit, arguments, cells, coordinates[number], n)
                return jax.block_until_ready(done)
            finally:  # another lane may wait for it
                buffers.put(buffer)

        parts = self._in_lanes(group, (program, visit, *_known((arguments, coordinates[0]))))
        (total, first), *others = parts
        for part, _ in others:
            total = _add(total, part)
        return self.processes.total(total), [first, *(z for _, z in others)]

    def _in_lanes(self, group: Callable, signature) -> list:
        """What `group` gives for all groups, each lane at one at a time."""
        numbers, done = range(self._n_groups), []
        if signature not in _COMPILED:  # by the first call, of which another would not know
            done, numbers = [group(0)], numbers[1:]
            _COMPILED.add(signature)
        if len(numbers) < 2 or self._lanes == 1:
            return [*done, *map(group, numbers)]
        wait = jax.block_until_ready
        return [*done, *ahead(lambda number: wait(group(number)), numbers, self._lanes)]

    def join(self, parts) -> list[np.ndarray]:
        """Arrays with the cells first, as `scan` gave them by chunk, for all cells."""
        joined = (
            np.concatenate([x for part in of for x in np.asarray(part)[: self._per_group]])
            for of in zip(*parts, strict=True)
        )
        own = (array[: self._share.n_cells] for array in joined)
        return [np.concatenate(self.processes.gathered(array)) for array in own]

    def whole(self, coordinates) -> Float[np.ndarray, "coordinate cell"]:
        """Coordinates of all cells, as `scan` gave them by chunk: the reverse of `split`."""
        chunks = [np.asarray(chunk).T for chunk in self.chunks_of(coordinates)]
        own = np.concatenate(chunks)[: self._share.n_cells]
        return np.concatenate(self.processes.gathered(own)).T

    def _read(self, number: int, buffer: np.ndarray) -> Cells:
        """A group on the device, its counts by way of a buffer that must then stay as it is."""
        for i, rows in enumerate(buffer[: self._per_group]):
            self.kept.fill(number * self._per_group + i, rows)
        cells = self._held[number]._replace(counts=buffer)
        return jax.tree.map(lambda leaf: self._put(leaf, axis=1), cells)

    def _beside(self) -> list[Cells]:
        """What is known of the cells of each group beside their counts; on the host."""
        shape = (self._n_groups, self._per_group, self.size)
        mask = (np.arange(int(np.prod(shape))) < self._share.n_cells).astype(np.float32)
        nothing = np.zeros((len(mask), 0), np.float32)
        cells = cells_of(Chunk(nothing, mask, 0), self._augmentation)
        cells = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), cells)
        groups = range(self._n_groups)
        return [jax.tree.map(lambda leaf, i=i: self._roomy(leaf[i]), cells) for i in groups]

    def _buffer(self) -> np.ndarray:
        """Room for the counts of a group, which a CPU device shares where it is aligned so."""
        shape = (self._room, self.size, self.n_genes)
        n_bytes = 4 * int(np.prod(shape))
        raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + n_bytes].view(np.float32).reshape(shape)

    def _put(self, array: np.ndarray, axis: int) -> Array:
        if self._mesh is None:
            return jax.device_put(array)
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


def _lanes(n_devices: int) -> int:
    """Cores that each take a group; programs of several devices must not overtake one another."""
    if n_devices > 1:
        return 1
    # Where a GPU or TPU computes, one lane reads while the other waits for it.
    return min(n_cores(), MOST_LANES) if jax.default_backend() == "cpu" else 2


# Calls of `_often` and `_once` that have been compiled, by what it depends on.
_COMPILED: set[Any] = set()


def _known(tree) -> tuple:
    """What a compiled program knows of its arguments, which is not the values of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, *((x.shape, x.dtype.name) if hasattr(x, "dtype") else x for x in leaves)


def _over_chunks(visit, arguments, cells, z, n):
    """Sums over the first n chunks of a group, and the z of all its chunks."""

    def chunk(i):
        return jax.tree.map(lambda leaf: leaf[i], (cells, z))

    def body(i, carried):
        total, moved = carried
        part, one = visit(*arguments, *chunk(i))
        moved = jax.tree.map(lambda every, new: every.at[i].set(new), moved, one)
        return jax.tree.map(jnp.add, total, part), moved

    of_sums, of_z = eqx.filter_eval_shape(lambda first: visit(*arguments, *first), chunk(0))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), of_sums)
    n_chunks = len(cells.mask)
    start = jax.tree.map(lambda leaf: jnp.zeros((n_chunks, *leaf.shape), leaf.dtype), of_z)
    return lax.fori_loop(0, n, body, (nothing, start))


_often, _once = eqx.filter_jit(_over_chunks), once_jit(_over_chunks)


@jax.jit
def _add(total, part):
    return jax.tree.map(jnp.add, total, part)
