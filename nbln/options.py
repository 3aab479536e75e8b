"""Keywords of `fit` into models, priors and configurations, or an error that says what to do."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nbln import vocabulary as names
from nbln.inference.cascade import KEYS, MATCHES, CascadeConfig
from nbln.inference.guides import GUIDES
from nbln.models.nbvcp import PARAMETERIZATIONS
from nbln.priors.capture import CaptureRule
from nbln.priors.loadings import LOADINGS_PRIORS, HorseshoeSparse, LoadingsPrior
from nbln.priors.univariate import Beta, InverseGamma, LogNormal, Normal, Prior

ENGINES = {"nbvcp": ("svi",), "pln": ("laplace",), "nbln": ("laplace",)}
SITES = {
    "nbvcp": (names.MEAN, names.DISPERSION, names.ODDS, names.PROBABILITY),
    "pln": (names.MU, names.RESIDUAL),
    "nbln": (names.MU, names.DISPERSION, names.RESIDUAL),
}

DEFAULTS: dict[str, Prior] = {
    names.MEAN: LogNormal(0.0, 10.0),
    names.MU: Normal(0.0, 10.0),
    names.DISPERSION: LogNormal(math.log(5.0), 2.0),
    names.ODDS: LogNormal(0.0, 10.0),
    names.PROBABILITY: Beta(1.0, 1.0),
}
LARGEST_LOG_M0 = math.log(1e12)
MOST_SIGMA = 5.0  # by which the largest library may exceed M0
_SHOWN = {names.ETA: "capture_efficiency", names.LOADINGS: "loadings"}
RESIDUAL_MODE = 0.1


def residual_prior(model: str, n_cells: int) -> InverseGamma:
    """The default prior of d: mode 0.1, and where r is learned too, worth one cell in fifty.

    Counts say how large d + 1/r is, and next to nothing about its parts: log d and log r are
    correlated 0.9 and more at every depth. What they seem to say grows with the cells and is
    biased by the Laplace approximation, toward d; so the prior that decides has to grow as well.
    Its mode was chosen by recovery of known correlations, over sizes of simulated data. Without
    r, as in PLN, counts determine d, and the prior is weak.
    """
    shape = 2 + (n_cells / 100 if names.DISPERSION in SITES[model] else 0)
    return InverseGamma(shape, RESIDUAL_MODE * (shape + 1))


FORMS = {
    Normal: "(loc, scale): mean and standard deviation",
    LogNormal: "(loc, scale): mean and standard deviation of the natural log",
    InverseGamma: "(shape, rate): mode rate / (shape + 1)",
    Beta: "(a, b)",
}


def choose(argument: str, value: Any, accepted: Iterable[str]) -> str:
    """`value` if it is accepted.

    Raises
    ------
    ValueError
        It is not; the message lists what is and guesses what was meant.
    """
    what = argument.removeprefix("fit(").split("=")[0].replace("_", " ")
    return _accepted(value, list(accepted), f"{argument}={value!r})", what)


def _accepted(value: Any, accepted: list[str], given: str, what: str) -> str:
    """`value` if it is accepted; `given` is how the user wrote it, `what` it should have been."""
    if isinstance(value, str) and value in accepted:
        return value
    near = difflib.get_close_matches(str(value), accepted, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{given}: unknown {what}; choose one of {', '.join(accepted)}{hint}")


def check_engine(model: str, inference_method: str | None) -> str:
    """The engine of a model, or an error that lists the pairs that exist."""
    engines = ENGINES[choose("fit(model", model, ENGINES)]
    if inference_method is None:
        return engines[0]
    every = sorted({engine for pair in ENGINES.values() for engine in pair})
    choose("fit(inference_method", inference_method, every)
    if inference_method not in engines:
        pairs = ", ".join(f"{m} + {e}" for m, known in ENGINES.items() for e in known)
        raise ValueError(
            f"fit(model={model!r}, inference_method={inference_method!r}): no such pair; "
            f"there are {pairs}"
        )
    return inference_method


def check_unknown(unknown: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise for keywords that `fit` does not have."""
    for keyword in unknown:
        near = difflib.get_close_matches(keyword, list(known), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"fit({keyword}=...): unknown keyword{hint}; known: {', '.join(known)}")


