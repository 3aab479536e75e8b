"""Validated counts: the only form in which models and engines see an AnnData."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Float, Float32, Int

from nbln.data import checks
from nbln.data.design import read_columns
from nbln.data.genes import Selection, coverage
from nbln.data.slices import slices
from nbln.data.storage import Block, Matrix, as_type, canonical, open_matrix, shelf_of
from nbln.vocabulary import OTHER_GENE

_log = logging.getLogger("nbln")

PART_BYTES = 2**24  # of the dense counts that become sparse at once: little beside any data


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Counts:
    """Counts of genes in cells, checked and named, in memory or on disk.

    Made by `Counts.from_anndata`. It shares the arrays or the file of the AnnData where it
    can, so leave those unchanged and open while it is in use.

    Attributes
    ----------
    cell_names, gene_names
        Names as strings; the last gene is `_other` if `has_other`.
    library_size
        Total counts of each cell over all genes, the pooled ones included.
    gene_totals
        Total counts of each gene over the cells.
    has_other
        Whether the last gene is the sum of the genes that were not kept.
    pooled_names
        Names of the genes in that sum.
    genes_never_seen
        Number of genes left out because no cell has a count of them.
    fingerprint
        SHA-256 of names, library sizes, gene totals and `obs`; it does not depend on the storage.
    obs
        The columns of ``adata.obs`` that were asked for; as a rule none.
    files
        Paths of the files, where these were given.
    """

    cell_names: np.ndarray
    gene_names: np.ndarray
    library_size: Float[np.ndarray, " cell"]
    gene_totals: Float[np.ndarray, " gene"]
    has_other: bool
    pooled_names: np.ndarray
    genes_never_seen: int
    fingerprint: str
    obs: pd.DataFrame
    _matrix: Matrix
    _selection: Selection
    _checksum: int | None
    files: tuple[str, ...] = ()

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        gene_coverage: float | None = None,
        genes: np.ndarray | None = None,
        pools: bool | None = None,
        columns: Sequence[str] = (),
        caller: str = "fit",
        strict: bool = False,
    ) -> "Counts":
        """Check an AnnData's counts and choose its genes; the AnnData is not modified.

        A sparse matrix is never made dense. What is in files or made by Dask is read in
        blocks of rows, except that CSC is read once into memory as CSR. Genes without a
        single count are left out.

        Parameters
        ----------
        adata
            Cells in rows, genes in columns. Counts are whole numbers of any integer,
            float or boolean type; dense, CSR or CSC.
        layer
            The layer that holds the counts; None for ``adata.X``.
        gene_coverage
            Keep the most abundant genes that hold this fraction of all counts, and pool
            the others in a last column `_other`. None keeps every gene.
        genes
            Names of the genes of an earlier fit, which replace `gene_coverage`: exactly these
            are kept in this order, even without counts; a last `_other` pools all others. A
            single cell is enough then.
        pools
            Whether the last of `genes` pools all others; None for whether it is `_other`.
        columns
            Columns of ``adata.obs`` that the model is told of.
        caller
            Name of the function that the user called. Errors begin with it, as in
            ``fit(adata): ...`` or ``fit(layer="raw"): ...``.
        strict
            Whether counts that look scaled and rounded are an error instead of a warning.

        Raises
        ------
        TypeError
            Not an AnnData, a matrix or values of another kind, or a coverage not a number.
        KeyError
            No such layer, or no such column.
        ValueError
            No cells or genes, a single cell, repeated or impossible names, no matrix, a damaged
            sparse matrix, values that are not counts up to 2**24, a cell without counts or without
            a value in a column, a coverage outside (0, 1], a gene already called `_other`, a gene
            of `genes` that is not there, with `strict` counts that look scaled.
        OSError
            The file of a backed AnnData is gone, cut short or closed.
        """
        checks.check_arguments(adata, layer, gene_coverage, caller)
        checks.check_shape(adata, 2 if genes is None else 1, caller)
        labels = checks.Labels.of(adata, layer, caller)
        cell_names, names = labels.cells, labels.genes
        obs = read_columns(adata, columns, caller)
        matrix = checks.check_type(open_matrix(adata, layer, labels.source), labels)
        # Missing genes are named before cells that have no counts in the others.
        named = None if genes is None else _select_by_name(names, genes, pools, caller)
        library_size, totals, checksum = checks.checked_totals(matrix, labels, strict)
        selection = _select_by_coverage(totals, gene_coverage) if named is None else named
        gene_names, gene_totals = names[selection.kept], totals[selection.kept]
        if selection.has_other:
            if genes is None:
                _check_other(names, gene_coverage, caller)
            gene_names = np.append(gene_names, OTHER_GENE)
            gene_totals = np.append(gene_totals, totals[selection.pooled].sum())
        never_seen = int((totals == 0).sum()) if genes is None else 0
        if never_seen:
            _log.info("%d genes without a single count are left out", never_seen)

        shared, (matrix, remaining) = matrix, _apply(selection, matrix)
        if genes is not None and selection.drops and not selection.has_other:
            library_size = _kept_totals(matrix, remaining, labels)
        return cls(
            cell_names=cell_names,
            gene_names=gene_names,
            library_size=library_size,
            gene_totals=gene_totals,
            has_other=selection.has_other,
            pooled_names=names[selection.pooled],
            genes_never_seen=never_seen,
            fingerprint=_fingerprint(cell_names, gene_names, library_size, gene_totals, obs=obs),
            obs=obs,
            _matrix=matrix,
            _selection=remaining,
            # A matrix of its own cannot be changed by anyone else.
            _checksum=checksum if _shares(matrix, shared) else None,
            files=() if (shelf := shelf_of(adata)) is None else shelf.paths,
        )

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cell_names)

    @property
    def n_genes(self) -> int:
        """Number of genes, `_other` included."""
        return len(self.gene_names)

    @property
    def on_disk(self) -> bool:
        """Whether rows are read from a file each time they are asked for."""
        return self._matrix.on_disk

    def rows(
        self, index: slice | Int[np.ndarray, " cell"] | list[int]
    ) -> Float32[np.ndarray, "cell gene"]:
        """Dense counts of some cells, a new C-contiguous array.

        Counts of `_other` above 2**24 are rounded to float32.

        Parameters
        ----------
        index
            A slice, or cell numbers in any order, repeats allowed.

        Raises
        ------
        IndexError
            A cell number out of range.
        """
        block = self.block(index)
        return block if isinstance(block, np.ndarray) else block.toarray(order="C")

    def fill(self, cells: slice, out: Float32[np.ndarray, "cell gene"]) -> None:
        """Write dense counts of some cells over an array, as `rows` gives them."""
        block = self.block(cells)
        if isinstance(block, np.ndarray):
            out[...] = block
        else:
            block.toarray(out=out)

    def block(self, index: slice | Int[np.ndarray, " cell"] | list[int]) -> Block:
        """Counts of some cells as float32, CSR where they are stored so; entries may repeat."""
        block = self._matrix.read(self._resolve(index))
        if isinstance(block, np.ndarray):
            return self._selection.dense(block)
        return as_type(self._selection.sparse(block), np.float32)

    def nonzeros(self, cells: slice) -> tuple[np.ndarray, np.ndarray]:
        """Gene numbers and counts of the nonzero entries of some cells.

        Each entry appears once; zeros that a sparse matrix stores appear too. The cost is that
        of the stored entries.

        Parameters
        ----------
        cells
            Which cells.
        """
        block = self._matrix.read(self._resolve(cells))
        if isinstance(block, np.ndarray):
            block = self._selection.dense(block)
            where = np.flatnonzero(block)
            return where % self.n_genes, block.ravel()[where]
        block = canonical(self._selection.sparse(block))
        return block.indices, block.data

    def part(self, cells: Int[np.ndarray, " part"], caller: str) -> "Counts":
        """Counts of some cells, in memory, of the genes that have any there; `caller` as above.

        Raises
        ------
        ValueError
            A single cell, or a cell without counts in these genes.
        """
        size = max(1, PART_BYTES // (4 * self.n_genes))
        blocks = [sp.csr_matrix(self.rows(cells[i])) for i in slices(len(cells), size)]
        part = AnnData(
            sp.vstack(blocks, "csr"),
            obs=self.obs.iloc[cells].set_axis(self.cell_names[cells]),
            var=pd.DataFrame(index=self.gene_names),
        )
        counts = Counts.from_anndata(part, columns=list(self.obs.columns), caller=caller)
        pooled = self.has_other and counts.gene_names[-1] == OTHER_GENE
        return replace(counts, has_other=pooled)

    def check_unchanged(self) -> None:
        """Raise if the arrays or the file that this shares have changed since they were checked.

        It reads all counts once.

        Raises
        ------
        ValueError
            They have changed.
        OSError
            The file is gone, cut short or closed.
        """
        if self._checksum is not None and checks.checksum(self._matrix) != self._checksum:
            raise ValueError(
                f"{self._matrix.source.matrix} was changed since the fit, in place: the "
                "result does not belong to these counts; pass those of the fit with counts=, or "
                "fit again (to go on with other values, change a copy: adata.copy())"
            )

    def _resolve(self, index: slice | np.ndarray | list[int]) -> slice | np.ndarray:
        """Cells from 0, by NumPy's rules for negative numbers, masks and numbers out of range."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self.n_cells)
            if step == 1:
                return slice(start, max(start, stop))
            return np.arange(start, stop, step)
        asked = np.asarray(index)
        return np.arange(self.n_cells)[asked if asked.size else asked.astype(int)]

    def __repr__(self) -> str:
        place = "on disk" if self.on_disk else "in memory"
        return f"Counts({self.n_cells} cells × {self.n_genes} genes, {place})"


