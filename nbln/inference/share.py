"""The cells that one process reads, where processes fit together."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from nbln.data.counts import Counts
from nbln.data.histogram import CountTails, count_tails
from nbln.data.storage import Block
from nbln.processes import Processes


class Share(NamedTuple):
    """Counts of consecutive cells, as far as a pass over them asks; numbered from 0."""

    counts: Counts
    cells: slice

    @classmethod
    def of(cls, counts: Counts, processes: Processes, size: int) -> "Share":
        """The cells of this process's chunks."""
        chunks = processes.share(-(-counts.n_cells // size))
        return cls(counts, slice(chunks.start * size, min(chunks.stop * size, counts.n_cells)))

    @property
    def n_cells(self) -> int:
        """Number of these cells."""
        return self.cells.stop - self.cells.start

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.counts.n_genes

    @property
    def on_disk(self) -> bool:
        """Whether rows are read from a file each time."""
        return self.counts.on_disk

    def fill(self, cells: slice, out: Float32[np.ndarray, "cell gene"]) -> None:
        """As `Counts.fill`."""
        self.counts.fill(self._among_all(cells), out)

    def block(self, cells: slice) -> Block:
        """As `Counts.block`."""
        return self.counts.block(self._among_all(cells))

    def rows(self, index: Int[np.ndarray, " cell"]) -> Float32[np.ndarray, "cell gene"]:
        """As `Counts.rows`."""
        return self.counts.rows(self.cells.start + index)

    def nonzeros(self, cells: slice) -> tuple[np.ndarray, np.ndarray]:
        """As `Counts.nonzeros`."""
        return self.counts.nonzeros(self._among_all(cells))

    def _among_all(self, cells: slice) -> slice:
        first = self.cells.start
        return slice(first + cells.start, min(first + cells.stop, self.cells.stop))


def tails_of(share: Share, processes: Processes) -> CountTails:
    """Sums of `count_tails` over the processes, whose largest counts may differ."""
    own = count_tails(share)
    # Edges for small counts are the first edges for larger ones, so that sums stay in their bins.
    by_process = processes.gathered(own.excess.T)
    longest = max(processes.gathered(own.edges), key=len)
    excess = np.zeros((len(longest) - 1, share.n_genes))
    for part in by_process:
        excess[: len(part)] += part
    return CountTails(longest, excess.T)