def check_latent_dim(latent_dim: Any, n_cells: int, n_genes: int) -> int:
    """A whole number of factors, fewer than cells and than genes."""
    whole = isinstance(latent_dim, int | np.integer) and not isinstance(latent_dim, bool)
    largest = min(n_cells, n_genes) - 1
    if not whole or not 1 <= latent_dim <= largest:
        raise ValueError(
            f"fit(latent_dim={latent_dim!r}): must be a whole number from 1 to {largest}, fewer "
            f"than the {n_cells} cells and the {n_genes} genes (16 where it is not given)"
        )
    return int(latent_dim)


def configure(config, given: Any, argument: str, **overrides):
    """The engine's settings: its defaults or `given`, with the direct keywords on top."""
    if given is None:
        given = config()
    if not isinstance(given, config):
        raise TypeError(
            f"fit({argument}=): expected a {config.__name__}, got {type(given).__name__}"
        )
    known = {field.name for field in dataclasses.fields(config)}
    chosen = {}
    for name, value in overrides.items():
        if value is None:
            continue
        if name not in known:
            raise ValueError(f"fit({name}={value!r}): the {argument} engine has no such setting")
        smallest = 0 if name == "tol" else 1
        kind = numbers.Real if name == "tol" else numbers.Integral
        if not isinstance(value, kind) or isinstance(value, bool) or value < smallest:
            raise ValueError(
                f"fit({name}={value!r}): must be a "
                f"{'number' if name == 'tol' else 'whole number'} of at least {smallest}"
            )
        chosen[name] = value
    if "guide" in known:
        choose("fit(svi=SVIConfig(guide", given.guide, GUIDES)
    return dataclasses.replace(given, **chosen)


def check_parameterization(model: str, parameterization: str | None):
    """The parameterization object of NBVCP; None for models that have one way only."""
    if model != "nbvcp":
        if parameterization is not None:
            raise ValueError(
                f"fit(parameterization={parameterization!r}): model {model} has one "
                "parameterization; leave it out, or give it to the nbvcp source"
            )
        return None
    chosen = "mean_disp" if parameterization is None else parameterization
    return PARAMETERIZATIONS[choose("fit(parameterization", chosen, PARAMETERIZATIONS)]()


class Priors:
    """The ``priors=`` argument, checked: sites by name, the loadings, the capture.

    Raises
    ------
    ValueError
        An unknown key, a key together with its alias, a wrong tuple, an unknown type or parameter
        of the loadings prior.
    """

    def __init__(self, model: str, given: Mapping[str, Any] | None):
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"fit(priors=): expected a dict, got {type(given).__name__}")
        given = resolve_aliases("fit(priors", given or {}, model)
        known = (*SITES[model], names.ETA, *((names.LOADINGS,) if model != "nbvcp" else ()))
        shown = [_SHOWN.get(key, key) for key in known]
        for key in given:
            if key not in known:
                _accepted(key, shown, f"fit(priors={{{key!r}: ...}})", "prior")
        self._given = {s: _site_prior(s, given[s]) for s in SITES[model] if s in given}
        self._model = model
        self.loadings = _loadings(given.get(names.LOADINGS))
        self.has_capture = names.ETA in given
        capture = given.get(names.ETA)
        self._capture = None if capture is None else _pair("capture_efficiency", capture)

    def take_capture(self, other: "Priors") -> None:
        """Use the capture prior of another model's priors."""
        self.has_capture, self._capture = other.has_capture, other._capture

    def sites(self, n_cells: int) -> dict[str, Prior]:
        """The prior of every site, given or default."""
        defaults = {**DEFAULTS, names.RESIDUAL: residual_prior(self._model, n_cells)}
        return {site: defaults[site] for site in SITES[self._model]} | self._given

    @property
    def fixed_offset(self) -> bool:
        """Whether capture was given as None: a fixed offset by library size."""
        return self.has_capture and self._capture is None

    def capture(self, library_size: np.ndarray) -> tuple[CaptureRule, str]:
        """How capture follows from library size, and a sentence for the log."""
        if self.fixed_offset:
            return CaptureRule.library_offset(library_size), "fixed offsets by library size"
        if self._capture is not None:
            _check_capture(*self._capture, float(library_size.max()))
            return CaptureRule(*self._capture), "capture prior as given"
        rule = CaptureRule.mrna_content(library_size)
        return rule, (
            f"no capture prior given: M0 = {math.exp(rule.log_m0):,.0f} counts a cell (the larger "
            f"of 100,000 and twice the largest library), sigma_M = {rule.sigma_m}"
        )


