"""Covariates and data sets of a fit, and of draws, as groups of a file."""

from typing import NamedTuple

import numpy as np

from nbln import vocabulary as names
from nbln.data.datasets import Datasets
from nbln.data.formula import Formula
from nbln.inference.sampler.engine import without_activity, without_effects
from nbln.priors.activity import Activity, ActivityPrior, FittedActivity
from nbln.priors.effects import EffectScales, EffectsPrior, FittedEffects
from nbln.questions.effects import GeneEffects
from nbln.results import io

CELL, GENE, FACTOR = (names.CELL,), (names.GENE,), (names.FACTOR,)
COVARIATE, TERM = (names.COVARIATE,), (names.TERM,)
LEVEL, KEY = (names.LEVEL,), (names.KEY,)
SAMPLE = names.CHAIN, names.DRAW
# The groups; covariates of draws are called effects, since draws do not hold those of the cells.
COVARIATES, EFFECTS, DATASETS, ACTIVITY = "covariates", "effects", "datasets", "activity"


class FitDesign(NamedTuple):
    """What is known of the design of a fit; None where it has none of a kind."""

    formula: Formula | None = None
    effects: np.ndarray | None = None
    covariates: np.ndarray | None = None
    prior: FittedEffects | None = None
    datasets: Datasets | None = None
    activity: FittedActivity | None = None
    log_activity: np.ndarray | None = None
    indicators: np.ndarray | None = None


class DrawnDesign(NamedTuple):
    """The design of draws."""

    effects: np.ndarray
    scales: EffectScales
    activity: Activity
    formula: Formula | None
    datasets: Datasets | None


def of_fit(result) -> io.Groups:
    """The groups of a `LogNormalResult`."""
    groups = {}
    if result.formula is not None:
        arrays = _effect_arrays(result.parameters.effects, result.spread.effects.scales)
        arrays["values"] = ((*CELL, *COVARIATE), result.augmentation.covariates)
        groups[COVARIATES] = io.group(arrays, result.formula.plain())
    if result.datasets is not None:
        arrays = _activity_arrays(result.activity.activity)
        arrays["code"] = (CELL, np.argmax(result.augmentation.datasets, axis=1))
        groups[DATASETS] = io.group(arrays, result.datasets.plain())
    return groups


def parts_of_fit(groups: io.Groups) -> FitDesign:
    """The reverse of `of_fit`."""
    design = FitDesign()
    if COVARIATES in groups:
        dataset = groups[COVARIATES]
        arrays, formula = io.arrays(dataset), Formula.restore(io.values(dataset))
        prior = EffectsPrior(len(formula.fixed), formula.n_levels)
        design = design._replace(
            formula=formula,
            effects=arrays[names.EFFECTS],
            covariates=arrays["values"],
            prior=FittedEffects(prior, _effect_scales(arrays)),
        )
    if DATASETS in groups:
        dataset = groups[DATASETS]
        arrays, datasets = io.arrays(dataset), Datasets.restore(io.values(dataset))
        prior = ActivityPrior(datasets.levels, datasets.sizes)
        fitted = FittedActivity(prior, _activity(arrays))
        design = design._replace(
            datasets=datasets,
            activity=fitted,
            log_activity=np.asarray(fitted.log_activity),
            indicators=np.eye(len(datasets), dtype=np.float32)[arrays["code"].astype(int)],
        )
    return design


def of_independent(result) -> io.Groups:
    """The groups of an `SVIResult`."""
    if result.gene_effects is None:
        return {}
    formula, mean, sd, typical, values = result.gene_effects
    arrays = {
        names.EFFECTS: ((*GENE, *COVARIATE), mean),
        f"{names.EFFECTS}_sd": ((*GENE, *COVARIATE), sd),
        names.EFFECTS_TYPICAL: (TERM, typical),
        "values": ((*CELL, *COVARIATE), values),
    }
    return {COVARIATES: io.group(arrays, formula.plain())}


def gene_effects(groups: io.Groups) -> GeneEffects | None:
    """The reverse of `of_independent`; None for a file without any."""
    if COVARIATES not in groups:
        return None
    dataset = groups[COVARIATES]
    arrays, formula = io.arrays(dataset), Formula.restore(io.values(dataset))
    stored = (names.EFFECTS, f"{names.EFFECTS}_sd", names.EFFECTS_TYPICAL, "values")
    return GeneEffects(formula, *(arrays[name] for name in stored))


def of_draws(posterior) -> io.Groups:
    """The groups of `PosteriorDraws`."""
    groups, draws = {}, posterior.draws
    if posterior.formula is not None:
        arrays = _effect_arrays(draws.effects, draws.effect_scales, SAMPLE)
        groups[EFFECTS] = io.group(arrays, posterior.formula.plain())
    if posterior.datasets is not None:
        arrays = _activity_arrays(draws.activity, SAMPLE)
        groups[ACTIVITY] = io.group(arrays, posterior.datasets.plain())
    return groups


def parts_of_draws(groups: io.Groups, mu: np.ndarray, W: np.ndarray) -> DrawnDesign:
    """The reverse of `of_draws`."""
    (effects, scales), activity = without_effects(mu), without_activity(W)
    formula, datasets = None, None
    if EFFECTS in groups:
        arrays = io.arrays(groups[EFFECTS])
        effects, scales = arrays[names.EFFECTS], _effect_scales(arrays)
        formula = Formula.restore(io.values(groups[EFFECTS]))
    if ACTIVITY in groups:
        activity = _activity(io.arrays(groups[ACTIVITY]))
        datasets = Datasets.restore(io.values(groups[ACTIVITY]))
    return DrawnDesign(effects, scales, activity, formula, datasets)


def _effect_arrays(effects, scales: EffectScales, sample: tuple[str, ...] = ()) -> dict:
    """Effects and their scales, of a fit or of draws."""
    return {
        names.EFFECTS: ((*sample, *GENE, *COVARIATE), effects),
        names.EFFECTS_VARIANCE: ((*sample, *GENE, *TERM), scales.variance),
        names.EFFECTS_TYPICAL: ((*sample, *TERM), scales.typical),
    }


def _effect_scales(arrays: dict) -> EffectScales:
    return EffectScales(arrays[names.EFFECTS_VARIANCE], arrays[names.EFFECTS_TYPICAL])


def _activity_arrays(activity: Activity, sample: tuple[str, ...] = ()) -> dict:
    return {
        names.ACTIVITY_EFFECTS: ((*sample, *LEVEL, *FACTOR), activity.effects),
        names.ACTIVITY_VARIANCE: ((*sample, *KEY), activity.variance),
    }


def _activity(arrays: dict) -> Activity:
    return Activity(arrays[names.ACTIVITY_EFFECTS], arrays[names.ACTIVITY_VARIANCE])
