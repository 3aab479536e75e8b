"""One update of the Laplace engine: from sums over cells to parameters, scales and basis.

Expectation-conditional maximisation with parameter expansion: rows of the loadings, basis, residual
variances and channel, scales of the loadings prior, in this order.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.compiled import quick_jit
from nbln.data.histogram import CountTails
from nbln.inference.laplace.basis import Expansion, Rotation, expand
from nbln.inference.laplace.rows import Damping, regress
from nbln.inference.laplace.statistics import Statistics
from nbln.linalg import gauge
from nbln.linalg.dtypes import strong
from nbln.linalg.products import dot
from nbln.models.log_normal import LogNormalModel
from nbln.posterior.mode import Parameters
from nbln.priors.activity import Activity, Spreads
from nbln.priors.effects import EffectScales
from nbln.priors.loadings import Rows, Scales
from nbln.priors.shrinkage import Phase
from nbln.priors.univariate import Frozen, InverseGamma, Prior

LARGEST_SCALE = 1e6  # stands for no shrinkage, where a sum over columns must stay finite


class State(NamedTuple):
    """All that one iteration passes to the next, the cells' coordinates aside."""

    phase: Phase
    parameters: Parameters
    scales: Scales
    effects: EffectScales
    activity: Activity
    # Of the Gaussian that replaces the loadings prior in the next regression.
    precision: Float[Array, "gene factor"]
    rotation: Rotation
    damping: Damping


class Change(NamedTuple):
    """Change of the parameters in one iteration: relative for W_⊥W_⊥ᵀ, root mean square else.

    Loadings have moved as far as log-activities have, over columns by squared norm, where that is
    further.
    """

    loadings: Float[Array, ""]
    mu: Float[Array, ""]
    log_d: Float[Array, ""]
    channel: Float[Array, ""]


class Info(NamedTuple):
    """What an iteration did, so that a reader can replay why columns fell and genes went slowly."""

    change: Change
    phase: Phase  # after it
    may_stop: Bool[Array, ""]  # whether loadings that stand still have converged
    column_sd: Float[Array, " factor"]  # of the loadings prior, after it
    shrank: Bool[Array, " factor"]  # columns whose scale is below that of the column it continues
    further_steps: Int[Array, " factor"]  # that a falling column took at once
    damped: Bool[Array, " gene"]  # genes that did not take their whole step

    @classmethod
    def like(cls, phase: Phase) -> "Info":
        """One without content, for its structure."""
        return cls(Change(0, 0, 0, 0), phase, 0, 0, 0, 0, 0)  # type: ignore[arg-type]


def update(
    model: LogNormalModel, state: State, sums: Statistics, tails: CountTails
) -> tuple[State, Info]:
    """Parameters, scales and basis that the sums of one pass over the cells determine.

    It is compiled in two parts, of which the one that takes long knows no prior but that of μ:
    where others come to be known it need not be compiled again.
    """
    own = _genes_own(model, state.parameters, sums, tails)
    mean = {names.MU: model.priors[names.MU]}
    return _update(eqx.tree_at(lambda m: m.priors, model, mean), state, sums, own)


@quick_jit
def _genes_own(
    model: LogNormalModel, old: Parameters, sums: Statistics, tails: CountTails
) -> tuple[Float[Array, " gene"], Channel]:
    """What is each gene's own: d and the channel."""
    priors = priors_at(model.priors, old)
    d = _residual(priors[names.RESIDUAL], sums)
    return d, old.channel.maximise(sums.channel, tails, priors)


@quick_jit
def _update(
    model: LogNormalModel,
    state: State,
    sums: Statistics,
    own: tuple[Float[Array, " gene"], Channel],
) -> tuple[State, Info]:
    """The rest, given `own`; of the model's priors it takes that of μ."""
    old, (d, channel) = state.parameters, own
    mean_prior = priors_at(model.priors, old)[names.MU]
    fitted = regress(
        old,
        sums.normal,
        sums.response,
        mean_prior,
        model.effects.precision(state.effects),
        state.precision,
        state.damping,
    )
    turned = expand(
        fitted.mu,
        fitted.effects,
        fitted.W,
        sums.moments,
        model.loadings,
        state.phase,
        absorb_mean=not mean_prior.frozen,
        depth=model.depth,
        prior_of_effects=model.effects,
        by_dataset=(sums.spreads, old.log_activity) if len(old.log_activity) else None,
    )
    activity = _activity(model, state, sums, turned)
    log_activity = model.activity.log_activity(activity.effects)
    new = Parameters(turned.mu, turned.W, d, channel, turned.effects, log_activity)
    change = _change(old, new, turned.turn.order)
    columns = _columns(model, state, fitted.rows, turned, sums.moments[0])
    scales, precision = model.loadings.reweigh(
        state.scales, fitted.rows.entries(), columns.norms, turned.turn.order, state.phase
    )
    phase = state.phase.after(change.loadings, model.loadings.shrinkage)
    sd = model.loadings.column_sd(scales, turned.W.shape[1])
    info = Info(
        change,
        phase,
        model.loadings.may_stop(phase) & _activities_settled(model, phase),
        sd,
        sd < columns.old_sd,
        columns.further_steps,
        fitted.shortened,
    )
    effects = model.effects.learned(state.effects, turned.effects, fitted.effects_variance)
    state = State(phase, new, scales, effects, activity, precision, turned.rotation, fitted.damping)
    return strong((state, info))


