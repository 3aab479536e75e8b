"""The row [μ, β, w] of each gene: a weighted regression on the cells' covariates and factors."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.posterior.mode import Parameters
from nbln.priors.loadings import Rows
from nbln.priors.univariate import Prior, SmoothPrior

# A gene whose mean goes back by more than this (natural log) is damped: an order of magnitude above
# the tolerance of a fit, so that settled means are left alone.
TURNING = 0.05
# Least share of its step that a gene takes. The basis rescales all loadings in each iteration, so a
# row that took no step would grow without bound; at a quarter none did on simulated counts.
SHORTEST = 0.25
# A damped gene's share grows by a fifth in each iteration without turning back, in eight to all.
RECOVERY = 1.2
# A gene moves [μ, w] at most this far in one iteration, natural log: beyond, its regression on a
# working response extrapolates from cells that hardly express it.
LARGEST_MOVE = 2.0


class Damping(NamedTuple):
    """How far each gene may go: half as far each time that its mean turns back."""

    move: Float[Array, " gene"]  # of μ in the last iteration
    length: Float[Array, " gene"]  # share of a step that is taken

    @classmethod
    def start(cls, n_genes: int) -> "Damping":
        """Full steps."""
        return cls(jnp.zeros(n_genes), jnp.ones(n_genes))

    def after(self, move: Float[Array, " gene"]) -> "Damping":
        """The shares for a step that would move the means by `move`."""
        back = (move * self.move < 0) & (jnp.abs(move) > TURNING)
        length = jnp.where(back, self.length / 2, RECOVERY * self.length)
        return Damping(move, jnp.clip(length, SHORTEST, 1))


class Regression(NamedTuple):
    """New means, effects and loadings in the old basis, and the posterior that they come from."""

    mu: Float[Array, " gene"]
    effects: Float[Array, "gene covariate"]
    W: Float[Array, "gene factor"]
    effects_variance: Float[Array, "gene covariate"]
    rows: Rows
    damping: Damping
    shortened: Bool[Array, " gene"]  # genes that did not take their whole step


def regress(
    old: Parameters,
    normal: Float[Array, "gene moments"],
    response: Float[Array, "gene regressors"],
    mean_prior: Prior,
    effect_precision: Float[Array, "gene covariate"],
    precision: Float[Array, "gene factor"],
    damping: Damping,
) -> Regression:
    """Rows of all genes, under a Gaussian prior of the loadings around free centres b.

    Effects of a covariate are Gaussian around 0.

    Parameters
    ----------
    old
        The parameters that `normal` and `response` were summed at.
    normal
        (gene, moments) Σ S [1, v, vvᵀ], packed, v covariates and factors.
    response
        (gene, 1 + covariate + factor) Σ q [1, v], the right-hand side for the change of μ and of
        the effects, and for w.
    mean_prior
        Of μ at the genes' variances.
    effect_precision
        (gene, covariate) of the effects' prior.
    precision
        (gene, factor) of the loadings' prior, in the basis of `old`.
    """
    mu, k = old.mu, old.W.shape[1]
    N, rhs = small.unpack_bordered(normal), response.T
    if mean_prior.frozen:
        held = jnp.broadcast_to(mean_prior.mode(), mu.shape)
        rhs = (rhs - N[0] * (held - mu)).at[0].set(0)
        N = N.at[0].set(0).at[:, 0].set(0).at[0, 0].set(1)
        mu = held
    else:
        assert isinstance(mean_prior, SmoothPrior), "μ moves by Newton steps"
        gradient, curvature = mean_prior.penalty(mu)
        N, rhs = N.at[0, 0].add(curvature), rhs.at[0].add(gradient)
    w = len(N) - k  # where the factors begin
    known, certain = jnp.arange(1, w), effect_precision.T
    N = N.at[known, known].add(certain)
    rhs = rhs.at[known].add(-certain * old.effects.T)
    covariance, diagonal = small.inverse_with_diagonal(N, precision)
    plain = small.multiply(covariance, rhs)
    weighted = diagonal[:, None] * covariance
    b = _centres(N, weighted, jnp.sum(diagonal * plain, axis=1)[w:], precision)
    theta = plain + jnp.sum(weighted[w:].swapaxes(0, 1) * b[:, None], axis=1)
    move = theta.at[w:].add(-old.W.T)
    length = jnp.sqrt(jnp.sum(move**2, axis=0))
    clipped = jnp.minimum(1, LARGEST_MOVE / jnp.maximum(length, 1e-12))
    move = move * clipped
    damping = damping.after(move[0])
    move = move * damping.length
    rows = Rows(theta[w:].T, covariance[w:, w:], b, precision)
    shortened = clipped * damping.length < 1
    effects, variance = old.effects + move[1:w].T, covariance[known, known].T
    W = old.W + move[w:].T
    return Regression(mu + move[0], effects, W, variance, rows, damping, shortened)


def _centres(
    N: Float[Array, "row row gene"],
    weighted: Float[Array, "row row gene"],
    rhs: Float[Array, " factor"],
    precision: Float[Array, "gene factor"],
) -> Float[Array, " factor"]:
    """The free means b of the loadings' prior, all genes together.

    They solve Σ_g [Λ - Λ(N+Λ)⁻¹Λ] b = Σ_g Λ (N+Λ)⁻¹ r, w-block; `weighted` is Λ (N+Λ)⁻¹, `rhs` the
    right-hand side. The bracket is Λ (N+Λ)⁻¹ N, without the cancellation; scaled to the size of the
    entries on both sides it is well conditioned.
    """
    bracket = jnp.einsum("ijg,jlg->il", weighted, N, precision="highest")
    w = len(N) - precision.shape[1]
    bracket = bracket[w:, w:]
    size = jnp.mean(precision, axis=0)
    unit = jnp.where(size > 0, 1 / jnp.sqrt(size), 1.0)
    bracket = bracket * unit * unit[:, None] + jnp.diag(jnp.where(size > 0, 0.0, 1.0))
    inverse, _ = small.inverse_and_log_det(bracket[:, :, None])
    return unit * dot(inverse[:, :, 0], unit * rhs)
