"""Exact draws of log-rates from the Laplace Gaussian of every cell."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.linalg import small
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters


def draw_rates(
    key: Array,
    parameters: Parameters,
    cells: Cells,
    columns: Columns,
    f: Float[Array, "cell gene"],
    n_draws: int,
) -> Float[Array, "draw cell gene"]:
    """Draws from N(f̂, A⁻¹), A the negative Hessian at the mode `f`, in O(genes x factors) each.

    First the coordinates z̃ ~ N(ẑ, M⁻¹), then each gene by itself:
    f_g | z̃ ~ N(m + d (q - S m̃), d t), with m̃ = w̃ᵀz̃ and m = μ + o + m̃.
    """
    step = mode.newton_step(parameters, cells, columns, f)
    X = mode.design(parameters.W, columns)
    v = mode.scales(cells, parameters.W.shape[1])
    mean, S = parameters.mean(cells), step.weight
    root = small.cholesky(step.covariance)
    sd = jnp.sqrt(parameters.d * step.t)

    def draw(key):
        for_z, for_f = jax.random.split(key)
        z = step.z + small.multiply(root, jax.random.normal(for_z, step.z.shape))
        center = mode.rates(z, mean, X, v)
        center = center + parameters.d * (step.response - S * (center - mean))
        return center + sd * jax.random.normal(for_f, f.shape)

    return jax.lax.map(draw, jax.random.split(key, n_draws))
