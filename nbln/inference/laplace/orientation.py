"""The signs of programs, which the model leaves free: the heavier tail of a factor is positive.

A program that few cells use strongly then reads as present in these, not as absent in the others.
"""

from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from nbln.linalg import small
from nbln.posterior.cells import CellPosterior
from nbln.posterior.mode import Parameters
from nbln.priors.loadings import FittedLoadings


class Signed(NamedTuple):
    """What of a fit changes with the signs of its programs."""

    parameters: Parameters
    loadings: FittedLoadings
    cells: CellPosterior
    normal: Float[Array, "gene moments"]  # precision of [μ, β, W], packed

    def oriented(self) -> "Signed":
        """The same fit, third moments of all factors not negative."""
        W = np.asarray(self.parameters.W)
        n_factors = W.shape[1]
        z = self.cells.z[:, :n_factors]
        sign = np.where(np.sum(z.astype(np.float64) ** 3, axis=0) < 0, -1.0, 1.0).astype(W.dtype)
        known = small.bordered_rows(self.normal.shape[1]) - n_factors
        rows = np.concatenate([np.ones(known, W.dtype), sign])
        columns = np.ones(self.cells.z.shape[1], W.dtype)
        columns[:n_factors] = sign
        scales, centre = self.loadings.scales, self.loadings.prior.centre
        if centre is not None:
            scales = scales | {centre: scales[centre] * sign}
        return Signed(
            eqx.tree_at(lambda p: p.W, self.parameters, self.parameters.W * sign),
            self.loadings._replace(scales=scales),
            self.cells._replace(z=self.cells.z * columns),
            self.normal * small.bordered_products(rows),
        )
