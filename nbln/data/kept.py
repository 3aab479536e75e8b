"""Counts of a file that are read many times: what fits stays in memory, in few bytes an entry."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int

from nbln.data.counts import Counts
from nbln.data.storage import Block

# The narrowest first: most counts are below 256, most panels of genes below 65,536.
_WHOLE_NUMBERS = (np.uint8, np.uint16)


class Packed(NamedTuple):
    """Rows as CSR whose numbers are as narrow as they can be: three or four bytes an entry.

    Attributes
    ----------
    counts
        Stored entries.
    genes
        Their columns.
    pointers
        Where each row begins, and the end.
    """

    counts: np.ndarray
    genes: np.ndarray
    pointers: np.ndarray

    @classmethod
    def of(cls, block: Block) -> "Packed":
        """Of counts, dense or CSR."""
        csr = sp.csr_array(block)
        counts = _narrow(csr.data, np.float32)
        return cls(counts, _narrow(csr.indices, np.int32), csr.indptr.astype(np.int32))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self)

    def fill(self, out: Float32[np.ndarray, "cell gene"]) -> None:
        """Write the rows, dense."""
        wide = self.counts.astype(np.float32), self.genes.astype(np.int32), self.pointers
        sp.csr_array(wide, shape=out.shape).toarray(out=out)

    def take(self, rows: Int[np.ndarray, " row"]) -> "Packed":
        """Some rows."""
        begins, lengths = self.pointers[rows], np.diff(self.pointers)[rows]
        pointers = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        entries = np.repeat(begins - pointers[:-1], lengths) + np.arange(pointers[-1])
        return Packed(self.counts[entries], self.genes[entries], pointers)


class Kept:
    """Chunks of cells that are read in order again and again.

    Reading a compressed file costs more than reading memory; CSR of narrow numbers takes an eighth
    to a quarter of the memory of dense counts. Chunks are kept as they are first read, until the
    budget is used up; the others are read from the file each time.

    Parameters
    ----------
    counts
        In memory or on disk; those in memory are not copied.
    size
        Cells of a chunk.
    budget
        Bytes of kept chunks, at most.

    Attributes
    ----------
    counts
        As given.
    """

    def __init__(self, counts: Counts, size: int, budget: int):
        self.counts, self._size = counts, size
        self._left = budget if counts.on_disk else 0
        self._chunks: dict[int, Packed] = {}

    def fill(self, number: int, out: Float32[np.ndarray, "cell gene"]) -> None:
        """Write the counts of a chunk, dense; rows beyond the last cell are 0."""
        start = min(number * self._size, self.counts.n_cells)
        stop = min(start + self._size, self.counts.n_cells)
        out[stop - start :] = 0
        if start == stop:
            return
        rows, packed = out[: stop - start], self._chunks.get(number)
        if packed is not None:
            packed.fill(rows)
            return
        cells = slice(start, stop)
        if not self._left:
            self.counts.fill(cells, rows)
            return
        block = self.counts.block(cells)
        packed = Packed.of(block)
        if packed.nbytes <= self._left:
            self._left -= packed.nbytes
            self._chunks[number] = packed
        else:
            self._left = 0  # a later, smaller chunk would make what is kept a matter of luck
        packed.fill(rows)

    def rows(self, cells: Int[np.ndarray, " cell"]) -> Float32[np.ndarray, "cell gene"]:
        """Dense counts of some cells, by increasing number; of chunks not kept from the file."""
        if not self._chunks or not len(cells):
            return self.counts.rows(cells)
        out = np.empty((len(cells), self.counts.n_genes), np.float32)
        unkept = np.ones(len(cells), bool)
        numbers, starts = np.unique(cells // self._size, return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts[1:], len(cells)], strict=True):
            packed = self._chunks.get(int(number))
            if packed is not None:
                packed.take(cells[start:stop] - number * self._size).fill(out[start:stop])
                unkept[start:stop] = False
        if unkept.any():
            out[unkept] = self.counts.rows(cells[unkept])
        return out


def _narrow(values: np.ndarray, wide: type) -> np.ndarray:
    largest = values.max(initial=0)
    kind = next((k for k in _WHOLE_NUMBERS if largest <= np.iinfo(k).max), wide)
    return values.astype(kind)