def resolve_aliases(argument: str, given: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Keys as names of sites; in NBVCP the mean expression is `mean`."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in given.items():
        site = names.ALIASES.get(key, key) if isinstance(key, str) else key
        if model == "nbvcp" and site == names.MU and key != names.MU:
            site = names.MEAN
        if site in found:
            raise ValueError(f"{argument}): {origin[site]!r} and {key!r} are the same; give one")
        found[site], origin[site] = value, key
    return found


def cascade_config(model: str, tau, freeze, match, n_samples) -> CascadeConfig:
    """The ``informative_priors_*`` arguments, checked.

    Raises
    ------
    ValueError
        tau not positive, an unknown or repeated key, a key the model does not have, an unknown
        match, n_samples below 2.
    """
    has = [key for key in KEYS if model == "nbln" or key != names.DISPERSION]
    if freeze is None:
        freeze = tuple(key for key in (names.DISPERSION, names.ETA) if key in has)
    if isinstance(freeze, str):
        freeze = (freeze,)
    argument = "fit(informative_priors_freeze"
    repeated = {key for key in freeze if list(freeze).count(key) > 1}
    if repeated:
        raise ValueError(f"{argument}={tuple(freeze)!r}): {sorted(repeated)[0]!r} is given twice")
    sites = resolve_aliases(argument, dict.fromkeys(freeze), model)
    for key in sites:
        if key not in has:
            choose(argument, key, has)
    if not isinstance(tau, numbers.Real) or not float(tau) > 0:
        raise ValueError(
            f"fit(informative_priors_tau={tau!r}): must be a positive number; inf uses the source "
            "for starting values and frozen keys only"
        )
    choose("fit(informative_priors_match", match, MATCHES)
    if not isinstance(n_samples, numbers.Integral) or n_samples < 2:
        raise ValueError(f"fit(informative_priors_n_samples={n_samples!r}): must be at least 2")
    return CascadeConfig(float(tau), tuple(sites), match, int(n_samples))


def _site_prior(site: str, value: Any) -> Prior:
    kind: Any = InverseGamma if site == names.RESIDUAL else type(DEFAULTS[site])
    first, second = _pair(site, value, FORMS[kind])
    if kind in (InverseGamma, Beta) and first <= 0:
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
    kind = LOADINGS_PRIORS[_accepted(name, list(LOADINGS_PRIORS), shown, "type of prior")]
    known = [field.name for field in dataclasses.fields(kind)]
    for name, number in parameters.items():
        if name not in known:
            raise ValueError(
                f"{argument}: ...}}): {value['type']} has no parameter {name!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        if not isinstance(number, numbers.Real) or not 0 < float(number) < math.inf:
            raise ValueError(f"{argument}: ...}}): {name}={number!r} must be a positive number")
    return kind(**{name: float(number) for name, number in parameters.items()})
