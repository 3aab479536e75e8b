"""What a fitted encoder and decoder say of samples: codes, reconstructions, bounds."""

import abc
from collections.abc import Iterator
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from nbln.data.doors import Data as Table
from nbln.data.slices import slices
from nbln.posterior.cells import over_blocks
from nbln.questions.predictive import PER_CELL, Sampler, block_cells
from nbln.vae.cells import Cells, padded
from nbln.vae.codes import Posterior
from nbln.vae.negbio.model import Alone, Data, NegBio, prior_draws
from nbln.vae.negbio.observed import Counted, bounded
from nbln.vae.objective import Terms

Host = Float[np.ndarray, "cell ..."]
Said = Float[np.ndarray, "cell head latent"]  # by an encoder


def cells_of(data: Table) -> Cells:
    """Samples as the engine sees them."""
    return Cells(data, Alone())


def heads(model: NegBio, cells: Cells) -> Said:
    """What the encoder says of each sample."""
    return over_blocks(lambda key, batch: (_heads(model, batch),), cells.blocks())[0]


@eqx.filter_jit
def _heads(model: NegBio, batch: Data) -> Array:
    return model.encode(batch.x)[0]


class Visit(eqx.Module):
    """Something asked of each sample's code; an object, so that it is compiled once."""

    @abc.abstractmethod
    def __call__(self, model: NegBio, key: Array, q: Posterior) -> tuple[Array, ...]:
        """Answers for samples whose codes are `q`, samples first."""


class _Moments(Visit):
    def __call__(self, model, key, q):
        return q.mean, q.variance


class _Draws(Visit):
    n_samples: int = eqx.field(static=True)

    def __call__(self, model, key, q):
        drawn = lax.map(lambda key: q.draw(key, None), jax.random.split(key, self.n_samples))
        return (jnp.moveaxis(drawn, 0, 1),)


class _Means(Visit):
    n_samples: int = eqx.field(static=True)

    def __call__(self, model, key, q):
        keys = jax.random.split(key, self.n_samples)
        drawn = lax.map(lambda key: _decoded(model, q.draw(key, None)), keys)
        return (jnp.mean(drawn, axis=0),)


class _AtMean(Visit):
    def __call__(self, model, key, q):
        return (_decoded(model, q.mean),)


class _Divergences(Visit):
    def __call__(self, model, key, q):
        return (q.divergence(model.code.prior()),)


class _Dispersions(Visit):
    def __call__(self, model, key, q):
        return (jnp.broadcast_to(q.dispersion, q.mean.shape),)


class _DataMoments(Visit):
    def __call__(self, model, key, q):
        f = model.decode(q.draw(key, None))[0]
        return model.observed.mean(f), model.observed.variance(f)


class _LogRates(Visit):
    def __call__(self, model, key, q):
        return (bounded(model.decode(q.draw(key, None))[0]),)


def _decoded(model: NegBio, z: Array) -> Array:
    return model.observed.mean(model.decode(z)[0])


@eqx.filter_jit
def _visited(visit: Visit, model: NegBio, key: Array, said: Array) -> tuple[Array, ...]:
    return visit(model, key, model.code.posterior(said))


def by_block(
    model: NegBio, said: Said, visit: Visit, seed: int = 0
) -> Iterator[tuple[slice, list[Host]]]:
    """What `visit` gives for samples of which the encoder said this, block by block."""
    size = block_cells(1, len(said), max(model.n_features, said[0].size))
    for block in slices(len(said), size):
        key = jax.random.fold_in(jax.random.key(seed), block.start)
        found = _visited(visit, model, key, padded(said[block], size))
        yield block, [np.asarray(x)[: block.stop - block.start] for x in found]


def by_cell(model: NegBio, said: Said, visit: Visit, seed: int = 0) -> list[Host]:
    """The same for all samples."""
    parts = [found for _, found in by_block(model, said, visit, seed)]
    return [np.concatenate(x) for x in zip(*parts, strict=True)]


def divergences(model: NegBio, said: Said) -> Float[np.ndarray, "cell latent"]:
    """KL divergence of each latent of each sample from the prior (nats)."""
    return by_cell(model, said, _Divergences())[0]


def dispersions(model: NegBio, said: Said) -> Float[np.ndarray, "cell latent"]:
    """r of each latent of each sample, of a code of counts."""
    return by_cell(model, said, _Dispersions())[0]


def moments(model: NegBio, said: Said) -> tuple[Host, Host]:
    """Mean and variance of each latent in each sample."""
    mean, variance = by_cell(model, said, _Moments())
    return mean, variance


def draws(model: NegBio, said: Said, n_samples: int, seed: int) -> Host:
    """Exact draws of each sample's code, (draw, cell, latent); of categories one axis more."""
    return np.moveaxis(by_cell(model, said, _Draws(n_samples), seed)[0], 1, 0)


def reconstructions(model: NegBio, said: Said, n_samples: int, seed: int) -> Host:
    """Decoded means, averaged over exact draws of the code; with 0 draws, at its mean."""
    visit = _Means(n_samples) if n_samples else _AtMean()
    return by_cell(model, said, visit, seed)[0]


