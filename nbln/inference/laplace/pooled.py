"""Overdispersion learned over all genes: how it splits between d and the channel.

Gene by gene d and r are nearly collinear, and the Laplace evidence is biased along their ridge, so
that a fixed prior of d would decide how large correlations are. Here a gene's total φ_g is learned
under a pool, and its split s = d/φ is a line in it, two numbers of the data set: logit s_g = m_s +
β (log φ_g - m). All by Newton steps on the exact
likelihood, with each gene's own residual integrated by quadrature and factors drawn from their
posterior (stochastic approximation of EM, Delyon, Lavielle & Moulines 1999). Iterations of the
engine alternate with them, at the d and r that they lead to.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.inference.laplace.update import State
from nbln.inference.overdispersion import (
    Coordinates,
    Overdispersion,
    Pool,
    Pooling,
    Slopes,
    Split,
    slopes_of,
)
from nbln.inference.stream import CellStream
from nbln.linalg import small
from nbln.models.log_normal import LogNormalModel
from nbln.posterior import mode, quadrature
from nbln.posterior.mode import Cells, Columns, Parameters
from nbln.priors.univariate import Frozen

# Newton steps; the split of simulated data of all regimes stood after eight.
N_STEPS = 12
# Steps in which the split moves by this multiple of a Newton step, since the loadings that hold it
# back move after it; from then on by 1/1, 1/2, 1/3, ... of one, which averages the noise out.
FORWARD_STEPS, FORWARD = 6, 1.3
# Entries of the counts that a step sees, by taking every n-th cell; the last steps see all of them.
ENTRIES = 1e6
FINAL_STEPS = 2
LARGEST_STEP = 0.7  # of a coordinate in one step: a Newton step beyond is an extrapolation
# Standard deviation of β before the counts, which tell it from some thousand cells on: without it
# the line of 500 x 200 simulated counts was steeper than the truth by half.
TREND_SD = 0.15


class Overdispersed(NamedTuple):
    """Where the overdispersion stands."""

    psi: Coordinates
    pool: Pool
    trend: Float[Array, ""]  # β


def visit(
    key: Array,
    stride: int,
    parameters: Parameters,
    overdispersion: Overdispersion,
    psi: Coordinates,
    columns: Columns,
    cells: Cells,
    z,
) -> tuple[Slopes, Array]:
    """Slopes of every `stride`-th cell of a chunk at factors drawn from their Laplace Gaussian."""
    for_rows, for_noise = jax.random.split(key)
    first = jax.random.randint(for_rows, (), 0, stride)
    rows = first + stride * jnp.arange(z.shape[1] // stride)
    some = jax.tree.map(lambda leaf: leaf[rows], cells)
    f = mode.conditional_rates(parameters, some, columns, z[:, rows])
    step = mode.newton_step(parameters, some, columns, f)
    centre = mode.corrected(step, parameters, some, columns).step.z
    noise = jax.random.normal(for_noise, centre.shape)
    drawn = centre + small.multiply(small.cholesky(step.covariance), noise)
    m = mode.rates_without_residual(parameters, some, columns, drawn)
    given = quadrature.integrate(parameters.channel, some.counts, m, parameters.d)
    slopes = slopes_of(overdispersion, psi, given, some.mask)
    return jax.tree.map(lambda leaf: leaf * stride, slopes), z


@eqx.filter_jit
def newton(pooling: Pooling, at: Overdispersed, slopes: Slopes, gain: float) -> Overdispersed:
    """Totals, their pool, and the line of the splits, after a step."""
    psi, pool, trend = at
    slopes_phi, slopes_share = slopes.gradient
    information, information_share = slopes.products[0], slopes.products[2]
    curvature = information + 1 / pool.sd**2
    settled = jnp.minimum(gain, 1.0)
    step = (slopes_phi + (pool.mean - psi[0]) / pool.sd**2) / curvature
    log_phi = psi[0] + settled * _bounded(step)
    precision = 1 / pooling.share_width**2
    step = jnp.sum(slopes_share) - precision * pool.share
    share = pool.share + _bounded(gain * step / (jnp.sum(information_share) + precision))
    away, precision = psi[0] - pool.mean, 1 / TREND_SD**2
    step = slopes_share @ away - precision * trend
    step = step / (information_share @ away**2 + precision)
    trend = trend + settled * _bounded(step)
    pool = pooling.estimate(log_phi, 1 / curvature, share)
    split = share + trend * (log_phi - pool.mean)
    return Overdispersed(jnp.stack([log_phi, split]), pool, trend)


def _bounded(step):
    return jnp.clip(step, -LARGEST_STEP, LARGEST_STEP)


def first(split: Split, pooling: Pooling, parameters: Parameters) -> Overdispersed:
    """The totals of these parameters, and the mean of their splits."""
    psi = split.of(parameters.d, parameters.channel)
    pool = pooling.start(psi)
    return Overdispersed(psi.at[1].set(pool.share), pool, jnp.zeros(()))


def held(model: LogNormalModel, parameters: Parameters) -> LogNormalModel:
    """The model at known d and channel."""
    values = {names.RESIDUAL: parameters.d, **parameters.channel.values()}
    known = {site: Frozen(value) for site, value in values.items()}
    return eqx.tree_at(lambda m: m.priors, model, model.priors | known)


def moved(state: State, split: Split, psi: Coordinates) -> State:
    """The state with this overdispersion, and the means of counts as they were."""
    old = state.parameters
    d, channel = split.parameters(psi)
    return state._replace(parameters=Parameters(old.mu - 0.5 * (d - old.d), old.W, d, channel))


def stride_of(stream: CellStream, step: int) -> int:
    """Which cells a step sees: every n-th."""
    if step >= N_STEPS - FINAL_STEPS:
        return 1
    return max(1, min(stream.size, int(stream.n_cells * stream.n_genes / ENTRIES)))


def gain_of(step: int) -> Float[Array, ""]:
    """By what multiple of a Newton step the split moves."""
    return jnp.asarray(FORWARD if step < FORWARD_STEPS else 1.0 / (step - FORWARD_STEPS + 1))
