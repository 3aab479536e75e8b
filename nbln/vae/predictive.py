"""Counts drawn from a fitted model, at the three levels of `nbln.questions.predictive`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from nbln.data.slices import slices
from nbln.questions.predictive import MARGINAL, PER_CELL, Sampler, block_cells
from nbln.vae.cells import Cells, Known, padded
from nbln.vae.decoded import Latents, decoded
from nbln.vae.scvi import SCVI, Batch


def sampler(model: SCVI, known: Known, latents: Latents, ppc_level: str, n_samples: int) -> Sampler:
    """Log-rates of draws and the distribution of counts given them.

    A fresh cell has the factors of some cell of the fit, drawn from what the encoder says of it
    (the aggregated posterior): the prior N(0, I) knows nothing of how common a cell type is, so
    that its draws would be of cells that nobody has seen. Depth and design are those of the cell in
    question (anchored), or of the one whose factors are drawn.
    """
    n_cells, k = latents.z_mean.shape
    size = block_cells(n_samples, n_cells, model.n_genes)  # one shape: the decoder is compiled once

    def rates(block, rng):
        n = block.stop - block.start
        own = np.arange(block.start, block.stop)
        for _ in range(n_samples):
            of = own if ppc_level == PER_CELL else rng.choice(n_cells, n)
            index = of if ppc_level == MARGINAL else own
            z = rng.standard_normal((n, k), np.float32)
            z = latents.z_mean[of] + np.sqrt(latents.z_variance[of]) * z
            depth = known.log_library[index]
            if ppc_level == PER_CELL:
                noise = rng.standard_normal(n, np.float32)
                depth = latents.library_mean[own] + np.sqrt(latents.library_variance[own]) * noise
            yield _rates(model, known, index, z, depth, size)

    return rates


def _rates(model: SCVI, known: Known, index, z, depth, size: int):
    """Log-rates of the cells with these numbers' design, and the distribution of counts."""
    n = len(index)
    given, z, depth = padded((known.take(index), z, depth), size)
    batch = given.batch(jnp.zeros((size, 0)), jnp.ones(size))
    f, bound = decoded(model, z, depth, batch)
    # What has a row for each cell loses its padding too.
    bound = jax.tree.map(lambda x: x[:n] if jnp.ndim(x) == 2 else x, bound)
    return np.asarray(f)[:n], bound


def _located(model: SCVI, known: Known, latents: Latents):
    """Log-rates of all cells at the encoder's means, their depth, the distribution of counts."""
    n_cells = len(latents.library_mean)
    size = block_cells(1, n_cells, model.n_genes)
    for block in slices(n_cells, size):
        index, depth = np.arange(n_cells)[block], latents.library_mean[block]
        f, bound = _rates(model, known, index, latents.z_mean[block], depth, size)
        yield f.astype(np.float64), depth[:, None], bound


def moments(model: SCVI, known: Known, latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each gene's counts in these cells, by the model at the encoder's mean.

    The law of total variance over cells: the mean of what counting adds, and the variance of rates.
    """
    n = len(latents.library_mean)
    first, second, within = np.zeros((3, model.n_genes))
    for f, _, bound in _located(model, known, latents):
        mean = np.asarray(getattr(bound, "mean", np.exp)(f))
        first += mean.sum(axis=0)
        second += (mean**2).sum(axis=0)
        within += np.asarray(bound.variance(f)).sum(axis=0)
    mean = first / n
    return mean, within / n + second / n - mean**2


def rate_spread(model: SCVI, known: Known, latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each gene's log share over cells, at the encoder's mean."""
    n = len(latents.library_mean)
    first, second = np.zeros((2, model.n_genes))
    for f, depth, _ in _located(model, known, latents):
        first += (f - depth).sum(axis=0)
        second += ((f - depth) ** 2).sum(axis=0)
    mean = first / n
    return mean, np.maximum(second / n - mean**2, 0)


def mean_log_theta(model: SCVI, known: Known, latents: Latents) -> np.ndarray:
    """Mean over cells of each gene's log dispersion, at the encoder's mean; Poisson: ∞."""
    total = np.zeros(model.n_genes)
    for f, _, bound in _located(model, known, latents):
        log_theta = np.asarray(getattr(bound, "log_r", np.inf), np.float64)
        total += np.broadcast_to(log_theta, f.shape).sum(axis=0)
    return total / len(latents.library_mean)


def log_likelihood(model: SCVI, cells: Cells, posterior: xr.Dataset) -> np.ndarray:
    """Log-probability of each cell's counts at draws of z and the library, (draw, cell) (nats)."""
    z, depth = (posterior[name].values[0].astype(np.float32) for name in ("z", "log_library"))
    values = np.empty(depth.shape, np.float32)
    for block, batch in cells.blocks():
        for i in range(len(z)):
            own, log_library = padded((z[i, block], depth[i, block]), len(batch.counts))
            nats = _log_likelihood(model, own, log_library, batch)
            values[i, block] = np.asarray(nats)[: block.stop - block.start]
    return values


@eqx.filter_jit
def _log_likelihood(model: SCVI, z, log_library, batch: Batch):
    f, bound, _ = model.decode(z, log_library, batch)
    return jnp.sum(bound.log_prob(batch.counts, f), axis=1)
