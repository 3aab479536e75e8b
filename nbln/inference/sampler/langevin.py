"""A Metropolis step of every gene at once, whose proposal is a Newton step with noise.

From θ with gradient g and precision H of the log-posterior there, propose
N(θ + a H⁻¹ g, a (2 - a) H⁻¹): with a = 1 the Gaussian of a Newton step, which would be an exact
draw if the posterior were Gaussian; with a < 1 it leaves such a posterior as it is, too, and moves
genes whose posterior is not. The way back is proposed with gradient and precision of its own start,
so that the posterior is left invariant (Roberts & Stramer 2002; Girolami & Calderhead 2011).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nbln.linalg import small

WHOLE_STEPS = 0.8  # share of proposals with a = 1
SHORT_STEP = 0.3  # a of the others

Vectors = Float[Array, "row gene"]


class Local(NamedTuple):
    """The Newton step at a point: H⁻¹ g, and H with what follows from it."""

    step: Vectors
    precision: Float[Array, "row row gene"]
    covariance: Float[Array, "row row gene"]
    log_det: Float[Array, " gene"]  # of the precision

    @classmethod
    def of(cls, gradient: Vectors, precision: Float[Array, "row row gene"]) -> "Local":
        """At a point with this gradient and precision of the log-posterior."""
        covariance, log_det = small.inverse_and_log_det(precision)
        return cls(small.multiply(covariance, gradient), precision, covariance, log_det)


class Proposal(NamedTuple):
    """Where each gene is to go, and how far along its Newton step."""

    move: Vectors
    length: Float[Array, " gene"]  # a
    log_density: Float[Array, " gene"]  # of the proposal, without constants


def propose(key: Array, local: Local) -> Proposal:
    """A proposal for every gene."""
    for_noise, for_length = jax.random.split(key)
    noise = jax.random.normal(for_noise, local.step.shape)
    whole = jax.random.uniform(for_length, local.log_det.shape) < WHOLE_STEPS
    a = jnp.where(whole, 1.0, SHORT_STEP)
    root = small.cholesky(local.covariance)
    move = a * local.step + jnp.sqrt(a * (2 - a)) * small.multiply(root, noise)
    return Proposal(move, a, 0.5 * local.log_det - 0.5 * jnp.sum(noise**2, axis=0))


def log_ratio(proposal: Proposal, back: Local) -> Float[Array, " gene"]:
    """Log-density of the way back over that of the proposal; `back` is the other end."""
    a = proposal.length
    away = -proposal.move - a * back.step
    square = jnp.sum(away * small.multiply(back.precision, away), axis=0) / (a * (2 - a))
    return 0.5 * back.log_det - 0.5 * square - proposal.log_density


def taken(key: Array, log_odds: Float[Array, " gene"]) -> Bool[Array, " gene"]:
    """Which genes go, given the log of what Metropolis and Hastings compare with 1.

    NaN compares false: a proposal that leaves the finite numbers is refused.
    """
    return jnp.log(jax.random.uniform(key, log_odds.shape)) < log_odds


def accept(
    key: Array, proposal: Proposal, back: Local, rise: Float[Array, " gene"]
) -> Bool[Array, " gene"]:
    """Which genes go; `rise` is the change of the log-posterior, `back` the other end."""
    return taken(key, rise + log_ratio(proposal, back))
