"""Results into an AnnData, when asked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData

from nbln import vocabulary as names
from nbln.data.fitted import Fitted

Columns = Mapping[str, np.ndarray]


def write(
    adata: AnnData,
    key: str,
    fitted: Fitted,
    genes: Columns,
    eta: np.ndarray | None,
    notes: Mapping[str, Any],
    factors: np.ndarray | None = None,
    loadings: np.ndarray | None = None,
) -> None:
    """Write what a fit knows of each gene and each cell; NaN where one was not in the fit.

    Parameters
    ----------
    genes
        Columns of `var`, by site.
    eta
        (cell,) capture losses; None of a model without.
    notes
        For `uns`, beside settings.
    factors, loadings
        (cell, factor) coordinates of cells and (gene, factor), of a model with gene programs.

    Raises
    ------
    TypeError
        Not an AnnData.
    ValueError
        No cell or no gene of it was in the fit.
    """
    cell_places, gene_places = _places(adata, fitted)
    if factors is not None:
        adata.obsm[names.OBSM_LATENT.format(key=key)] = _spread(factors, cell_places)
    if loadings is not None:
        adata.varm[names.VARM_LOADINGS.format(key=key)] = _spread(loadings, gene_places)
    for site, values in genes.items():
        column = names.VAR_PARAMETER.format(key=key, site=site)
        adata.var[column] = _spread(values, gene_places)
    if eta is not None:
        adata.obs[names.OBS_ETA.format(key=key)] = _spread(eta, cell_places)
    settings = fitted.settings | {"layer": fitted.layer, "gene_coverage": fitted.gene_coverage}
    plain = {name: str(value) for name, value in settings.items() if value is not None}
    adata.uns[key] = {"settings": plain, **notes}


def effect_columns(beta: xr.DataArray) -> dict[str, np.ndarray]:
    """Effects (gene, covariate) as columns of `var`, one a covariate."""
    covariates = beta[names.COVARIATE].values
    return {f"{names.EFFECTS}_{x}": beta.values[:, i] for i, x in enumerate(covariates)}


def write_laplace(result, adata: AnnData, key: str) -> None:
    """Write a Laplace result; see `LaplaceResult.write_to`."""
    channel = result.channel_parameters
    by_gene = {str(n): x.values for n, x in channel.items() if x.dims == (names.GENE,)}
    shared = {str(n): float(x) for n, x in result.get_map().items() if not x.dims}
    sizes = result.w_prior_diagnostics
    by_gene |= effect_columns(result.beta)
    write(
        adata,
        key,
        result.fitted,
        {names.MU: result.mu.values, names.RESIDUAL: result.d.values, **by_gene},
        result.cells.eta if result.has_capture else None,
        {
            "converged": bool(result.converged),
            "effective_rank": sizes["effective_rank"],
            "column_norms": sizes["column_frobenius_compositional"],
            "n_unconverged": result.n_unconverged,
            "log_evidence": float(result.log_evidence.sum()),
            "frozen": list(result.frozen),
            **shared,
        },
        result.get_embedding().values,
        result.get_W_compositional().values,
    )


def write_denoised(denoised: xr.Dataset, adata: AnnData, key: str) -> None:
    """Write posterior mean and standard deviation of the rates as layers."""
    rows = pd.Index(denoised[names.CELL]).get_indexer(adata.obs_names.astype(str))
    columns = pd.Index(denoised[names.GENE]).get_indexer(adata.var_names.astype(str))
    for moment, suffix in (("mean", ""), ("sd", "_sd")):
        values = denoised[moment].values[np.ix_(rows, columns)]
        values[rows < 0] = np.nan
        values[:, columns < 0] = np.nan
        adata.layers[names.LAYER_RATE.format(key=key) + suffix] = values


def _places(adata: AnnData, fitted: Fitted):
    """For each cell and gene of `adata`, its place in the fit; -1 where it has none."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"write_to(adata=): expected an AnnData, got {type(adata).__name__}")
    cells = pd.Index(fitted.cell_names).get_indexer(adata.obs_names.astype(str))
    genes = pd.Index(fitted.gene_names).get_indexer(adata.var_names.astype(str))
    if (cells < 0).all() or (genes < 0).all():
        raise ValueError("write_to(adata=): no cell or no gene of it was in this fit; check names")
    return cells, genes


def _spread(values, places):
    """Rows of `values` at `places`, NaN where there is none."""
    values = np.asarray(values, np.float64)
    missing = (places < 0).reshape(-1, *(1,) * (values.ndim - 1))
    return np.where(missing, np.nan, values[places])
