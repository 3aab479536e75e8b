"""The posterior mode of every cell at once: the Newton step and loop, the only ones.

A cell's observable log-rate is f = μ + β x + o + W̃ z̃ + ε with ε ~ N(0, d) per gene and
z̃ ~ N(0, P⁻¹); β x are effects of known covariates, and below μ stands for μ + β x.
One Newton step is Rasmussen & Williams (2006), Algorithm 3.1, written for a low-rank covariance:
with score s and information a of the channel at f,

    t = 1/(1 + d a),  S = a t,  q = (a (f - μ - o) + s) t,
    M = P + W̃ᵀ diag(S) W̃,  z̃ = M⁻¹ W̃ᵀ q,  α = q - S W̃ z̃,  f⁺ = μ + o + W̃ z̃ + d α.

Nothing divides by d or a, and at the mode α = s.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from nbln.channels.base import Channel
from nbln.linalg import small
from nbln.linalg.products import dot

# A first step that moves a log-rate further (natural log) starts again from the counts.
LARGEST_FIRST_MOVE = 5.0
# Scalar Newton iterations for a log-rate given the coordinates: two where the next step corrects
# what is left, four where the log-rate itself is asked for (quadratic convergence: to float32).
WARM_ITERATIONS, FULL_ITERATIONS = 2, 4
# How far beyond its bounds a log-rate may seem to lie, in spacings of its type. Half a spacing was
# enough for 90,000 simulated log-rates; eight leave room, and are nothing beside a log-rate's sd.
ROUNDINGS = 8
# A line search gives up at 2⁻²⁰ of a step, where float32 no longer sees it.
MOST_HALVINGS = 20


class Columns(NamedTuple):
    """Columns of W̃ beyond the gene programs: the same number for every gene.

    `value` is that number, `precision` the prior precision of its coordinate (0 is flat), and
    `truncated` says whether offset and coordinate together, -(o + value v ζ), cannot be negative.
    """

    value: tuple[float, ...] = ()
    precision: tuple[float, ...] = ()
    truncated: tuple[bool, ...] = ()


class Augmentation(NamedTuple):
    """What a model adds to μ + W z + ε in every cell: an offset, and columns scaled by `scale`.

    Covariates, None where there are none, add β x, with effects β that each gene has of its own.
    Data sets, None where there is one, scale the factors of their cells.
    """

    offset: Float[Array, " cell"]
    scale: Float[Array, "cell extra"]
    columns: Columns
    covariates: Float[Array, "cell covariate"] | None = None
    datasets: Float[Array, "cell dataset"] | None = None  # 1 where a cell is of a data set

    @classmethod
    def of_offset(cls, offset: Float[Array, " cell"]) -> "Augmentation":
        """Offsets alone."""
        return cls(offset, jnp.zeros((*offset.shape, 0)), Columns())


class Search(NamedTuple):
    """When the search for a mode ends: largest move of a log-rate (natural log), most steps."""

    tol: float = 1e-3
    max_steps: int = 50


SEARCH = Search()


class Cells(NamedTuple):
    """What is known of a chunk of cells before it is fitted; padding has mask 0."""

    counts: Float[Array, "cell gene"]
    mask: Float[Array, " cell"]
    offset: Float[Array, " cell"]  # o, added to every log-rate of the cell
    scale: Float[Array, "cell extra"]  # v of the extra columns
    covariates: Float[Array, "cell covariate"]  # x, whose effects are β
    datasets: Float[Array, "cell dataset"] | None = None  # 1 where a cell is of a data set

    def mean(self, mu: Float[Array, " gene"]) -> Float[Array, "cell gene"]:
        """μ + o, log-rates of cells without covariates where coordinates and residuals are 0."""
        return mu + self.offset[:, None]


class Parameters(eqx.Module):
    """Parameters of a log-normal model: x ~ N(μ + β x, W Wᵀ + diag(d)), counts by the channel.

    Factors have standard deviations e^`log_activity` in the cells of each of several data sets, 1
    where there is one.
    """

    mu: Float[Array, " gene"]
    W: Float[Array, "gene factor"]
    d: Float[Array, " gene"]
    channel: Channel
    effects: Float[Array, "gene covariate"]  # β
    log_activity: Float[Array, "dataset factor"]

    def __init__(self, mu, W, d, channel, effects=None, log_activity=None):
        self.mu, self.W, self.d, self.channel = mu, W, d, channel
        none: Any = np.zeros((*np.shape(d), 0), np.float32)
        self.effects = none if effects is None else effects
        one: Any = np.zeros((0, np.shape(W)[-1]), np.float32)
        self.log_activity = one if log_activity is None else log_activity

    def mean(self, cells: Cells) -> Float[Array, "cell gene"]:
        """μ + β x + o of these cells."""
        return cells.mean(self.mu) + dot(cells.covariates, self.effects.T)


class Mode(NamedTuple):
    """The posterior mode of every cell, and whether it was reached."""

    z: Float[Array, "all_columns cell"]
    alpha: Float[Array, "cell gene"]
    f: Float[Array, "cell gene"]
    gradient_norm: Float[Array, " cell"]  # in posterior standard deviations, over all genes
    converged: Bool[Array, " cell"]


class Step(NamedTuple):
    """One Newton step: where it was taken (a, S, t, ...) and where it leads (z, alpha, f)."""

    z: Float[Array, "all_columns cell"]
    alpha: Float[Array, "cell gene"]
    f: Float[Array, "cell gene"]
    covariance: Float[Array, "all_columns all_columns cell"]  # M⁻¹
    log_det: Float[Array, " cell"]  # log det M
    information: Float[Array, "cell gene"]  # a at the point the step was taken from
    response: Float[Array, "cell gene"]  # q, S times the working response; α + S W̃ z̃
    score: Float[Array, "cell gene"]
    slope: Float[Array, "cell gene"]  # da/df
    t: Float[Array, "cell gene"]

    @property
    def weight(self) -> Float[Array, "cell gene"]:
        """S = a t, the information of a count about its gene's coordinates."""
        return self.information * self.t


