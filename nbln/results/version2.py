"""Files of format version 2 (nbln 0.1.0) as the present format has them.

What version 2 did not keep is filled in: the history of columns and genes stays empty. Its packed
precision was summed one update before the final loadings, so that conditional standard deviations
of a loaded fit are approximate.
"""

import json

import numpy as np
import xarray as xr

from nbln import vocabulary as names

VERSION = 2
Groups = dict[str, xr.Dataset]
GENE, FACTOR = (names.GENE,), (names.FACTOR,)


def upgrade(kind: str, groups: Groups) -> Groups:
    """The groups of a result, its source included, as versions 3 and 4 have them."""
    own = {name: dataset for name, dataset in groups.items() if "/" not in name}
    nested = [name for name in groups if "/" in name]
    upgraded = {"laplace": _laplace, "svi": _svi}[kind](own)
    for under in {name.split("/")[0] for name in nested}:
        source = {
            n.removeprefix(f"{under}/"): groups[n] for n in nested if n.startswith(f"{under}/")
        }
        upgraded |= {f"{under}/{name}": x for name, x in _svi(source).items()}
    return upgraded


def _svi(groups: Groups) -> Groups:
    settings = _plain(groups["data"])["settings"]
    fit = {"model": "nbvcp", "capture": settings["capture"], **_plain(groups["fit"])}
    return {
        "data": _data(groups["data"]),
        "fit": groups["fit"].assign_attrs(values=json.dumps(fit)),
        "posterior": groups["posterior"],
    }


def _laplace(groups: Groups) -> Groups:
    plain, settings = _plain(groups["fit"]), _plain(groups["data"])["settings"]
    arrays, fit, scales = groups["arrays"], groups["fit"], groups["scales"]
    n_cells = arrays.sizes[names.CELL]
    z = np.concatenate([arrays["z"].values, arrays["coordinates"].values], axis=1)
    cells = {name: arrays[name] for name in (names.ETA, "eta_loc", "eta_sd")}
    cells |= {name: fit[name] for name in ("log_evidence", "gradient_norm")}
    channel, spread = {}, {"normal": fit["precision"]}
    if names.DISPERSION in arrays:
        channel = {"log_r": np.log(arrays[names.DISPERSION])}
        spread["r_sd"] = fit["log_r_sd"]
    fit_values = {
        "model": plain["model"],
        "converged": plain["converged"],
        "frozen": plain["frozen"],
        "match": settings.get("informative_priors_match", "verbatim"),
        "capture": settings["capture"],
        "search": {},
    }
    shape = 0.5 * n_cells + settings["d_shape"]
    loadings = {"precision": fit["loadings_precision"]}
    loadings |= {f"scale_{name}": scales[name] for name in scales}
    return {
        "data": _data(groups["data"]),
        "fit": _group({}, fit_values),
        "parameters": _group({n: arrays[n] for n in (names.MU, names.LOADINGS, names.RESIDUAL)}),
        "channel": _group(channel),
        "cells": _group(
            {
                **cells,
                "z": ((names.CELL, "column"), z),
                "converged": ((names.CELL,), fit["cell_converged"].values),
            }
        ),
        "augmentation": _group({n: arrays[n] for n in ("offset", "scale")}, plain["columns"]),
        "loadings": _group(loadings, _prior(scales)),
        "spread": _group(spread, {"residual_shape": shape}),
        "history": _group({"changes": fit["trace"]}),
    }


def _prior(scales: xr.Dataset) -> dict:
    """The prior whose scales these are; its parameters were not kept."""
    kinds = {"inclusion": "horseshoe_sparse", "lambda": "horseshoe_columnwise"}
    kinds["psi"] = "neg_columnwise"
    kind = next((kind for site, kind in kinds.items() if site in scales), "none")
    return {"type": kind, "parameters": {}, "shrinkage": {}}


def _data(dataset: xr.Dataset) -> xr.Dataset:
    plain = _plain(dataset)
    read = {key: plain["settings"].get(key) for key in ("layer", "gene_coverage")}
    return dataset.assign_attrs(values=json.dumps(plain | read))


def _group(variables: dict, plain: dict | None = None) -> xr.Dataset:
    return xr.Dataset(variables, attrs={"values": json.dumps(plain or {})})


def _plain(dataset: xr.Dataset) -> dict:
    return json.loads(dataset.attrs["values"])
