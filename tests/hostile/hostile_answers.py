"""All that a result can be asked without an argument, and the numbers in the answers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import xarray as xr

import nbln

# Questions that would take long with their defaults, and what is asked instead.
SMALL: dict[str, dict[str, Any]] = {
    "to_datatree": {"n_samples": 2, "n_predictive": 2},
    "to_arviz": {"n_samples": 2, "n_predictive": 2},
    "get_ppc_samples": {"n_samples": 2},
    "get_posterior_samples": {"n_samples": 5},
    "sample_genes": {"n_samples": 5},
    "check": {"n_samples": 5},
    "rank_stability": {"n_halves": 1},
    "sample_posterior": {"n_draws": 4, "n_chains": 1, "n_warmup": 2, "progress": False},
}
# Numbers that are not finite and say so in their documentation.
DOCUMENTED = [
    r"gauge_contamination_ratio",  # NaN without a program
    r"^r/|/r$|^r$",  # infinite where the channel has none
    r"^history|^trace|^convergence",  # of iterations that did not happen
    r"^loadings|^scales|^w_prior_diagnostics",  # infinite scales: no shrinkage
    r"^priors|^capture_rule",
]


def questions(result, but: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Name and answer of every public property, and method that needs no argument, but these."""
    import inspect

    for name in dir(type(result)):
        if name.startswith("_") or name in but:
            continue
        member = inspect.getattr_static(type(result), name)
        if isinstance(member, classmethod | staticmethod):
            continue
        value = getattr(result, name)
        if not inspect.ismethod(value):
            yield name, value
            continue
        needed = [
            p
            for p in inspect.signature(value).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        if not needed:
            try:
                yield name, value(**SMALL.get(name, {}))
            except ValueError as error:
                # What a model or a fit lacks is refused in words that begin with the question.
                model = rf"{name}: model {result.model} has no"
                fit = rf"{name}\(\): (this fit has no|this fit took all|\d cells; halves)"
                if not re.match(f"{model}|{fit}", str(error)):
                    raise


def numbers(path: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of numbers in an answer, with where they are."""
    if isinstance(value, xr.DataTree):
        value = {node.path: node.to_dataset() for node in value.subtree}
    if isinstance(value, dist.Distribution):
        value = value.mean  # a draw is asked elsewhere
    if hasattr(value, "groups") and hasattr(value, "to_dict"):
        value = value.to_dict()  # ArviZ's InferenceData
    if isinstance(value, pd.DataFrame):
        value = {f"{i}/{c}": x for c in value for i, x in value[c].items()}
    if isinstance(value, xr.Dataset):
        value = {str(name): x for name, x in value.items()}
    if isinstance(value, xr.DataArray):
        value = value.values
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from numbers(f"{path}/{name}", item)
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from numbers(f"{path}/{i}", item)
    elif isinstance(value, np.ndarray | jax.Array | float | int | np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            yield path, array


def not_finite(result, but: tuple[str, ...] = ()) -> dict[str, int]:
    """How many numbers of each answer, but these, are neither finite nor documented to be other."""
    found = {}
    for name, answer in questions(result, but):
        for path, array in numbers(name, answer):
            bad = int((~np.isfinite(array)).sum())
            if bad and not any(re.search(pattern, path) for pattern in DOCUMENTED):
                found[path] = bad
    return found


def all_finite(result, adata, tmp_path) -> None:
    """Ask everything; then the same of new cells, of a file, and write into the AnnData."""
    assert not_finite(result) == {}
    # AnnData takes no part of a part of a file, nor of cells whose names are numbers.
    target = adata.to_memory() if adata.isbacked else adata.copy()
    target.obs_names, target.var_names = target.obs_names.astype(str), target.var_names.astype(str)
    few = target[:3]
    for n_samples in (1, 8):
        assert np.isfinite(result.score(few, n_samples=n_samples)).all()
    for value in result.transform(target[:1]).values():
        assert np.isfinite(value).all()
    result.save(tmp_path / "result.nc")
    again = nbln.load(tmp_path / "result.nc")
    np.testing.assert_array_equal(again.fitted.cell_names, result.fitted.cell_names)
    np.testing.assert_array_equal(again.fitted.gene_names, result.fitted.gene_names)
    assert np.isfinite(again.score(few)).all()
    result.write_to(target)
