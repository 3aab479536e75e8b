"""Each step of a sweep leaves its conditional posterior invariant: against brute-force grids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size
from problem import MU, D, Problem, R, W
from scipy import stats
from scipy.special import gammaln

from nbln.inference.overdispersion import Pool, Pooling
from nbln.inference.sampler import cells as cell_steps
from nbln.inference.sampler import columns, sweep
from nbln.linalg.dtypes import strong
from nbln.posterior.mode import Columns
from nbln.priors.activity import DEGREES, TYPICAL, ActivityPrior, Spreads
from nbln.priors.sparse import HorseshoeSparse

KNOWN_D = 0.2
NODES = np.linspace(-6, 6, 81)  # three times as many move moments of a grid by 1e-8
WEIGHTS = np.exp(-0.5 * NODES**2) * (NODES[1] - NODES[0]) / np.sqrt(2 * np.pi)


def log_marginal(u, m, d, r):
    """log p(u | m), the gene's own residual summed on a grid; arguments broadcast."""
    u, m, d, r = (np.asarray(x, float)[..., None] for x in (u, m, d, r))
    f = m + np.sqrt(d) * NODES
    log = u * f - (u + r) * np.logaddexp(f, np.log(r)) + r * np.log(r)
    log = log + gammaln(u + r) - gammaln(r)
    top = log.max(axis=-1, keepdims=True)
    return np.log(np.sum(np.exp(log - top) * WEIGHTS, axis=-1)) + top[..., 0]


def moments(log, *axes):
    """Means and standard deviations of the axes of a grid under exp(log)."""
    p = np.exp(log - log.max())
    p /= p.sum()
    grids = np.meshgrid(*axes, indexing="ij")
    means = [np.sum(p * g) for g in grids]
    return means, [np.sqrt(np.sum(p * (g - m) ** 2)) for g, m in zip(grids, means, strict=True)]


def agree(draws, means, sds, ess_share=0.2):
    """Mean and sd of draws are those of the grid, within five standard errors."""
    n = len(draws) * ess_share
    for values, mean, sd in zip(draws.T, means, sds, strict=True):
        assert abs(values.mean() - mean) < 5 * sd / np.sqrt(n), (values.mean(), mean, sd)
        assert abs(values.std() / sd - 1) < 5 / np.sqrt(2 * n), (values.std(), sd)


def chain(step, at, n, record):
    """What `record` takes of n states, each ``step(key, state)`` after another, and the last.

    Compiled as a whole: a thousand steps of so few genes take less time than to call them.
    """

    def another(at, i):
        at = step(jax.random.key(i), at)
        return at, record(at)

    last, drawn = jax.jit(lambda at: jax.lax.scan(another, at, jnp.arange(n)))(strong(at))
    return np.asarray(drawn), last


def inner(function):
    """What `quick_jit` compiles, which JAX does not take as a part of another program."""
    return function.__wrapped__


def draw_cells(problem, n):
    given = problem.genes, problem.coordinates, problem.state.move
    given = *given, jnp.asarray(False), jnp.asarray(1.0), problem.stream.columns

    def step(key, state):
        return problem.stream.scan(cell_steps.draw, state, key, *given)[1]

    return chain(step, problem.cells(), n, lambda state: state[0].z[0])[0]


def test_factors_of_cells():
    problem = Problem()
    drawn = draw_cells(problem, 1500)
    axis = np.linspace(-5, 5, 401)
    for cell in (0, 7, 20):
        m = MU[:, None] + W * axis
        log = log_marginal(problem.counts[cell][:, None], m, D[:, None], R).sum(axis=0)
        agree(drawn[:, :1, cell], *moments(log - 0.5 * axis**2, axis), ess_share=0.4)


