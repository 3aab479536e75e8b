"""Capture: how much of a cell's mRNA was counted, as a loss η on the log scale."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

SIGMA_M = 0.5  # default standard deviation of the log mRNA content of a cell
M0_FLOOR = 100_000.0  # default mRNA content of a cell, counts


class Capture(eqx.Module):
    """The capture loss of every cell, e^{-η} the capture efficiency."""

    @abc.abstractmethod
    def take(self, index) -> "Capture":
        """The same for some of the cells."""

    @abc.abstractmethod
    def start(self) -> Float[Array, " cell"]:
        """A first value of η."""


class KnownCapture(Capture):
    """η is known: frozen from an earlier fit, or the library size."""

    eta: Float[Array, " cell"]

    def take(self, index):
        return KnownCapture(self.eta[index])

    def start(self):
        return self.eta


class LatentCapture(Capture):
    """η ~ TruncatedNormal(loc, scale, low = 0), a latent variable of the cell."""

    loc: Float[Array, " cell"]
    scale: Float[Array, " cell"]

    def take(self, index):
        return LatentCapture(self.loc[index], self.scale[index])

    def start(self):
        return jnp.maximum(self.loc, 1e-3)

    def distribution(self):
        """As a NumPyro distribution over cells."""
        return dist.TruncatedNormal(self.loc, self.scale, low=0.0)


def library_size_offset(library_size: np.ndarray) -> KnownCapture:
    """Fixed offsets by library size: η = log(median L) - log L, which may be negative."""
    eta = np.log(np.median(library_size)) - np.log(library_size)
    return KnownCapture(jnp.asarray(eta, jnp.float32))


def capture_prior(library_size: np.ndarray, log_m0: float, sigma_m: float) -> LatentCapture:
    """η with mean log M₀ - log L and standard deviation σ_M (natural log)."""
    loc = log_m0 - np.log(library_size)
    return LatentCapture(jnp.asarray(loc, jnp.float32), jnp.full(loc.shape, sigma_m, jnp.float32))


def default_log_m0(library_size: np.ndarray) -> float:
    """log M₀ when the user gives none: the larger of 100,000 and twice the largest library."""
    return float(np.log(max(M0_FLOOR, 2 * library_size.max())))
