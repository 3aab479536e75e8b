"""Signs that counts were scaled and rounded: whole numbers, but not what was counted."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from nbln.data.storage import Block

# A cell is looked at if it has counts of so many genes: by chance all of ten counts are even once
# in a thousand cells.
FEWEST_GENES = 10
FEWEST_CELLS = 20  # of fewer cells little can be said
MOST_CELLS = 1_000  # whose counts are looked at one by one, which is slow
# Share of a cell's genes with its smallest count, where that is more than 1. Counts fall off
# smoothly: if so many genes have 3, some have 1.
SHARE_OF_SMALLEST = 0.3
# Totals of hundreds of counts differ by their square root at least if each molecule is caught by
# chance, and in data by far more. Rounding leaves about a thousandth of a total of a million.
FEWEST_COUNTS, SPREAD_OF_ROUNDING, SHARE_OF_POISSON = 200, 1e-3, 0.5


@dataclass
class Scaling:
    """What is seen of the counts in a pass over them.

    Attributes
    ----------
    n_cells
        Cells so far.
    n_without_ones
        Of them, cells with counts of enough genes and none of 1.
    n_examined, n_uneven
        Of those, cells looked at one by one, and those among them whose genes have the smallest
        count too often.
    largest
        The largest count so far.
    divisors
        How often each number above 1 divides all counts of a cell that was looked at.
    """

    n_cells: int = 0
    n_without_ones: int = 0
    n_examined: int = 0
    n_uneven: int = 0
    largest: float = 0.0
    divisors: Counter = field(default_factory=Counter)

    def add(self, block: Block) -> None:
        """Look at some cells; values are counts."""
        smallest, n_seen = _smallest(block)
        self.n_cells += len(smallest)
        values = block if isinstance(block, np.ndarray) else block.data
        self.largest = max(self.largest, float(values.max(initial=0)))
        without = np.flatnonzero((n_seen >= FEWEST_GENES) & (smallest > 1))
        self.n_without_ones += len(without)
        for cell in without[: max(MOST_CELLS - self.n_examined, 0)]:
            if isinstance(block, np.ndarray):
                counts = block[cell]
            else:
                counts = block.data[block.indptr[cell] : block.indptr[cell + 1]]
            counts = counts[counts > 0].astype(np.int64)
            divisor = int(np.gcd.reduce(counts))
            self.n_examined += 1
            self.n_uneven += divisor == 1 and np.mean(counts == counts.min()) > SHARE_OF_SMALLEST
            if divisor > 1:
                self.divisors[divisor] += 1

    def sign(self, totals: Float[np.ndarray, " cell"]) -> str | None:
        """What speaks for scaled counts, in words; None if nothing does.

        Parameters
        ----------
        totals
            Of the cells that were looked at.
        """
        if self.n_cells < FEWEST_CELLS:
            return None
        divided = sum(self.divisors.values())
        odd = divided + self.n_uneven
        if self.n_examined and odd / self.n_examined * self.n_without_ones > self.n_cells / 2:
            divisor, times = self.divisors.most_common(1)[0] if divided else (1, 0)
            if times > odd / 2:
                return (
                    f"in most cells all counts are multiples of {divisor}, as if counts had been "
                    f"multiplied by {divisor} or every molecule counted {divisor} times"
                )
            return "most cells have no count of 1, as if counts had been scaled and rounded"
        if self.largest <= 1:
            return None  # seen or not: totals are numbers of genes
        mean = float(totals.mean())
        spread = float(totals.std()) / mean
        if mean >= FEWEST_COUNTS and spread < max(
            SPREAD_OF_ROUNDING, SHARE_OF_POISSON / np.sqrt(mean)
        ):
            return (
                f"all cells have almost the same total ({mean:,.0f}, give or take {spread:.2%}), "
                "as if counts had been normalised and rounded, or downsampled to the same depth"
            )
        return None


def _smallest(block: Block) -> tuple[Float[np.ndarray, " cell"], np.ndarray]:
    """The smallest count above 0 of each cell (infinite if it has none), and how many it has."""
    if isinstance(block, np.ndarray):
        seen = block > 0
        return np.min(block, axis=1, where=seen, initial=np.inf), seen.sum(axis=1)
    n_cells = len(block.indptr) - 1
    smallest, n_seen = np.full(n_cells, np.inf), np.zeros(n_cells, np.int64)
    rows = np.flatnonzero(np.diff(block.indptr))
    if len(rows):
        starts = block.indptr[rows]
        seen = block.data > 0
        smallest[rows] = np.minimum.reduceat(np.where(seen, block.data, np.inf), starts)
        n_seen[rows] = np.add.reduceat(seen.astype(np.int64), starts)
    return smallest, n_seen