class Corrected(NamedTuple):
    """A step moved toward the posterior mean, and the variance of log-rates that it implies."""

    step: Step
    leverage: Float[Array, "cell gene"]  # w̃ᵀ M⁻¹ w̃
    variance: Float[Array, "cell gene"]  # Var f


def design(W: Float[Array, "gene factor"], columns: Columns) -> Float[Array, "gene all_columns"]:
    """W with the extra columns appended, before per-cell scales."""
    if not columns.value:
        return W
    extra = jnp.broadcast_to(jnp.asarray(columns.value, W.dtype), (W.shape[0], len(columns.value)))
    return jnp.concatenate([W, extra], axis=1)


def scales(cells: Cells, n_factors: int) -> Float[Array, "all_columns cell"] | None:
    """Per-cell scale of every column of the design; None when all are 1."""
    if cells.scale.shape[1] == 0:
        return None
    ones = jnp.ones((n_factors, cells.scale.shape[0]), cells.scale.dtype)
    return jnp.concatenate([ones, cells.scale.T])


def precision(
    parameters: Parameters, cells: Cells, columns: Columns, dtype
) -> Float[Array, "all_columns cell"]:
    """Prior precision of every coordinate; 1 in padded cells, whose M has nothing else."""
    log_activity = parameters.log_activity
    prior = jnp.asarray((1.0,) * log_activity.shape[1] + columns.precision, dtype)[:, None]
    if len(log_activity):
        assert cells.datasets is not None, "cells of several data sets say of which they are"
        of_cells = jnp.exp(-2 * dot(log_activity.T, cells.datasets.T))
        extra = jnp.broadcast_to(prior[len(of_cells) :], (len(columns.value), len(cells.mask)))
        prior = jnp.concatenate([of_cells, extra])
    return jnp.where(cells.mask > 0, prior, 1.0)


def rates(z, mean, design, scale):
    """Log-rates without the gene's own residual: mean + W̃ z̃."""
    return mean + dot((z if scale is None else z * scale).T, design.T)


def newton_step(
    parameters: Parameters, cells: Cells, columns: Columns, f: Float[Array, "cell gene"]
) -> Step:
    """Take the step of the module's formula from log-rates `f`, for all cells."""
    k, d = parameters.W.shape[1], parameters.d
    X, v = design(parameters.W, columns), scales(cells, k)
    mean = parameters.mean(cells)
    s, a, slope = parameters.channel.derivatives(cells.counts, f)
    s, a, slope = (y * cells.mask[:, None] for y in (s, a, slope))
    t = 1 / (1 + d * a)
    S, q = a * t, (a * (f - mean) + s) * t
    M = small.unpack(dot(small.row_products(X).T, S.T))
    if v is not None:
        M = M * v[:, None] * v[None, :]
    n = M.shape[0]
    M = M.at[jnp.arange(n), jnp.arange(n)].add(precision(parameters, cells, columns, f.dtype))
    covariance, log_det = small.inverse_and_log_det(M)
    z, alpha, f = _solve(q, S, covariance, mean, X, v, d)
    return Step(z, alpha, f, covariance, log_det, a, q, s, slope, t)


