"""How far the Laplace approximation of a cell can be trusted: importance sampling.

Coordinates z̃ are drawn from their Laplace Gaussian q. Given them the genes are independent, and
each gene's own residual is integrated by Gauss–Hermite quadrature around its mode. (Ratios of the
joint distribution of z̃ and all residuals degenerate where genes are many.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from nbln.distributions.special import HALF_LOG_TWO_PI
from nbln.linalg import small
from nbln.posterior import mode
from nbln.posterior.evidence import log_prior_mass, loss_at
from nbln.posterior.mode import Cells, Columns, Parameters

# Gauss–Hermite nodes of a residual: seven reach float32 for d up to 0.2.
POINTS = 7


def log_ratios(
    key: Array,
    parameters: Parameters,
    cells: Cells,
    columns: Columns,
    f: Float[Array, "cell gene"],
    n_draws: int,
) -> Float[Array, "draw cell"]:
    """log p(u, z̃) - log q(z̃) at draws of q; the mean of the exponential is the evidence.

    `f` are log-rates at the mode. Constants are as in `evidence.evidence`.
    """
    n_factors = parameters.W.shape[1]
    step = mode.newton_step(parameters, cells, columns, f)
    X, v = mode.design(parameters.W, columns), mode.scales(cells, n_factors)
    prior = mode.precision(parameters, cells, columns, f.dtype)
    root = small.cholesky(step.covariance)
    mean = parameters.mean(cells)
    constant = 0.5 * jnp.sum(jnp.log(jnp.where(prior > 0, prior, 1.0)), axis=0)
    constant = constant - 0.5 * step.log_det + HALF_LOG_TWO_PI * columns.precision.count(0.0)

    def ratio(key):
        noise = jax.random.normal(key, step.z.shape)
        z = step.z + small.multiply(root, noise)
        given = _log_marginal(parameters, cells, columns, z, mode.rates(z, mean, X, v))
        change = 0.5 * jnp.sum(noise**2 - prior * z**2, axis=0)
        return (given + change + constant + _truncation(cells, columns, z)) * cells.mask

    return jax.lax.map(ratio, jax.random.split(key, n_draws))


def _log_marginal(parameters, cells, columns, z, m):
    """Σ_g log ∫ p(u | f) N(f; m, d) df of every cell."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(POINTS)
    log_weights = np.log(weights / weights.sum()) + 0.5 * nodes**2
    f = mode.conditional_rates(parameters, cells, columns, z)
    t = 1 / (1 + parameters.d * parameters.channel.derivatives(cells.counts, f)[1])
    # Without a residual f is m, but for rounding.
    free = parameters.d > 0
    sd = jnp.sqrt(parameters.d)
    center, width = jnp.where(free, (f - m) / jnp.where(free, sd, 1.0), 0.0), jnp.sqrt(t)

    def term(node, log_weight):
        standard = center + width * node
        return parameters.channel.log_prob(cells.counts, m + sd * standard) + (
            log_weight - 0.5 * standard**2
        )

    terms = [term(*pair) for pair in zip(nodes, log_weights, strict=True)]
    return jnp.sum(logsumexp(jnp.stack(terms), axis=0) + jnp.log(width), axis=1)


def _truncation(cells, columns, z):
    """The prior of a capture loss beyond its Gaussian: none below 0, its mass above."""
    if not any(columns.truncated):
        return jnp.zeros_like(cells.offset)
    inside = jnp.where(loss_at(cells, columns, z) >= 0, 0.0, -jnp.inf)
    return inside - log_prior_mass(cells, columns)
