"""Where a long run stands, on disk, so that a killed one goes on and ends with the same numbers.

A run has stages, one for each engine that it goes through. An engine describes where it stands as
a `Snapshot`; on its next start it is given the last one that was written. The file is a flat
archive of arrays without pickled objects, each with a checksum; what they mean follows from a first
state, which a run makes anew.
"""

import hashlib
import logging
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nbln import atomic
from nbln.arguments import check_folder, check_number
from nbln.processes import Alone, Processes

log = logging.getLogger("nbln")

# Difference, absolute and relative, up to which what a stage takes over from an earlier one is the
# same, cells having been summed in another order: a thousand roundings of float32.
NEAR = 1e-4
LARGEST_SHARE = 0.05  # of a run's time that writing may take
CONTENTS = "contents"  # the array of the file that names all others


@dataclass(frozen=True)
class Checkpoint:
    """A file that says where a run stands; the same call goes on from it after an interruption.

    Attributes
    ----------
    path
        The file. Its folder must be there.
    seconds
        Time between two writes. It grows where writing would take more than 5 % of the run.
    keep
        Whether the file stays when the run is complete, so that the same call ends at once.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        `seconds` is no number from 0 on.
    """

    path: str | Path
    seconds: float = 60.0
    keep: bool = False

    def __post_init__(self):
        check_folder(f"checkpoint={str(self.path)!r}", Path(self.path))
        check_number("Checkpoint(seconds", self.seconds, 0.0, np.inf, open_=False)


class Snapshot(NamedTuple):
    """Where a stage stands."""

    tree: Any  # arrays, as many as in the first state
    items: Sequence[Any] = ()  # trees of one structure, of which a run makes more and more


