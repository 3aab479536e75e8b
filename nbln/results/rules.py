"""What must hold of the arrays of a saved result, whoever wrote the file."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import xarray as xr

from nbln import vocabulary as names

CELL, GENE, FACTOR = (names.CELL,), (names.GENE,), (names.FACTOR,)
SAMPLE = (names.CHAIN, names.DRAW)


class Rule(NamedTuple):
    """Of the arrays whose ``group/name`` matches: their dims, and what holds of every value."""

    where: str
    dims: tuple[str, ...] | None
    holds: Callable[[np.ndarray], bool]
    words: str


def _numbers(x):
    return x.dtype.kind in "biuf"


def _known(x):
    return _numbers(x) and not np.isnan(x).any()


def _finite(x):
    return _numbers(x) and np.isfinite(x).all()


def _positive(x):
    return _finite(x) and (x > 0).all()


def _not_negative(x):
    return _finite(x) and (x >= 0).all()


def _weights(x):
    return _known(x) and (x >= 0).all()


def _flags(x):
    return _numbers(x) and np.isin(x, (0, 1)).all()


def _unique(x):
    return x.dtype.kind in "OUT" and len(set(x.tolist())) == x.size


FINITE, POSITIVE = (_finite, "finite numbers"), (_positive, "positive numbers")
NOT_NEGATIVE = (_not_negative, "finite numbers of at least 0")
FLAGS = (_flags, "0 or 1")
NAMES = (_unique, "names, each given once")
# The first that matches is the rule of an array.
RULES = (
    Rule("data/cell_names", CELL, *NAMES),
    Rule("data/gene_names", GENE, *NAMES),
    Rule("data/library_size", CELL, *POSITIVE),
    # Records of how a fit went: nothing is computed from them.
    Rule("history/*", None, _numbers, "numbers"),
    Rule("fit/losses", ("block",), _numbers, "numbers"),
    Rule("cells/log_evidence", CELL, _numbers, "numbers"),
    Rule("cells/gradient_norm", CELL, _numbers, "numbers"),
    Rule("cells/converged", CELL, *FLAGS),
    Rule("cells/z", (*CELL, "column"), *FINITE),
    Rule("cells/eta_sd", CELL, *NOT_NEGATIVE),
    Rule("cells/*", CELL, *FINITE),
    Rule("parameters/mu", GENE, *FINITE),
    Rule("parameters/W", (*GENE, *FACTOR), *FINITE),
    Rule("parameters/d", GENE, *POSITIVE),
    Rule("covariates/beta", (*GENE, names.COVARIATE), *FINITE),
    Rule("covariates/beta_sd", (*GENE, names.COVARIATE), *POSITIVE),
    Rule("covariates/beta_variance", (*GENE, names.TERM), *POSITIVE),
    Rule("covariates/beta_typical", (names.TERM,), *POSITIVE),
    Rule("covariates/values", (*CELL, names.COVARIATE), *FINITE),
    Rule("datasets/code", CELL, *NOT_NEGATIVE),
    Rule("datasets/activity_effect", (names.LEVEL, *FACTOR), *FINITE),
    Rule("datasets/activity_variance", (names.KEY,), *POSITIVE),
    Rule("fit/held_out", CELL, *FLAGS),
    Rule("latents/z_mean", (*CELL, *FACTOR), *FINITE),
    Rule("latents/z_variance", (*CELL, *FACTOR), *POSITIVE),
    Rule("latents/library_mean", CELL, *FINITE),
    Rule("latents/library_variance", CELL, *NOT_NEGATIVE),
    Rule("known/design", (*CELL, "design_column"), *FINITE),
    Rule("known/log_library", CELL, *FINITE),
    Rule("known/*", CELL, *NOT_NEGATIVE),
    Rule("network/*.running.variance", None, *NOT_NEGATIVE),
    Rule("network/library_prior.variance", None, *POSITIVE),
    Rule("augmentation/offset", CELL, *FINITE),
    Rule("augmentation/scale", (*CELL, "extra"), *NOT_NEGATIVE),
    # An infinite precision is a loading held at zero.
    Rule("loadings/precision", (*GENE, *FACTOR), _weights, "numbers of at least 0"),
    Rule("loadings/scale_centre", FACTOR, *FINITE),
    Rule("loadings/scale_*", None, *POSITIVE),
    Rule("spread/normal", (*GENE, "moment"), *FINITE),
    Rule("spread/*_sd", None, *NOT_NEGATIVE),
    # Infinite scales are priors that say nothing.
    Rule("priors/*.scale", None, lambda x: _known(x) and (x > 0).all(), "positive numbers"),
    Rule("priors/*", None, _known, "numbers"),
    Rule("fit/eta", CELL, *FINITE),
    Rule("posterior/eta_scale", CELL, *POSITIVE),
    Rule("posterior/eta_loc", CELL, *FINITE),
    Rule("posterior/*_scale", None, *POSITIVE),
    Rule("draws/mu", (*SAMPLE, *GENE), *FINITE),
    Rule("activity/activity_effect", (*SAMPLE, names.LEVEL, *FACTOR), *FINITE),
    Rule("activity/activity_variance", (*SAMPLE, names.KEY), *POSITIVE),
    Rule("effects/beta", (*SAMPLE, *GENE, names.COVARIATE), *FINITE),
    Rule("effects/beta_variance", (*SAMPLE, *GENE, names.TERM), *POSITIVE),
    Rule("effects/beta_typical", (*SAMPLE, names.TERM), *POSITIVE),
    Rule("draws/W", (*SAMPLE, *GENE, *FACTOR), *FINITE),
    Rule("draws/d", (*SAMPLE, *GENE), *POSITIVE),
    Rule("draws/centre", (*SAMPLE, *FACTOR), *FINITE),
    Rule("draws/pool", (*SAMPLE, "quantity"), _numbers, "numbers"),
    Rule("draws/accepted", (*SAMPLE, "step"), _numbers, "numbers"),
    Rule("sites/mu", (*SAMPLE, *GENE), *FINITE),
    Rule("sites/W", (*SAMPLE, *GENE, *FACTOR), *FINITE),
    Rule("sites/[dr]", None, *POSITIVE),
    Rule("steps/diverging", SAMPLE, *FLAGS),
    Rule("steps/cut_short", SAMPLE, *FLAGS),
    Rule("steps/*", SAMPLE, *NOT_NEGATIVE),
    Rule("scales/centre", (*SAMPLE, *FACTOR), *FINITE),
    Rule("scales/*", None, *POSITIVE),
    Rule("prior/reference", (*GENE, *FACTOR), *FINITE),
    Rule("prior/z_mean", (*CELL, "column"), *FINITE),
    Rule("prior/z_sd", (*CELL, "column"), *NOT_NEGATIVE),
    Rule("*", None, *FINITE),
)


def check(groups: dict[str, xr.Dataset], shared: dict[str, int] | None = None) -> None:
    """Check the groups of a result, and of the results inside it, array by array.

    Raises
    ------
    ValueError
        Names the first array that breaks its rule, or the dimension that has two sizes.
    """
    sizes = dict(shared or {})
    inside: dict[str, dict[str, xr.Dataset]] = {}
    for name, dataset in groups.items():
        under, nested, rest = name.partition("/")
        if nested:
            inside.setdefault(under, {})[rest] = dataset
            continue
        for variable, array in dataset.variables.items():
            _check(f"{name}/{variable}", array)
        for dim, size in dataset.sizes.items():
            if sizes.setdefault(str(dim), size) != size:
                raise ValueError(f"{name} has {size} of {dim!r}, others {sizes[str(dim)]}")
    columns = sizes.get(names.FACTOR, 0) + sizes.get("extra", 0)
    if "extra" in sizes and sizes.get("column") != columns:
        raise ValueError(f"cells/z has {sizes.get('column')} columns; the model {columns}")
    both = {dim: sizes[dim] for dim in (names.CELL, names.GENE) if dim in sizes}
    for nested_groups in inside.values():
        check(nested_groups, both)


def _check(where: str, array: xr.Variable) -> None:
    rule = next(rule for rule in RULES if fnmatchcase(where, rule.where))
    if rule.dims is not None and array.dims != rule.dims:
        raise ValueError(f"{where} is an array over {array.dims}, not {rule.dims}")
    if not rule.holds(array.values):
        raise ValueError(f"{where} must hold {rule.words}")
