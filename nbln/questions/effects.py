"""Effects of covariates on the log-rates of genes, in the units that users have."""

import numpy as np
import xarray as xr

from nbln.data.formula import Formula


def of_covariates(beta: xr.DataArray, sd: np.ndarray, formula: Formula | None) -> xr.Dataset:
    """See `LaplaceResult.get_covariate_effects`.

    Parameters
    ----------
    beta
        (gene, covariate) effects, of numbers by their standard deviation.
    sd
        (gene, covariate) their posterior standard deviations.
    """
    if formula is None:
        raise ValueError(
            "get_covariate_effects(): this fit has no covariates; fit with formula='~ column', "
            "columns of adata.obs"
        )
    spread = beta.copy(data=np.asarray(sd))
    return xr.Dataset({"mean": beta / formula.units, "sd": spread / formula.units})