def corrected(
    step: Step,
    parameters: Parameters,
    cells: Cells,
    columns: Columns,
    largest_variance: float = math.inf,
) -> Corrected:
    """Move a step from the posterior mode toward the posterior mean.

    The score is replaced by s - ½ a′ Var f, the first-order effect of the third derivative, at
    unchanged a, S and M. A Var f above `largest_variance` counts as that.
    """
    X, v = design(parameters.W, columns), scales(cells, parameters.W.shape[1])
    leverage = design_variance(step.covariance, X, v)
    variance = parameters.d * step.t + step.t**2 * leverage
    # A first-order effect: where it would move a log-rate by more than half its posterior
    # standard deviation (a rare count, a variance above 1) it is not to be trusted further.
    most = 0.5 / jnp.sqrt(variance)
    shift = 0.5 * step.slope * jnp.minimum(variance, largest_variance)
    shift = jnp.clip(shift, -most, most)
    q = step.response - shift * step.t  # q is linear in the score
    mean = parameters.mean(cells)
    z, alpha, f = _solve(q, step.weight, step.covariance, mean, X, v, parameters.d)
    return Corrected(step._replace(z=z, alpha=alpha, f=f, response=q), leverage, variance)


def design_variance(covariance, design, scale):
    """w̃ᵀ M⁻¹ w̃ for every cell and gene: the variance that the coordinates give to a log-rate."""
    if scale is not None:
        covariance = covariance * scale[:, None] * scale[None, :]
    return dot(small.pack_quadratic(covariance).T, small.row_products(design).T)


def _solve(q, S, covariance, mean, design, scale, d):
    rhs = dot(design.T, q.T)
    z = small.multiply(covariance, rhs if scale is None else rhs * scale)
    f0 = rates(z, mean, design, scale)
    alpha = q - S * (f0 - mean)
    return z, alpha, f0 + d * alpha


def conditional_rates(
    parameters: Parameters,
    cells: Cells,
    columns: Columns,
    z: Float[Array, "all_columns cell"],
    n_iterations: int = WARM_ITERATIONS,
) -> Float[Array, "cell gene"]:
    """Log-rates at their mode given the coordinates: f = m + d s(f) per entry, m = μ + o + W̃ z̃."""
    m = rates_without_residual(parameters, cells, columns, z)
    return rates_given_mean(parameters.channel, cells.counts, m, parameters.d, n_iterations)


def rates_without_residual(
    parameters: Parameters, cells: Cells, columns: Columns, z: Float[Array, "all_columns cell"]
) -> Float[Array, "cell gene"]:
    """m = μ + o + W̃ z̃, log-rates of cells at these coordinates without the genes' residuals."""
    X, v = design(parameters.W, columns), scales(cells, parameters.W.shape[1])
    return rates(z, parameters.mean(cells), X, v)


def rates_given_mean(
    channel: Channel,
    counts: Float[Array, "cell gene"],
    m: Float[Array, "cell gene"],
    d: Float[Array, " gene"],
    n_iterations: int,
) -> Float[Array, "cell gene"]:
    """Log-rates at the mode of p(u | f) N(f; m, d), entry by entry.

    A scalar Newton iteration from a precision-weighted mean of m and log(u + ½), kept between m
    and the root of the score, log u, where the solution must lie, and then between the closest
    points on either side of it: where a count is a thousand times what m expects, Newton steps
    alone go to and fro.
    """
    top = jnp.log(counts + 0.5)
    # log u lies above log(u + ½) - 1.1 for any u > 0, and at -∞ for u = 0.
    low = jnp.minimum(m, jnp.where(counts > 0, top - 1.1, -jnp.inf))
    high = jnp.maximum(m, top)
    weight = d * channel.information_at_count(counts)
    weight = weight / (1 + weight)
    f = m + weight * (top - m)
    for _ in range(n_iterations):
        s, a, _ = channel.derivatives(counts, f)
        slope = f - m - d * s  # of the objective downhill, which rises with f
        low, high = jnp.where(slope < 0, f, low), jnp.where(slope < 0, high, f)
        new = f - slope / (1 + d * a)
        middle = jnp.where(jnp.isfinite(low), 0.5 * (low + high), high)
        # At the solution new and its bounds are one number, which compiled code computes more
        # than once and may round each time: half an interval away from it would be far.
        slack = ROUNDINGS * jnp.finfo(f.dtype).eps * (1 + jnp.abs(f))
        f = jnp.where((new >= low - slack) & (new <= high + slack), new, middle)
    return f