def _select_by_coverage(totals: np.ndarray, gene_coverage: float | None) -> Selection:
    seen = np.flatnonzero(totals)
    kept, pooled = coverage(totals[seen], gene_coverage)
    return Selection(seen[kept], seen[pooled], len(totals))


def _select_by_name(
    names: np.ndarray, genes: np.ndarray, pools: bool | None, caller: str
) -> Selection:
    if pools is None:
        pools = len(genes) > 0 and genes[-1] == OTHER_GENE
    wanted = genes[:-1] if pools else genes
    kept = pd.Index(names).get_indexer(pd.Index(wanted))
    missing = wanted[kept < 0]
    if len(missing):
        raise ValueError(
            f"{caller}(adata): {len(missing)} of the {len(wanted)} genes of the fit are not in it, "
            f'the first "{missing[0]}"; add them to adata, with zeros where they were not seen'
        )
    pooled = np.setdiff1d(np.arange(len(names)), kept) if pools else np.arange(0)
    return Selection(kept, pooled, len(names))


def _apply(selection: Selection, matrix: Matrix) -> tuple[Matrix, Selection]:
    """The matrix that is kept, and the selection that remains to be made as its rows are read.

    Only a sparse matrix in memory is selected here, once for all reads. A dense one would be
    copied whole, and a file loaded.
    """
    if matrix.on_disk or not matrix.is_sparse:
        return matrix, selection
    selected = as_type(canonical(selection.sparse(matrix.handle)), np.float32)
    if not selection.is_identity and np.shares_memory(selected.data, matrix.handle.data):
        selected = selected.copy()  # or the columns of a checksum would be others
    own = Matrix(selected, matrix.source)
    return own, Selection.identity(selection.n_genes)


