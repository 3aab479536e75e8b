"""Which genes of a matrix are kept, and which are pooled in the `_other` column."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, Int

# A fraction times a whole number may land a rounding error above the number meant
# (0.55 * 100 > 55); without slack that would cost a gene too many.
_ROUNDING = 1e-12


def coverage(
    totals: Float[np.ndarray, " gene"], fraction: float | None
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " pooled"]]:
    """Split the genes into the most abundant ones and the rest.

    Parameters
    ----------
    totals
        Counts of each gene, summed over the cells.
    fraction
        The kept genes together hold at least this fraction of all counts, and are as few
        as possible. None and 1 keep every gene.

    Returns
    -------
    kept, pooled
        Gene indices, each in the original gene order. Of genes with equal totals the
        earlier is kept first.
    """
    everything = np.arange(len(totals))
    if fraction is None or fraction >= 1:
        return everything, everything[:0]
    by_abundance = np.argsort(-totals, kind="stable")
    held = np.cumsum(totals[by_abundance])
    enough = fraction * held[-1] * (1 - _ROUNDING)
    n_kept = int(np.searchsorted(held, enough)) + 1
    return np.sort(by_abundance[:n_kept]), np.sort(by_abundance[n_kept:])


@dataclass(frozen=True, eq=False, slots=True)
class Selection:
    """Columns of a matrix that become genes of the model.

    Attributes
    ----------
    kept
        Indices of the genes that keep a column of their own, in that order.
    pooled
        Indices of the genes summed in one last column; empty for no such column.
    n_columns
        Columns of the matrix. Where some are pooled, those neither kept nor pooled must be
        without counts; otherwise their counts are dropped.
    """

    kept: Int[np.ndarray, " kept"]
    pooled: Int[np.ndarray, " pooled"]
    n_columns: int

    @classmethod
    def identity(cls, n_columns: int) -> "Selection":
        """Keep every column."""
        kept, pooled = coverage(np.ones(n_columns), None)
        return cls(kept, pooled, n_columns)

    @property
    def is_identity(self) -> bool:
        """Whether every column is kept, in its place."""
        return np.array_equal(self.kept, np.arange(self.n_columns))

    @property
    def drops(self) -> bool:
        """Whether there are columns that are neither kept nor pooled."""
        return len(self.kept) + len(self.pooled) < self.n_columns

    @property
    def has_other(self) -> bool:
        """Whether the last gene is the pooled one."""
        return len(self.pooled) > 0

    @property
    def n_genes(self) -> int:
        """Number of genes selected, the pooled one included."""
        return len(self.kept) + self.has_other

    def dense(self, block: np.ndarray) -> Float32[np.ndarray, "cell gene"]:
        """Select from rows of a dense matrix into a new C-contiguous array."""
        out = np.empty((len(block), self.n_genes), np.float32)
        if self.is_identity:
            out[...] = block
            return out
        kept = block[:, self.kept]
        out[:, : len(self.kept)] = kept
        if self.has_other:
            # What is neither kept nor pooled is zero; whole numbers subtract exactly.
            out[:, -1] = block.sum(1, dtype=np.float64) - kept.sum(1, dtype=np.float64)
        return out

    def sparse(self, block: sp.csr_array) -> sp.csr_array:
        """Select from rows of a CSR matrix; pooled genes become duplicate entries."""
        if self.is_identity:
            return block
        # Columns left out go to one more gene, which is cut off.
        target = np.full(self.n_columns, self.n_genes, np.int32)
        target[self.kept] = np.arange(len(self.kept))
        target[self.pooled] = len(self.kept)
        shape = (len(block.indptr) - 1, self.n_genes + self.drops)
        chosen = sp.csr_array((block.data, target[block.indices], block.indptr), shape=shape)
        return chosen[:, : self.n_genes] if self.drops else chosen
