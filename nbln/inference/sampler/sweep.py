"""One sweep over everything: cells, genes, pool, columns.

Each step leaves the posterior exactly invariant, quadrature aside: the genes' own residuals are
integrated out entry by entry, and every proposal is corrected by Metropolis and Hastings.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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

# Steps of the genes in a sweep: with one, half of them stay where they are, and of counts of PBMCs
# correlations had 0.4 effective draws a draw, for 0.54.
GENE_STEPS = 2
# Entries of the counts up to which a shift of all shares, which move least, follows each of them.
SMALL_DATA = 2.5e6
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
    genes: Float[Array, ""]
    shift: Float[Array, ""]


def sweep(key, target: Target, stream: CellStream, state: State, cells, warm, kept):
    """Draw everything once; the new state, the new cells, what was accepted."""
    keys = jax.random.split(key, 4)
    given = (target.overdispersion, state.move, warm, kept, stream.columns)
    (sums, drawn), cells = stream.scan(cell_steps.draw, cells, keys[0], state.genes, *given)

    def visit(genes: Genes) -> Sums:
        return stream.scan(cell_steps.visit, cells, genes, target.overdispersion, stream.columns)[0]

    small = stream.n_cells * stream.n_genes <= SMALL_DATA
    taken, shift = jnp.zeros(()), jnp.ones(())
    for i in range(GENE_STEPS):
        one, other = (jax.random.fold_in(key, i) for key in keys[1:3])
        proposal = propose_genes(one, target, state, sums)
        new = visit(proposal.to.genes)
        state, sums, share = accept_genes(one, target, state, sums, proposal, new)
        taken = taken + share / GENE_STEPS
        if len(state.genes.psi) > 1 and (small or i + 1 == GENE_STEPS):
            genes, proposal = propose_shift(other, target, state, sums)
            new = visit(genes)
            state, sums, shift = accept_shift(other, target, state, sums, genes, proposal, new)
    state = finish(keys[3], target, state, drawn, warm)
    return state, cells, Taken(drawn.taken / jnp.sum(drawn.n_cells), taken, shift)


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
    N = small.unpack_bordered(sums.rows.normal.T)
    gradient, precision = sums.rows.slope, _rows_precision(target, state)
    gradient = gradient.at[1:].add(-precision * _rows_away(state, genes))
    inner = jnp.arange(1, len(N))
    N = N.at[inner, inner].add(precision)
    if not isinstance(target.mean, SmoothPrior):
        return Local.of(gradient[1:], N[1:, 1:])
    slope, curvature = target.mean.penalty(genes.mu)
    return Local.of(gradient.at[0].add(slope), N.at[0, 0].add(curvature))


def _log_switches(target: Target, state: State, sums: Sums) -> Float[Array, "gene choice"]:
    """Log-probabilities that a gene keeps its memberships, choice 0, or switches one of them.

    Drawn given the loadings alone a membership hardly moves, since a loading that has the size of
    a member's is improbable under the spike, and the reverse. So it is weighed with the loading
    integrated out: of a Gaussian posterior N(m, C) the other precision, greater by δ, has the odds
    (1 + δ C)^-½ exp(-½ δ m²/(1 + δ C)), times those of the prior. Odds ρ are proposed as
    ρ/(1 + ρ), with which Metropolis and Hastings refuse little (Zanella 2020).
    """
    near, k = _rows_at(target, state, state.genes, sums), state.genes.W.shape[1]
    mean = state.genes.W - state.centre + near.step[-k:].T
    variance = jnp.einsum("jjg->gj", near.covariance)[:, -k:]
    prior, other = target.loadings, target.loadings.switched(state.scales, state.precision)
    more = other - state.precision
    wider = 1 + more * variance
    odds = prior.log_choice(state.scales, other) - prior.log_choice(state.scales, state.precision)
    odds = odds - 0.5 * jnp.log(wider) - 0.5 * more * mean**2 / wider
    weights = jnp.pad(jax.nn.log_sigmoid(odds), ((0, 0), (1, 0)))
    return jax.nn.log_softmax(weights, axis=1)


def _at(log_switches, switch) -> Float[Array, " gene"]:
    """Of the choice of each gene."""
    return jnp.take_along_axis(log_switches, switch[:, None], axis=1)[:, 0]


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


# Rows and overdispersion of each gene


class GenesProposal(NamedTuple):
    """Genes that are proposed, some of them under another membership."""

    to: State
    rows: Proposal  # given the memberships
    overdispersion: Proposal
    switch: Int[Array, " gene"]  # 1 + the factor whose membership changes, or 0
    log_switch: Float[Array, " gene"]  # its probability


@quick_jit
def propose_genes(key, target: Target, state: State, sums: Sums) -> GenesProposal:
    """The state with other rows and another overdispersion of every gene."""
    keys, genes = jax.random.split(key, 3), state.genes
    log_switches = _log_switches(target, state, sums)
    switch = jax.random.categorical(keys[0], log_switches)
    changed = switch[:, None] == jnp.arange(1, log_switches.shape[1])
    other = target.loadings.switched(state.scales, state.precision)
    to = state._replace(precision=jnp.where(changed, other, state.precision))
    row_step = langevin.propose(keys[1], _rows_at(target, to, genes, sums))
    rows = _rows(genes).at[-len(row_step.move) :].add(row_step.move)
    w = 1 + genes.effects.shape[1]  # where the loadings begin
    step = langevin.propose(keys[2], _overdispersion_at(target, state, genes, sums))
    genes = genes._replace(mu=rows[0], effects=rows[1:w].T, W=rows[w:].T)
    genes = _moved(target, genes, genes.psi + step.move)
    log_switch = _at(log_switches, switch)
    return GenesProposal(to._replace(genes=genes), row_step, step, switch, log_switch)


@quick_jit
def accept_genes(key, target, state: State, sums: Sums, proposal: GenesProposal, new: Sums):
    """The next state, its sums, and the share accepted where memberships stay."""

    def log_prior(state):
        away, precision = _rows_away(state, state.genes), _rows_precision(target, state)
        choice = jnp.sum(target.loadings.log_choice(state.scales, state.precision), axis=1)
        gaussian = -0.5 * jnp.sum(precision * away**2, axis=0)
        own = target.pooling.log_density(state.genes.psi, state.pool)
        return target.log_mean(state.genes.mu) + gaussian + choice + own

    to = proposal.to
    rise = new.log - sums.log + target.constant(to.genes, state.genes)
    rise = rise + log_prior(to) - log_prior(state)
    log_back = _at(_log_switches(target, to, new), proposal.switch)
    rise = rise + log_back - proposal.log_switch
    rise = rise + langevin.log_ratio(proposal.rows, _rows_at(target, state, to.genes, new))
    back = _overdispersion_at(target, state, to.genes, new)
    rise = rise + langevin.log_ratio(proposal.overdispersion, back)
    taken = langevin.taken(jax.random.fold_in(key, 3), rise)
    genes = to.genes.where(taken, state.genes)
    precision = jnp.where(taken[:, None], to.precision, state.precision)
    same = proposal.switch == 0
    share = jnp.sum(taken & same) / jnp.maximum(jnp.sum(same), 1)
    return state._replace(genes=genes, precision=precision), new.where(taken, sums), share


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
