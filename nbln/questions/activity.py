"""Programs that are more or less active in each of several data sets."""

import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.data.datasets import Datasets
from nbln.linalg import small
from nbln.posterior.mode import Parameters


def check_any(datasets: Datasets | None, call: str) -> Datasets:
    """The data sets, or an error that says that there is one."""
    if datasets is None:
        raise ValueError(
            f"{call}: this fit took all cells for one data set; fit with dataset_key='column', a "
            "column of adata.obs, or several"
        )
    return datasets


def table(datasets: Datasets, log_activity: Float[np.ndarray, "dataset factor"]) -> xr.DataArray:
    """s of every data set and program."""
    coords = {names.DATASET: list(datasets.names)}
    dims = (names.DATASET, names.FACTOR)
    return xr.DataArray(np.exp(log_activity), dims=dims, coords=coords, name="activity")


def scaled(parameters: Parameters, log_activity: Float[np.ndarray, " factor"]) -> Parameters:
    """The parameters of a data set by itself, whose factors have standard deviation 1."""
    W = np.asarray(parameters.W) * np.exp(log_activity)
    return Parameters(
        parameters.mu, W, parameters.d, parameters.channel, np.asarray(parameters.effects)
    )


def scaled_normal(
    normal: Float[np.ndarray, "gene moment"], log_activity: Float[np.ndarray, " factor"]
) -> Float[np.ndarray, "gene moment"]:
    """Precisions of [μ, β, W], packed, of the same loadings scaled."""
    known = small.bordered_rows(normal.shape[1]) - len(log_activity)
    by = np.concatenate([np.ones(known), np.exp(-log_activity)])
    return (np.asarray(normal) * small.bordered_products(by)).astype(np.float32)