def priors_at(priors: dict[str, Prior], parameters: Parameters) -> dict[str, Prior]:
    """The priors of genes with the log-rate variances that these parameters give them."""
    variance = jnp.sum(parameters.W**2, axis=1) + parameters.d
    return {name: prior.at(variance) for name, prior in priors.items()}


def _residual(prior: Prior, sums: Statistics) -> Float[Array, " gene"]:
    """d at its mode given the expected squares of the residuals, or its known value."""
    if isinstance(prior, Frozen):
        return jnp.broadcast_to(jnp.asarray(prior.value), sums.residual.shape)
    assert isinstance(prior, InverseGamma), "d has a conjugate prior"
    return jnp.asarray(prior.posterior_mode(sums.residual, sums.moments[0]))


def _activity(model: LogNormalModel, state: State, sums: Statistics, turned: Expansion) -> Activity:
    """Activities of the new columns, from the time that these keep their axes."""
    old, order = state.activity, turned.turn.order
    stretch = jnp.diag(turned.basis[order])
    squares = sums.spreads.squares[:, order] / stretch**2
    norms = gauge.squared_norms(turned.W)
    signal = model.loadings.shrinkage.carries_signal(norms, len(turned.W))
    sorted_ = old._replace(effects=old.effects[:, order])
    learned = model.activity.learned(sorted_, Spreads(squares, sums.spreads.n_cells), signal)
    by_axis = state.phase.entry_by_entry
    return jax.tree.map(lambda new, was: jnp.where(by_axis, new, was), learned, sorted_)


def _activities_settled(model: LogNormalModel, phase: Phase) -> Bool[Array, ""]:
    """Whether the last change was one of loadings whose activities are learned."""
    if not len(model.activity):
        return jnp.asarray(True)
    return phase.entries_settled(model.loadings.shrinkage)


class _Columns(NamedTuple):
    """The new columns of the loadings, as their prior is shown them."""

    norms: Float[Array, " factor"]  # expected squared norms, after further steps
    old_sd: Float[Array, " factor"]  # scale of the old columns that each is made of
    further_steps: Int[Array, " factor"]


def _columns(
    model: LogNormalModel, state: State, rows: Rows, turned: Expansion, n_cells: Float[Array, ""]
) -> _Columns:
    """Sizes of the new columns, with what the old ones lead one to expect, all in the new basis."""
    n_genes, k = turned.W.shape
    shrinkage, basis = model.loadings.shrinkage, turned.basis
    spread = jnp.sum(rows.covariance, axis=2)
    share = shrinkage.posterior_share(n_cells, n_genes)
    norms = gauge.squared_norms(turned.W) + share * jnp.sum(basis * dot(spread, basis), axis=0)
    shares = turned.turn.shares
    scales = jnp.minimum(model.loadings.column_sd(state.scales, k), LARGEST_SCALE)
    old_sd = jnp.sqrt(dot(scales**2, shares))
    weak = dot(rows.entries().strength(), shares) <= shrinkage.noise_ratio
    sped, steps = shrinkage.further_steps(norms, old_sd, weak, n_genes)
    # While the factors still take shape no column may fall behind the others: until then the scales
    # are those that columns as large as the largest would have.
    norms = jnp.where(state.phase.forming(shrinkage), jnp.max(sped), sped)
    return _Columns(norms, old_sd, steps)


def _change(old: Parameters, new: Parameters, order: Int[Array, " factor"]) -> Change:
    """What changed; column j of the new loadings continues column order[j] of the old."""

    def rms(x):
        return jnp.sqrt(jnp.mean(x**2))

    of_loadings = gauge.relative_change(old.W, new.W)
    if len(new.log_activity):
        # As it changes covariances, so that small columns count little.
        norms = gauge.squared_norms(new.W)
        away = jnp.mean((new.log_activity - old.log_activity[:, order]) ** 2, axis=0)
        moved = jnp.sqrt(jnp.sum(norms * away) / jnp.sum(norms))
        of_loadings = jnp.maximum(of_loadings, moved)
    return Change(
        of_loadings,
        rms(jnp.concatenate([(new.mu - old.mu)[:, None], new.effects - old.effects], axis=1)),
        rms(jnp.log(new.d / old.d)),
        rms(new.channel.settling() - old.channel.settling()),
    )