class Saver:
    """Writes the snapshots of a run's stages; does nothing without a path.

    A context: a run that ends well removes its file, one that is interrupted writes where it stood,
    and one that diverged removes the file too, since it would do so again. Of processes that fit
    together all read the file, and the first writes it, for all of them at the same step; it writes
    nothing when it is interrupted, since it cannot ask others that may be gone.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        The file is no checkpoint, or damaged, or not the same in all processes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path | None = None,
        processes: Processes | None = None,
    ):
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(checkpoint)
        self.active = checkpoint is not None
        self._latest: dict[str, Callable[[], dict[str, np.ndarray]]] = {}
        self._processes = Alone() if processes is None else processes
        if checkpoint is None:
            return
        self._path, self._keep = Path(checkpoint.path), checkpoint.keep
        self._seconds = checkpoint.seconds
        self._saved = _read(self._path) if self._path.exists() else {}
        self._processes.check_same(_mark(self._path), f"what is in {self._path}")
        self._last = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not self.active:
            return
        if kind is None and self._keep:
            self.write()
        elif kind is None or issubclass(kind, FloatingPointError):
            if self._processes.first:
                self._path.unlink(missing_ok=True)
        elif not issubclass(kind, Exception) and self._processes.count == 1:  # an interruption
            self.write()

    def stage(self, name: str, *decides: Any, near: Any = ()) -> "Stage":
        """A stage of the run; `decides` is all that its numbers follow from.

        Of `near`, numbers may differ in their last digits, as those of an earlier stage do when the
        run goes on with other chunks, devices or processes.

        Raises
        ------
        ValueError
            The file is of another run.
        """
        if not self.active:
            return Stage(self, name, {}, None)
        numbers, exact = eqx.partition(near, _is_real)
        stamp = {f"near_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(numbers))}
        stamp["stamp"] = np.asarray(digest(version("nbln"), *decides, exact))
        start = f"{name}/"
        saved = {n.removeprefix(start): x for n, x in self._saved.items() if n.startswith(start)}
        if not saved:
            return Stage(self, name, stamp, None)
        if not all(_agree(saved.get(key), value) for key, value in stamp.items()):
            raise ValueError(
                f"checkpoint={str(self._path)!r}: of another run (other data, arguments, seed or "
                "version); remove it, or name another file"
            )
        self._latest[name] = lambda: saved
        return Stage(self, name, stamp, saved)

    def note(self, name: str, arrays: Callable[[], dict[str, np.ndarray]]) -> None:
        """Remember where a stage stands, and write if it is time."""
        self._latest[name] = arrays
        if self._processes.decided(time.monotonic() - self._last >= self._seconds):
            self.write()

    def write(self) -> None:
        """Write now. A disk that is full is no reason to lose the run: it is told, and goes on."""
        began = time.monotonic()
        arrays = {}
        for name, latest in self._latest.items():
            arrays |= {f"{name}/{key}": value for key, value in latest().items()}
        try:
            if arrays and self._processes.first:
                with atomic.replacing(self._path) as file:
                    arrays[CONTENTS] = np.array(sorted(arrays))
                    np.savez(file, allow_pickle=False, **arrays)
        except OSError as error:
            log.warning("the checkpoint %s could not be written: %s", self._path, error)
        self._last = time.monotonic()
        self._seconds = max(self._seconds, (self._last - began) / LARGEST_SHARE)


OFF = Saver()


class Stage:
    """One stage of a run, as its engine sees it."""

    def __init__(
        self,
        saver: Saver,
        name: str,
        stamp: dict[str, np.ndarray],
        saved: dict[str, np.ndarray] | None,
    ):
        self._saver, self._name, self._stamp, self._saved = saver, name, stamp, saved

    def restore(self, tree: Any, item: Any = ()) -> Snapshot | None:
        """The last snapshot, of the structure of these; None where there is none.

        Arrays go to the devices where those of `tree` lie; items stay on the host.
        """
        saved = self._saved
        if saved is None:
            return None
        leaves, structure = jax.tree.flatten(tree)
        placed = [_placed(saved[f"tree_{i}"], like) for i, like in enumerate(leaves)]
        parts = jax.tree.structure(item)
        rows = range(int(saved["n_items"]))
        columns = [saved[f"items_{i}"] for i in range(parts.num_leaves if rows else 0)]
        items = [jax.tree.unflatten(parts, [column[row] for column in columns]) for row in rows]
        return Snapshot(jax.tree.unflatten(structure, placed), items)

    def note(self, snapshot: Callable[[], Snapshot]) -> None:
        """Say where the stage stands; it is written if it is time."""
        if self._saver.active:
            self._saver.note(self._name, lambda: self._arrays(snapshot()))

    def finish(self, snapshot: Callable[[], Snapshot]) -> None:
        """Say where the stage ended, which stays in the file while later stages run."""
        if self._saver.active:
            arrays = self._arrays(snapshot())
            self._saver.note(self._name, lambda: arrays)

    def _arrays(self, snapshot: Snapshot) -> dict[str, np.ndarray]:
        leaves = [_on_host(leaf) for leaf in jax.tree.leaves(snapshot.tree)]
        arrays = {f"tree_{i}": leaf for i, leaf in enumerate(leaves)}
        items = [jax.tree.leaves(item) for item in snapshot.items]
        columns = zip(*items, strict=True)
        arrays |= {f"items_{i}": np.stack(column) for i, column in enumerate(columns)}
        n_items = np.asarray(len(items))
        return {**self._stamp, "n_items": n_items, **arrays}


def digest(*parts: Any) -> str:
    """SHA-256 of arrays and plain values in trees: their places, types and bytes."""
    leaves, structure = jax.tree.flatten(parts)
    sha = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = _on_host(leaf)
        plain = array.dtype == object
        sha.update(f"{array.dtype} {array.shape} {leaf if plain else ''}".encode())
        sha.update(b"" if plain else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _is_real(leaf: Any) -> bool:
    return not _is_key(leaf) and np.issubdtype(np.asarray(leaf).dtype, np.floating)


def _agree(saved: np.ndarray | None, now: np.ndarray) -> bool:
    """Whether a part of the stamp is what it was, up to the last digits of numbers."""
    if saved is None or saved.shape != now.shape:
        return False
    if not _is_real(now):
        return str(saved) == str(now)
    return bool(np.allclose(saved, now, NEAR, NEAR, equal_nan=True))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _on_host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _placed(saved: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(like))
    return jax.device_put(saved, like.sharding) if isinstance(like, jax.Array) else saved


def _mark(path: Path) -> str:
    """What tells two files apart without reading them; '' where there is none."""
    if not path.exists():
        return ""
    with zipfile.ZipFile(path) as file:
        return ", ".join(f"{part.filename} {part.CRC}" for part in file.infolist())


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        # The archive has a sum of each part, but a damaged directory may have lost parts.
        if arrays.pop(CONTENTS).tolist() != sorted(arrays):
            raise ValueError("a part of it is missing")
        return arrays
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise ValueError(
            f"checkpoint={str(path)!r}: not a checkpoint of nbln, or damaged; remove it, or name "
            f"another file ({error})"
        ) from error
