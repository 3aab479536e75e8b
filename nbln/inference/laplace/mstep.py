"""One iteration of the Laplace engine: sums over cells, and the update that they determine.

Expectation-conditional maximisation with parameter expansion (Liu, Rubin & Wu 1998): every gene is
a weighted regression on the factors, whose mean and covariance are then absorbed into μ and W.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nbln import vocabulary as names
from nbln.data.histogram import CountTails
from nbln.linalg import gauge, small
from nbln.linalg.dtypes import strong
from nbln.models.base import LogNormalModel
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters, dot
from nbln.priors.loadings import Scales

FORMING = 5  # iterations before columns may collapse
LARGEST_SHARE = 0.75  # of the loadings' posterior variance that counts as size of a column
SMALL = 0.3  # of the largest scale: columns below it may shrink faster
TURNING = 0.05  # least move of a mean, natural log, that counts as turning back
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
        return Damping(move, jnp.where(back, self.length / 2, jnp.minimum(1.2 * self.length, 1)))


class State(NamedTuple):
    """Everything that one iteration passes to the next, the cells' coordinates aside."""

    iteration: Int[Array, ""]
    parameters: Parameters
    scales: Scales
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
    lam = model.loadings.column_sd(state.scales, k)
    mu, W, spread, damping = _regress(old, sums, priors[names.MU], lam, state.damping)
    mu, W, basis, rotation = _expand(mu, W, sums, absorb_mean=not priors[names.MU].frozen)
    d = priors[names.RESIDUAL].posterior_mode(sums.residual, n_cells)
    channel = old.channel.maximise(sums.channel, tails, priors)
    new = Parameters(mu, W, d, channel)
    norms = gauge.squared_norms(W)
    # With all of the posterior variance noise would never shrink; with none of it programs
    # vanish whose loadings have a signal-to-noise ratio below 3. This share puts the limit at
    # (1 + √(genes/cells))², the edge of the spectrum of noise (Marchenko & Pastur 1967).
    share = jnp.clip(1 - n_genes / n_cells, 0, LARGEST_SHARE)
    norms = norms + share * jnp.sum(basis * dot(spread, basis), axis=0)
    # Small columns on their way down go twice as far; a fixed point stays where it is.
    ratio = jnp.minimum(1, norms / (n_genes * lam**2))
    norms = jnp.where(norms < SMALL**2 * jnp.max(norms), norms * ratio, norms)
    # While the factors still take shape no column may collapse: until then the scales are those
    # that columns as large as the largest would have.
    forming = state.iteration < FORMING
    norms = jnp.where(forming, jnp.max(norms), norms)
    scales = model.loadings.update(state.scales, norms, n_genes)
    state = State(state.iteration + 1, new, scales, rotation, damping)
    return strong(state), _change(old, new)


def _regress(old, sums, prior, lam, damping):
    """Rows [μ, w] of every gene, with column precision λ⁻² around free column means b."""
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
    shrinkage = jnp.concatenate([jnp.zeros(1), 1 / lam**2])
    covariance, _ = small.inverse_and_log_det(N + jnp.diag(shrinkage)[:, :, None])
    plain = small.multiply(covariance, rhs)
    # Σ_g [Λ - Λ(N+Λ)⁻¹Λ] b = Σ_g Λ (N+Λ)⁻¹ rhs, w-block. The bracket is Λ (N+Λ)⁻¹ N, without
    # the cancellation; scaled by λ on both sides it is symmetric and well conditioned.
    unit = jnp.where(jnp.isfinite(lam), lam, 1.0)
    bracket = jnp.einsum("ijg,jlg->il", covariance, N, precision="highest")[1:, 1:]
    inverse, _ = small.inverse_and_log_det((bracket * unit / unit[:, None])[:, :, None])
    b = unit * dot(inverse[:, :, 0], jnp.sum(plain, axis=1)[1:] / unit)
    toward = jnp.concatenate([jnp.zeros(1), b]) * shrinkage
    theta = plain + jnp.sum(covariance * toward[:, None], axis=1)
    # A regression on a working response is a Newton step, here taken at most so far: the rows of
    # a rare gene that few cells express would overshoot while the factors still move.
    move = theta - jnp.concatenate([jnp.zeros_like(mu)[None], old.W.T])
    length = jnp.sqrt(jnp.sum(move**2, axis=0))
    move = move * jnp.minimum(1, LARGEST_MOVE / jnp.maximum(length, 1e-12))
    damping = damping.after(move[0])
    move = move * damping.length
    spread = jnp.sum(covariance[1:, 1:], axis=2)
    return mu + move[0], old.W + move[1:].T, spread, damping


def _expand(mu, W, sums, absorb_mean):
    """Absorb mean and covariance of the factors; turn to the principal axes of W_⊥."""
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
    axes = gauge.principal_axes(W)
    basis = dot(root[:, :, 0], axes)
    return mu, dot(W, axes), basis, Rotation(dot(axes.T, whiten), mean)


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
