"""Cells as batches of the model: from counts, in memory or on disk, and the design."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nbln.data.counts import Counts
from nbln.data.design import Design
from nbln.data.doors import Data
from nbln.data.slices import slices
from nbln.vae.likelihoods import Groups
from nbln.vae.scvi import Batch, Gaussian

# Cells that are read or evaluated together. The exact likelihood of a batch that leaves the cache
# takes 13 times as long for 4 times the counts.
BLOCK_COUNTS = 2**18
LEAST_LIBRARY_VARIANCE = 1e-2  # of log totals in a batch whose cells are all as deep


class Beside(Protocol):
    """What is known of cells beside their counts, if anything: a tree of arrays, cells first."""

    def take(self, index: Any) -> Self:
        """Of some cells."""
        ...

    def batch(self, counts: Any, weight: Array) -> Any:
        """With their counts, as the model sees them."""
        ...


class Known(NamedTuple):
    """What is known of all cells beside their counts; arrays of the host."""

    log_library: Float[np.ndarray, " cell"]
    design: Float[np.ndarray, "cell column"]
    groups: Groups

    @classmethod
    def of(cls, counts: Counts, design: Design, caller: str) -> "Known":
        """Of checked counts with the columns that the design names."""
        groups = Groups(
            design.batch_codes(counts.obs, caller), design.label_codes(counts.obs, caller)
        )
        log_library = np.log(counts.library_size).astype(np.float32)
        return cls(log_library, design.matrix(counts.obs, caller), groups)

    def take(self, index) -> "Known":
        """Of some cells."""
        return jax.tree.map(lambda x: x[index], self)

    def batch(self, counts: Array, weight: Array) -> Batch:
        """With their counts."""
        return Batch(counts, self.log_library, self.design, self.groups, weight)


class Cells(NamedTuple):
    """Counts, or other numbers, and what is known beside them."""

    counts: Data
    known: Any  # a `Beside`

    @classmethod
    def of(cls, counts: Counts, design: Design, caller: str) -> "Cells":
        """Of checked counts."""
        return cls(counts, Known.of(counts, design, caller))

    def batch(self, index: slice | np.ndarray, size: int | None = None) -> Any:
        """Some cells, padded to `size` by copies of the first."""
        rows = self.counts.rows(index)
        size = len(rows) if size is None else size
        weight = (np.arange(size) < len(rows)).astype(np.float32)
        rows, known = padded((rows, self.known.take(index)), size)
        return known.batch(rows, jnp.asarray(weight))

    def blocks(self) -> Iterator[tuple[slice, Any]]:
        """All cells in order, in blocks of one shape."""
        size = block_cells(self.counts.n_cells, self.counts.n_genes)
        for block in slices(self.counts.n_cells, size):
            yield block, self.batch(block, size)


def padded(tree: Any, size: int) -> Any:
    """Arrays of cells on the device, with copies of the first cell up to `size`."""
    return jax.tree.map(
        lambda x: jnp.asarray(np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])), tree
    )


def block_cells(n_cells: int, n_genes: int) -> int:
    """Cells of a block, such that blocks are almost equally full."""
    n_blocks = -(-n_cells // max(1, BLOCK_COUNTS // n_genes))
    return -(-n_cells // n_blocks)


class Resident(NamedTuple):
    """Cells on the device, from which batches are taken by number."""

    rows: Float[Array, "cell gene"]
    known: Any  # a `Beside`

    @classmethod
    def of(cls, cells: Cells, index: np.ndarray) -> "Resident":
        """These cells of all."""
        known = jax.tree.map(jnp.asarray, cells.known.take(index))
        return cls(jnp.asarray(cells.counts.rows(index)), known)

    def batch(self, index: Int[Array, " cell"]) -> Any:
        """The cells of these numbers; −1 is padding."""
        place = jnp.maximum(index, 0)
        known = jax.tree.map(lambda x: x[place], self.known)
        return known.batch(self.rows[place], (index >= 0).astype(self.rows.dtype))


def batches(
    order: Int[np.ndarray, " cell"], batch_size: int, n_batches: int | None = None
) -> Int[np.ndarray, "batch place"]:
    """Cells in the given order dealt to batches of almost equal size: each cell once.

    A last batch of the cells that are left over could be a single one, which batch normalisation
    cannot bear; here batches differ by one cell. Padding is −1; with `n_batches` there is room for
    as many as are of this size, and the shape is the same however many cells there are.
    """
    size = batch_size
    if n_batches is None:
        n_batches = -(-len(order) // batch_size)
        size = -(-len(order) // n_batches)
    dealt = np.full(n_batches * size, -1, np.int32)
    dealt[: len(order)] = order
    return dealt.reshape(size, n_batches).T.copy()


def library_prior(known: Known, n_batches: int, first: int = 0) -> Gaussian:
    """Mean and variance of log totals in each batch from the first on, (batch,)."""
    batch, log_library = known.groups.batch, known.log_library.astype(np.float64)
    n = np.maximum(np.bincount(batch, minlength=n_batches), 1)
    mean = np.bincount(batch, log_library, n_batches) / n
    variance = np.bincount(batch, (log_library - mean[batch]) ** 2, n_batches) / n
    variance = np.maximum(variance, LEAST_LIBRARY_VARIANCE)
    return Gaussian(*(jnp.asarray(x[first:], jnp.float32) for x in (mean, variance)))
