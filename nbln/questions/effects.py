"""Effects of covariates on the log-rates of genes, in the units that users have."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.arguments import choose
from nbln.data.formula import Formula

Effects = Float[np.ndarray, "gene covariate"]


class GeneEffects(NamedTuple):
    """Effects of covariates on independent genes, of numbers by their standard deviation.

    Attributes
    ----------
    formula
        What is known of the covariates.
    mean, sd
        Of each effect, natural log.
    typical
        τ², the squared width of the prior that was learned for each covariate.
    covariates
        Of the cells of the fit.
    """

    formula: Formula
    mean: Effects
    sd: Effects
    typical: Float[np.ndarray, " covariate"]
    covariates: Float[np.ndarray, "cell covariate"]

    def take(self, cells: np.ndarray, genes: np.ndarray) -> "GeneEffects":
        """The same for some cells and genes."""
        kept = self.mean[genes], self.sd[genes], self.typical, self.covariates[cells]
        return GeneEffects(self.formula, *kept)


def of_covariates(beta: xr.DataArray, sd: Effects, formula: Formula | None) -> xr.Dataset:
    """See `LaplaceResult.get_covariate_effects`.

    Parameters
    ----------
    beta
        (gene, covariate) effects, of numbers by their standard deviation.
    sd
        Their posterior standard deviations.
    """
    formula = check_fixed(formula)
    fixed = slice(len(formula.fixed))
    beta = beta[:, fixed]
    spread = beta.copy(data=np.asarray(sd)[:, fixed])
    return xr.Dataset({"mean": beta / formula.units, "sd": spread / formula.units})


def strongest(effects: xr.Dataset, units: Float[np.ndarray, " covariate"], n: int) -> pd.DataFrame:
    """The `n` genes that each covariate changes most, as log2 fold changes.

    Those come first whose effect is largest at the end of ±2 sd that is nearer to 0: a large
    effect of which little is known is no strong one. Of numbers an effect is that of one standard
    deviation.

    Parameters
    ----------
    effects
        ``mean`` and ``sd`` (gene, covariate), natural log, as `get_covariate_effects` gives them.
    units
        Standard deviation of the numbers in each covariate, 1 for categories.

    Returns
    -------
    covariate, gene, log2_fold_change, sd.
    """
    mean, sd = (effects[name].values * units / np.log(2) for name in ("mean", "sd"))
    order = np.argsort(2 * sd - np.abs(mean), axis=0, kind="stable")[:n]
    genes = effects[names.GENE].values
    tables = [
        pd.DataFrame(
            {
                names.COVARIATE: covariate,
                names.GENE: genes[order[:, j]],
                "log2_fold_change": mean[order[:, j], j].astype(float),
                "sd": sd[order[:, j], j].astype(float),
            }
        )
        for j, covariate in enumerate(effects[names.COVARIATE].values)
    ]
    return pd.concat(tables, ignore_index=True)


def check_fixed(formula: Formula | None) -> Formula:
    """A formula with fixed covariates, or an error that says that there is none."""
    if formula is None or not formula.fixed:
        raise ValueError(
            "get_covariate_effects(): this fit has no covariates; fit with formula='~ column', "
            "columns of adata.obs"
        )
    return formula


def check_any(formula: Formula | None, call: str) -> Formula:
    """A formula, or an error that says that there is none."""
    if formula is None:
        raise ValueError(
            f"{call}: this fit has no covariates; fit with formula='~ column', and for donors "
            "with random=['column'], columns of adata.obs"
        )
    return formula


def of_levels(
    beta: xr.DataArray,
    sd: Effects,
    variance: Float[np.ndarray, "gene term"],
    formula: Formula | None,
    column: str | None,
) -> xr.Dataset:
    """See `LaplaceResult.get_random_effects`; `variance` is that of each term."""
    columns = [] if formula is None else [part.column for part in formula.random]
    if not columns:
        raise ValueError(
            "get_random_effects(): this fit has no random intercepts; fit with random=['column'], "
            "columns of adata.obs"
        )
    assert formula is not None, "it has the columns"
    if column is None and len(columns) > 1:
        raise ValueError(f"get_random_effects(): name one of {', '.join(columns)}")
    column = choose("get_random_effects(column", columns[0] if column is None else column, columns)
    i = columns.index(column)
    first = len(formula.fixed) + sum(formula.n_levels[:i])
    levels = slice(first, first + formula.n_levels[i])
    dims = (names.GENE, column if column != names.GENE else "level")
    values = {
        "mean": (dims, beta.values[:, levels]),
        "sd": (dims, np.asarray(sd)[:, levels]),
        "between": (names.GENE, np.sqrt(np.asarray(variance)[:, len(formula.fixed) + i])),
    }
    coords = {names.GENE: beta[names.GENE].values, dims[1]: list(formula.random[i].levels)}
    return xr.Dataset(values, coords=coords)
