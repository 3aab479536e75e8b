"""A fit of several data sets as the cells of one of them have it."""

from dataclasses import replace
from typing import TypeVar

import numpy as np

from nbln.questions import activity
from nbln.results.log_normal import LogNormalResult

Fit = TypeVar("Fit", bound=LogNormalResult)


def alone(result: Fit, name: str) -> Fit:
    """See `LaplaceResult.in_dataset`."""
    call = f"in_dataset({name!r})"
    datasets = activity.check_any(result.datasets, call)
    assert result.activity is not None, "several data sets have activities"
    log_s = datasets.weights(name, call) @ np.asarray(result.activity.activity.effects)
    precision = result.loadings.precision * np.exp(-2 * log_s)
    z = result.cells.z.copy()
    z[:, : len(log_s)] *= np.exp(-log_s)
    return replace(
        result,
        parameters=activity.scaled(result.parameters, log_s),
        cells=result.cells._replace(z=z),
        augmentation=result.augmentation._replace(datasets=None),
        loadings=result.loadings._replace(precision=precision),
        spread=result.spread._replace(normal=activity.scaled_normal(result.spread.normal, log_s)),
        datasets=None,
        activity=None,
    )
