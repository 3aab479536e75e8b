"""The program that log-normal models share; they differ in the distribution of a count."""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.models.base import LogNormalModel, Site, sample_capture, sample_site
from nbln.posterior.mode import Augmentation, Columns
from nbln.priors.capture import Capture, LatentCapture

SITES = (
    Site(names.LOADINGS, (names.GENE, names.FACTOR), "loadings; only W less column means matters"),
    Site(names.RESIDUAL, (names.GENE,), "variance of the gene's own log-rate"),
    Site(names.MU, (names.GENE,), "mean log-rate (natural log)"),
)
CELL_SITES = (
    Site(names.ETA, (names.CELL,), "capture loss, capture efficiency exp(-eta)"),
    Site(names.LOG_RATE, (names.CELL, names.GENE), "log-rate before capture"),
)


def program(
    model: LogNormalModel,
    counts: Float[Array, "cell gene"],
    parameters: tuple[str, ...],
    observe: Callable[..., dist.Distribution],
) -> None:
    """x ~ N(μ, W Wᵀ + diag(d)), u ~ observe(x - η, **parameters): the NumPyro program."""
    n_cells, n_genes = counts.shape
    scales = {}
    for name, distribution in model.loadings.sites(model.latent_dim):
        scales[name] = numpyro.sample(name, distribution(scales))
    shape = (n_genes, model.latent_dim)
    flat = dist.ImproperUniform(dist.constraints.real, (), event_shape=shape)
    W = numpyro.sample(names.LOADINGS, flat)
    numpyro.factor("W_prior", model.loadings.log_density(W, scales))
    d = sample_site(names.RESIDUAL, model.priors[names.RESIDUAL], (n_genes,))
    variance = jnp.sum(W**2, axis=1) + d
    values = {
        name: sample_site(name, model.priors[name].at(variance), (n_genes,))
        for name in (names.MU, *parameters)
    }
    mu = values.pop(names.MU)
    eta = sample_capture(names.ETA, model.capture)
    with numpyro.plate(names.CELL, n_cells):
        x = numpyro.sample(names.LOG_RATE, dist.LowRankMultivariateNormal(mu, W, d))
        f = x - jnp.asarray(eta)[:, None]
        numpyro.sample(names.COUNTS, observe(f, **values).to_event(1), obs=counts)


def sites(model: LogNormalModel, parameters: tuple[Site, ...]) -> tuple[Site, ...]:
    """All sites of a log-normal model, its channel's parameters among them."""
    scales = tuple(
        Site(name, () if name in ("tau", "gamma") else (names.FACTOR,), "scale of the loadings")
        for name, _ in model.loadings.sites(model.latent_dim)
    )
    return (*scales, *SITES, *parameters, *CELL_SITES)


def augmentation(capture: Capture) -> Augmentation:
    """A latent capture loss is a column of -1 with a standardised coordinate; a known one, none."""
    if isinstance(capture, LatentCapture):
        column = Columns(value=(-1.0,), precision=(1.0,), truncated=(True,))
        return Augmentation(-capture.loc, capture.scale[:, None], column)
    eta = capture.start()
    return Augmentation(-eta, jnp.zeros((*eta.shape, 0)), Columns())
