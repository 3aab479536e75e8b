"""Pairs of genes whose correlation is to be distrusted, and why."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln.arguments import find
from nbln.data.slices import slices
from nbln.questions.diagnostics import far_genes
from nbln.questions.program_table import effective

FEW = 10  # cells: a correlation that so few make is that of these cells
BLOCK = 2**24  # products of factors looked at together


def notes(
    pairs: pd.DataFrame,
    gene_names: np.ndarray,
    W: Float[np.ndarray, "gene factor"],
    z: Float[np.ndarray, "cell factor"],
    checks: xr.Dataset | None,
) -> list[str]:
    """A note for each pair, '' where nothing is amiss; see `LaplaceResult.mark_pairs`."""
    if not len(pairs):
        return []
    ends = (pairs[x].to_numpy(str) for x in ("gene_a", "gene_b"))
    a, b = (find(names, gene_names, "genes") for names in ends)
    of_gene = [""] * len(gene_names) if checks is None else list(_of_genes(checks))
    cells = np.empty(len(a))
    for block in slices(len(a), max(1, BLOCK // max(len(z), 1))):
        cells[block] = effective((z @ W[a[block]].T) * (z @ W[b[block]].T))
    few = [f"made by about {n:.0f} cells" if n < FEW else "" for n in cells]
    return [
        "; ".join(dict.fromkeys(x for x in (why, of_gene[i], of_gene[j]) if x))
        for why, i, j in zip(few, a, b, strict=True)
    ]


def _of_genes(checks: xr.Dataset) -> Iterator[str]:
    """What predictive checks say against a gene, in words."""
    n_cells = int(checks["n_cells"])
    seen = np.rint((1 - checks["zero_fraction"].sel(quantity="observed").values) * n_cells)
    for gene, n, far in zip(checks["gene"].values, seen, far_genes(checks), strict=True):
        why = [f"seen in {n:.0f} cells" if n < FEW else "", "mean far off in draws" if far else ""]
        reasons = " and ".join(x for x in why if x)
        yield f"{gene}: {reasons}" if reasons else ""
