"""Processes that fit together, one a host: each sees a share of the cells, all see the same sums.

JAX's processes run one program: what one asks of the others, all must ask, in the same order. Only
sums over cells, and at the end what is known of each cell, go between them; whatever follows from
sums is computed by every process, and decisions are those of the first.
"""

import abc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nbln.text import first_line

__all__ = ["Alone", "Processes", "Together", "current", "join", "part"]


class Processes(abc.ABC):
    """The processes of a fit, as one of them sees the others."""

    number: int  # of this process, from 0
    count: int

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, and writes files."""
        return self.number == 0

    def share(self, n: int) -> slice:
        """Which of `n` things in a row are this process's; shares differ by one at most."""
        return slice(self.number * n // self.count, (self.number + 1) * n // self.count)

    @abc.abstractmethod
    def total(self, tree: Any) -> Any:
        """Sums over processes of arrays, the same bits in each of them."""

    @abc.abstractmethod
    def agreed(self, tree: Any) -> Any:
        """Arrays as the first process has them.

        Every process could compute them from the same sums, but processors of two kinds round
        differently, and a process that stopped one iteration early would leave others waiting.
        """

    @abc.abstractmethod
    def gathered(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of each process, which may have different numbers of them, on the host."""

    @abc.abstractmethod
    def decided(self, value: bool) -> bool:
        """The first process's answer; waits for it."""

    @abc.abstractmethod
    def check_same(self, value: str, what: str) -> None:
        """Raise a ValueError, in all processes, if they differ in `value`, which says `what`."""

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say it in plain words where the work of this process ended because another did."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.count == 1:
                raise
            raise ConnectionError(
                f"fit: process {self.number} of {self.count} cannot go on, as a rule because "
                "another one has ended, of which that one's log says why; started again, the job "
                f"goes on from its checkpoint if it has one ({first_line(error)})"
            ) from error


class Alone(Processes):
    """One process."""

    number, count = 0, 1

    def total(self, tree):
        return tree

    def agreed(self, tree):
        return tree

    def gathered(self, rows):
        return [rows]

    def decided(self, value):
        return value

    def check_same(self, value, what):
        pass


class Together(Processes):
    """The processes that `jax.distributed.initialize` has brought together."""

    def __init__(self):
        self.number, self.count = jax.process_index(), jax.process_count()
        # One device of each process: its others have the same sums already.
        first = {device.process_index: device for device in reversed(jax.devices())}
        self._own = first[self.number]
        mesh = Mesh(np.array([first[i] for i in range(self.count)]), ("process",))
        self._split = NamedSharding(mesh, PartitionSpec("process"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._sum = jax.jit(lambda x: x.sum(axis=0, dtype=x.dtype), out_shardings=whole)
        self._pick = jax.jit(lambda x: x[0], out_shardings=whole)

    def total(self, tree):
        return self._together(self._sum, tree)

    def agreed(self, tree):
        return self._together(self._pick, tree)

    def gathered(self, rows):
        # A collective takes arrays of one shape.
        sizes = multihost_utils.process_allgather(np.array(len(rows)))
        padded = np.zeros((sizes.max(), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        parts = multihost_utils.process_allgather(padded)
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]

    def decided(self, value):
        return bool(multihost_utils.broadcast_one_to_all(np.array(value)))

    def check_same(self, value, what):
        coded = np.frombuffer(value.encode(), np.uint8)
        if any(part.tobytes() != coded.tobytes() for part in self.gathered(coded)):
            raise ValueError(
                f"fit: the {self.count} processes of this job differ in {what}; start the same "
                "command in all of them, on a disk that all of them see"
            )

    def _together(self, reduce, tree):
        """`reduce` arrays of all processes, stacked; the answers lie where the arrays lay.

        On CPUs what is under way at the same time may be sent in any order, and one process would
        take for one array what is another. So there is one message for each type of numbers, and
        the next waits for it.
        """
        leaves, structure = jax.tree.flatten(tree)
        found = list(leaves)
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            some = [leaves[i] for i in places]
            answer = reduce(self._stacked(_packed(some))).addressable_data(0).block_until_ready()
            for i, part in zip(places, _unpacked(answer, some), strict=True):
                found[i] = part
        return jax.tree.unflatten(structure, found)

    def _stacked(self, vector):
        own = jax.device_put(vector, self._own)[None]
        shape = self.count, *own.shape[1:]
        return jax.make_array_from_single_device_arrays(shape, self._split, [own])


def current() -> Processes:
    """The processes of this job; alone unless `jax.distributed.initialize` was called."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return Alone()
    return Together()


def join() -> Processes:
    """Meet the other processes of a job of SLURM, Open MPI or TPUs; before any computation.

    Raises
    ------
    ValueError
        There is no such job, or its processes do not find one another.
    """
    # JAX would take SIGTERM for a note that the machine is wanted back, and go on.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize()
        found = current()
        found.decided(True)  # a first word, without which they would wait for one that has left
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "the processes of a job were to fit together, but do not find one another; start them "
            f"by srun, mpirun or on all workers of a TPU ({first_line(error)})"
        ) from error
    return found


def part() -> bool:
    """End the job, since all that was to be done together is done; whether this goes on, alone.

    The first process does. Nothing that it asks from then on needs the others.
    """
    if not jax.distributed.is_initialized():
        return True
    first = jax.process_index() == 0
    jax.distributed.shutdown()
    return first


@jax.jit
def _packed(leaves):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


def _unpacked(vector, like):
    """Parts of a vector in the shapes of `like`: arrays of the host where those are."""
    parts = _shaped(vector, tuple(leaf.shape for leaf in like))
    for part, leaf in zip(parts, like, strict=True):
        on_device = isinstance(leaf, jax.Array)
        yield jax.device_put(part, leaf.sharding) if on_device else np.asarray(part)


@partial(jax.jit, static_argnums=1)
def _shaped(vector, shapes):
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = jnp.split(vector, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
