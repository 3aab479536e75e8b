"""The words of `fit` for codes and relaxations, and what they are."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from nbln.vae import codes
from nbln.vae.codes import RELAXATIONS, Code, Divergence, Relaxation


class CodeKind(NamedTuple):
    """Which code, as plain values, which a file can hold."""

    code: str  # of `CODES`
    elbo: str  # of `ELBOS`
    n_draws: int  # of the Monte Carlo divergence
    n_terms: int  # of the exact divergence
    dispersion: float  # r of the prior where training starts

    def start(self, latent_dim: int) -> Code:
        """The code before training."""
        return CODES[self.code](latent_dim, self)

    @property
    def divergence(self) -> Divergence:
        """How training computes that of negative-binomial codes; others have one way."""
        return ELBOS[self.elbo](self)


ELBOS: dict[str, Callable[[CodeKind], Divergence]] = {
    "dispersion_sharing": lambda kind: codes.DispersionSharing(),
    "monte_carlo": lambda kind: codes.MonteCarlo(kind.n_draws),
    "exact": lambda kind: codes.ExactSum(kind.n_terms),
}
CODES: dict[str, Callable[[int, CodeKind], Code]] = {
    "nb": lambda n, kind: codes.NegativeBinomialCode.start(
        n, kind.divergence, math.log(kind.dispersion)
    ),
    "poisson": lambda n, kind: codes.PoissonCode.start(n),
    "gaussian": lambda n, kind: codes.GaussianCode.start(n),
    "laplace": lambda n, kind: codes.LaplaceCode.start(n),
    "categorical": lambda n, kind: codes.CategoricalCode.start(n),
}

_RELAXED: dict[str, Callable[..., Relaxation]] = dict(RELAXATIONS)


class Relaxing(NamedTuple):
    """How draws are relaxed in the course of a training."""

    word: str  # of `RELAXATIONS`
    n_counts: int
    straight_through: bool
    first: float  # temperatures
    last: float

    def at(self, share: Array) -> Relaxation:
        """Once this share of the steps is done."""
        temperature = jnp.asarray(self.first + (self.last - self.first) * share, jnp.float32)
        return _RELAXED[self.word](temperature, self.n_counts, self.straight_through)
