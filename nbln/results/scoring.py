"""Cells that a model was not fitted to: their factors, capture losses and evidence.

Parameters stay as they were fitted, genes are matched by name. Where a fit had its capture losses
from a source of independent genes, so have new cells; their evidence always integrates over the
capture prior, so that models are compared on the same terms.
"""

import logging
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.models.log_normal import augmentation
from nbln.posterior import evidence, importance, mode
from nbln.posterior.blocks import blocks
from nbln.posterior.mode import Augmentation, Cells, Columns, Parameters

log = logging.getLogger("nbln")

TOL, MAX_STEPS = 1e-3, 50


def matched(result, adata, layer: str | None = None) -> Counts:
    """The counts of `adata`, of exactly the genes of the fit."""
    fitted = result.fitted
    layer = fitted.settings.get("layer") if layer is None else layer
    try:
        return Counts.from_anndata(adata, layer=layer, genes=fitted.gene_names)
    except (TypeError, ValueError, KeyError) as error:
        # The door speaks of `fit`; here it is the other cells that are at fault.
        message = str(error.args[0]).replace("fit(", "transform or score(", 1)
        raise type(error)(message) from None


def transform(result, adata, layer: str | None) -> xr.Dataset:
    """See `Result.transform`."""
    counts = matched(result, adata, layer)
    added = _augmentation(result, counts)
    k = result.parameters.W.shape[1]
    z, eta = _over_cells(_modes, counts, added, result.parameters)
    values = {names.ETA: ((names.CELL,), eta)}
    if k:
        values["z"] = ((names.CELL, names.FACTOR), z[:, :k])
    return xr.Dataset(values, coords={names.CELL: counts.cell_names})


def score(result, adata, layer: str | None, n_samples: int, seed: int) -> xr.DataArray:
    """See `Result.score`."""
    counts = matched(result, adata, layer)
    added = augmentation(result.capture_rule.of(counts.library_size))
    (values,) = _over_cells(_evidence, counts, added, result.parameters, seed, n_samples)
    return xr.DataArray(
        values, dims=(names.CELL,), coords={names.CELL: counts.cell_names}, name="log_evidence"
    )


def compare(
    results: Mapping[str, Any], adata, layer: str | None = None, n_samples: int = 1
) -> pd.DataFrame:
    """Compare fitted models by their evidence for the same, preferably held-out, cells.

    Parameters
    ----------
    results
        Fitted models by name, of the same genes.
    adata
        The cells, with the genes of the fits.
    layer
        The layer that holds the counts; by default that of each fit.
    n_samples
        1: Laplace evidence; more: importance sampling with so many draws a cell.

    Returns
    -------
    One row a model, best first: ``log_evidence``, summed over cells (nats); ``per_cell``, its mean;
    ``difference`` to the best model and the ``standard_error`` of that difference over cells.

    Raises
    ------
    ValueError
        No results, or results of different genes.
    """
    if not isinstance(results, Mapping) or not results:
        raise ValueError("compare(results=): give a dict of fitted models by name, {'nbln': res}")
    for name, result in results.items():
        if not hasattr(result, "fitted"):
            raise TypeError(f"compare(results=): {name!r} is a {type(result).__name__}, not a fit")
    first, *others = results.items()
    genes = set(first[1].fitted.gene_names)
    for name, result in others:
        if set(result.fitted.gene_names) != genes:
            raise ValueError(
                f"compare(results=): {first[0]!r} and {name!r} were fitted to different genes, so "
                "their evidence is not comparable; fit both with the same genes and gene_coverage"
            )
    if len({result.capture_rule.log_library is None for result in results.values()}) > 1:
        log.warning(
            "compare(results=): some fits have fixed offsets and some a capture prior; those with "
            "offsets are given each cell's depth, the others have to predict it"
        )
    scores = pd.DataFrame(
        {
            name: np.asarray(result.score(adata, layer=layer, n_samples=n_samples), np.float64)
            for name, result in results.items()
        }
    )
    total = scores.sum().sort_values(ascending=False)
    difference = scores.sub(scores[total.index[0]], axis=0)
    table = pd.DataFrame(
        {
            "log_evidence": total,
            "per_cell": scores.mean(),
            "difference": difference.sum(),
            "standard_error": difference.std(ddof=1) * np.sqrt(len(scores)),
        }
    )
    return table.loc[total.index].rename_axis("model")


def _augmentation(result, counts: Counts) -> Augmentation:
    """Offsets of new cells as the fit would have had them; those of its own cells as it had."""
    added = augmentation(result.capture_rule.of(counts.library_size))
    if result.kind == "svi":
        return added
    if added.columns.value and not result.columns.value:
        # Known capture losses: what the source says of these cells.
        _, eta = _over_cells(_modes, counts, added, result.cascade_source.parameters)
        added = Augmentation(-eta, np.zeros((counts.n_cells, 0), np.float32), Columns())
    offset, scale = (np.array(x, np.float32) for x in added[:2])
    place = pd.Index(result.fitted.cell_names).get_indexer(pd.Index(counts.cell_names))
    same = (place >= 0) & (result.fitted.library_size[place] == counts.library_size)
    offset[same] = result.arrays["offset"][place[same]]
    scale[same] = result.arrays["scale"][place[same]]
    return Augmentation(offset, scale, added.columns)


def _over_cells(
    visit, counts: Counts, added: Augmentation, parameters: Parameters, seed: int = 0, *arguments
):
    """What `visit` says of every cell, cells first, chunk by chunk; each has its own key."""
    parts = []
    for block, cells in blocks(counts, added):
        key = jax.random.fold_in(jax.random.key(seed), block.start)
        found = visit(key, parameters, cells, added.columns, *arguments)
        parts.append([np.asarray(x)[: block.stop - block.start] for x in found])
    return [np.concatenate(x) for x in zip(*parts, strict=True)]


@eqx.filter_jit
def _modes(key: Array, parameters: Parameters, cells: Cells, columns: Columns):
    """Coordinates (cell first) and posterior mean of the capture loss."""
    del key
    start = jnp.log(cells.counts + 0.5)
    found = mode.find(parameters, cells, columns, start, TOL, MAX_STEPS)
    covariance = mode.newton_step(parameters, cells, columns, found.f).covariance
    return found.z.T, evidence.capture_loss(cells, columns, found.z, covariance)[0]


@eqx.filter_jit
def _evidence(key, parameters, cells, columns, n_samples) -> tuple[Float[Array, " cell"]]:
    start = jnp.log(cells.counts + 0.5)
    f = mode.find(parameters, cells, columns, start, TOL, MAX_STEPS).f
    if n_samples == 1:
        return (evidence.evidence(parameters, cells, columns, f),)
    ratios = importance.log_ratios(key, parameters, cells, columns, f, n_samples)
    return (jax.scipy.special.logsumexp(ratios, axis=0) - np.log(n_samples),)