def test_capture_losses_that_cannot_be_negative():
    """A factor and a truncated loss η = v ζ ≥ 0 together."""
    n = 60
    added = Columns((-1.0,), (1.0,), (True,))
    problem = Problem(n, columns_=added, scale=np.full((n, 1), 0.5, np.float32))
    # Modes may be outside, where the chains begin.
    drawn = draw_cells(problem, 3100)[100:]
    assert (drawn[:, 1, :n] >= -1e-6).all()
    z, zeta = np.linspace(-4.5, 4.5, 121), np.linspace(0, 4.5, 241)
    for cell in (0, 7):
        m = MU[:, None, None] + W[:, :, None] * z[:, None] - 0.5 * zeta
        log = log_marginal(problem.counts[cell][:, None, None], m, D[:, None, None], R).sum(axis=0)
        log = log - 0.5 * z[:, None] ** 2 - 0.5 * zeta**2
        agree(drawn[:, :, cell], *moments(log, z, zeta))


def draw_genes(problem, state, n):
    """μ, the loading, its prior precision and the overdispersion, by draw and gene."""
    cells = problem.cells(problem.z)

    def step(key, at):
        proposal = inner(sweep.propose_genes)(key, problem.target, *at)
        new = problem.visit(proposal.to.genes, cells)
        return inner(sweep.accept_genes)(key, problem.target, *at, proposal, new)[:2]

    def record(at):
        genes = at[0].genes
        return jnp.stack([genes.mu, genes.W[:, 0], at[0].precision[:, 0], *genes.psi])

    sums = problem.visit(state.genes, cells)
    return chain(step, (state, sums), n, record)[0]


def with_known_overdispersion(problem):
    """The problem and its first state; d is 0.2 in both genes, as their pool has it."""
    psi = problem.coordinates.of(jnp.full(2, KNOWN_D, jnp.float32), problem.channel)
    pool = Pool(psi[0, 0], jnp.float32(1e-3), psi[1, 0])
    pooling = Pooling(deviation=1e-3)
    problem.target = dataclasses.replace(problem.target, pooling=pooling)
    return problem.state._replace(genes=problem.genes._replace(psi=psi), pool=pool)


def grid_of_rows(problem, gene, mu, w):
    """Log-posterior on a grid, but for the prior of the loading."""
    m = mu[:, None, None] + w[:, None] * problem.z[:, 0]
    log = log_marginal(problem.counts[:, gene], m, KNOWN_D, R).sum(axis=-1)
    return log - 0.5 * mu[:, None] ** 2 / 4


def test_rows_of_genes():
    problem = Problem()
    drawn = draw_genes(problem, with_known_overdispersion(problem), 1500)
    for gene in (0, 1):
        mu, w = np.linspace(-1.2, 2.2, 69), np.linspace(-2, 2, 81)
        log = grid_of_rows(problem, gene, mu, w) - 0.5 * w**2 / 0.8**2
        agree(drawn[:, :2, gene], *moments(log, mu, w), ess_share=0.4)


def test_memberships_with_their_loadings():
    """Spike or slab, switched with the loading that follows, at known scales."""
    prior = HorseshoeSparse()
    problem = Problem(n_cells=12, prior=prior)
    scales = {"lambda": 0.6, "inclusion": 0.4, "spike": 0.05, "tau": 1.0}
    scales = {name: jnp.array([x], jnp.float32) for name, x in scales.items()}
    slab, spike = (float(x[0]) for x in prior.variances(scales))
    state = with_known_overdispersion(problem)
    state = state._replace(scales=scales, precision=jnp.full((2, 1), 1 / slab))
    drawn = draw_genes(problem, state, 3000)
    member = drawn[:, 2] < 0.5 * (1 / slab + 1 / spike)
    for gene in (0, 1):
        mu, w = np.linspace(-1.5, 2.5, 61), np.linspace(-3, 3, 401)
        log = grid_of_rows(problem, gene, mu, w)
        parts = [
            log + np.log(share / np.sqrt(variance)) - 0.5 * w**2 / variance
            for share, variance in ((0.4, slab), (0.6, spike))
        ]
        agree(drawn[:, :2, gene], *moments(np.logaddexp(*parts), mu, w), ess_share=0.1)
        weights = [np.exp(part - np.max(parts)).sum() for part in parts]
        probability = weights[0] / sum(weights)
        assert 0.2 < probability < 0.98
        assert abs(member[:, gene].mean() - probability) < 0.05


