"""The evidence of a cell, log p(u), with z integrated out: Laplace's, or by importance sampling."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from nbln.linalg import small
from nbln.posterior.cells import over_blocks
from nbln.vae import refine
from nbln.vae.cells import Cells
from nbln.vae.refine import Latent
from nbln.vae.scvi import SCVI, Batch

WIDER = 1.1  # of the proposals' standard deviations: tails of the posterior must be reached


@eqx.filter_jit
def log_ratios(
    model: SCVI, batch: Batch, latent: Latent, key: Array, n_draws: int
) -> Float[Array, "draw cell"]:
    """log p(u, x) - log q(x) at draws of the widened Laplace Gaussian q (nats)."""
    n = latent.mode.shape[1]

    def ratio(key):
        noise = jax.random.normal(key, (n, latent.mode.shape[0]))
        x = latent.mode + WIDER * small.multiply(latent.root, noise).T
        log_q = -0.5 * jnp.sum(noise**2, axis=0) - 0.5 * latent.log_det - n * np.log(WIDER)
        return refine.log_joint(model, batch, x) - log_q

    return lax.map(ratio, jax.random.split(key, n_draws))


def log_evidence_at(latent: Latent) -> Float[Array, " cell"]:
    """Laplace's approximation."""
    return latent.log_joint + 0.5 * latent.log_det


def log_evidence_of(model: SCVI, batch: Batch) -> Float[Array, " cell"]:
    """Of a few cells, Laplace's approximation (nats)."""
    return log_evidence_at(refine.laplace(model, batch))


def log_evidence(
    model: SCVI, cells: Cells, n_samples: int, seed: int
) -> Float[np.ndarray, " cell"]:
    """Log-evidence of each cell (nats); one sample is the Laplace approximation."""

    def visit(key, batch):
        latent = refine.laplace(model, batch)
        if n_samples == 1:
            return (log_evidence_at(latent),)
        ratios = log_ratios(model, batch, latent, key, n_samples)
        return (logsumexp(ratios, axis=0) - np.log(n_samples),)

    (values,) = over_blocks(visit, cells.blocks(), seed)
    return values
