"""The basis of the factors: their mean and covariance go into μ, β and W, which turns to its axes.

Parameter expansion (Liu, Rubin & Wu 1998): after it, factors have mean 0 and covariance 1 over the
cells and are uncorrelated with covariates, so that none of these comes back as a program. With a
loadings prior this is not neutral; without it factors would shrink.

Where factors have standard deviations by data set, axes are identified, and from the time that the
activities are learned columns are only scaled and sorted.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.models.depth import Depth
from nbln.priors.activity import LogActivity, Spreads
from nbln.priors.effects import EffectsPrior
from nbln.priors.loadings import LoadingsPrior, Turn, sorted_turn
from nbln.priors.shrinkage import Phase

# Of the levels of random intercepts, relative to their cells: what it leaves of a level's mean is
# this share, and an iteration later this share of that; float32 inverts what it has made.
RIDGE = 1e-3


class Rotation(NamedTuple):
    """z ← matrix (z - shift [1, x]): how an update changes the meaning of the cells' factors.

    Extra columns take on level · [1, x, z], what was taken from the means, effects and loadings of
    all genes alike; it is 0 where that is identified.
    """

    matrix: Float[Array, "factor factor"]
    shift: Float[Array, "factor known"]
    level: Float[Array, " row"]

    @classmethod
    def identity(cls, n_factors: int, n_covariates: int) -> "Rotation":
        """No change."""
        nothing = jnp.zeros((n_factors, 1 + n_covariates))
        return cls(jnp.eye(n_factors), nothing, jnp.zeros(1 + n_covariates + n_factors))

    def __call__(
        self, z: Float[Array, "all_columns cell"], covariates: Float[Array, "cell covariate"]
    ) -> Float[Array, "all_columns cell"]:
        """Coordinates in the new basis."""
        k = len(self.shift)
        shift = self.shift[:, :1] + dot(self.shift[:, 1:], covariates.T)
        known = jnp.concatenate([covariates.T, z[:k]])
        risen = self.level[0] + dot(self.level[1:], known)
        return z.at[:k].set(dot(self.matrix, z[:k] - shift)).at[k:].add(risen)


class Expansion(NamedTuple):
    """Means, effects and loadings in the new basis, and the way there."""

    mu: Float[Array, " gene"]
    effects: Float[Array, "gene covariate"]
    W: Float[Array, "gene factor"]
    basis: Float[Array, "factor factor"]  # new loadings are old ones times it
    turn: Turn
    rotation: Rotation


def expand(
    mu: Float[Array, " gene"],
    effects: Float[Array, "gene covariate"],
    W: Float[Array, "gene factor"],
    moments: Float[Array, " moments"],
    prior: LoadingsPrior,
    phase: Phase,
    absorb_mean: bool,
    depth: Depth,
    prior_of_effects: EffectsPrior,
    by_dataset: tuple[Spreads, LogActivity] | None = None,
) -> Expansion:
    """Absorb mean and covariance of the factors; turn to the axes that the loadings prior asks for.

    Their mean is the regression on the covariates, if there are any. What the model's `depth` does
    not identify in means, effects and loadings goes to the cells first.

    Parameters
    ----------
    moments
        Σ over cells of [1, v, vvᵀ packed], v covariates and factors.
    absorb_mean
        False where μ is frozen: the factors then keep their mean.
    by_dataset
        Squares of factors in each of several data sets, and the activities they were taken at.
    """
    known = 1 + effects.shape[1]
    mu, effects, W, level = depth.fix(mu, effects, W)
    second = small.unpack_bordered(moments[None])[:, :, 0]
    if not absorb_mean:
        second = second.at[0].set(0).at[:, 0].set(0).at[0, 0].set(1)
    cross, covariates = second[known:, :known], second[:known, :known]
    # Levels add up to the mean or to other covariates: of all ways to say it, a short one is taken.
    random = jnp.arange(known) > prior_of_effects.n_fixed
    covariates = covariates + jnp.diag(jnp.where(random, RIDGE * jnp.diag(covariates), 0.0))
    inverse = small.inverse_and_log_det(covariates[:, :, None])[0][:, :, 0]
    shift = dot(cross, inverse)
    covariance = (second[known:, known:] - dot(shift, cross.T)) / moments[0]
    if by_dataset is not None:
        spreads, log_activity = by_dataset
        own = jnp.sum(spreads.squares * jnp.exp(-2 * log_activity), axis=0) / moments[0]
        covariance = jnp.where(phase.entry_by_entry, jnp.diag(own), covariance)
    moved = dot(W, shift)
    mu, effects = mu + moved[:, 0], effects + moved[:, 1:]
    root = small.cholesky(covariance[:, :, None])
    whiten = small.inverse_lower(root)[:, :, 0]
    W = dot(W, root[:, :, 0])
    turn = prior.turn(W, phase)
    if by_dataset is not None:
        turn = jax.tree.map(partial(jnp.where, phase.entry_by_entry), sorted_turn(W), turn)
    rotation = Rotation(dot(turn.axes.T, whiten), shift, level)
    return Expansion(mu, effects, dot(W, turn.axes), dot(root[:, :, 0], turn.axes), turn, rotation)
