"""What a fitted decoder says of cells: expression, its parameters, the terms of the bound."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from nbln.posterior.cells import over_blocks
from nbln.questions.denoised import SCALES
from nbln.vae import refine
from nbln.vae.cells import Cells
from nbln.vae.likelihoods import Bound
from nbln.vae.objective import EvidenceBound, Terms
from nbln.vae.scvi import SCVI, Batch, Gaussian

RATE, LOG_RATE, SHARE = SCALES


class Latents(NamedTuple):
    """What the encoder says of each cell; arrays of the host."""

    z_mean: Float[np.ndarray, "cell factor"]
    z_variance: Float[np.ndarray, "cell factor"]
    # Of the natural log of the library size; the variance is 0 where it is observed.
    library_mean: Float[np.ndarray, " cell"]
    library_variance: Float[np.ndarray, " cell"]


def latents(model: SCVI, cells: Cells) -> Latents:
    """Of all cells, block by block."""
    return Latents(*over_blocks(lambda key, batch: _encoded(model, batch), cells.blocks()))


@eqx.filter_jit
def _encoded(model: SCVI, batch: Batch):
    z = model.encoder(batch.counts)[0]
    library = Gaussian(batch.log_library, jnp.zeros_like(batch.log_library))
    if model.library is not None:
        library = jax.tree.map(lambda x: x[:, 0], model.library(batch.counts)[0])
    return (*z, *library)


def refined(model: SCVI, cells: Cells) -> Float[np.ndarray, "cell factor"]:
    """Mode of each cell's z."""

    def visit(key, batch):
        del key
        return (refine.laplace(model, batch).mode,)

    (mode,) = over_blocks(visit, cells.blocks())
    return mode[:, : model.latent_dim]


def terms(model: SCVI, cells: Cells, n_samples: int, seed: int) -> Terms:
    """Parts of the evidence bound of each cell, means over draws."""

    def visit(key, batch):
        return _terms(model, batch, key, n_samples)

    return Terms(*over_blocks(visit, cells.blocks(), seed))


def terms_of(model: SCVI, batch: Batch, seed: int, n_samples: int = 10) -> Terms:
    """Of a few cells."""
    return _terms(model, batch, jax.random.key(seed), n_samples)


@eqx.filter_jit
def _terms(model: SCVI, batch: Batch, key: Array, n_samples: int) -> Terms:
    def one(key):
        return EvidenceBound().terms(model, batch, key, None)[0]

    drawn = lax.map(one, jax.random.split(key, n_samples))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), drawn)


def expression(
    model: SCVI,
    cells: Cells,
    genes: Int[np.ndarray, " gene"],
    scale: str,
    n_samples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of expression, (cell, gene) each.

    One sample is the decoder at the encoder's mean, whose standard deviation is 0; the pairs of
    `cells.known` and another batch say what the cells would look like there.
    """
    visit = _asked(model, genes, scale, n_samples)
    mean, sd = over_blocks(visit, cells.blocks(), seed)
    return mean, sd


def mean_expression(
    model: SCVI,
    cells: Cells,
    genes: Int[np.ndarray, " gene"],
    scale: str,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """The means of `expression` alone: standard deviations are as large, and need not be kept."""
    visit = _asked(model, genes, scale, n_samples)
    (mean,) = over_blocks(lambda key, batch: visit(key, batch)[:1], cells.blocks(), seed)
    return mean


def _asked(model: SCVI, genes: Int[np.ndarray, " gene"], scale: str, n_samples: int):
    """What gives mean and standard deviation of a block of cells."""
    places = jnp.asarray(genes)
    return lambda key, batch: _expression(model, batch, key, places, scale, n_samples)


@eqx.filter_jit
def _expression(model: SCVI, batch: Batch, key: Array, genes: Array, scale: str, n_samples: int):
    z, log_library = drawn_from(model, batch)

    def located(at, depth):
        f = model.decode(at, depth, batch)[0][:, genes]
        if scale == LOG_RATE:
            return f
        return jnp.exp(f - depth[:, None]) if scale == SHARE else jnp.exp(f)

    centre = located(z.mean, log_library.mean)
    if n_samples == 1:
        return centre, jnp.zeros_like(centre)

    def add(sums, key):
        first, second = jax.random.split(key)
        # About the centre, since squares of the values themselves leave no digits to the spread.
        x = located(z.draw(first), log_library.draw(second)) - centre
        return (sums[0] + x, sums[1] + x**2), None

    zero = jnp.zeros_like(centre)
    (first, second), _ = lax.scan(add, (zero, zero), jax.random.split(key, n_samples))
    shift = first / n_samples
    return centre + shift, jnp.sqrt(jnp.maximum(second / n_samples - shift**2, 0))


def drawn_from(model: SCVI, batch: Batch) -> tuple[Gaussian, Gaussian]:
    """The encoder's distributions of z and of the log library of cells."""
    encoded = _encoded(model, batch)
    return Gaussian(*encoded[:2]), Gaussian(*encoded[2:])


def parameters(model: SCVI, cells: Cells) -> dict[str, np.ndarray]:
    """Of each count's distribution at the encoder's mean: mean, dispersion and logit of a zero."""

    values = over_blocks(lambda key, batch: _parameters(model, batch), cells.blocks())
    return dict(zip(("mean", "dispersion", "dropout_logits"), values, strict=False))


@eqx.filter_jit
def _parameters(model: SCVI, batch: Batch) -> tuple[Array, ...]:
    z, log_library = drawn_from(model, batch)
    f, bound, _ = model.decode(z.mean, log_library.mean, batch)
    log_r, logits = (getattr(bound, name, None) for name in ("log_r", "logits"))
    theta = None if log_r is None else jnp.broadcast_to(jnp.exp(log_r), f.shape)
    return tuple(x for x in (jnp.exp(f), theta, logits) if x is not None)


@eqx.filter_jit
def decoded(model: SCVI, z: Array, log_library: Array, batch: Batch) -> tuple[Array, Bound]:
    """Log-rates of cells at z, and the distribution of counts given them."""
    f, bound, _ = model.decode(z, log_library, batch)
    return f, bound
