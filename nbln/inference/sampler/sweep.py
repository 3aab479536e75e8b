"""One sweep over everything: cells, rows of the loadings, overdispersion, pool, columns.

Each step leaves the posterior exactly invariant, quadrature aside: the genes' own residuals are
integrated out entry by entry, and every proposal is corrected by Metropolis and Hastings.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.compiled import quick_jit
from nbln.data.histogram import CountTails
from nbln.inference.overdispersion import Overdispersion, OverdispersionPrior, Pool
from nbln.inference.sampler import cells as cell_steps
from nbln.inference.sampler import columns, langevin
from nbln.inference.sampler.cells import Drawn, Genes, Move, Sums
from nbln.inference.sampler.langevin import Local, Proposal
from nbln.inference.stream import CellStream
from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.priors.activity import Activity, ActivityPrior, Spreads
from nbln.priors.effects import EffectScales, EffectsPrior
from nbln.priors.loadings import Loadings, LoadingsPrior, Norms, Scales
from nbln.priors.univariate import Prior, SmoothPrior

# Entries of the counts up to which a sweep has two steps of rows and of overdispersion, which moves
# least: they raise effective draws from 0.4 to 0.6 a draw; with more cells there are enough.
SMALL_DATA = 2.5e6
# Share of genes whose step of the row is one to another membership. Most of these are in vain,
# since most memberships are clear.
SWITCHES = 0.3
# Of the shifts, this share are random walks, of a length drawn between these two, in logit units:
# where d is nearly all of the overdispersion its posterior has a plateau, on which Newton steps are
# as long as the prior is wide and from which they do not come back. Any length in reach of a
# posterior will do; shorter ones than a posterior is wide are left to the Newton steps.
WALKS, SHORTEST_WALK, LONGEST_WALK = 0.5, 0.1, 3.0
# Rounds of basis, scales and memberships, which cost next to nothing.
COLUMN_STEPS = 3


class Target(eqx.Module):
    """What is believed before the counts, and which coordinates move."""

    mean: Prior  # of μ
    effects: EffectsPrior
    activity: ActivityPrior
    loadings: LoadingsPrior
    overdispersion: Overdispersion
    pooling: OverdispersionPrior
    tails: CountTails

    def log_mean(self, mu: Float[Array, " gene"]) -> Float[Array, " gene"]:
        """Log-density of μ, without constants."""
        if not isinstance(self.mean, SmoothPrior):
            return jnp.zeros_like(mu)
        gradient, curvature = self.mean.penalty(mu)
        return jnp.asarray(-0.5 * gradient**2 / curvature)

    def constant(self, new: Genes, old: Genes) -> Float[Array, " gene"] | float:
        """Change of the channel's constants from old to new."""
        channel = self.overdispersion.parameters(new.psi)[1]
        return channel.constant_change(self.overdispersion.parameters(old.psi)[1], self.tails)


class State(NamedTuple):
    """The parameters of a chain between sweeps."""

    genes: Genes
    precision: Loadings  # of the Gaussian that each loading comes from
    centre: Norms
    scales: Scales
    steps: Scales  # of the random walks of the scales
    pool: Pool
    effects: EffectScales
    activity: Activity
    move: Move  # which the cells' factors are yet to take


class Taken(NamedTuple):
    """Shares of proposals that were accepted."""

    cells: Float[Array, ""]
    rows: Float[Array, ""]
    overdispersion: Float[Array, ""]
    shift: Float[Array, ""]


