"""Results as groups of named arrays and plain values, and back."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from nbln import registry
from nbln import vocabulary as names
from nbln.inference.sampler.engine import Draws
from nbln.inference.sampler.sweep import Taken
from nbln.posterior.cells import CellPosterior
from nbln.posterior.mode import Augmentation, Columns, Parameters, Search
from nbln.posterior.totals import Totals
from nbln.posterior.variational import POSTERIORS
from nbln.priors.capture import CaptureRule
from nbln.priors.loadings import FittedLoadings
from nbln.priors.marginal import MarginalDispersion, MarginalMean
from nbln.priors.shrinkage import Shrinkage
from nbln.priors.univariate import Beta, Frozen, InverseGamma, LogNormal, Normal, Prior
from nbln.questions.chains import Chains
from nbln.questions.distributions import Spread
from nbln.results import design_groups, io
from nbln.results.history import History

CELL, GENE, FACTOR = (names.CELL,), (names.GENE,), (names.FACTOR,)
CELL_DIMS = {"z": (*CELL, "column")}  # of what is known of cells; the rest has one number a cell
ITERATION = ("iteration",)
HISTORY_DIMS = {
    "changes": (*ITERATION, "quantity"),
    "column_sd": (*ITERATION, *FACTOR),
    "shrank": (*ITERATION, *FACTOR),
    "further_steps": (*ITERATION, *FACTOR),
    "damped": (*ITERATION, *GENE),
}
PRIORS = {
    kind.__name__: kind
    for kind in (Normal, LogNormal, InverseGamma, Beta, Frozen, MarginalDispersion, MarginalMean)
}
BOOLEAN = ("shrank", "damped", "converged")
STEP_FLAGS = ("diverging", "cut_short")


def laplace_groups(result) -> io.Groups:
    """What a file of a `LaplaceResult` holds."""
    parameters, loadings = result.parameters, result.loadings
    channel = parameters.channel.state()
    dims = {site.name: site.dims for site in parameters.channel.sites}
    scale_dims = {s.name: s.dims for s in loadings.prior.sites(parameters.W.shape[1])}
    offset, scale, columns, *_ = result.augmentation
    spread = {f"{n}_sd": (dims[n], x) for n, x in result.spread.channel_sd.items()}
    plain = {
        "model": result.model,
        "converged": bool(result.converged),
        "frozen": list(result.frozen),
        "match": result.match,
        "capture": result.capture_rule._asdict(),
        "search": result.search._asdict(),
        "totals": None if result.totals is None else result.totals._asdict(),
    }
    groups = {
        "data": io.of_fitted(result.fitted),
        "fit": io.group({}, plain),
        "parameters": io.group(
            {
                names.MU: (GENE, parameters.mu),
                names.LOADINGS: ((*GENE, *FACTOR), parameters.W),
                names.RESIDUAL: (GENE, parameters.d),
            }
        ),
        "channel": io.group({n: (GENE * np.ndim(x), x) for n, x in channel.items()}),
        "cells": io.group(
            {n: (CELL_DIMS.get(n, CELL), _plain(x)) for n, x in result.cells._asdict().items()}
        ),
        "augmentation": io.group(
            {"offset": (CELL, offset), "scale": ((*CELL, "extra"), scale)}, columns._asdict()
        ),
        "loadings": io.group(
            {
                "precision": ((*GENE, *FACTOR), loadings.precision),
                **{f"scale_{n}": (scale_dims[n], x) for n, x in loadings.scales.items()},
            },
            prior_values(loadings.prior),
        ),
        "spread": io.group(
            {"normal": ((*GENE, "moment"), result.spread.normal), **spread},
            {"residual_shape": float(result.spread.residual_shape)},
        ),
        "priors": beliefs_group(result.priors, result.pooled),
        "history": io.group(
            {n: (HISTORY_DIMS[n], _plain(x)) for n, x in result.history._asdict().items()}
        ),
    }
    groups |= design_groups.of_fit(result)
    if result.cascade_source is not None:
        groups |= io.nest(result.cascade_source.to_groups(), "cascade_source")
    return groups


def laplace_parts(groups: io.Groups) -> dict:
    """The fields of a `LaplaceResult`, its source aside."""
    plain = io.values(groups["fit"])
    arrays = io.arrays(groups["parameters"])
    augmentation = io.arrays(groups["augmentation"])
    columns = {n: tuple(x) for n, x in io.values(groups["augmentation"]).items()}
    loadings = io.arrays(groups["loadings"])
    spread = io.arrays(groups["spread"])
    known = design_groups.parts_of_fit(groups)
    history = {n: _boolean(n, x) for n, x in io.arrays(groups["history"]).items()}
    program, totals = registry.find(plain["model"], "load(model").program, plain.get("totals")
    if program.depth.has_totals != (totals is not None):
        raise ValueError(f"fit must hold totals if its model has them; the model is {program.name}")
    channel = program.channel
    return {
        "fitted": io.to_fitted(groups["data"]),
        "model": plain["model"],
        "parameters": Parameters(
            arrays[names.MU],
            arrays[names.LOADINGS],
            arrays[names.RESIDUAL],
            channel.restore(io.arrays(groups["channel"])),
            known.effects,
            known.log_activity,
        ),
        "cells": CellPosterior(
            **{n: _boolean(n, x) for n, x in io.arrays(groups["cells"]).items()}
        ),
        "augmentation": Augmentation(
            augmentation["offset"],
            augmentation["scale"],
            Columns(**columns),
            known.covariates,
            known.indicators,
        ),
        "loadings": FittedLoadings(
            prior_of(io.values(groups["loadings"])),
            {n.removeprefix("scale_"): x for n, x in loadings.items() if n != "precision"},
            loadings["precision"],
        ),
        "spread": Spread(
            spread["normal"],
            {n.removesuffix("_sd"): x for n, x in spread.items() if n != "normal"},
            io.values(groups["spread"])["residual_shape"],
            known.prior,
        ),
        "history": History(**history),
        "capture_rule": CaptureRule(**plain["capture"]),
        "search": Search(**plain["search"]),
        "converged": plain["converged"],
        "frozen": tuple(plain["frozen"]),
        "match": plain["match"],
        "formula": known.formula,
        "datasets": known.datasets,
        "activity": known.activity,
        "totals": None if totals is None else Totals(**totals),
        **beliefs(groups.get("priors")),
    }


def draws_groups(posterior) -> io.Groups:
    """What a file of `PosteriorDraws` holds."""
    draws, sample = posterior.draws, ("chain", "draw")
    per_column = (*sample, *FACTOR)
    arrays = {
        names.MU: ((*sample, *GENE), draws.mu),
        names.LOADINGS: ((*sample, *GENE, *FACTOR), draws.W),
        names.RESIDUAL: ((*sample, *GENE), draws.d),
        "centre": (per_column, draws.centre),
        "pool": ((*sample, "quantity"), draws.pool),
        "accepted": ((*sample, "step"), draws.accepted),
    }
    plain = {"model": posterior.model, "converged": bool(posterior.fit_converged)}
    groups = {
        "data": io.of_fitted(posterior.fitted),
        "draws": io.group(arrays, plain),
        "channel": io.group({n: ((*sample, *GENE), x) for n, x in draws.channel.items()}),
        "scales": io.group(
            {n: (per_column if x.ndim > 2 else sample, x) for n, x in draws.scales.items()}
        ),
        "prior": io.group(
            {
                "reference": ((*GENE, *FACTOR), posterior.reference),
                "z_mean": ((*CELL, "column"), posterior.z_mean),
                "z_sd": ((*CELL, "column"), posterior.z_sd),
            },
            prior_values(posterior.prior),
        ),
    }
    return groups | design_groups.of_draws(posterior)


def draws_parts(groups: io.Groups) -> dict:
    """The fields of `PosteriorDraws`."""
    arrays, plain = io.arrays(groups["draws"]), io.values(groups["draws"])
    design = design_groups.parts_of_draws(groups, arrays[names.MU], arrays[names.LOADINGS])
    return {
        "fitted": io.to_fitted(groups["data"]),
        "model": plain["model"],
        "draws": Draws(
            arrays[names.MU],
            design.effects,
            design.scales,
            arrays[names.LOADINGS],
            arrays[names.RESIDUAL],
            io.arrays(groups["channel"]),
            arrays["centre"],
            io.arrays(groups["scales"]),
            arrays["pool"],
            _accepted(arrays["accepted"]),
            design.activity,
        ),
        "prior": prior_of(io.values(groups["prior"])),
        "fit_converged": plain["converged"],
        "formula": design.formula,
        "datasets": design.datasets,
        **io.arrays(groups["prior"]),
    }


def _accepted(shares: np.ndarray) -> np.ndarray:
    """Shares of accepted proposals; nbln 0.2.0 had those of rows and of overdispersions apart."""
    apart = shares.shape[-1] > len(Taken._fields)
    return np.delete(shares, 2, axis=-1) if apart else shares


def mcmc_groups(result) -> io.Groups:
    """What a file of draws of sites by NUTS holds, loadings prior aside."""
    sites, steps = (
        {str(n): (tuple(map(str, x.dims)), _plain(x.values)) for n, x in dataset.items()}
        for dataset in result.chains
    )
    return {
        "data": io.of_fitted(result.fitted),
        "sites": io.group(sites, {"model": result.model}),
        "steps": io.group(steps),
    }


def mcmc_parts(groups: io.Groups) -> dict:
    """The fields of draws of sites, loadings prior aside."""
    steps = groups["steps"].assign({n: groups["steps"][n].astype(bool) for n in STEP_FLAGS})
    return {
        "fitted": io.to_fitted(groups["data"]),
        "model": io.values(groups["sites"])["model"],
        "chains": Chains(groups["sites"].drop_attrs(), steps.drop_attrs()),
    }


def svi_groups(result) -> io.Groups:
    """What a file of an `SVIResult` holds."""
    plain = {
        "model": result.model,
        "parameterization": result.parameterization,
        "converged": bool(result.converged),
        "n_steps": result.n_steps,
        "posterior": type(result.posterior).__name__,
        "capture": result.capture_rule._asdict(),
    }
    arrays = {"losses": (("block",), result.losses), names.ETA: (CELL, result.known_eta)}
    posterior = result.posterior
    sites = {f"{n}_loc": (result.dims(n), x) for n, x in posterior.locations().items()}
    spread = {n: (dims, x) for n, (dims, x) in posterior.spreads(result.dims).items()}
    if posterior.eta is not None:
        loc, scale = posterior.eta
        sites |= {"eta_loc": (CELL, loc), "eta_scale": (CELL, scale)}
    groups = {
        "data": io.of_fitted(result.fitted),
        "fit": io.group(arrays, plain),
        "posterior": io.group(sites | spread),
    }
    return groups | design_groups.of_independent(result)


def svi_parts(groups: io.Groups) -> dict:
    """The fields of an `SVIResult`."""
    arrays, plain = io.arrays(groups["fit"]), io.values(groups["fit"])
    row = registry.find(plain["model"], "load(model")
    way = row.parameterizations[plain["parameterization"]]
    sites = [site.name for site in row.program.gene_sites(way)]
    saved = {name: jnp.asarray(x) for name, x in io.arrays(groups["posterior"]).items()}
    return {
        "fitted": io.to_fitted(groups["data"]),
        "model": plain["model"],
        "parameterization": plain["parameterization"],
        "posterior": POSTERIORS[plain["posterior"]].of(sites, saved),
        "capture_rule": CaptureRule(**plain["capture"]),
        "known_eta": arrays.get(names.ETA),
        "losses": arrays["losses"],
        "converged": plain["converged"],
        "n_steps": plain["n_steps"],
        "gene_effects": design_groups.gene_effects(groups),
    }


def prior_values(prior) -> dict:
    """A loadings prior as plain values: its type, its parameters, its shrinkage."""
    kinds = {kind: name for name, kind in registry.LOADINGS_PRIORS.items()}
    fields = [f.name for f in dataclasses.fields(prior) if f.name != "shrinkage"]
    return {
        "type": kinds[type(prior)],
        "parameters": {name: float(getattr(prior, name)) for name in fields},
        "shrinkage": dataclasses.asdict(prior.shrinkage),
    }


def prior_of(plain: dict):
    """The reverse of `prior_values`."""
    kind = registry.LOADINGS_PRIORS[plain["type"]]
    return kind(**plain["parameters"], shrinkage=Shrinkage(**plain["shrinkage"]))


def beliefs_group(priors: dict[str, Prior] | None, pooled: bool):
    """Priors of sites: a prior is its type and its fields, which may be priors themselves."""
    kinds, arrays = {}, {}

    def put(path, prior):
        kinds[path] = type(prior).__name__
        for field in dataclasses.fields(prior):
            value = getattr(prior, field.name)
            if isinstance(value, Prior):
                put(f"{path}.{field.name}", value)
            else:
                value = np.asarray(value)
                arrays[f"{path}.{field.name}"] = (GENE * value.ndim, value)

    for site, prior in (priors or {}).items():
        put(site, prior)
    return io.group(arrays, {"kinds": kinds, "pooled": pooled, "known": priors is not None})


def beliefs(dataset) -> dict:
    """The reverse of `beliefs_group`; nothing for a file without it."""
    if dataset is None or not io.values(dataset)["known"]:
        return {}
    kinds, arrays = io.values(dataset)["kinds"], io.arrays(dataset)

    def get(path):
        kind = PRIORS[kinds[path]]
        fields = [f"{path}.{field.name}" for field in dataclasses.fields(kind)]
        return kind(*(get(name) if name in kinds else jnp.asarray(arrays[name]) for name in fields))

    sites = {site: get(site) for site in kinds if "." not in site}
    return {"priors": sites, "pooled": io.values(dataset)["pooled"]}


def _plain(values):
    """Booleans as small integers, which NetCDF has."""
    return values.astype(np.int8) if values is not None and values.dtype == bool else values


def _boolean(name: str, values):
    return values.astype(bool) if name in BOOLEAN else values
