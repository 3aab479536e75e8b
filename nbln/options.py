"""Keywords of `fit` into priors and the use of a source, or an error that says what to do."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from nbln import vocabulary as names
from nbln.arguments import check_whole, choose, choose_from
from nbln.cascade import KEYS, MATCHES, VERBATIM, CascadeConfig
from nbln.priors.capture import CaptureRule
from nbln.priors.loadings import LoadingsPrior
from nbln.priors.shrinkage import Shrinkage
from nbln.priors.sparse import HorseshoeSparse
from nbln.priors.univariate import Prior
from nbln.registry import LOADINGS_PRIORS, Row
from nbln.results.svi import SVIResult

LARGEST_LOG_M0 = math.log(1e12)  # a cell holds far fewer counts: whoever says more gave no log
MOST_SIGMA = 5.0  # standard deviations of M0 by which the largest library may exceed it
SHOWN = {names.ETA: "capture_efficiency", names.LOADINGS: "loadings"}  # as users call them


@dataclass(frozen=True)
class Priors:
    """The ``priors=`` argument, checked: sites by name, the loadings, the capture.

    Attributes
    ----------
    row
        The model.
    given
        Priors of sites that the user gave.
    loadings
        Prior of the loadings, given or default.
    capture_prior
        (log_M0, sigma_M), or None where the data decide.
    fixed_offset
        Whether capture was given as None: offsets fixed by library size.
    written
        The argument as the user wrote it, for the record.
    """

    row: Row
    given: Mapping[str, Prior]
    loadings: LoadingsPrior
    capture_prior: tuple[float, float] | None = None
    fixed_offset: bool = False
    written: str | None = None

    @classmethod
    def of(cls, row: Row, argument: Mapping[str, Any] | None) -> "Priors":
        """Check what the user gave.

        Raises
        ------
        ValueError
            An unknown key, a key together with its alias, a wrong tuple, an unknown type or
            parameter of the loadings prior.
        """
        if argument is not None and not isinstance(argument, Mapping):
            raise ValueError(f"fit(priors=): expected a dict, got {type(argument).__name__}")
        given = resolve_aliases("fit(priors", argument or {}, row)
        defaults = row.program.default_priors(1)
        keys = _keys(row)
        for key in given:
            if key not in keys:
                shown = [SHOWN.get(k, k) for k in keys]
                given_as = f"fit(priors={{{SHOWN.get(key, key)!r}: ...}}) of model {row.name}"
                choose_from(shown, key, given_as, "prior")
        sites = {s: _site_prior(s, given[s], type(defaults[s])) for s in defaults if s in given}
        capture = given.get(names.ETA)
        fixed_offset = names.ETA in given and capture is None
        if fixed_offset and not row.program.depth.may_be_fixed:
            raise ValueError(
                f"fit(priors={{'capture_efficiency': None}}) of model {row.name}: its capture "
                "losses are what totals depend on; give (log_M0, sigma_M), or model='lnm', which "
                "has none"
            )
        return cls(
            row,
            sites,
            _loadings(given.get(names.LOADINGS)),
            None if capture is None else _pair("capture_efficiency", capture),
            fixed_offset=fixed_offset,
            written=None if argument is None else repr(argument),
        )

    def sites(self, n_cells: int) -> dict[str, Prior]:
        """The prior of each site, given or default."""
        return self.row.program.default_priors(n_cells) | dict(self.given)

    def capture(self, library_size: np.ndarray) -> tuple[CaptureRule, str]:
        """How capture follows from library size, and a sentence for the log."""
        depth = self.row.program.depth
        if not depth.has_capture:
            return depth.without_capture(library_size)
        if self.fixed_offset:
            return CaptureRule.library_offset(library_size), "fixed offsets by library size"
        if self.capture_prior is not None:
            _check_capture(*self.capture_prior, float(library_size.max()))
            return CaptureRule(*self.capture_prior), "capture prior as given"
        rule = CaptureRule.mrna_content(library_size)
        return rule, (
            f"no capture prior given: M0 = {math.exp(rule.log_m0):,.0f} counts a cell (the larger "
            f"of 100,000 and twice the largest library), sigma_M = {rule.sigma_m}"
        )


def _keys(row: Row) -> tuple[str, ...]:
    """What a user may give a prior of."""
    capture = (names.ETA,) if row.has_capture else ()
    loadings = (names.LOADINGS,) if row.has_loadings else ()
    return (*row.program.default_priors(1), *capture, *loadings)


def resolve_aliases(argument: str, given: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """Keys as names of the model's sites.

    Raises
    ------
    ValueError
        A key together with its alias.
    """
    resolved: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in given.items():
        site = row.site(key)
        if site in resolved:
            raise ValueError(f"{argument}): {origin[site]!r} and {key!r} are the same; give one")
        resolved[site], origin[site] = value, key
    return resolved


def check_latent_dim(latent_dim: Any, n_cells: int, n_genes: int) -> int:
    """A whole number of factors, fewer than cells and than genes.

    Raises
    ------
    ValueError
        It is not, or there is a single gene.
    """
    whole = isinstance(latent_dim, int | np.integer) and not isinstance(latent_dim, bool)
    largest = min(n_cells, n_genes) - 1
    if largest < 1:
        raise ValueError(
            f"fit(adata): {n_cells} cells × {n_genes} genes with counts; gene programs need at "
            "least two of each. model='nbvcp' fits genes one by one"
        )
    if not whole or not 1 <= latent_dim <= largest:
        raise ValueError(
            f"fit(latent_dim={latent_dim!r}): must be a whole number from 1 to {largest}, fewer "
            f"than the {n_cells} cells and the {n_genes} genes (16 where it is not given)"
        )
    return int(latent_dim)


def cascade_config(
    row: Row, tau, freeze, match, n_samples, source: SVIResult | None = None
) -> CascadeConfig:
    """The ``informative_priors_*`` arguments, checked.

    Raises
    ------
    ValueError
        tau not positive, an unknown or repeated key, a key the model does not have, an unknown
        match, n_samples below 2.
    """
    sites = {*row.program.default_priors(1), names.ETA}
    takes = row.program.depth.takes
    has = [key for key in KEYS if key in sites and key in takes]
    offered = KEYS if source is None else source.keys
    if takes and source is not None and not set(has) & set(offered):
        raise ValueError(
            f"fit(informative_priors_from=): model {source.model} has {', '.join(offered)} to hand "
            f"over, of which {row.name} has nothing (it has {', '.join(has)}); give a fit of nbvcp"
        )
    if freeze is None:
        freeze = tuple(k for k in (names.DISPERSION, names.ETA) if k in has and k in offered)
    if isinstance(freeze, str):
        freeze = (freeze,)
    argument = "fit(informative_priors_freeze"
    if not isinstance(freeze, tuple | list | set) or not all(isinstance(k, str) for k in freeze):
        raise ValueError(f"{argument}={freeze!r}): expected names, of {', '.join(has)}")
    repeated = {key for key in freeze if list(freeze).count(key) > 1}
    if repeated:
        raise ValueError(f"{argument}={tuple(freeze)!r}): {sorted(repeated)[0]!r} is given twice")
    frozen = resolve_aliases(argument, dict.fromkeys(freeze), row)
    for key in frozen:
        if key not in has:
            choose_from(has, key, f"{argument}={key!r})", "key")
    missing = [key for key in frozen if key not in offered]
    if source is not None and missing:
        raise ValueError(
            f"{argument}={tuple(frozen)!r}): the source, model {source.model}, has no "
            f"{', '.join(missing)} to hand over (it has {', '.join(offered)}); leave it out, or "
            "give a fit of nbvcp"
        )
    if not isinstance(tau, numbers.Real) or isinstance(tau, bool) or not float(tau) > 0:
        raise ValueError(
            f"fit(informative_priors_tau={tau!r}): must be a positive number; inf uses the source "
            "for starting values and frozen keys only"
        )
    choose("fit(informative_priors_match", match, MATCHES)
    check_whole("fit(informative_priors_n_samples", n_samples, 2)
    return CascadeConfig(float(tau), tuple(frozen), match, int(n_samples))


def use_of_source(row: Row, arguments: Mapping[str, Any]) -> CascadeConfig:
    """How a source is used, checked; without one nothing may be said of it."""

    def config(tau, freeze, match):
        n_samples = arguments["informative_priors_n_samples"]
        return cascade_config(row, tau, freeze, match, n_samples, given)

    source = arguments["informative_priors_from"]
    given = source if isinstance(source, SVIResult) else None
    defaults = {"tau": 1.0, "freeze": None, "match": VERBATIM}
    asking = {f"informative_priors_{key}": default for key, default in defaults.items()}
    for name, default in {"informative_priors_from": False, **asking}.items():
        value = arguments[name]
        if not row.program.depth.takes and value is not None and differs(value, default):
            raise ValueError(
                f"fit({name}=...): model {row.name} has nothing to take over from a fit of "
                "independent genes; leave it out"
            )
    asked = config(*(arguments[f"informative_priors_{key}"] for key in defaults))
    if given is not None:
        return asked
    if source is not None and source is not False:
        raise TypeError(
            "fit(informative_priors_from=): expected the result of nbln.fit(adata, model='nbvcp'), "
            f"None or False; got {type(source).__name__}"
        )
    for key, default in defaults.items():
        value = arguments[f"informative_priors_{key}"]
        if differs(value, default):
            raise ValueError(
                f"fit(informative_priors_{key}={value!r}): it says how a source is used; give one "
                "with informative_priors_from=nbln.fit(adata, model='nbvcp')"
            )
    return asked


def check_taken(priors: Priors, cascade: CascadeConfig, source: SVIResult) -> None:
    """Raise for priors of what the source sets; they would say nothing.

    Raises
    ------
    ValueError
        Names the site and the ways out.
    """
    soft = np.isfinite(cascade.tau)
    takes = priors.row.program.depth.takes
    for site in (names.DISPERSION, names.MU):
        taken = site in takes and site in source.keys and (soft or site in cascade.freeze)
        if site in priors.given and taken:
            raise ValueError(
                f"fit(priors={{{site!r}: ...}}): informative_priors_from= sets {site}; leave its "
                "prior out, or take starting values only with informative_priors_tau=np.inf and "
                f"informative_priors_freeze= without {site!r}"
            )
    if names.ETA not in source.keys or not (soft or names.ETA in cascade.freeze):
        return
    rule, given = source.capture_rule, priors.capture_prior
    if not (rule.predicts_depth or priors.row.program.depth.may_be_fixed):
        raise ValueError(
            f"fit(informative_priors_from=): it has fixed offsets, and model {priors.row.name} "
            "needs capture losses; fit the source with a capture prior, or leave it out"
        )
    if priors.fixed_offset or (given is not None and given != (rule.log_m0, rule.sigma_m)):
        raise ValueError(
            "fit(priors={'capture_efficiency': ...}): capture losses are those of "
            "informative_priors_from=, which was fitted with another prior of them; fit the source "
            "with this one, or leave it out"
        )


def differs(value: Any, default: Any) -> bool:
    """Whether an argument was given as something else than its default; 1 is no other than 1.0."""
    if isinstance(value, bool) != isinstance(default, bool):
        return True
    same = value == default
    return not (isinstance(same, bool | np.bool_) and same)  # an array is no default


def _site_prior(site: str, value: Any, kind: Any) -> Prior:
    if not kind.form:
        raise ValueError(
            f"fit(priors={{{site!r}: ...}}): {site} is given by the model; leave it out"
        )
    first, second = _pair(site, value, kind.form)
    if kind.positive and first <= 0:
        raise ValueError(f"fit(priors={{{site!r}: {value!r}}}): both numbers must be positive")
    return kind(jnp.asarray(first), jnp.asarray(second))


def _pair(key: str, value: Any, form: str = "(log_M0, sigma_M)") -> tuple[float, float]:
    """Two finite numbers, the second positive."""
    try:
        first, second = (float(x) for x in value)
    except (TypeError, ValueError):
        first = second = math.nan
    if not (math.isfinite(first) and math.isfinite(second) and second > 0):
        raise ValueError(
            f"fit(priors={{{key!r}: {value!r}}}): expected {form}; two finite numbers, the second "
            "positive"
        )
    return first, second


def _check_capture(log_m0: float, sigma_m: float, largest: float) -> None:
    """Raise where no cell, or one at least, could have been captured like that."""
    given = f"fit(priors={{'capture_efficiency': ({log_m0:g}, {sigma_m:g})}})"
    if log_m0 > LARGEST_LOG_M0:
        raise ValueError(
            f"{given}: log_M0 is the natural log of the counts that a cell holds; is "
            f"(np.log({log_m0:g}), {sigma_m:g}) meant?"
        )
    if math.log(largest) - log_m0 > MOST_SIGMA * sigma_m:
        raise ValueError(
            f"{given}: M0 = {math.exp(log_m0):,.0f} counts a cell, and the largest library has "
            f"{largest:,.0f}; give the natural log of what a cell holds before capture"
        )


def _loadings(value: Any) -> LoadingsPrior:
    if value is None:
        return HorseshoeSparse()
    if isinstance(value, str):
        value = {"type": value}
    argument = "fit(priors={'loadings'"
    if not isinstance(value, Mapping) or "type" not in value:
        raise ValueError(
            f"{argument}: {value!r}}}): expected a dict such as {{'type': 'horseshoe_columnwise', "
            f"'tau_scale': 1.0}}; types are {', '.join(LOADINGS_PRIORS)}"
        )
    parameters = dict(value)
    name = parameters.pop("type")
    shown = f"{argument}: {{'type': {name!r}}}}})"
    kind = LOADINGS_PRIORS[choose_from(list(LOADINGS_PRIORS), name, shown, "type of prior")]
    shrinkage = parameters.pop("shrinkage", Shrinkage())
    if not isinstance(shrinkage, Shrinkage):
        raise TypeError(f"{argument}: ...}}): shrinkage={shrinkage!r} must be an nbln.Shrinkage")
    fields = [field.name for field in dataclasses.fields(kind) if field.name != "shrinkage"]
    accepted = fields if kind.floor is None else [*fields, kind.floor[0]]
    for name, number in parameters.items():
        if name not in accepted:
            raise ValueError(
                f"{argument}: ...}}): {value['type']} has no parameter {name!r}; "
                f"it has {', '.join(accepted) or 'none'}"
            )
        real = isinstance(number, numbers.Real) and not isinstance(number, bool)
        if not real or not 0 < float(number) < math.inf:
            raise ValueError(f"{argument}: ...}}): {name}={number!r} must be a positive number")
    if kind.floor is not None and kind.floor[0] in parameters:
        shrinkage = _with_floor(argument, shrinkage, *kind.floor, parameters)
    return kind(**{n: float(number) for n, number in parameters.items()}, shrinkage=shrinkage)


def _with_floor(argument: str, shrinkage: Shrinkage, name: str, power: int, parameters: dict):
    """The least scale of a column as the prior calls it, taken out of its parameters."""
    given, most = float(parameters.pop(name)), shrinkage.smallest_signal**power
    if given > most:
        raise ValueError(
            f"{argument}: ...}}): {name}={given:g} must not exceed {most:g}, below which a column "
            "carries no signal (nbln.Shrinkage(smallest_signal=...))"
        )
    return dataclasses.replace(shrinkage, smallest_scale=given ** (1 / power))
