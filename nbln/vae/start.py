"""Where training starts: dispersions and shares by moments, or the loadings of a log-normal fit."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nbln.vae.cells import Cells
from nbln.vae.scvi import SCVI, Gaussian

# Bounds of a dispersion by moments: beyond, a gene's counts are Poisson, or too few to tell.
LEAST_THETA, MOST_THETA = 0.05, 100.0
LEAST_LOG_VARIANCE = -30.0  # far below what an encoder adds to its variance
LEAST_COUNTS = 0.5  # in place of none


def moments(cells: Cells) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """Log share of all counts, and log θ by moments, of each gene.

    θ = Σ μ² / Σ [(u - μ)² - μ], with μ the gene's share of the cell's total.
    """
    counts: Any = cells.counts
    share = np.maximum(counts.gene_totals, LEAST_COUNTS)
    share = share / share.sum()
    excess = np.zeros(counts.n_genes)
    squares = float(np.sum(np.exp(2 * cells.known.log_library.astype(np.float64))))
    for block, batch in cells.blocks():
        rows = np.asarray(batch.counts[: block.stop - block.start], np.float64)
        mean = np.exp(cells.known.log_library[block].astype(np.float64))[:, None] * share
        excess += np.sum((rows - mean) ** 2 - mean, axis=0)
    theta = squares * share**2 / np.maximum(excess, 1e-12)
    theta = np.where(excess > 0, theta, MOST_THETA)
    return np.log(share), np.log(np.clip(theta, LEAST_THETA, MOST_THETA))


def at_moments(model: SCVI, log_share, log_theta) -> SCVI:
    """The model with these shares in its output's bias, and these dispersions.

    An encoder of the library starts at the prior: from 0 on, a few hundred steps did not bring it
    to the log totals, and cells were predicted half as deep as they are.
    """

    def level(m: SCVI):
        return m.likelihood.dispersion.level  # type: ignore[union-attr]

    model = eqx.tree_at(lambda m: m.decoder.share.bias, model, jnp.asarray(log_share, jnp.float32))
    if model.library is not None:
        model = eqx.tree_at(_library_biases, model, _at_prior(model.library_prior))
    if model.likelihood.dispersion is None:
        return model
    own = jnp.broadcast_to(jnp.asarray(log_theta, jnp.float32), level(model).shape)
    return eqx.tree_at(level, model, own)


def _library_biases(model: SCVI):
    library = model.library
    assert library is not None, "asked only where the library is latent"
    return library.mean.bias, library.log_variance.bias


def _at_prior(prior: Gaussian):
    return jnp.mean(prior.mean)[None], jnp.log(jnp.mean(prior.variance))[None]


def without_draws(model: SCVI) -> SCVI:
    """The model whose encoders have the least variance, and keep it where nothing moves it.

    An auto-encoder is judged at the encoder's mean alone: its variances would stay at random, and
    with them all that draws are made for.
    """

    def heads(m: SCVI):
        encoders = [m.encoder] if m.library is None else [m.encoder, m.library]
        layers = [one.log_variance for one in encoders]
        return [x for layer in layers for x in (layer.weight, layer.bias)]

    # A matrix is of weights, a vector of biases.
    still = [jnp.full_like(x, LEAST_LOG_VARIANCE * (jnp.ndim(x) == 1)) for x in heads(model)]
    return eqx.tree_at(heads, model, still)


def at_loadings(model: SCVI, result: Any, gene_names: np.ndarray) -> SCVI:
    """The model with the loadings, means and overdispersion of a log-normal fit in its decoder.

    Its largest programs become the first factors. What genes vary by on their own, d, joins the
    dispersion: 1 + 1/θ = e^d (1 + 1/r).

    Raises
    ------
    ValueError
        The fit has other genes.
    """
    if not np.array_equal(result.fitted.gene_names, gene_names):
        raise ValueError(
            "fit(start=): the fit that it starts from has other genes, or in another order; fit it "
            "to the same genes"
        )
    W = result.get_W_compositional().values
    k = model.latent_dim
    order = np.argsort(-np.sum(W**2, axis=0), kind="stable")[:k]
    loadings = np.zeros((len(W), k), np.float32)
    loadings[:, : len(order)] = W[:, order]
    d = np.asarray(result.d, np.float64)
    noise = np.asarray(result.parameters.channel.noise(), np.float64)
    log_mean = np.asarray(result.mu, np.float64) + d / 2
    log_share = log_mean - np.log(np.sum(np.exp(log_mean)))
    theta = 1 / np.maximum(np.expm1(d + np.log1p(noise)), 1e-12)
    model = at_moments(model, log_share, np.log(np.clip(theta, LEAST_THETA, MOST_THETA)))
    if model.decoder.loadings is not None:
        return eqx.tree_at(lambda m: m.decoder.loadings, model, jnp.asarray(loadings))
    rest = jnp.asarray(model.decoder.share.weight)[:, k:]
    weight = jnp.hstack([jnp.asarray(loadings), rest])
    return eqx.tree_at(lambda m: m.decoder.share.weight, model, weight)
