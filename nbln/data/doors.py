"""How data come in: what a fit accepts, and how data of the same kind are read again later."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from nbln.data.counts import Counts
from nbln.data.samples import REAL, UNIT, Samples, Support, flattened
from nbln.data.shelf import opened

Data = Counts | Samples


class Door(abc.ABC):
    """What reads data for a fit: those in memory, or those of a path or of several."""

    @abc.abstractmethod
    def read(
        self,
        given: Any,
        layer: str | None,
        gene_coverage: float | None,
        columns: Sequence[str] = (),
        strict: bool = False,
    ) -> Data:
        """The data of a fit, checked; arguments and errors as those of `Counts.from_anndata`."""

    @abc.abstractmethod
    def matched(
        self,
        given: Any,
        layer: str | None,
        genes: np.ndarray,
        pools: bool,
        columns: Sequence[str],
        caller: str,
    ) -> Data:
        """Any data of exactly the genes of a fit."""


class CountsDoor(Door):
    """Counts in an AnnData, or in files of them, and nothing else."""

    def read(self, given, layer, gene_coverage, columns=(), strict=False):
        return Counts.from_anndata(
            opened(given), layer=layer, gene_coverage=gene_coverage, columns=columns, strict=strict
        )

    def matched(self, given, layer, genes, pools, columns, caller):
        return Counts.from_anndata(
            opened(given), layer=layer, genes=genes, pools=pools, columns=columns, caller=caller
        )


class CountTableDoor(CountsDoor):
    """Counts in an AnnData, or in an array, whose features are all kept: an image needs them."""

    def read(self, given, layer, gene_coverage, columns=(), strict=False):
        given = opened(given)
        if isinstance(given, AnnData):
            return super().read(given, layer, gene_coverage, columns, strict)
        _check_plain(layer, gene_coverage)
        table = _as_anndata(given, "fit")
        if table.n_obs < 2:
            raise ValueError("fit(x): a single sample; variation needs at least two")
        names = table.var_names.to_numpy(dtype=str)
        return Counts.from_anndata(table, genes=names, pools=False, strict=strict)

    def matched(self, given, layer, genes, pools, columns, caller):
        given = opened(given)
        if not isinstance(given, AnnData):
            given, n = _as_anndata(given, caller), len(genes)
            if given.n_vars != n:
                raise ValueError(f"{caller}(x): {given.n_vars} features, but the fit had {n}")
        return super().matched(given, layer, genes, pools, columns, caller)


@dataclass(frozen=True)
class RealDoor(Door):
    """Real numbers in an AnnData or in an array."""

    support: Support

    def read(self, given, layer, gene_coverage, columns=(), strict=False):
        del columns, strict
        _check_plain(None, gene_coverage)
        return Samples.of(opened(given), self.support, layer)

    def matched(self, given, layer, genes, pools, columns, caller):
        del pools, columns
        return Samples.of(opened(given), self.support, layer, genes, caller)


COUNTS, TABLE, NUMBERS, SHARES = "counts", "count table", "real numbers", "numbers from 0 to 1"
# By the words that files have for them.
DOORS: dict[str, Door] = {
    COUNTS: CountsDoor(),
    TABLE: CountTableDoor(),
    NUMBERS: RealDoor(REAL),
    SHARES: RealDoor(UNIT),
}


def _check_plain(layer: str | None, gene_coverage: float | None) -> None:
    if layer is not None:
        raise ValueError(f"fit(layer={layer!r}): an array has no layers; leave it out")
    if gene_coverage is not None:
        raise ValueError(
            f"fit(gene_coverage={gene_coverage!r}): only counts in an AnnData can be pooled; leave "
            "it out"
        )


def _as_anndata(given: Any, caller: str) -> AnnData:
    values = flattened(given, caller)
    rows, columns = (pd.DataFrame(index=np.arange(n).astype(str)) for n in values.shape)
    return AnnData(values, rows, columns)
