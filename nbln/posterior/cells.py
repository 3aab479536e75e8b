"""Cells as the kernel takes them, block by block, and what a fit knows of each."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln.data.chunks import Chunk, chunk_cells, chunks
from nbln.data.counts import Counts
from nbln.data.slices import slices
from nbln.posterior.mode import Augmentation, Cells


class CellPosterior(NamedTuple):
    """What a Laplace fit knows of each cell; arrays of the host, cells first."""

    z: np.ndarray  # (cell, all_columns) coordinates at the mode: factors, then extra columns
    eta: np.ndarray  # (cell,) capture loss, posterior mean (natural log)
    eta_loc: np.ndarray  # (cell,) the same before truncation at 0
    eta_sd: np.ndarray  # (cell,) and its standard deviation; 0 where η is given
    log_evidence: np.ndarray  # (cell,) nats
    gradient_norm: np.ndarray  # (cell,) in posterior standard deviations
    converged: np.ndarray  # (cell,) bool


class CellsAtMode(NamedTuple):
    """The cells of a fit where it left them: counts, offsets, coordinates."""

    counts: Counts
    augmentation: Augmentation
    z: Float[np.ndarray, "cell all_columns"]

    def take(
        self, index: slice | np.ndarray, size: int | None = None
    ) -> tuple[Cells, Float[Array, "all_columns cell"]]:
        """Some cells and their coordinates, padded to `size` if given."""
        rows = self.counts.rows(index)
        size = len(rows) if size is None else size
        mask = np.ones(len(rows), np.float32)
        parts = rows, mask, *_added(self.augmentation, index), self.z[index]
        *parts, z = (jnp.asarray(_padded(part, size)) for part in parts)
        return Cells(*parts), z.T

    def blocks(self) -> Iterator[tuple[slice, Cells, Float[Array, "all_columns cell"]]]:
        """All cells in blocks of one shape, so that what visits them is compiled once."""
        size = chunk_cells(self.counts.n_cells, self.counts.n_genes)
        for block in slices(self.counts.n_cells, size):
            yield block, *self.take(block, size)


def cells_of(chunk: Chunk, augmentation: Augmentation) -> Cells:
    """A chunk with its cells' offsets, scales, covariates; on the host, padded as the chunk is."""
    size = len(chunk.mask)
    added = _added(augmentation, slice(chunk.start, chunk.start + size))
    return Cells(chunk.counts, chunk.mask, *(_padded(part, size) for part in added))


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """With rows of 0 up to `size`."""
    return np.pad(array, ((0, size - len(array)), *[(0, 0)] * (array.ndim - 1)))


def _added(augmentation: Augmentation, index: slice | np.ndarray) -> tuple[np.ndarray, ...]:
    """Offsets, scales, covariates and data sets of some cells, on the host."""
    offset, scale, _, *optional = augmentation
    nothing = np.zeros((len(offset), 0), np.float32)
    given = (nothing if x is None else x for x in optional)
    return tuple(np.asarray(x[index]) for x in (offset, scale, *given))


def blocks(counts: Counts, augmentation: Augmentation) -> Iterator[tuple[slice, Cells]]:
    """All cells in chunks of one shape, on the device; which cells each holds, padding aside."""
    size = chunk_cells(counts.n_cells, counts.n_genes)
    for chunk, block in zip(chunks(counts, size), slices(counts.n_cells, size), strict=True):
        yield block, jax.tree.map(jnp.asarray, cells_of(chunk, augmentation))


def over_blocks(visit, blocks: Iterator, seed: int = 0) -> list[np.ndarray]:
    """What ``visit(key, *block)`` says of all cells, cells first; each block has a key of its own.

    Parameters
    ----------
    blocks
        Pairs of a slice of cells and what `visit` is given of them, as from `blocks` or
        `CellsAtMode.blocks`.
    """
    parts = []
    for block, *cells in blocks:
        key = jax.random.fold_in(jax.random.key(seed), block.start)
        answers = visit(key, *cells)
        parts.append([np.asarray(x)[: block.stop - block.start] for x in answers])
    return [np.concatenate(x) for x in zip(*parts, strict=True)]
