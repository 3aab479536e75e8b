"""One iteration of the Laplace engine: sums over cells, and the update that they determine.

Expectation-conditional maximisation with parameter expansion (Liu, Rubin & Wu 1998): every gene is
a weighted regression on the factors, whose mean and covariance are then absorbed into μ and W.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nbln import vocabulary as names
from nbln.data.histogram import CountTails
from nbln.linalg import gauge, small
from nbln.linalg.dtypes import strong
from nbln.models.base import LogNormalModel
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters, dot
from nbln.priors.loadings import NOISE, Rows, Scales

FORMING = 5  # iterations before columns may collapse
SHARP = 4  # iterations since the columns settled: the first whose change is that of the entries
SETTLED = 0.005  # largest change of the loadings at which entries may differ in scale
LARGEST_SHARE = 0.75  # of the loadings' posterior variance that counts as size of a column
VANISHING = 0.05  # of the norm of the largest column: smaller ones keep their axes
EDGE = 0.7  # of genes/cells, in the limit below which columns vanish
SMALL = 0.3  # of the largest scale: shrinking columns below it take one further step at once
HASTE = 5  # further steps at once of a shrinking column of noise
TURNING = 0.05  # least move of a mean, natural log, that counts as turning back
SHORTEST = 0.25  # share of a step; a row that stood still would grow with its factors' scale
LARGEST_MOVE = 2.0  # of [μ, w] of one gene in one iteration, natural log


class Statistics(NamedTuple):
    """Sums over cells; all that the update needs, so chunks and devices add up."""

    normal: Float[Array, "gene moments"]  # Σ S [1, z, zzᵀ packed]
    response: Float[Array, "gene regressors"]  # Σ q [1, z], less the extra columns' part
    residual: Float[Array, " gene"]  # Σ E[ε²]
    moments: Float[Array, " moments"]  # Σ [1, z, zzᵀ packed]
    channel: Float[Array, "sums gene"]  # the channel's own


class Rotation(NamedTuple):
    """z ← matrix (z - shift): how an update changes the meaning of the cells' factors."""

    matrix: Float[Array, "factor factor"]
    shift: Float[Array, " factor"]


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
        length = jnp.where(back, self.length / 2, 1.2 * self.length)
        return Damping(move, jnp.clip(length, SHORTEST, 1))


class State(NamedTuple):
    """Everything that one iteration passes to the next, the cells' coordinates aside."""

    iteration: Int[Array, ""]
    parameters: Parameters
    scales: Scales
    precision: Float[Array, "gene factor"]  # of the Gaussian prior that stands for the loadings'
    sharpening: Int[Array, ""]  # iterations since the columns settled, for sparse loadings
    rotation: Rotation
    damping: Damping


class Change(NamedTuple):
    """Change of the parameters in one iteration: relative for W_⊥W_⊥ᵀ, root mean square else."""

    loadings: Float[Array, ""]
    mu: Float[Array, ""]
    log_d: Float[Array, ""]
    channel: Float[Array, ""]


def rotate(z: Float[Array, "all_columns cell"], rotation: Rotation):
    """Coordinates in the basis of the newest parameters; extra columns stay as they are."""
    k = rotation.shift.shape[0]
    return z.at[:k].set(dot(rotation.matrix, z[:k] - rotation.shift[:, None]))


def statistics(
    parameters: Parameters, cells: Cells, columns: Columns, z: Float[Array, "all_columns cell"]
) -> tuple[Statistics, Float[Array, "all_columns cell"]]:
    """One Newton step for a chunk from its coordinates `z`; its sums, and the new coordinates."""
    k, d = parameters.W.shape[1], parameters.d
    f = mode.conditional_rates(parameters, cells, columns, z)
    step = mode.newton_step(parameters, cells, columns, f)
    mean, leverage = mode.corrected(step, parameters, cells, columns)
    t, S = step.t, step.information * step.t
    second = mean.covariance + mean.z[:, None] * mean.z[None, :]
    moments = jnp.concatenate([jnp.ones_like(mean.z[:1]), mean.z[:k], small.pack(second[:k, :k])])
    moments = moments * cells.mask
    # q is S (y - o - μ) in the regression of the working response y on [1, z].
    response = dot(mean.response.T, moments[: k + 1].T)
    if columns.value:
        cross = jnp.concatenate([mean.z[k:, None], second[k:, :k]], axis=1)
        weight = jnp.asarray(columns.value, f.dtype)[:, None] * cells.scale.T
        response = response - dot(S.T, jnp.sum(weight[:, None] * cross, axis=0).T)
    residual = (d * mean.alpha) ** 2 + d * t + (d * S) ** 2 * leverage
    variance = d * t + t**2 * leverage
    channel = parameters.channel.statistics(cells.counts, mean.f, variance, cells.mask)
    normal, residual = dot(S.T, moments.T), dot(cells.mask, residual)
    return Statistics(normal, response, residual, moments.sum(axis=1), channel), step.z