def _shares(matrix: Matrix, given: Matrix) -> bool:
    """Whether what is kept can be changed by whoever holds what was given."""
    if matrix is given:
        return True
    return np.shares_memory(matrix.handle.data, given.handle.data)


def _kept_totals(
    matrix: Matrix, selection: Selection, labels: checks.Labels
) -> Float[np.ndarray, " cell"]:
    """Total counts of each cell over the kept genes alone, for a selection that drops genes."""
    parts = []
    for _, block in matrix.blocks():
        dense = isinstance(block, np.ndarray)
        selected = selection.dense(block) if dense else selection.sparse(block)
        parts.append(np.asarray(selected.sum(axis=1, dtype=np.float64)).ravel())
    totals = np.concatenate(parts)
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        raise ValueError(
            f"{labels.caller}(adata): {len(empty)} cells have no counts in the genes of the fit, "
            f'the first "{labels.cells[empty[0]]}"; leave them out'
        )
    return totals


def _check_other(names: np.ndarray, gene_coverage: float | None, caller: str) -> None:
    if OTHER_GENE in names:
        raise ValueError(
            f'{caller}(gene_coverage={gene_coverage}): a gene is already called "{OTHER_GENE}", '
            "the name of the pooled genes; rename it, or keep every gene with gene_coverage=None"
        )


def _fingerprint(
    cells: np.ndarray, genes: np.ndarray, *totals: np.ndarray, obs: pd.DataFrame
) -> str:
    digest = hashlib.sha256(json.dumps([cells.tolist(), genes.tolist()]).encode())
    for total in totals:
        digest.update(np.ascontiguousarray(total, "<f8").tobytes())
    for column, values in obs.items():
        digest.update(json.dumps([column, values.astype(str).tolist()]).encode())
    return digest.hexdigest()
