"""The basis of the factors: their mean and covariance go into μ and W, which turns to its axes.

Parameter expansion (Liu, Rubin & Wu 1998): after it, factors have mean 0 and covariance 1 over the
cells. With a loadings prior this is not neutral; without it factors would shrink.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.models.depth import Depth
from nbln.priors.loadings import LoadingsPrior, Turn
from nbln.priors.shrinkage import Phase


class Rotation(NamedTuple):
    """z ← matrix (z - shift): how an update changes the meaning of the cells' factors.

    Extra columns take on level · [1, z], what was taken from all genes' means and loadings alike;
    it is 0 where that is identified.
    """

    matrix: Float[Array, "factor factor"]
    shift: Float[Array, " factor"]
    level: Float[Array, " row"]

    @classmethod
    def identity(cls, n_factors: int) -> "Rotation":
        """No change."""
        return cls(jnp.eye(n_factors), jnp.zeros(n_factors), jnp.zeros(1 + n_factors))

    def __call__(self, z: Float[Array, "all_columns cell"]) -> Float[Array, "all_columns cell"]:
        """Coordinates in the new basis."""
        k = self.shift.shape[0]
        risen = self.level[0] + dot(self.level[1:], z[:k])
        return z.at[:k].set(dot(self.matrix, z[:k] - self.shift[:, None])).at[k:].add(risen)


class Expansion(NamedTuple):
    """Means and loadings in the new basis, and the way there."""

    mu: Float[Array, " gene"]
    W: Float[Array, "gene factor"]
    basis: Float[Array, "factor factor"]  # new loadings are old ones times it
    turn: Turn
    rotation: Rotation


def expand(
    mu: Float[Array, " gene"],
    W: Float[Array, "gene factor"],
    moments: Float[Array, " moments"],
    prior: LoadingsPrior,
    phase: Phase,
    absorb_mean: bool,
    depth: Depth,
) -> Expansion:
    """Absorb mean and covariance of the factors; turn to the axes that the loadings prior asks for.

    What the model's `depth` does not identify in means and loadings goes to the cells first.

    Parameters
    ----------
    moments
        Σ over cells of [1, z, zzᵀ packed].
    absorb_mean
        False where μ is frozen: the factors then keep their mean.
    """
    k = W.shape[1]
    mu, W, level = depth.fix(mu, W)
    mean = moments[1 : k + 1] / moments[0]
    covariance = small.unpack(moments[k + 1 :, None])[:, :, 0] / moments[0]
    if absorb_mean:
        covariance = covariance - jnp.outer(mean, mean)
        mu = mu + dot(W, mean)
    else:
        mean = jnp.zeros_like(mean)
    root = small.cholesky(covariance[:, :, None])
    whiten = small.inverse_lower(root)[:, :, 0]
    W = dot(W, root[:, :, 0])
    turn = prior.turn(W, phase)
    rotation = Rotation(dot(turn.axes.T, whiten), mean, level)
    return Expansion(mu, dot(W, turn.axes), dot(root[:, :, 0], turn.axes), turn, rotation)
