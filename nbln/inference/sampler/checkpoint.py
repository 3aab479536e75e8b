"""A run of the sampler on disk, so that a killed one goes on with the same draws."""

import time
from pathlib import Path

import jax
import numpy as np

from nbln.arguments import check_folder, shown


class Saver:
    """Writes where a run stands every so many seconds; does nothing without a path.

    A file is a flat list of arrays: those of the finished chains, then those of the chain that
    runs. What they mean follows from the first state of the run, which is made anew.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """

    def __init__(self, path: str | Path | None, stamp: str, seconds: float):
        said = shown("checkpoint", str(path))
        self._path = None if path is None else check_folder(said, Path(path))
        self._stamp, self._seconds = stamp, seconds
        self._last = time.monotonic()

    def restore(self, first):
        """The finished chains, their moments and the running chain, `first` without a file.

        Raises
        ------
        ValueError
            The file is of another run, or cut short.
        """
        if self._path is None or not self._path.exists():
            return [], [], first
        try:
            with np.load(self._path, allow_pickle=False) as saved:
                stamp, lengths = str(saved["stamp"]), saved["lengths"]
                leaves = [saved[f"leaf_{i}"] for i in range(int(saved["n_leaves"]))]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self._path}: not a checkpoint of nbln, or cut short") from error
        if stamp != self._stamp:
            raise ValueError(
                f"{self._path}: a checkpoint of another run (other data, seed or draws); remove "
                "it or name another file"
            )
        return _unpacked(first, leaves, lengths)

    def maybe(self, done: list, moments: list, chain) -> None:
        """Write if it is time."""
        if self._path is None or time.monotonic() - self._last < self._seconds:
            return
        self._last = time.monotonic()
        self.write(done, moments, chain)

    def write(self, done: list, moments: list, chain) -> None:
        """Write now; the file appears whole or not at all."""
        assert self._path is not None
        lengths = [len(done), chain.n_done, *map(len, done), len(chain.kept)]
        leaves = jax.tree.leaves((chain.state, chain.cells, done, moments, chain.kept))
        arrays = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(
                file, stamp=self._stamp, lengths=np.asarray(lengths), n_leaves=len(leaves), **arrays
            )
        partial.replace(self._path)

    def remove(self) -> None:
        """The run is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _unpacked(first, leaves, lengths):
    """The reverse of what `write` flattens."""
    structure = jax.tree.structure((first.state, first.cells))
    n = structure.num_leaves
    state, cells = jax.tree.unflatten(structure, [jax.numpy.asarray(x) for x in leaves[:n]])
    n_chains, n_done, *n_kept = map(int, lengths)
    rest = iter(leaves[n:])
    width = first.structure.num_leaves

    def draws(count):
        leaves = [[next(rest) for _ in range(width)] for _ in range(count)]
        return [jax.tree.unflatten(first.structure, draw) for draw in leaves]

    done = [draws(count) for count in n_kept[:n_chains]]
    moments = [(next(rest), next(rest)) for _ in range(n_chains)]
    return (
        done,
        moments,
        first._replace(state=state, cells=cells, kept=draws(n_kept[-1]), n_done=n_done),
    )