def update(
    model: LogNormalModel, state: State, sums: Statistics, tails: CountTails
) -> tuple[State, Change]:
    """Parameters, scales and basis that the sums of one pass over the cells determine."""
    old = state.parameters
    n_cells, n_genes, k = sums.moments[0], *old.W.shape
    variance = jnp.sum(old.W**2, axis=1) + old.d
    priors = {name: prior.at(variance) for name, prior in model.priors.items()}
    mu, W, rows, spread, damping = _regress(old, sums, priors[names.MU], state)
    turned = model.loadings.sparse & (state.sharpening > 0)
    absorb_mean = not priors[names.MU].frozen
    mu, W, basis, order, rotation = _expand(mu, W, sums, turned, absorb_mean)
    d = priors[names.RESIDUAL].posterior_mode(sums.residual, n_cells)
    channel = old.channel.maximise(sums.channel, tails, priors)
    new = Parameters(mu, W, d, channel)
    change = _change(old, new)
    norms = gauge.squared_norms(W)
    # With all of the posterior variance noise would never shrink; with none of it programs
    # vanish whose loadings have a signal-to-noise ratio below 3. A share 1 - γ puts the limit at
    # (1 + √γ)², the edge of the spectrum of noise (Marchenko & Pastur 1967) for γ = genes/cells;
    # of counts, which say less than Gaussian data, the edge is nearer.
    share = jnp.clip(1 - EDGE * n_genes / n_cells, 0, LARGEST_SHARE)
    norms = norms + share * jnp.sum(basis * dot(spread, basis), axis=0)
    # Columns of noise, and small ones, on their way down go faster; a fixed point stays.
    lam = model.loadings.column_sd(state.scales, k)
    ratio = jnp.minimum(1, norms / (n_genes * lam**2))
    small = norms < SMALL**2 * jnp.max(norms)
    weak = rows.strength() <= NOISE
    norms = norms * ratio ** jnp.where(weak, HASTE, jnp.where(small, 1, 0))
    # While the factors still take shape no column may collapse: until then the scales are those
    # that columns as large as the largest would have.
    forming = state.iteration < FORMING
    norms = jnp.where(forming, jnp.max(norms), norms)
    scales, precision = _reweigh(model.loadings, state, rows, norms, order)
    settled = turned | (~forming & (change.loadings < SETTLED))
    sharpening = jnp.where(settled, state.sharpening + 1, 0)
    state = State(state.iteration + 1, new, scales, precision, sharpening, rotation, damping)
    return strong(state), change


def _reweigh(loadings, state, rows, norms, order):
    """Scales, and the precision of each entry's prior: by column, or once settled by entry."""
    sharp = state.sharpening > 1  # after the first iteration on sparse axes
    shape, entries = {}, None
    if loadings.sparse:
        shape, entries, expected = loadings.sharpen(state.scales, rows)
        norms = jnp.where(sharp, expected[order], norms)
    scales = loadings.update(state.scales, norms, len(rows.mean))
    scales |= {name: jnp.where(sharp, x[order], scales[name]) for name, x in shape.items()}
    precision = loadings.column_precision(scales, rows.mean.shape)
    if entries is not None:
        precision = jnp.where(sharp, entries[:, order], precision)
    return scales, precision


