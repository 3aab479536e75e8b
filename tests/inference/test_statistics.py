"""What an iteration sums over cells, against loops over cells and genes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of, random_problem

from nbln.channels.poisson import Poisson
from nbln.inference.laplace import statistics
from nbln.linalg import small
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters

every_case = pytest.mark.parametrize("columns", ["latent", "known", "flat"])


def sums_of(problem, mask=None, cells=slice(None)):
    parameters, chunk = problem.kernel("float64")
    mask = chunk.mask if mask is None else jnp.asarray(mask)
    chunk = chunk._replace(mask=mask)
    chunk = jax.tree.map(lambda x: x[cells], chunk)
    f = jnp.log(chunk.counts + 0.5)
    step = mode.newton_step(parameters, chunk, problem.columns, f)
    return statistics.of_step(step, parameters, chunk, problem.columns), step, parameters, chunk


@every_case
@pytest.mark.parametrize("channel", ["poisson", "nb"])
def test_against_loops(channel, columns):
    p = random_problem(channel, columns)
    with precision_of("float64"):
        sums, step, parameters, chunk = sums_of(p)
        moved, leverage, variance = mode.corrected(
            step, parameters, chunk, p.columns, statistics.LARGEST_VARIANCE
        )
        own = parameters.channel.statistics(chunk.counts, moved.f, variance, chunk.mask)
        sums, step, moved = jax.device_get((sums, step, moved))
    k, (n_cells, n_genes) = p.W.shape[1], p.u.shape
    second = moved.covariance + moved.z[:, None] * moved.z[None]
    weight = np.asarray(step.weight)
    for g in range(n_genes):
        normal, response, residual = np.zeros((1 + k, 1 + k)), np.zeros(1 + k), 0.0
        for c in range(n_cells):
            first = np.concatenate([[1.0], moved.z[:k, c]])
            joint = np.outer(first, first)
            joint[1:, 1:] = second[:k, :k, c]
            normal += weight[c, g] * joint
            response += moved.response[c, g] * first
            for e, value in enumerate(p.columns.value):
                cross = np.concatenate([[moved.z[k + e, c]], second[k + e, :k, c]])
                response -= weight[c, g] * value * p.scale[c, e] * cross
            residual += (p.d[g] * moved.alpha[c, g]) ** 2 + p.d[g] * step.t[c, g]
            residual += (p.d[g] * weight[c, g]) ** 2 * float(leverage[c, g])
        packed = small.unpack_bordered(jnp.asarray(sums.normal))[:, :, g]
        np.testing.assert_allclose(packed, normal, rtol=1e-5)
        np.testing.assert_allclose(sums.response[g], response, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sums.residual[g], residual, rtol=1e-5)
    np.testing.assert_allclose(sums.moments[0], n_cells)
    np.testing.assert_allclose(sums.moments[1 : 1 + k], moved.z[:k].sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(sums.channel, own, rtol=1e-6)


@every_case
def test_chunks_add_up_and_padding_is_nothing(columns):
    p = random_problem("nb", columns, n_cells=6)
    with precision_of("float64"):
        whole = sums_of(p)[0]
        parts = [sums_of(p, cells=block)[0] for block in (slice(0, 2), slice(2, 6))]
        added = jax.tree.map(jnp.add, *parts)
        for ours, theirs in zip(*map(jax.tree.leaves, (added, whole)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        masked = sums_of(p, mask=[1.0, 1.0, 0.0, 0.0, 0.0, 0.0])[0]
        for ours, theirs in zip(*map(jax.tree.leaves, (masked, parts[0])), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_step_from_coordinates_is_one_from_the_rates_they_imply():
    p = random_problem("nb", "latent")
    with precision_of("float64"):
        parameters, chunk = p.kernel("float64")
        z = jnp.asarray(np.random.default_rng(0).normal(size=(3, len(p.u))))
        sums, new_z = statistics.advance(parameters, chunk, p.columns, z)
        f = mode.conditional_rates(parameters, chunk, p.columns, z)
        step = mode.newton_step(parameters, chunk, p.columns, f)
        np.testing.assert_allclose(new_z, step.z)
        again = statistics.of_step(step, parameters, chunk, p.columns)
        np.testing.assert_allclose(sums.normal, again.normal)


@pytest.mark.parametrize("d", [1.0, 30.0])
def test_regressions_of_a_gene_that_few_cells_show_come_to_rest(d):
    """The slope of the score must not outgrow the weight that the next step divides it by."""
    counts = jnp.asarray(np.repeat([0.0, 3.0], [94, 6])[:, None])
    cells = Cells(counts, jnp.ones(100), jnp.zeros(100), *[jnp.zeros((100, 0))] * 2)
    advance = eqx.filter_jit(statistics.advance)
    mu, steps = jnp.zeros(1), []
    for _ in range(60):
        parameters = Parameters(mu, jnp.zeros((1, 1)), jnp.asarray([d]), Poisson())
        sums, _ = advance(parameters, cells, Columns(), jnp.zeros((1, 100)))
        steps.append(float(sums.response[0, 0] / sums.normal[0, 0]))
        mu = mu + np.clip(steps[-1], -2, 2)
    assert np.abs(steps[-5:]).max() < 1e-3
