"""What results remember of their data: whose cells and genes, and how they were fitted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from nbln import vocabulary as names
from nbln.arguments import find
from nbln.data.doors import COUNTS, DOORS, Data


@dataclass(frozen=True, eq=False)
class Fitted:
    """The data that a model was fitted to, by name, and the settings of the fit.

    Attributes
    ----------
    cell_names, gene_names
        In the order of the result's arrays.
    library_size
        (cell,) total counts; None where the data are no counts.
    fingerprint
        Hash of names and totals, to recognise the data.
    has_other
        Whether the last gene is the pool of the rarest.
    layer, gene_coverage
        How the counts were read from an AnnData.
    settings
        Plain values for the record: keywords that shaped the fit. Nothing is computed from them.
    seconds
        Wall-clock time by stage.
    columns
        Columns of ``adata.obs`` that the model was told of.
    by_name
        Whether the genes are those of an earlier fit, whatever the data hold.
    door
        How the data came in: a word of `nbln.data.doors.DOORS`.
    counts
        The data themselves while the result is live; None after loading.
    again
        The same fit of other counts, with all settings, while the result is live; None after
        loading.
    """

    cell_names: np.ndarray
    gene_names: np.ndarray
    library_size: Any
    fingerprint: str
    has_other: bool
    layer: str | None
    gene_coverage: float | None
    settings: dict[str, Any]
    seconds: dict[str, float]
    columns: tuple[str, ...] = ()
    by_name: bool = False
    door: str = COUNTS
    counts: Data | None = field(default=None, repr=False)
    again: Callable[[Any], Any] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        counts: Data,
        layer: str | None,
        gene_coverage: float | None,
        settings: dict[str, Any],
        seconds: dict[str, float],
        by_name: bool = False,
        door: str = COUNTS,
    ) -> "Fitted":
        """What a fit of these counts has to remember."""
        return cls(
            counts.cell_names,
            counts.gene_names,
            None if counts.library_size is None else np.asarray(counts.library_size),
            counts.fingerprint,
            counts.has_other,
            layer,
            gene_coverage,
            settings,
            seconds,
            tuple(counts.obs.columns),
            by_name,
            door,
            counts,
        )

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cell_names)

    @property
    def n_genes(self) -> int:
        """Number of genes, the pool of the rarest included."""
        return len(self.gene_names)

    @property
    def counted(self) -> bool:
        """Whether the data are counts."""
        return self.library_size is not None

    @property
    def real_genes(self) -> np.ndarray:
        """(gene,) True for genes, False for the pool of the rarest."""
        mask = np.ones(self.n_genes, bool)
        if self.has_other:
            mask[-1] = False
        return mask

    def find(self, genes, among: np.ndarray | None = None) -> Int[np.ndarray, " gene"]:
        """Positions of genes among all names, or among those given; of all where `genes` is None.

        Raises
        ------
        KeyError
            Names the first that is not there, and says so where genes were pooled.
        ValueError
            No name at all.
        """
        among = self.gene_names if among is None else among
        if genes is None:
            return np.arange(len(among))
        pooled = f"; the rarest genes are pooled in {names.OTHER_GENE}: "
        absent = pooled + "raise gene_coverage to keep more" if self.has_other else ""
        return find(genes, among, "genes", absent)

    def label(self, values, dims: tuple[str, ...], name: str | None = None) -> xr.DataArray:
        """Label an array with the names of its cells and genes."""
        coordinates = {names.CELL: self.cell_names, names.GENE: self.gene_names}
        labels = {dim: coordinates[dim] for dim in dims if dim in coordinates}
        return xr.DataArray(np.asarray(values), dims=dims, coords=labels, name=name)

    def data(self, adata=None) -> Data:
        """The counts: the live ones, or those of `adata`, which must be the same data.

        Raises
        ------
        ValueError
            The result was loaded and no data are given, they are other data, or the counts were
            changed in place since the fit.
        """
        if adata is None:
            if self.counts is None:
                raise ValueError(
                    "this result was loaded from a file and does not hold the counts; pass them "
                    "again with counts=adata"
                )
            self.counts.check_unchanged()
            return self.counts
        counts = adata if isinstance(adata, Data) else self._read(adata)
        if counts.fingerprint != self.fingerprint:
            raise ValueError(f"counts=: not the data of this fit: {self._difference(counts)}")
        return counts

    def _read(self, adata) -> Data:
        """Counts of these data, as they were read for the fit."""
        if self.by_name:
            return self.matched(adata, None, "fit")
        return DOORS[self.door].read(adata, self.layer, self.gene_coverage, self.columns)

    def matched(self, adata, layer: str | None, caller: str) -> Data:
        """The counts of any cells, of exactly the genes of the fit; `caller` is for messages.

        Raises
        ------
        TypeError, KeyError, ValueError
            Not an AnnData, no such layer, a gene of the fit is missing, or these are no counts.
        """
        layer = self.layer if layer is None else layer
        return DOORS[self.door].matched(
            adata, layer, self.gene_names, self.has_other, self.columns, caller
        )

    def _difference(self, counts: Data) -> str:
        """How other counts differ, in words."""
        if (self.n_cells, self.n_genes) != (counts.n_cells, counts.n_genes):
            return (
                f"{self.n_cells} cells x {self.n_genes} genes, given {counts.n_cells} x "
                f"{counts.n_genes}"
            )
        pairs = (
            ("cells", self.cell_names, counts.cell_names),
            ("genes", self.gene_names, counts.gene_names),
        )
        for what, ours, theirs in pairs:
            if set(ours) != set(theirs):
                return f"{what} of other names"
            if not np.array_equal(ours, theirs):
                return f"the same {what} in another order; put them in the order of result.fitted"
        return "the same names, other counts"