def test_means_and_overdispersion_of_genes():
    """Total and split move with μ, such that μ + d/2 stays; loadings are known."""
    problem = Problem(n_cells=20)
    known = jnp.full((2, 1), 0.9)
    state, pool = problem.state, problem.state.pool
    state = state._replace(genes=state.genes._replace(W=known), precision=jnp.full((2, 1), 1e8))
    drawn = draw_genes(problem, state._replace(centre=known[0]), 6000)
    np.testing.assert_allclose(drawn[:, 1], 0.9, atol=1e-3)
    for gene in (0, 1):
        shifted = np.linspace(-1.5, 2.5, 33)
        phi, split = np.linspace(-5.5, 2.5, 41), np.linspace(-5, 5, 41)
        total, share = np.exp(phi)[:, None], 1 / (1 + np.exp(-split))
        d, r = total * share, 1 / np.expm1(total * (1 - share))
        log = np.zeros((len(shifted), *d.shape))
        for i, of_mean in enumerate(shifted):
            mu = of_mean - 0.5 * d
            m = mu[..., None] + 0.9 * problem.z[:, 0]
            counts = problem.counts[:, gene]
            log[i] = log_marginal(counts, m, d[..., None], r[..., None]).sum(axis=-1)
            log[i] -= 0.5 * mu**2 / 4
        log = log - 0.5 * ((phi - float(pool.mean)) / float(pool.sd))[:, None] ** 2
        log = log - 0.5 * ((split - float(pool.share)) / problem.target.pooling.deviation) ** 2
        mu, (phi_drawn, split_drawn) = drawn[:, 0, gene], drawn[:, 3:, gene].T
        own = np.exp(phi_drawn) / (1 + np.exp(-split_drawn))
        values = np.stack([mu + 0.5 * own, phi_drawn, split_drawn], axis=1)
        agree(values, *moments(log, shifted, phi, split))


def test_splits_of_all_genes_at_once():
    problem = Problem()
    cells, target, first = problem.cells(problem.z), problem.target, problem.state

    def step(key, at):
        genes, proposal = inner(sweep.propose_shift)(key, target, *at)
        new = problem.visit(genes, cells)
        return inner(sweep.accept_shift)(key, target, *at, genes, proposal, new)[:2]

    start = first, problem.visit(first.genes, cells)
    drawn, (state, _) = chain(step, start, 3000, lambda at: at[0].pool.share)
    np.testing.assert_allclose(
        state.genes.psi[1] - state.pool.share, first.genes.psi[1] - first.pool.share, atol=1e-4
    )
    axis, log = np.linspace(-7, 7, 281), 0.0
    for gene in (0, 1):
        total = np.exp(float(first.genes.psi[0, gene]))
        away = float(first.genes.psi[1, gene] - first.pool.share)
        share = 1 / (1 + np.exp(-(axis + away)))
        d, r = total * share, 1 / np.expm1(total * (1 - share))
        mu = MU[gene] + 0.5 * (D[gene] - d)
        m = mu[:, None] + W[gene, 0] * problem.z[:, 0]
        log = log + log_marginal(problem.counts[:, gene], m, d[:, None], r[:, None]).sum(axis=-1)
        log = log - 0.5 * mu**2 / 4
    log = log - 0.5 * (axis / target.pooling.share_width) ** 2
    agree(drawn[:, None], *moments(log, axis))


