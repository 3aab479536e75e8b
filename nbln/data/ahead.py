"""Work on several blocks of cells at a time, whose answers come in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

try:
    from jax import enable_x64
except ImportError:  # before JAX 0.8 it was an experiment
    from jax.experimental import enable_x64  # pyright: ignore

# Threads at most: who takes what they make is one thread, which is busy all the time from about
# six on, since sums over draws cost a sixth of drawing them.
MOST_THREADS = 6

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Item], Made], items: Iterable[Item], threads: int | None = None
) -> Iterator[Made]:
    """What `make` makes of each item, in order, by as many threads as there are cores.

    NumPy's and JAX's functions leave Python's lock to others while they work. No more is made ahead
    of what is taken than there are threads, so that memory stays bounded; what does not depend on
    the number of threads is the same on all machines.

    Parameters
    ----------
    make
        Called in other threads, with the caller's precision of JAX, which is a thread's own.
    threads
        How many threads instead.
    """
    wide = bool(jax.config.jax_enable_x64)  # pyright: ignore

    def made(item: Item) -> Made:
        with enable_x64(wide):
            return make(item)

    n = min(n_cores(), MOST_THREADS) if threads is None else threads
    pending = deque()
    with ThreadPoolExecutor(n) as pool:
        try:
            for item in items:
                pending.append(pool.submit(made, item))
                if len(pending) > n:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Where the caller stops early, or one has failed, others need not begin.
            for future in pending:
                future.cancel()


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
