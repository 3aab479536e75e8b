"""Overdispersion learned over all genes: how large, and how it splits between d and the channel.

Gene by gene d and r are nearly collinear, and the Laplace evidence is biased along their ridge, so
that a fixed prior of d would decide how large correlations are. Here a gene's total φ_g is learned
under a pool, and its split s = d/φ is a line in it, two numbers of the data set: logit s_g = m_s +
β (log φ_g - m). Where the channel has no overdispersion of its own, φ = d. All by Newton steps on
the exact likelihood, with each gene's own residual integrated by quadrature and factors drawn from
their posterior (stochastic approximation of EM, Delyon, Lavielle & Moulines 1999). Iterations of
the engine alternate with them, at the d and r that they lead to.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.compiled import once_jit, quick_jit
from nbln.inference.laplace.update import State
from nbln.inference.overdispersion import (
    Coordinates,
    Overdispersion,
    Pool,
    Pooling,
    Slopes,
    of_channel,
    slopes_of,
)
from nbln.inference.stream import CellStream
from nbln.linalg import small
from nbln.models.log_normal import LogNormalModel
from nbln.posterior import mode, quadrature
from nbln.posterior.mode import Cells, Columns, Parameters
from nbln.priors.univariate import Frozen

# Multiple of a Newton step by which the split moves at first, since the loadings that hold it back
# move after it.
FORWARD = 1.3
# Entries of the counts that a step sees, by taking every n-th cell; the last steps see all of them.
ENTRIES = 1e6
LARGEST_STEP = 0.7  # of a coordinate in one step: a Newton step beyond is an extrapolation
# Standard deviation of β before the counts, which tell it from some thousand cells on: without it
# the line of 500 x 200 simulated counts was steeper than the truth by half.
TREND_SD = 0.15


class Schedule(NamedTuple):
    """How many steps there are, how many of them go forward, and how many, the last, see all cells.

    After the steps forward the split moves by 1/1, 1/2, 1/3, ... of a Newton step, which averages
    the noise out.
    """

    n_steps: int
    n_forward: int
    n_whole: int

    def stride(self, stream: CellStream, step: int) -> int:
        """Which cells a step sees: every n-th."""
        if step >= self.n_steps - self.n_whole:
            return 1
        return max(1, min(stream.size, int(stream.n_cells * stream.n_genes / ENTRIES)))

    def gain(self, step: int) -> Float[Array, ""]:
        """By what multiple of a Newton step the split moves."""
        late = step - self.n_forward + 1
        return jnp.asarray(FORWARD if late <= 0 else 1.0 / late)


# The split of simulated data of all regimes stood after eight steps; totals alone, which the counts
# know, need fewer. Where a sample has been learned from, what is left are its errors.
SPLITS, TOTALS, ERRORS = Schedule(12, 6, 2), Schedule(6, 6, 2), Schedule(4, 0, 1)


class Overdispersed(NamedTuple):
    """Where the overdispersion stands."""

    psi: Coordinates
    pool: Pool
    trend: Float[Array, ""]  # β


def visit(
    key: Array,
    stride: int,
    state: State,
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
    parameters, turned = state.parameters, state.rotation(z[:, rows], some.covariates)
    f = mode.conditional_rates(parameters, some, columns, turned)
    step = mode.newton_step(parameters, some, columns, f)
    centre = mode.corrected(step, parameters, some, columns).step.z
    noise = jax.random.normal(for_noise, centre.shape)
    drawn = centre + small.multiply(small.cholesky(step.covariance), noise)
    given = quadrature.at_factors(parameters, some, columns, drawn)
    slopes = slopes_of(overdispersion, psi, given, some.mask)
    return jax.tree.map(lambda leaf: leaf * stride, slopes), z


@quick_jit
def newton(pooling: Pooling, at: Overdispersed, slopes: Slopes, gain: float) -> Overdispersed:
    """Totals, their pool, and the line of the splits where there are any, after a step."""
    psi, pool, trend = at
    curvature = slopes.products[0] + 1 / pool.sd**2
    step = (slopes.gradient[0] + (pool.mean - psi[0]) / pool.sd**2) / curvature
    log_phi = psi[0] + jnp.minimum(gain, 1.0) * _bounded(step)
    if len(psi) == 1:
        pool = pooling.estimate(log_phi, 1 / curvature, pool.share)
        return Overdispersed(log_phi[None], pool, trend)
    share, trend = _line(pooling, at, slopes, gain)
    pool = pooling.estimate(log_phi, 1 / curvature, share)
    split = share + trend * (log_phi - pool.mean)
    return Overdispersed(jnp.stack([log_phi, split]), pool, trend)


def _line(pooling: Pooling, at: Overdispersed, slopes: Slopes, gain: float):
    """Mean and slope of the line of the splits, after a step."""
    psi, pool, trend = at
    slope, information = slopes.gradient[1], slopes.products[2]
    precision = 1 / pooling.share_width**2
    step = (jnp.sum(slope) - precision * pool.share) / (jnp.sum(information) + precision)
    away, precision = psi[0] - pool.mean, 1 / TREND_SD**2
    turn = (slope @ away - precision * trend) / (information @ away**2 + precision)
    share = pool.share + _bounded(gain * step)
    return share, trend + jnp.minimum(gain, 1.0) * _bounded(turn)


def _bounded(step):
    return jnp.clip(step, -LARGEST_STEP, LARGEST_STEP)


def coordinates(channel: Channel) -> Overdispersion | None:
    """The coordinates, where they stand for all that the channel has to learn."""
    stand = channel.own_overdispersion() is not None or not channel.values()
    return of_channel(channel, held=False) if stand else None


@quick_jit
def first(
    overdispersion: Overdispersion, pooling: Pooling, parameters: Parameters
) -> Overdispersed:
    """The totals of these parameters, and the mean of their splits."""
    psi = overdispersion.of(parameters.d, parameters.channel)
    pool = pooling.start(psi)
    return Overdispersed(psi.at[1:].set(pool.share), pool, jnp.zeros(()))


def held(model: LogNormalModel, overdispersion: Overdispersion, psi: Coordinates) -> LogNormalModel:
    """The model at this overdispersion, which is known."""
    known = {site: Frozen(value) for site, value in _values(overdispersion, psi).items()}
    return eqx.tree_at(lambda m: m.priors, model, model.priors | known)


@once_jit
def _values(overdispersion: Overdispersion, psi: Coordinates) -> dict[str, Array]:
    d, channel = overdispersion.parameters(psi)
    return {names.RESIDUAL: d, **channel.values()}


def moved(state: State, overdispersion: Overdispersion, psi: Coordinates) -> State:
    """The state with this overdispersion, and the means of counts as they were."""
    return state._replace(parameters=_moved(state.parameters, overdispersion, psi))


@quick_jit
def _moved(old: Parameters, overdispersion: Overdispersion, psi: Coordinates) -> Parameters:
    d, channel = overdispersion.parameters(psi)
    mu = old.mu - 0.5 * (d - old.d)
    return Parameters(mu, old.W, d, channel, old.effects, old.log_activity)


def schedule_of(psi: Coordinates) -> Schedule:
    """The steps of these coordinates."""
    return SPLITS if len(psi) > 1 else TOTALS
