"""Chunks of counts as the kernel takes them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nbln.data.chunks import Chunk, chunk_cells, chunks
from nbln.data.counts import Counts
from nbln.posterior.mode import Augmentation, Cells


def cells_of(chunk: Chunk, augmentation: Augmentation) -> Cells:
    """A chunk with its cells' offsets and scales, on the host, padded as the chunk is."""
    block = slice(chunk.start, chunk.start + len(chunk.mask))
    offset = np.asarray(augmentation.offset[block])
    missing = len(chunk.mask) - len(offset)
    scale = np.asarray(augmentation.scale[block])
    return Cells(
        chunk.counts,
        chunk.mask,
        np.pad(offset, (0, missing)),
        np.pad(scale, ((0, missing), (0, 0))),
    )


def blocks(counts: Counts, augmentation: Augmentation) -> Iterator[tuple[slice, Cells]]:
    """All cells in chunks of one shape, on the device; which cells each holds, padding aside."""
    size = chunk_cells(counts.n_cells, counts.n_genes)
    for chunk in chunks(counts, size):
        here = slice(chunk.start, min(chunk.start + size, counts.n_cells))
        yield here, jax.tree.map(jnp.asarray, cells_of(chunk, augmentation))