def test_a_change_of_basis_leaves_priors_invariant():
    """From W, b and z under their priors, stretching and shearing leads to the same priors.

    The centre has a flat prior, so that only W - b is looked at. Factors have other standard
    deviations in the second of two data sets.
    """
    n_genes, n_cells, k, n = 12, 9, 2, 4000
    sd, of_z = jnp.array([0.5, 1.5]), jnp.array([[1.0, 1.0], [0.5, 2.0]])
    which = jnp.eye(2)[jnp.arange(n_cells) % 2].T

    def once(key):
        keys = jax.random.split(key, 4)
        away = sd * jax.random.normal(keys[0], (n_genes, k))
        centre = jax.random.normal(keys[1], (k,))
        z = jax.random.normal(keys[2], (k, n_cells)) * (of_z.T @ which)
        precision = jnp.broadcast_to(1 / sd**2, (n_genes, k))
        products = jnp.einsum("hc,ic,jc->hij", which, z, z)
        basis = columns.Basis(away + centre, centre, products, jnp.eye(k))
        mixed = columns.mix(keys[3], basis, precision, of_z**-2, jnp.asarray(1.0 * n_cells))
        before, after = (away + centre) @ z, mixed.W @ (mixed.inverse @ z)
        return (
            jnp.sum((mixed.W - mixed.centre) ** 2, axis=0),
            jnp.sum(mixed.products / (of_z[:, :, None] * of_z[:, None]), axis=0),
            jnp.max(jnp.abs(after - before)),
        )

    squares, products, change = jax.vmap(once)(jax.random.split(jax.random.key(0), n))
    assert float(jnp.max(change)) < 1e-3
    # Chi-squared with 12 and 9 degrees of freedom, but for one of the centre's scale.
    np.testing.assert_allclose(np.mean(products[:, 0, 1]), 0, atol=5 * 3 / np.sqrt(n))
    for j in range(k):
        expected = n_genes * float(sd[j]) ** 2
        assert abs(np.mean(squares[:, j]) / expected - 1) < 0.12
        assert abs(np.mean(products[:, j, j]) / n_cells - 1) < 0.12


def test_effects_and_factors_exchange_what_they_have_of_covariates():
    """Log-rates stay; effects and factors under their priors stay under them.

    Factors have other standard deviations in the second of two data sets.
    """
    n_genes, n_cells, k, n = 6, 8, 2, 4000
    x = np.random.default_rng(3).normal(size=(n_cells, 2))
    x, sd = jnp.asarray(x, jnp.float32), jnp.array([0.4, 1.2])
    W = jnp.asarray(np.random.default_rng(4).normal(size=(n_genes, k)), jnp.float32)
    precision = jnp.broadcast_to(sd**-2, (n_genes, 2))
    which = jnp.eye(2)[jnp.arange(n_cells) % 2].T
    of_z = jnp.array([[1.0, 1.0], [0.5, 2.0]])
    known = jnp.einsum("hc,ci,cj->hij", which, x, x)

    def by_dataset(z):
        return jnp.einsum("hc,ic,cj->hij", which, z, x)

    def once(key):
        keys = jax.random.split(key, 3)
        effects = sd * jax.random.normal(keys[0], (n_genes, 2))
        z = jax.random.normal(keys[1], (k, n_cells)) * (of_z.T @ which)
        given = W, of_z**-2, by_dataset(z), known
        moved = columns.exchange(keys[2], effects, precision, *given)
        new = z - moved.shift @ x.T
        away = effects @ x.T + W @ z - moved.effects @ x.T - W @ new
        apart = jnp.abs(moved.cross - by_dataset(new)).max()
        return moved.effects, new / (of_z.T @ which), jnp.max(jnp.abs(away)), apart

    effects, z, change, cross = jax.vmap(once)(jax.random.split(jax.random.key(0), n))
    assert float(change.max()) < 1e-4
    assert float(cross.max()) < 1e-4
    np.testing.assert_allclose(effects.std(axis=0) / sd, 1, atol=5 / np.sqrt(2 * n))
    np.testing.assert_allclose(z.std(axis=0), 1, atol=5 / np.sqrt(2 * n))
    np.testing.assert_allclose(jnp.mean(effects[:, 0, 0] * z[:, 0, 0]), 0, atol=5 * 0.4 / n**0.5)


def test_activities_given_the_factors_agree_with_a_grid():
    """Two data sets, one program: the difference of log-activities, with τ² drawn too."""
    prior = ActivityPrior(np.eye(2, dtype=np.float32), (2,))
    spreads = Spreads(jnp.array([[30.0], [9.0]]), jnp.array([20.0, 15.0]))

    def step(activity, key):
        activity = columns.draw_activity(key, prior, activity, spreads)
        return activity, activity.effects[0, 0] - activity.effects[1, 0]

    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.lax.scan(step, prior.start(1), keys)[1])
    # e = (m + δ/2, m - δ/2): m is free of the counts, so δ ~ N(0, 2 τ²), and τ² as it is.
    delta = np.linspace(-2, 3, 1001)[:, None]
    tau2 = np.geomspace(1e-4, 50, 400)
    log = -0.5 * (30 * np.exp(-delta) + 9 * np.exp(delta)) - 0.5 * (20 - 15) * delta
    log = log + stats.norm.logpdf(delta, 0, np.sqrt(2 * tau2))
    log = log + stats.invgamma.logpdf(tau2, DEGREES / 2, scale=DEGREES * TYPICAL**2 / 2)
    weight = np.trapezoid(np.exp(log) * tau2, np.log(tau2), axis=1)
    weight /= weight.sum()
    mean = float(weight @ delta[:, 0])
    sd = float(np.sqrt(weight @ (delta[:, 0] - mean) ** 2))
    effective = float(effective_sample_size(drawn[None]))
    assert abs(drawn.mean() - mean) < 4 * sd / np.sqrt(effective)
    assert abs(drawn.std() / sd - 1) < 4 / np.sqrt(2 * effective)