def sweep(key, target: Target, stream: CellStream, state: State, cells, warm, kept):
    """Draw everything once; the new state, the new cells, what was accepted."""
    keys = jax.random.split(key, 5)
    given = (target.overdispersion, state.move, warm, kept, stream.columns)
    (sums, drawn), cells = stream.scan(cell_steps.draw, cells, keys[0], state.genes, *given)

    def visit(genes: Genes, rows: bool = False) -> Sums:
        given = genes, target.overdispersion, rows, stream.columns
        return stream.scan(cell_steps.visit, cells, *given)[0]

    n_steps = 2 if stream.n_cells * stream.n_genes <= SMALL_DATA else 1
    rows = jnp.zeros(())
    for i in range(n_steps):
        one = jax.random.fold_in(keys[1], i)
        to, proposal = propose_rows(one, target, state, sums)
        new = visit(to.genes, rows=True)
        state, sums, share = accept_rows(one, target, state, sums, to, proposal, new)
        rows = rows + share / n_steps
    sums = sums._replace(rows=None)
    taken, shift = jnp.zeros(()), jnp.ones(())
    for i in range(n_steps):
        one, other = (jax.random.fold_in(key, i) for key in keys[2:4])
        genes, proposal = propose_overdispersion(one, target, state, sums)
        new = visit(genes)
        state, sums, share = accept_overdispersion(one, target, state, sums, genes, proposal, new)
        taken = taken + share / n_steps
        if len(state.genes.psi) > 1:
            genes, proposal = propose_shift(other, target, state, sums)
            new = visit(genes)
            state, sums, shift = accept_shift(other, target, state, sums, genes, proposal, new)
    state = finish(keys[4], target, state, drawn, warm)
    return state, cells, Taken(drawn.taken / jnp.sum(drawn.n_cells), rows, taken, shift)


# Rows


def _rows(genes: Genes) -> Float[Array, "row gene"]:
    return jnp.concatenate([genes.mu[None], genes.effects.T, genes.W.T])


def _rows_precision(target: Target, state: State) -> Float[Array, "row gene"]:
    """Prior precision of all of a row but μ."""
    return jnp.concatenate([target.effects.precision(state.effects), state.precision], axis=1).T


def _rows_away(state: State, genes: Genes) -> Float[Array, "row gene"]:
    """All of a row but μ, less its prior mean."""
    return jnp.concatenate([genes.effects, genes.W - state.centre], axis=1).T


def _rows_at(target: Target, state: State, genes: Genes, sums: Sums) -> Local:
    """Newton step of [μ, β, w] of every gene, or of β and w alone where μ is frozen."""
    assert sums.rows is not None, "rows are asked for"
    N = small.unpack_bordered(sums.rows.normal.T)
    gradient, precision = sums.rows.slope, _rows_precision(target, state)
    gradient = gradient.at[1:].add(-precision * _rows_away(state, genes))
    inner = jnp.arange(1, len(N))
    N = N.at[inner, inner].add(precision)
    if not isinstance(target.mean, SmoothPrior):
        return Local.of(gradient[1:], N[1:, 1:])
    slope, curvature = target.mean.penalty(genes.mu)
    return Local.of(gradient.at[0].add(slope), N.at[0, 0].add(curvature))


@quick_jit
def propose_rows(key, target: Target, state: State, sums: Sums) -> tuple[State, Proposal]:
    """The state with other rows, of some genes under another membership.

    Drawn given the loadings alone a membership hardly moves, since a loading that has the size of
    a member's is improbable under the spike, and the reverse.
    """
    for_entry, for_gene = jax.random.split(jax.random.fold_in(key, 2))
    switched = target.loadings.switch(for_entry, state.scales, state.precision)
    some = jax.random.bernoulli(for_gene, SWITCHES, (len(switched), 1))
    to = state._replace(precision=jnp.where(some, switched, state.precision))
    proposal = langevin.propose(key, _rows_at(target, to, state.genes, sums))
    rows = _rows(state.genes).at[-len(proposal.move) :].add(proposal.move)
    w = 1 + state.genes.effects.shape[1]  # where the loadings begin
    genes = state.genes._replace(mu=rows[0], effects=rows[1:w].T, W=rows[w:].T)
    return to._replace(genes=genes), proposal


