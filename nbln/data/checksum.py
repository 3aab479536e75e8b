"""A number that changes when counts do, from one pass over them."""

import numpy as np

from nbln.data.storage import Block, as_type

_SEED = 7_301  # of the weights; any fixed number
# Weights are below it: a cell's total of up to 2**37 counts is then summed exactly in float64.
_LARGEST = 2**16


class Checksum:
    """Σ over cells and genes of counts times fixed pseudo-random weights, modulo 2**64.

    It is exact, so that it does not depend on how the counts are stored nor on the blocks they are
    read in; nor on names. Two changes cancel by chance only.
    """

    def __init__(self, n_genes: int):
        self._rng = np.random.default_rng(_SEED)
        self._genes = self._rng.integers(1, _LARGEST, n_genes).astype(np.float64)
        self.value = 0  # of all cells taken up so far

    def add(self, block: Block) -> None:
        """Take up the next cells."""
        weighted = np.asarray(as_type(block, np.float64) @ self._genes).astype(np.uint64)
        # Odd, because an even weight would lose the highest bit of a difference.
        cells = self._rng.integers(0, 2**63, len(weighted), dtype=np.uint64) * np.uint64(2)
        total = np.sum(weighted * (cells + np.uint64(1)), dtype=np.uint64)
        self.value = (self.value + int(total)) % 2**64
