"""Results into an AnnData, when asked."""

import numpy as np
import pandas as pd
from anndata import AnnData

from nbln import vocabulary as names


def write_laplace(result, adata: AnnData, key: str) -> None:
    """Write a Laplace result; see `LaplaceResult.write_to`."""
    cells, genes = _places(result, adata)
    adata.obsm[names.OBSM_LATENT.format(key=key)] = _spread(result.arrays["z"], cells)
    loadings = np.asarray(result.get_W_compositional())
    adata.varm[names.VARM_LOADINGS.format(key=key)] = _spread(loadings, genes)
    _write_genes(adata, key, genes, {n: result.arrays.get(n) for n in ("mu", "d", "r")})
    _write_eta(adata, key, cells, result.arrays[names.ETA])
    diagnostics = result.w_prior_diagnostics
    adata.uns[key] = _summary(result) | {
        "effective_rank": diagnostics["effective_rank"],
        "column_norms": diagnostics["column_frobenius_compositional"],
        "n_unconverged": result.n_unconverged,
        "log_evidence": float(result.log_evidence.sum()),
        "frozen": list(result.frozen),
    }


def write_denoised(denoised, adata: AnnData, key: str) -> None:
    """Write posterior mean and standard deviation of the rates as layers."""
    rows = pd.Index(denoised[names.CELL]).get_indexer(adata.obs_names.astype(str))
    columns = pd.Index(denoised[names.GENE]).get_indexer(adata.var_names.astype(str))
    for moment, suffix in (("mean", ""), ("sd", "_sd")):
        values = denoised[moment].values[np.ix_(rows, columns)]
        values[rows < 0] = np.nan
        values[:, columns < 0] = np.nan
        adata.layers[names.LAYER_RATE.format(key=key) + suffix] = values


def write_svi(result, adata: AnnData, key: str) -> None:
    """Write an SVI result; see `SVIResult.write_to`."""
    cells, genes = _places(result, adata)
    fitted = result.get_map()
    values = {name: fitted[name].values for name in (names.MEAN, names.DISPERSION)}
    _write_genes(adata, key, genes, values)
    _write_eta(adata, key, cells, fitted[names.ETA].values)
    adata.uns[key] = _summary(result)


def _places(result, adata):
    """For each cell and gene of `adata`, its place in the fit; -1 where it has none."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"write_to(adata=): expected an AnnData, got {type(adata).__name__}")
    cells = pd.Index(result.fitted.cell_names).get_indexer(adata.obs_names.astype(str))
    genes = pd.Index(result.fitted.gene_names).get_indexer(adata.var_names.astype(str))
    if (cells < 0).all() or (genes < 0).all():
        raise ValueError("write_to(adata=): no cell or no gene of it was in this fit; check names")
    return cells, genes


def _spread(values, places):
    """Rows of `values` at `places`, NaN where there is none."""
    values = np.asarray(values, np.float64)
    missing = (places < 0).reshape(-1, *(1,) * (values.ndim - 1))
    return np.where(missing, np.nan, values[places])


def _write_genes(adata, key, places, values):
    for name, value in values.items():
        if value is not None:
            adata.var[names.VAR_PARAMETER.format(key=key, site=name)] = _spread(value, places)


def _write_eta(adata, key, places, eta):
    adata.obs[names.OBS_ETA.format(key=key)] = _spread(eta, places)


def _summary(result):
    plain = {k: v for k, v in result.fitted.settings.items() if v is not None}
    return {"settings": {k: str(v) for k, v in plain.items()}, "converged": bool(result.converged)}