@quick_jit
def accept_rows(key, target, state: State, sums: Sums, to: State, proposal, new: Sums):
    """The next state, its sums, and the share accepted where memberships stay."""

    def log_prior(state):
        away, precision = _rows_away(state, state.genes), _rows_precision(target, state)
        choice = target.loadings.log_choice(state.scales, state.precision)
        gaussian = -0.5 * jnp.sum(precision * away**2, axis=0)
        return target.log_mean(state.genes.mu) + gaussian + choice

    rise = new.log - sums.log + log_prior(to) - log_prior(state)
    back = _rows_at(target, state, to.genes, new)
    taken = langevin.accept(jax.random.fold_in(key, 1), proposal, back, rise)
    genes = to.genes.where(taken, state.genes)
    precision = jnp.where(taken[:, None], to.precision, state.precision)
    same = jnp.all(to.precision == state.precision, axis=1)
    share = jnp.sum(taken & same) / jnp.maximum(jnp.sum(same), 1)
    return state._replace(genes=genes, precision=precision), new.where(taken, sums), share


# Overdispersion


def _moved(target: Target, genes: Genes, psi) -> Genes:
    """Genes with another overdispersion and the same μ + d/2; the map has determinant 1."""
    d, _ = target.overdispersion.parameters(psi)
    old, _ = target.overdispersion.parameters(genes.psi)
    if not isinstance(target.mean, SmoothPrior):
        return genes._replace(psi=psi)
    return genes._replace(psi=psi, mu=genes.mu - 0.5 * (d - old))


def _overdispersion_at(target: Target, state: State, genes: Genes, sums: Sums) -> Local:
    gradient, curvature = target.pooling.penalty(genes.psi, state.pool)
    precision = small.unpack(sums.psi_products)
    index = jnp.arange(len(precision))
    return Local.of(sums.psi + gradient, precision.at[index, index].add(curvature))


@quick_jit
def propose_overdispersion(key, target, state: State, sums: Sums) -> tuple[Genes, Proposal]:
    proposal = langevin.propose(key, _overdispersion_at(target, state, state.genes, sums))
    return _moved(target, state.genes, state.genes.psi + proposal.move), proposal


@quick_jit
def accept_overdispersion(key, target, state: State, sums: Sums, genes: Genes, proposal, new: Sums):
    def log_prior(genes):
        return target.log_mean(genes.mu) + target.pooling.log_density(genes.psi, state.pool)

    rise = new.log - sums.log + target.constant(genes, state.genes)
    rise = rise + log_prior(genes) - log_prior(state.genes)
    back = _overdispersion_at(target, state, genes, new)
    taken = langevin.accept(jax.random.fold_in(key, 1), proposal, back, rise)
    state = state._replace(genes=genes.where(taken, state.genes))
    return state, new.where(taken, sums), jnp.mean(taken)


# The shares of all genes at once, with their mean


def _shifted(target: Target, genes: Genes, pool: Pool, by) -> tuple[Genes, Pool]:
    psi = genes.psi.at[1].add(by)
    return _moved(target, genes, psi), pool._replace(share=pool.share + by)


def _shift_at(key, target: Target, genes: Genes, pool: Pool, sums: Sums) -> Local:
    """A Newton step of the shift or, as `key` has it, a walk, which is the same from both ends."""

    def log_prior(by):
        moved = pool._replace(share=pool.share + by)
        return target.pooling.log_shifted(genes.psi.at[1].add(by), moved)

    gradient = jnp.sum(sums.psi[1]) + jax.grad(log_prior)(0.0)
    curvature = jnp.maximum(-jax.grad(jax.grad(log_prior))(0.0), 0)
    precision = jnp.sum(sums.psi_products[-1]) + curvature
    for_choice, for_length = jax.random.split(key)
    limits = jnp.log(jnp.array([SHORTEST_WALK, LONGEST_WALK]))
    length = jnp.exp(jax.random.uniform(for_length, minval=limits[0], maxval=limits[1]))
    walks = jax.random.uniform(for_choice) < WALKS
    gradient = jnp.where(walks, 0.0, gradient)
    precision = jnp.where(walks, length**-2, precision)
    return Local.of(gradient[None, None], precision[None, None, None])


