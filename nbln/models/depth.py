"""How the depth of a cell enters a log-normal model: in every count, or in the cell's total alone.

Where it enters the total alone, counts are multinomial given it. That needs no kernel of its own:
with an offset κ of each cell under a flat prior,

    ∫ Π_g Poisson(u_g | exp(x_g + κ)) dκ = Multinomial(u | L, softmax x) / L,

so that the Poisson channel with one flat column is the multinomial, exactly.
"""

import abc
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.posterior.mode import Augmentation, Columns
from nbln.priors.capture import Capture, CaptureRule, KnownCapture, LatentCapture

Fixed = tuple[Array, ...]


class Depth(abc.ABC):
    """What a model says of the depth of its cells; one object for all models that say the same."""

    # Whether cells have capture losses, and whether these may be fixed by library size.
    has_capture: ClassVar[bool]
    may_be_fixed: ClassVar[bool]
    # What a fit of independent genes may set, and whether one is fitted first unless asked not to.
    takes: ClassVar[tuple[str, ...]]
    begins_with_source: ClassVar[bool]
    # Whether the total of a cell has a distribution of its own, the counts being shares of it.
    has_totals: ClassVar[bool]

    @abc.abstractmethod
    def augment(self, capture: Capture) -> Augmentation:
        """What is added to the log-rates of cells with these capture losses."""

    @abc.abstractmethod
    def without_capture(self, library_size: np.ndarray) -> tuple[CaptureRule, str]:
        """The rule of cells that have no capture losses, and a sentence for the log."""

    @abc.abstractmethod
    def of_totals(self, capture: Capture) -> Capture:
        """The losses in the means of the cells' totals."""

    def fix(self, mu: Float[Array, "*draw gene"], *columns: Float[Array, "*draw gene _"]) -> Fixed:
        """Means, and columns beside them, less what is not identified; and what that takes away.

        The last is the part [of μ, of each column] that all genes share, which the depth of a cell
        at regressors v takes on as level · [1, v]; by default everything is identified.
        """
        n = 1 + sum(block.shape[-1] for block in columns)
        return mu, *columns, jnp.zeros((*mu.shape[:-1], n), mu.dtype)


class InCounts(Depth):
    """A capture loss η lowers every log-rate of its cell: x - η.

    A latent one is a column of -1 with a standardised coordinate; a known one is an offset.
    """

    has_capture = may_be_fixed = begins_with_source = True
    takes = (names.DISPERSION, names.MU, names.ETA)
    has_totals = False

    def augment(self, capture):
        if isinstance(capture, LatentCapture):
            column = Columns(value=(-1.0,), precision=(1.0,), truncated=(True,))
            return Augmentation(-capture.loc, capture.scale[:, None], column)
        return Augmentation.of_offset(-capture.expected())

    def without_capture(self, library_size):
        del library_size
        return CaptureRule(), "cells have no capture losses"

    def of_totals(self, capture):
        return capture


class Uncaptured(InCounts):
    """Whatever was there was counted."""

    has_capture = False


class InTotals(Depth):
    """Counts are shares of their total: a level that all log-rates of a cell have says nothing.

    So Σ_g μ_g = 0, and columns of W have mean 0.
    """

    begins_with_source = may_be_fixed = False
    has_totals = True

    def augment(self, capture):
        # The offset says where κ is about 0; since κ is free, it changes nothing else.
        offset = -capture.expected()
        column = Columns(value=(1.0,), precision=(0.0,), truncated=(False,))
        return Augmentation(offset, jnp.ones((*offset.shape, 1), offset.dtype), column)

    def without_capture(self, library_size):
        note = "depth of each cell found with its factors, by no capture prior"
        return CaptureRule.library_offset(library_size), note

    def fix(self, mu, *columns):
        mean = jnp.mean(mu, -1)[..., None]
        shared = [jnp.mean(block, -2) for block in columns]
        centred = [x - s[..., None, :] for x, s in zip(columns, shared, strict=True)]
        return mu - mean, *centred, jnp.concatenate([mean, *shared], axis=-1)


class UncapturedTotals(InTotals):
    """Totals of all cells have one mean."""

    has_capture = False
    takes = ()

    def of_totals(self, capture):
        return KnownCapture(jnp.zeros_like(capture.expected()))


class CapturedTotals(InTotals):
    """A capture loss η lowers the log mean of its cell's total."""

    has_capture = True
    takes = (names.ETA,)

    def of_totals(self, capture):
        return capture
