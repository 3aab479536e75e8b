"""Which genes of a matrix are kept, and which are pooled in the `_other` column."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, Int

# Relative slack of a coverage: 0.55 * 100 > 55 in float64, and without slack one gene more than
# needed would be kept. Far above the rounding of a product (1e-16), far below one count.
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
        The fewest genes that hold at least this fraction of all counts are kept. None and 1
        keep every gene.

    Returns
    -------
    kept, pooled
        Gene indices, each in the original gene order. Of genes with equal totals the
        earlier is kept first.
    """
    if fraction is None or fraction >= 1:
        return np.arange(len(totals)), np.arange(0)
    by_abundance = np.argsort(-totals, kind="stable")
    held = np.cumsum(totals[by_abundance])
    enough = fraction * held[-1] * (1 - _ROUNDING)
    n_kept = int(np.searchsorted(held, enough)) + 1
    return np.sort(by_abundance[:n_kept]), np.sort(by_abundance[n_kept:])


@dataclass(frozen=True, eq=False, slots=True)
class Selection:
    """Columns of a matrix that become genes of the model.

    Columns neither kept nor pooled are dropped. They must be without counts if others are
    pooled, because `dense` takes the pooled column as the total less the kept columns.

    Attributes
    ----------
    kept
        Indices of the columns that become a gene each, in the order of the genes.
    pooled
        Indices of the columns that are summed into one last gene; empty for none.
    n_columns
        Number of columns of the matrix.
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
            # Dropped columns are zero, and float64 subtracts whole numbers exactly.
            out[:, -1] = block.sum(1, dtype=np.float64) - kept.sum(1, dtype=np.float64)
        return out

    def sparse(self, block: sp.csr_array) -> sp.csr_array:
        """Select from rows of a CSR matrix.

        The entries of pooled columns stay apart, as duplicates, in the last column.
        """
        if self.is_identity:
            return block
        # Dropped columns are gathered in one column after the genes, which is then cut off.
        target = np.full(self.n_columns, self.n_genes, np.int32)
        target[self.kept] = np.arange(len(self.kept))
        target[self.pooled] = len(self.kept)
        shape = (len(block.indptr) - 1, self.n_genes + self.drops)
        selected = sp.csr_array((block.data, target[block.indices], block.indptr), shape=shape)
        return selected[:, : self.n_genes] if self.drops else selected