@eqx.filter_jit
def of_prior(model: NegBio, n: int, seed: int, noise: bool) -> Float[Array, "sample feature"]:
    """Decoded means at draws of the prior, or draws of data."""
    first, second = jax.random.split(jax.random.key(seed))
    f = model.decode(prior_draws(model.code.prior(), first, n))[0]
    drawn = model.observed.distribution(f).sample(second) if noise else model.observed.mean(f)
    return jnp.asarray(drawn)


def terms(model: NegBio, cells: Cells, n_samples: int, seed: int) -> Terms:
    """Parts of the evidence bound of each cell at exact draws, means over them."""
    found = over_blocks(
        lambda key, batch: _terms(model, batch, key, n_samples), cells.blocks(), seed
    )
    return Terms(*found)


@eqx.filter_jit
def _terms(model: NegBio, batch: Data, key: Array, n_samples: int) -> Terms:
    q = model.posterior(batch.x)

    def one(key):
        f, _ = model.decode(q.draw(key, None))
        return jnp.sum(model.observed.log_prob(batch.x, f), axis=1)

    drawn = lax.map(one, jax.random.split(key, n_samples))
    divergence = jnp.sum(q.divergence(model.code.prior()), axis=1)
    return Terms(jnp.mean(drawn, axis=0), divergence, jnp.zeros_like(divergence))


def importance(
    model: NegBio, cells: Cells, n_samples: int, seed: int
) -> Float[np.ndarray, " cell"]:
    """The importance-weighted bound of each cell (nats): Burda, Grosse & Salakhutdinov (2016)."""

    def visit(key, batch):
        return (_importance(model, batch, key, n_samples),)

    return over_blocks(visit, cells.blocks(), seed)[0]


@eqx.filter_jit
def _importance(model: NegBio, batch: Data, key: Array, n_samples: int) -> Array:
    q, prior = model.posterior(batch.x), model.code.prior()

    def ratio(key):
        z = q.draw(key, None)
        f, _ = model.decode(z)
        own = jnp.sum(model.observed.log_prob(batch.x, f), axis=1)
        return own + jnp.sum(prior.log_prob(z) - q.log_prob(z), axis=1)

    ratios = lax.map(ratio, jax.random.split(key, n_samples))
    return logsumexp(ratios, axis=0) - np.log(n_samples)


def log_likelihood(model: NegBio, z: np.ndarray, cells: Cells) -> np.ndarray:
    """Log probability of each sample at draws of its code, (draw, cell) (nats)."""
    values = np.empty(z.shape[:2], np.float32)
    for block, batch in cells.blocks():
        for i, drawn in enumerate(z):
            nats = _log_likelihood(model, padded(drawn[block], len(batch.x)), batch)
            values[i, block] = np.asarray(nats)[: block.stop - block.start]
    return values


@eqx.filter_jit
def _log_likelihood(model: NegBio, z: Array, batch: Data) -> Array:
    return jnp.sum(model.observed.log_prob(batch.x, model.decode(z)[0]), axis=1)


def sampler(model: NegBio, said: Said, ppc_level: str, n_samples: int) -> Sampler:
    """Log-rates of predictive counts, and their channel.

    A fresh cell has the code of some cell of the fit, as in the other amortised models; the
    prior's own draws are what `sample_prior` is for.
    """
    n_cells, observed = len(said), cast(Counted, model.observed)
    size = block_cells(n_samples, n_cells, model.n_features)

    def rates(block, rng):
        n = block.stop - block.start
        own = np.arange(block.start, block.stop)
        for _ in range(n_samples):
            of = own if ppc_level == PER_CELL else rng.choice(n_cells, n)
            key = jax.random.key(int(rng.integers(2**31)))
            f = np.asarray(_rates(model, padded(said[of], size), key))[:n]
            yield f.astype(np.float64), observed.channel

    return rates


@eqx.filter_jit
def _rates(model: NegBio, said: Array, key: Array) -> Array:
    z = model.code.posterior(said).draw(key, None)
    return bounded(model.decode(z)[0])


def data_moments(model: NegBio, said: Said, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each feature by the model in these samples, at a draw of each code.

    The law of total variance: the mean of the variances, and the variance of the means.
    """
    mean, within, n = _Running(model.n_features), np.zeros(model.n_features), len(said)
    for _, (means, variances) in by_block(model, said, _DataMoments(), seed):
        mean.add(means)
        within += variances.sum(axis=0, dtype=np.float64)
    return mean.first / n, within / n + mean.variance(n)


def rate_spread(
    model: NegBio, said: Said, depth: Float[np.ndarray, " cell"], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over cells of each gene's log-rate less the log `depth` of the cell."""
    share = _Running(model.n_features)
    for block, (f,) in by_block(model, said, _LogRates(), seed):
        share.add(f - depth[block, None])
    return share.first / len(said), share.variance(len(said))


class _Running:
    """Sums over samples of each feature and of its square."""

    def __init__(self, n_features: int):
        self.first, self.second = np.zeros((2, n_features))

    def add(self, values: Host) -> None:
        """Of some samples."""
        self.first += values.sum(axis=0, dtype=np.float64)
        self.second += np.square(values, dtype=np.float64).sum(axis=0)

    def variance(self, n: int) -> np.ndarray:
        """Over all n samples."""
        return np.maximum(self.second / n - (self.first / n) ** 2, 0)
