"""Small networks and data that the tests of auto-encoders with a code share."""

import jax
import numpy as np

import nbln
from nbln.vae.negbio.model import CodedArchitecture, Data, NegBio
from nbln.vae.negbio.start import Moments, network
from nbln.vae.negbio.words import CODES, CodeKind

N, FEATURES = 40, 12
QUICK = nbln.NegBioConfig(n_epochs=3, n_hidden=8, batch_size=16)
LIKELIHOODS = ("gaussian", "poisson", "nb", "bernoulli")
EVERY_CODE = tuple(CODES)


def data(likelihood: str, n: int = N, seed: int = 0) -> np.ndarray:
    """Numbers of the kind that a likelihood is of, of two groups of samples."""
    rng = np.random.default_rng(seed)
    rates = np.where(np.arange(n)[:, None] % 2, 1.0, 4.0) * rng.gamma(2.0, 0.5, (n, FEATURES))
    counts = rng.poisson(rates)
    counts[:, 0] += 1
    return {
        "gaussian": rates - 2.0,
        "poisson": counts,
        "nb": counts,
        "bernoulli": 1 - np.exp(-rates),
    }[likelihood].astype(np.float32)


def small(code: str = "nb", likelihood: str = "gaussian", elbo: str = "exact") -> NegBio:
    """Random weights."""
    kind = CodeKind(code, elbo, n_draws=5, n_terms=32, dispersion=1.0)
    of = CodedArchitecture(FEATURES, 3, 8, 1, 0.0, likelihood, kind)
    x = data(likelihood).astype(float)
    return network(of, Moments(x.mean(axis=0), x.var(axis=0)), seed=0)


def batch(likelihood: str, n: int = 6) -> Data:
    """Some samples."""
    return Data(jax.numpy.asarray(data(likelihood, n)), jax.numpy.ones(n))


def fit(x, **keywords):
    """A short fit."""
    defaults = dict(model="negbio_vae", latent_dim=3, progress=False, negbio=QUICK)
    return nbln.fit(x, **defaults | keywords)
