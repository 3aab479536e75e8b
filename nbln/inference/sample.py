"""A sample of the cells: counts and offsets of some, as an engine's stream takes them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from nbln.data.counts import Counts


class Sample(NamedTuple):
    """Counts of a random part of the cells, dense and in memory."""

    counts: Float32[np.ndarray, "cell gene"]
    cells: Int[np.ndarray, " cell"]  # which they are, in order
    on_disk: bool = False

    @classmethod
    def of(cls, counts: Counts, n_cells: int, seed: int) -> "Sample":
        """So many cells, all equally likely."""
        rng = np.random.default_rng((seed, n_cells))
        cells = np.sort(rng.choice(counts.n_cells, n_cells, replace=False))
        return cls(counts.rows(cells), cells)

    @property
    def n_cells(self) -> int:
        """How many cells."""
        return len(self.cells)

    @property
    def n_genes(self) -> int:
        """How many genes: all of them, also those that none of these cells has counts of."""
        return self.counts.shape[1]

    def fill(self, cells: slice, out: Float32[np.ndarray, "cell gene"]) -> None:
        """As `Counts.fill`."""
        out[:] = self.counts[cells]

    def rows(self, index) -> Float32[np.ndarray, "cell gene"]:
        """As `Counts.rows`."""
        return self.counts[index]

    def nonzeros(self, cells: slice) -> tuple[np.ndarray, np.ndarray]:
        """As `Counts.nonzeros`."""
        block = self.counts[cells]
        where = np.flatnonzero(block)
        return where % self.n_genes, block.ravel()[where]