def find(
    parameters: Parameters,
    cells: Cells,
    columns: Columns,
    f: Float[Array, "cell gene"],
    search: Search = SEARCH,
) -> Mode:
    """Newton steps from log-rates `f` until no log-rate of a cell moves further than allowed.

    The objective is concave, and a step is halved while its slope at the end is steeply downhill:
    slopes are sums of small differences, which float32 resolves where it cannot tell two
    objectives apart. Convergence is quadratic: the last move is far larger than what is left.
    """
    # Under jax_enable_x64 parameters may have 64 bits where counts have 32, and a loop has to begin
    # with the types that it goes on with.
    step = jax.eval_shape(lambda f: newton_step(parameters, cells, columns, f), f)
    f = f.astype(step.f.dtype)
    nothing, never = jnp.zeros(step.z.shape, f.dtype), jnp.full(cells.mask.shape, jnp.inf, f.dtype)
    state = _State(nothing, jnp.zeros_like(f), f, never, cells.mask > 0, 0)

    def unfinished(state):
        return jnp.any(state.move > search.tol) & (state.n_steps <= search.max_steps)

    def advance(state):
        step = newton_step(parameters, cells, columns, state.f)
        dz, dalpha, df = step.z - state.z, step.alpha - state.alpha, step.f - state.f
        h = _step_length(parameters.channel, cells, state, dalpha, df, step.score)
        column, move = h[:, None], jnp.max(jnp.abs(df), axis=1) * cells.mask
        # A first step cannot be halved: `f` alone, without the coordinates it came from, is no
        # point of the search. Where it leads far away, the counts themselves are the start.
        astray = state.fresh & ~(move < LARGEST_FIRST_MOVE) & (state.n_steps == 0)
        return _State(
            jnp.where(astray, 0, state.z + h * dz),
            jnp.where(astray[:, None], 0, state.alpha + column * dalpha),
            jnp.where(astray[:, None], jnp.log(cells.counts + 0.5), state.f + column * df),
            jnp.where(state.fresh, jnp.inf, move),
            astray,
            state.n_steps + 1,
        )

    state = lax.while_loop(unfinished, advance, state)
    s, a, _ = parameters.channel.derivatives(cells.counts, state.f)
    # α = s at the mode; the residual's posterior variance given the factors is d/(1 + d a).
    scaled = (s - state.alpha) ** 2 * parameters.d / (1 + parameters.d * a)
    norm = jnp.sqrt(jnp.sum(scaled, axis=1)) * cells.mask
    return Mode(state.z, state.alpha, state.f, norm, state.move <= search.tol)


class _State(NamedTuple):
    """Where a search stands."""

    z: Float[Array, "all_columns cell"]
    alpha: Float[Array, "cell gene"]
    f: Float[Array, "cell gene"]
    move: Float[Array, " cell"]
    fresh: Bool[Array, " cell"]  # `f` is a start, not yet the place of z and α
    n_steps: int | Float[Array, ""]


def _step_length(channel, cells, state, dalpha, df, score):
    """1, ½, ¼, ... per cell: the first at which the objective no longer falls steeply."""
    start = jnp.sum((score - state.alpha * cells.mask[:, None]) * df, axis=1)
    # Rounding alone gives a slope of this size, and must not shorten the last steps.
    noise = 1e3 * jnp.finfo(df.dtype).eps * jnp.sum(jnp.abs(state.alpha * df), axis=1)

    def slope(h):
        column = h[:, None]
        s = channel.derivatives(cells.counts, state.f + column * df)[0]
        return jnp.sum((s - state.alpha - column * dalpha) * df, axis=1) * cells.mask

    def steep(h):
        return (slope(h) < -0.5 * jnp.abs(start) - noise) & ~state.fresh

    def shorten(carry):
        h, bad, n = carry
        h = jnp.where(bad, h / 2, h)
        return h, steep(h), n + 1

    h = jnp.ones_like(start)
    carry = (h, steep(h), 0)
    return lax.while_loop(lambda c: jnp.any(c[1]) & (c[2] < MOST_HALVINGS), shorten, carry)[0]