def test_scales_follow_their_conditional_posterior():
    """Shares, spikes and column scales of a sparse prior, given the loadings."""
    prior = HorseshoeSparse()
    rng = np.random.default_rng(0)
    away = jnp.float32(rng.normal(size=(60, 1)) * np.where(rng.random((60, 1)) < 0.3, 1.0, 0.1))
    scales = prior.start(jnp.sum(away**2, axis=0), 60)
    steps = columns.first_steps(prior, 1)

    def record(at):
        return jnp.stack([at[0][n].ravel()[0] for n in ("lambda", "inclusion", "spike")])

    def draw(warm):
        return lambda key, at: columns.draw_scales(key, prior, *at, away, jnp.asarray(warm))

    _, at = chain(draw(True), (scales, steps), 200, record)
    drawn, _ = chain(draw(False), at, 3800, record)
    assert (drawn[:, 1] <= 0.5).all()
    lam, share = np.linspace(0.05, 2.5, 90), np.linspace(0.001, 0.499, 50)
    spike = np.linspace(1e-3, 0.999, 120) ** 2
    L, P, S = np.meshgrid(lam, share, spike, indexing="ij")
    slab, low = L**2 * (1 - (1 - P) * S) / P, L**2 * np.maximum(S, 1e-4)
    log = np.zeros_like(L)
    for w in np.asarray(away, float)[:, 0]:
        one = np.log(P) - 0.5 * (w**2 / slab + np.log(slab))
        log += np.logaddexp(one, np.log1p(-P) - 0.5 * (w**2 / low + np.log(low)))
    tau = np.geomspace(1e-3, 100, 400)
    weight = np.gradient(tau) / (1 + tau**2)  # half-Cauchy of τ
    log += np.log((weight / (tau * (1 + (lam[:, None] / tau) ** 2))).sum(axis=1))[:, None, None]
    # √ρ is uniform, and its grid is even.
    p = np.exp(log - log.max())
    p /= p.sum()
    for values, grid in zip(drawn.T, (L, P, np.sqrt(S)), strict=True):
        values = np.sqrt(values) if grid is not L and grid is not P else values
        mean = np.sum(p * grid)
        sd = np.sqrt(np.sum(p * (grid - mean) ** 2))
        assert abs(values.mean() - mean) < 5 * sd / np.sqrt(300)
        assert abs(values.std() / sd - 1) < 0.2


@pytest.mark.parametrize("above", [-np.inf, 0.3])
def test_means_of_a_pool_are_conjugate(above):
    from nbln.inference.overdispersion import _draw_mean

    x = jnp.array([0.1, 0.4, 0.2])
    keys = jax.random.split(jax.random.key(0), 20000)
    drawn = np.asarray(jax.vmap(lambda key: _draw_mean(key, x, 0.5, 0.0, 1.0, above))(keys))
    axis = np.linspace(-2, 3, 2001)
    log = -0.5 * ((axis[:, None] - np.asarray(x)) ** 2).sum(axis=1) / 0.25 - 0.5 * axis**2
    log = np.where(axis >= above, log, -np.inf)
    (mean,), (sd,) = moments(log, axis)
    assert abs(drawn.mean() - mean) < 5 * sd / np.sqrt(len(drawn)) + 2e-3
    assert abs(drawn.std() / sd - 1) < 0.03
    assert drawn.min() >= above
