"""One update of the Laplace engine, what it reports of itself, and what a fit keeps of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nbln
from nbln.data.counts import Counts
from nbln.inference.laplace import engine, iterations, statistics, update
from nbln.inference.laplace.basis import expand
from nbln.inference.stream import CellStream
from nbln.linalg import small
from nbln.models.depth import InCounts
from nbln.models.nbln import NBLN
from nbln.posterior import mode
from nbln.posterior.cells import CellsAtMode
from nbln.priors.capture import CaptureRule
from nbln.priors.effects import EffectsPrior
from nbln.priors.loadings import Rows
from nbln.priors.shrinkage import Phase
from nbln.priors.sparse import HorseshoeSparse

PRIORS = ({"type": "gaussian", "scale": 0.5}, "horseshoe_columnwise", "horseshoe_sparse")


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(300, 60, 2, seed=4)


@pytest.fixture(scope="module")
def fits(adata):
    return {
        str(prior): nbln.fit(adata, latent_dim=4, priors={"loadings": prior}, progress=False)
        for prior in PRIORS
    }


def sums_at(result):
    """The sums at the fitted parameters and the cells' modes, in the basis of the loadings."""
    at_mode = CellsAtMode(result.fitted.data(), result.augmentation, result.cells.z)
    parameters = jax.tree.map(jnp.asarray, result.parameters)
    cells, z = at_mode.take(slice(None))
    f = mode.conditional_rates(parameters, cells, result.augmentation.columns, z, 6)
    step = mode.newton_step(parameters, cells, result.augmentation.columns, f)
    return statistics.of_step(step, parameters, cells, result.augmentation.columns)


@pytest.mark.parametrize("prior", [str(prior) for prior in PRIORS])
def test_the_precision_that_is_kept_is_that_of_the_loadings_that_are_kept(prior, fits):
    """Summed at the final parameters, so that cross-terms have the sign of the final basis."""
    result = fits[prior]
    expected = np.asarray(sums_at(result).normal)
    np.testing.assert_allclose(
        result.spread.normal, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max()
    )
    # The cross-terms of the factors, in units of the terms on the diagonal.
    ours, theirs = (
        np.asarray(small.unpack_bordered(jnp.asarray(x)))[1:3, 1:3].sum(axis=2)
        for x in (result.spread.normal, expected)
    )
    assert ours[0, 1] == pytest.approx(theirs[0, 1], abs=2e-3 * float(ours[0, 0]))


@pytest.mark.parametrize("prior", [str(prior) for prior in PRIORS])
def test_the_history_says_what_happened_in_each_iteration(prior, fits):
    result = fits[prior]
    history, n = result.history, len(result.trace)
    k, n_genes = result.latent_dim, result.fitted.n_genes
    assert history.changes.shape == (n, 4)
    shapes = {
        "column_sd": (n, k),
        "shrank": (n, k),
        "further_steps": (n, k),
        "damped": (n, n_genes),
    }
    for name, shape in shapes.items():
        assert getattr(history, name).shape == shape, name
    assert history.last_change <= 3e-3
    if not result.loadings.learned:
        assert not history.shrank.any()
        return
    # Two programs of four offered: the other columns fell, with further steps, and stayed down.
    assert history.shrank[:, 2:].any(axis=0).all()
    assert history.further_steps.max() == result.loadings.prior.shrinkage.noise_steps
    np.testing.assert_allclose(history.column_sd[-1, 2:], 1e-3, rtol=0.5)
    fell = history.column_sd[1:] < history.column_sd[:-1]
    agreed = (fell == history.shrank[1:])[:, :2].mean()
    assert agreed > 0.8


def test_columns_are_compared_in_the_basis_that_they_are_in():
    """At the first turn to sparse axes two columns mix: each new one is half of either."""
    rng = np.random.default_rng(0)
    n_genes = 400
    sparse = rng.normal(size=(n_genes, 2)) * (rng.random((n_genes, 2)) < 0.2)
    half = np.sqrt(0.5)
    W = jnp.asarray(sparse @ np.array([[half, half], [-half, half]]), jnp.float32)
    prior = HorseshoeSparse()
    phase = Phase(jnp.asarray(10), jnp.asarray(1))
    n_cells = 1000.0
    moments = jnp.asarray([n_cells, 0.0, 0.0, n_cells, 0.0, n_cells])
    none = jnp.zeros((n_genes, 0))
    priors = prior, phase, True, InCounts(), EffectsPrior()
    turned = expand(jnp.zeros(n_genes), none, W, moments, *priors)
    scales = prior.start(jnp.ones(2), n_genes) | {"lambda": jnp.asarray([2.0, 0.1])}
    rows = Rows(W, jnp.zeros((2, 2, n_genes)) + 1e-4 * jnp.eye(2)[:, :, None],
                jnp.zeros(2), jnp.ones((n_genes, 2)))  # fmt: skip
    model = NBLN({}, prior, None, 2)
    state = update.State(phase, None, scales, *[None] * 5)
    columns = update._columns(model, state, rows, turned, jnp.asarray(n_cells))
    expected = np.sqrt((2.0**2 + 0.1**2) / 2)
    np.testing.assert_allclose(columns.old_sd, expected, rtol=0.02)


def test_an_iteration_is_finite_and_says_so(adata):
    counts = Counts.from_anndata(adata)
    rule = CaptureRule.library_offset(counts.library_size)
    model = NBLN(NBLN.default_priors(300), HorseshoeSparse(), rule.of(counts.library_size), 3)
    stream = CellStream(counts, model.augmentation, 2**31)
    mean = counts.gene_totals / counts.n_cells
    state = engine.first_state(model, stream, mean, np.zeros(counts.n_genes), 0)
    sums, _ = stream.scan(iterations.e_step, stream.zeros(3), state, stream.columns)
    new, info = iterations.update(model, state, sums, stream.tails())
    assert int(new.phase.iteration) == 1
    assert all(np.isfinite(x) for x in info.change)
    assert not bool(info.may_stop)
    # All columns have one scale while they form.
    np.testing.assert_allclose(info.column_sd, info.column_sd[0], rtol=1e-6)
