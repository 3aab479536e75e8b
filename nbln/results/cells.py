"""The cells of a Laplace fit where the fit left them: counts, offsets, coordinates at the mode."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln.data.chunks import chunk_cells
from nbln.data.counts import Counts
from nbln.posterior.mode import Cells


def at_mode(
    result, data: Counts, chosen: slice | np.ndarray, size: int | None = None
) -> tuple[Cells, Float[Array, "all_columns cell"]]:
    """Some cells as the kernel takes them, and their coordinates; padded to `size` if given."""
    rows = data.rows(chosen)
    missing = 0 if size is None else size - len(rows)

    def padded(array):
        return jnp.asarray(np.pad(array, ((0, missing), *[(0, 0)] * (array.ndim - 1))))

    arrays = {n: result.arrays[n][chosen] for n in ("offset", "scale", "z", "coordinates")}
    mask = padded(np.ones(len(rows), np.float32))
    cells = Cells(padded(rows), mask, padded(arrays["offset"]), padded(arrays["scale"]))
    return cells, padded(np.concatenate([arrays["z"], arrays["coordinates"]], axis=1)).T


def blocks_at_mode(result, data: Counts) -> Iterator[tuple[slice, Cells, Array]]:
    """All cells in blocks of one shape, so that what visits them is compiled once."""
    size = chunk_cells(data.n_cells, data.n_genes)
    for start in range(0, data.n_cells, size):
        block = slice(start, min(start + size, data.n_cells))
        yield block, *at_mode(result, data, block, size)
