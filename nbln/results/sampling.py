"""From a fit to the sampler, and from its draws to a result."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import choose
from nbln.inference import overdispersion
from nbln.inference.checkpoint import Saver
from nbln.inference.sampler import engine
from nbln.inference.sampler.engine import Draws, SamplerConfig, Start
from nbln.models.depth import Depth
from nbln.posterior.mode import Parameters
from nbln.priors.activity import Activity, FittedActivity
from nbln.priors.effects import FittedEffects
from nbln.priors.loadings import FittedLoadings
from nbln.questions.diagnostics import doubts
from nbln.results.log_normal import LogNormalResult
from nbln.results.posterior import PosteriorDraws

LATENT, SOURCE = "latent", "source"

log = logging.getLogger(__name__)


def sample(
    result: LogNormalResult, config: SamplerConfig, capture, progress: bool, checkpoint, counts
) -> PosteriorDraws:
    """See `LaplaceResult.sample_posterior`."""
    choose("sample_posterior(capture", capture, (LATENT, SOURCE))
    data = result.fitted.data(counts)
    start = _start(result, data, capture)
    with Saver(checkpoint) as saver:
        samples = engine.sample(data, start, config, progress, saver)
    settings = {
        **result.fitted.settings,
        "n_warmup": config.n_warmup,
        "seed": config.seed,
        "capture": capture,
    }
    fitted = replace(result.fitted, settings=settings, seconds={"sampling": samples.seconds})
    posterior = PosteriorDraws(
        fitted=fitted,
        model=result.model,
        draws=_fixed(samples.draws, registry.find(result.model).program.depth),
        prior=start.loadings.prior,
        reference=np.asarray(start.parameters.W),
        z_mean=samples.z_mean,
        z_sd=samples.z_sd,
        formula=result.formula,
        datasets=result.datasets,
        fit_converged=result.converged,
    )
    for doubt in doubts(posterior.summary()):
        log.warning("sample_posterior: %s", doubt)
    return posterior


def _fixed(draws: Draws, depth: Depth) -> Draws:
    """Draws with what is not identified in means and loadings at 0."""
    mu, effects, W, level = map(np.asarray, depth.fix(draws.mu, draws.effects, draws.W))
    centre = draws.centre - level[..., 1 + effects.shape[-1] :]
    return draws._replace(mu=mu, effects=effects, W=W, centre=centre)


def _start(result: LogNormalResult, data, capture: str) -> Start:
    """Columns that carry signal, one at least: where there is none, one may yet be found."""
    columns = slice(0, max(1, result.w_prior_diagnostics["effective_rank"]))
    parameters = jax.tree.map(jnp.asarray, result.parameters)
    parameters = Parameters(
        parameters.mu,
        parameters.W[:, columns],
        parameters.d,
        parameters.channel,
        parameters.effects,
        parameters.log_activity[:, columns],
    )
    activity = _activity(result.activity, columns, parameters.W.shape[1])
    effects = result.spread.effects or FittedEffects.none(len(parameters.mu))
    fitted = result.loadings
    scales = {n: jnp.asarray(x) for n, x in fitted.scales.items()}
    scales = {n: x[columns] if x.ndim else x for n, x in scales.items()}
    loadings = FittedLoadings(fitted.prior, scales, jnp.asarray(fitted.precision)[:, columns])
    variance = jnp.sum(parameters.W**2, axis=1) + parameters.d
    program = registry.find(result.model).program
    priors = result.priors or program.default_priors(data.n_cells)
    priors = {site: prior.at(variance) for site, prior in priors.items()}
    held = names.DISPERSION in result.frozen
    coordinates = overdispersion.of_channel(parameters.channel, held)
    pooling = overdispersion.Given(coordinates, priors)
    if result.pooled:
        pooling = coordinates.pooling()
    augmentation, offset_sd = result.augmentation, np.zeros(data.n_cells, np.float32)
    source = result.cascade_source
    if source is not None and not augmentation.columns.value and result.capture_rule.predicts_depth:
        if capture == LATENT:
            latent = program.augment(result.capture_rule.of(data.library_size))
            augmentation = latent._replace(
                covariates=augmentation.covariates, datasets=augmentation.datasets
            )
        else:
            offset_sd = source.posterior.eta_moments()[1].astype(np.float32)
    return Start(
        parameters,
        loadings,
        priors[names.MU],
        jax.tree.map(jnp.asarray, effects),
        activity,
        coordinates,
        pooling,
        augmentation,
        offset_sd,
    )


def _activity(fitted: FittedActivity | None, columns: slice, n_factors: int) -> FittedActivity:
    """That of some columns."""
    prior, activity = FittedActivity.none(n_factors) if fitted is None else fitted
    effects, variance = jax.tree.map(jnp.asarray, activity)
    return FittedActivity(prior, Activity(effects[:, columns], variance))
