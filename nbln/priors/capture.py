"""Capture: how much of a cell's mRNA was counted, as a loss η on the log scale."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

# Default standard deviation of the log mRNA content of a cell: a factor of 1.6 between cells.
SIGMA_M = 0.5
# Default mRNA content of a cell, counts: the order of magnitude of mammalian cells.
M0_FLOOR = 100_000.0


class Capture(eqx.Module):
    """The capture loss of every cell, e^{-η} the capture efficiency."""

    @abc.abstractmethod
    def take(self, index) -> "Capture":
        """The same for some of the cells."""

    @abc.abstractmethod
    def start(self) -> Float[Array, " cell"]:
        """A first value of η."""

    @abc.abstractmethod
    def expected(self) -> Float[Array, " cell"]:
        """The mean of η before truncation at 0, or its known value."""


class KnownCapture(Capture):
    """η is known: frozen from an earlier fit, or the library size."""

    eta: Float[Array, " cell"]

    def take(self, index):
        return KnownCapture(self.eta[index])

    def start(self):
        return self.eta

    def expected(self):
        return self.eta


class LatentCapture(Capture):
    """η ~ TruncatedNormal(loc, scale, low = 0), a latent variable of the cell."""

    loc: Float[Array, " cell"]
    scale: Float[Array, " cell"]

    def take(self, index):
        return LatentCapture(self.loc[index], self.scale[index])

    def start(self):
        return jnp.maximum(self.loc, 1e-3)

    def expected(self):
        return self.loc

    def distribution(self):
        """As a NumPyro distribution over cells."""
        return dist.TruncatedNormal(self.loc, self.scale, low=0.0)


class CaptureRule(NamedTuple):
    """How capture losses follow from library sizes L, of cells of a fit and of others.

    Where `log_m0` is given, η has mean log M₀ - log L and standard deviation `sigma_m` (natural
    log); where `loss` is, it has that mean in all cells. Where `log_library` is, it is known, η =
    `log_library` - log L, and may be negative. Without any nothing is lost: η is 0 in all cells,
    whatever their depth.
    """

    log_m0: float | None = None
    sigma_m: float | None = None
    log_library: float | None = None
    loss: float | None = None

    @classmethod
    def population(cls, eta: np.ndarray) -> "CaptureRule":
        """Cells of which nothing is known: losses like these, whatever the library size."""
        return cls(sigma_m=float(np.std(eta)), loss=float(np.mean(eta)))

    @classmethod
    def mrna_content(cls, library_size: np.ndarray) -> "CaptureRule":
        """The default: M₀ is the larger of 100,000 and twice the largest library."""
        return cls(float(np.log(max(M0_FLOOR, 2 * library_size.max()))), SIGMA_M)

    @classmethod
    def library_offset(cls, library_size: np.ndarray) -> "CaptureRule":
        """Fixed offsets by library size, 0 at its median."""
        return cls(log_library=float(np.log(np.median(library_size))))

    def of_part(self, share: float) -> "CaptureRule":
        """The rule for library sizes that hold this share of all counts."""
        shift = float(np.log(share))
        if self.log_m0 is not None:
            return self._replace(log_m0=self.log_m0 + shift)
        if self.log_library is not None:
            return self._replace(log_library=self.log_library + shift)
        return self

    @property
    def predicts_depth(self) -> bool:
        """Whether nobody tells how deep a cell is, so that a model has to predict it."""
        return self.log_library is None

    def expected(self, library_size: np.ndarray) -> np.ndarray:
        """The mean of η, before truncation at 0, or its known value."""
        if self.loss is not None:
            return np.full(len(library_size), self.loss)
        top = self.log_m0 if self.log_library is None else self.log_library
        if top is None:
            return np.zeros_like(library_size, np.float64)
        return top - np.log(library_size)

    def of(self, library_size: np.ndarray) -> Capture:
        """The capture losses of cells with these library sizes."""
        loc = jnp.asarray(self.expected(library_size), jnp.float32)
        if self.sigma_m is None:
            return KnownCapture(loc)
        return LatentCapture(loc, jnp.full(loc.shape, self.sigma_m, jnp.float32))