def _regress(old, sums, prior, state):
    """Rows [μ, w] of every gene, the loadings' prior of given precision around free means b."""
    mu = old.mu
    N, rhs = small.unpack_bordered(sums.normal), sums.response.T
    if prior.frozen:
        known = jnp.broadcast_to(prior.mode(), mu.shape)
        rhs = (rhs - N[0] * (known - mu)).at[0].set(0)
        N = N.at[0].set(0).at[:, 0].set(0).at[0, 0].set(1)
        mu = known
    else:
        gradient, curvature = prior.penalty(mu)
        N, rhs = N.at[0, 0].add(curvature), rhs.at[0].add(gradient)
    diagonal = jnp.concatenate([jnp.zeros_like(mu)[None], state.precision.T])
    eye = jnp.eye(len(diagonal), dtype=mu.dtype)[:, :, None]
    covariance, _ = small.inverse_and_log_det(N + eye * diagonal)
    plain = small.multiply(covariance, rhs)
    # Σ_g [Λ - Λ(N+Λ)⁻¹Λ] b = Σ_g Λ (N+Λ)⁻¹ rhs, w-block. The bracket is Λ (N+Λ)⁻¹ N, without
    # the cancellation; scaled to the size of the entries on both sides it is well conditioned.
    weighted = diagonal[:, None] * covariance
    bracket = jnp.einsum("ijg,jlg->il", weighted, N, precision="highest")[1:, 1:]
    size = jnp.mean(state.precision, axis=0)
    unit = jnp.where(size > 0, 1 / jnp.sqrt(size), 1.0)
    bracket = bracket * unit * unit[:, None] + jnp.diag(jnp.where(size > 0, 0.0, 1.0))
    inverse, _ = small.inverse_and_log_det(bracket[:, :, None])
    b = unit * dot(inverse[:, :, 0], unit * jnp.sum(diagonal * plain, axis=1)[1:])
    theta = plain + jnp.sum(weighted[1:].swapaxes(0, 1) * b[:, None], axis=1)
    # A regression on a working response is a Newton step, here taken at most so far: the rows of
    # a rare gene that few cells express would overshoot while the factors still move.
    move = theta - jnp.concatenate([jnp.zeros_like(mu)[None], old.W.T])
    length = jnp.sqrt(jnp.sum(move**2, axis=0))
    move = move * jnp.minimum(1, LARGEST_MOVE / jnp.maximum(length, 1e-12))
    damping = state.damping.after(move[0])
    move = move * damping.length
    W, loadings = old.W + move[1:].T, covariance[1:, 1:]
    rows = Rows(theta[1:].T, jnp.einsum("jjg->gj", loadings), b, state.precision)
    return mu + move[0], W, rows, jnp.sum(loadings, axis=2), damping


def _expand(mu, W, sums, sparse, absorb_mean):
    """Absorb mean and covariance of the factors; turn to the principal or sparse axes of W_⊥."""
    k = W.shape[1]
    mean = sums.moments[1 : k + 1] / sums.moments[0]
    covariance = small.unpack(sums.moments[k + 1 :, None])[:, :, 0] / sums.moments[0]
    if absorb_mean:
        covariance = covariance - jnp.outer(mean, mean)
        mu = mu + dot(W, mean)
    else:
        mean = jnp.zeros_like(mean)
    root = small.cholesky(covariance[:, :, None])
    whiten = small.inverse_lower(root)[:, :, 0]
    W = dot(W, root[:, :, 0])
    axes, order = lax.cond(sparse, _sparse_axes, _principal_axes, W)
    basis = dot(root[:, :, 0], axes)
    return mu, dot(W, axes), basis, order, Rotation(dot(axes.T, whiten), mean)


def _principal_axes(W):
    return gauge.principal_axes(W), jnp.arange(W.shape[1])


def _sparse_axes(W):
    """Sparse axes of the columns that are not about to vanish, largest first, and their order."""
    norms = gauge.squared_norms(W)
    axes = gauge.sparse_axes(W, norms > VANISHING**2 * jnp.max(norms))
    order = jnp.argsort(-gauge.squared_norms(dot(W, axes)))
    return axes[:, order], order


def _change(old: Parameters, new: Parameters) -> Change:
    def rms(x):
        return jnp.sqrt(jnp.mean(x**2))

    before, after = old.channel.settling(), new.channel.settling()
    channel = jnp.zeros(()) if before is None or after is None else rms(after - before)
    return Change(
        gauge.relative_change(old.W, new.W),
        rms(new.mu - old.mu),
        rms(jnp.log(new.d / old.d)),
        channel,
    )