@quick_jit
def propose_shift(key, target, state: State, sums: Sums) -> tuple[Genes, Proposal]:
    at = _shift_at(jax.random.fold_in(key, 2), target, state.genes, state.pool, sums)
    proposal = langevin.propose(key, at)
    return _shifted(target, state.genes, state.pool, proposal.move[0, 0])[0], proposal


@quick_jit
def accept_shift(key, target, state: State, sums: Sums, genes: Genes, proposal, new: Sums):
    pool = state.pool._replace(share=state.pool.share + proposal.move[0, 0])
    # Gene by gene first: float32 does not tell two sums over all genes apart.
    rise = new.log - sums.log + target.constant(genes, state.genes)
    rise = jnp.sum(rise + target.log_mean(genes.mu) - target.log_mean(state.genes.mu))
    rise = rise + target.pooling.log_shifted(genes.psi, pool)
    rise = rise - target.pooling.log_shifted(state.genes.psi, state.pool)
    back = _shift_at(jax.random.fold_in(key, 2), target, genes, pool, new)
    taken = langevin.accept(jax.random.fold_in(key, 1), proposal, back, rise[None])[0]
    moved = state._replace(genes=genes, pool=pool), new
    state, sums = jax.tree.map(lambda a, b: jnp.where(taken, a, b), moved, (state, sums))
    return state, sums, 1.0 * taken


@quick_jit
def finish(key, target: Target, state: State, drawn: Drawn, warm) -> State:
    """Pool, basis, memberships, centres and scales, which depend on genes and factors alone."""
    loadings, genes, centre = target.loadings, state.genes, state.centre
    for_effects, for_exchange = jax.random.split(jax.random.fold_in(key, COLUMN_STEPS + 1))
    effects = target.effects.draw(for_effects, state.effects, genes.effects)
    log_activity = genes.log_activity
    of_factors = jnp.exp(-2 * log_activity) if len(log_activity) else jnp.ones((1, len(centre)))
    given = target.effects.precision(effects), genes.W, of_factors, drawn.cross, drawn.known
    moved = columns.exchange(for_exchange, genes.effects, *given)
    # Of z - shift x: Σ z zᵀ - shift Σ x zᵀ - (Σ z xᵀ of what is left) shiftᵀ.
    products = drawn.products - jnp.einsum("kj,hlj->hkl", moved.shift, drawn.cross)
    products = products - dot(moved.cross, moved.shift.T)
    basis = columns.Basis(genes.W, centre, products, jnp.eye(len(centre)))

    def again(repeat, at):
        basis, precision, scales, steps = at
        keys = jax.random.split(jax.random.fold_in(key, repeat), 4)
        basis = columns.mix(keys[0], basis, precision, of_factors, jnp.sum(drawn.n_cells))
        away = basis.W - basis.centre
        scales, steps = columns.draw_scales(keys[1], loadings, scales, steps, away, warm)
        precision = loadings.draw_precision(keys[2], away, scales)
        basis = basis._replace(centre=columns.draw_centre(keys[3], basis.W, precision))
        return basis, precision, scales, steps

    at = basis, state.precision, state.scales, state.steps
    # A loop, since three copies take three times as long to compile.
    basis, precision, scales, steps = jax.lax.fori_loop(0, COLUMN_STEPS, again, at)
    pool = target.pooling.draw(jax.random.fold_in(key, COLUMN_STEPS), genes.psi, state.pool)
    spreads = Spreads(jnp.einsum("hjj->hj", basis.products), drawn.n_cells)
    for_activity = jax.random.fold_in(key, COLUMN_STEPS + 2)
    activity = columns.draw_activity(for_activity, target.activity, state.activity, spreads)
    log_activity = target.activity.log_activity(activity.effects)
    genes = genes._replace(effects=moved.effects, W=basis.W, log_activity=log_activity)
    move = Move(basis.inverse, moved.shift)
    return State(genes, precision, basis.centre, scales, steps, pool, effects, activity, move)
