"""Effects of covariates in the Laplace engine: sums, rows, basis, and whole fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of, random_problem

import nbln
from nbln.inference.laplace import statistics
from nbln.inference.laplace.basis import expand
from nbln.inference.laplace.rows import Damping, regress
from nbln.models.depth import InCounts
from nbln.posterior import mode
from nbln.posterior.mode import Parameters
from nbln.priors.columnwise import HorseshoeColumnwise
from nbln.priors.effects import EffectsPrior
from nbln.priors.shrinkage import Phase
from nbln.priors.univariate import Normal

G, K, C, P = 12, 2, 60, 2


def packed(matrix):
    """[corner, border, inner part packed] of a symmetric matrix."""
    inner = matrix[1:, 1:]
    return np.concatenate([matrix[0], inner[np.tril_indices(len(inner))]])


@pytest.mark.parametrize("columns", ["latent", "known"])
def test_covariates_are_regressors_without_variance(columns):
    p = random_problem("nb", columns)
    rng = np.random.default_rng(3)
    with precision_of("float64"):
        parameters, cells = p.kernel("float64")
        x, beta = rng.normal(size=(len(p.u), P)), 0.3 * rng.normal(size=(len(p.mu), P))
        parts = (parameters.mu, parameters.W, parameters.d, parameters.channel)
        known = Parameters(*parts, jnp.asarray(beta))
        cells = cells._replace(covariates=jnp.asarray(x))
        np.testing.assert_allclose(known.mean(cells), p.mu + x @ beta.T + p.offset[:, None])
        step = mode.newton_step(known, cells, p.columns, jnp.log(cells.counts + 0.5))
        sums = statistics.of_step(step, known, cells, p.columns)
        largest = statistics.LARGEST_VARIANCE
        moved = mode.corrected(step, known, cells, p.columns, largest).step
        sums, moved, weight = jax.device_get((sums, moved, step.weight))
    k = p.W.shape[1]
    first = np.hstack([np.ones((len(x), 1)), x, moved.z[:k].T])
    joint = np.einsum("ci,cj->cij", first, first)
    joint[:, 1 + P :, 1 + P :] += moved.covariance[:k, :k].transpose(2, 0, 1)
    for g in range(len(p.mu)):
        expected = packed(np.einsum("c,cij->ij", weight[:, g], joint))
        np.testing.assert_allclose(sums.normal[g], expected, rtol=1e-9)
    if columns == "known":
        np.testing.assert_allclose(sums.response, moved.response.T @ first, rtol=1e-8, atol=1e-10)


def test_rows_solve_the_normal_equations():
    rng = np.random.default_rng(0)
    n = 1 + P + K
    design = np.hstack([np.ones((C, 1)), rng.normal(size=(C, n - 1))])
    weight = rng.uniform(0.5, 2, (C, G))
    N = np.einsum("ci,cg,cj->gij", design, weight, design)
    rhs = np.einsum("ci,cg,cg->gi", design, weight, 0.3 * rng.normal(size=(C, G)))
    mu, W, beta = 0.3 * rng.normal(size=G), np.zeros((G, K)), 0.3 * rng.normal(size=(G, P))
    sd, precision = np.array([0.5, 2.0]), rng.uniform(0.5, 5, (G, K))
    with precision_of("float64"):
        old = Parameters(*map(jnp.asarray, (mu, W, np.ones(G))), None, jnp.asarray(beta))
        found = regress(
            old,
            jnp.asarray(np.stack([packed(matrix) for matrix in N])),
            jnp.asarray(rhs),
            Normal(0.0, 2.0),
            jnp.broadcast_to(jnp.asarray(sd) ** -2.0, (G, P)),
            jnp.asarray(precision),
            Damping.start(G),
        )
    b = np.asarray(found.rows.centre)
    for g in range(G):
        prior = np.diag([2.0**-2, *sd**-2.0, *precision[g]])
        pull = np.concatenate([[-mu[g] / 4], -beta[g] * sd**-2.0, precision[g] * b])
        move = np.linalg.solve(N[g] + prior, rhs[g] + pull)
        np.testing.assert_allclose(found.mu[g], mu[g] + move[0], rtol=1e-6)
        np.testing.assert_allclose(found.effects[g], beta[g] + move[1 : 1 + P], rtol=1e-6)
        np.testing.assert_allclose(found.W[g], move[1 + P :], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("absorb_mean", [True, False])
def test_factors_give_covariates_what_is_theirs(absorb_mean):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(C, P))
    z = rng.normal(size=(C, K)) + x @ rng.normal(size=(P, K)) + 0.4
    mu, beta, W = rng.normal(size=G), rng.normal(size=(G, P)), rng.normal(size=(G, K))
    v = np.hstack([np.ones((C, 1)), x, z])
    with precision_of("float64"):
        given = map(jnp.asarray, (mu, beta, W, packed(v.T @ v)))
        turned = expand(
            *given, HorseshoeColumnwise(), Phase.start(), absorb_mean, InCounts(), EffectsPrior(P)
        )
        new = np.asarray(turned.rotation(jnp.asarray(z.T), jnp.asarray(x))).T
        new_mu, new_beta, new_W = map(np.asarray, (turned.mu, turned.effects, turned.W))
    before, after = mu + x @ beta.T + z @ W.T, new_mu + x @ new_beta.T + new @ new_W.T
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(x.T @ new, 0, atol=1e-8)
    if absorb_mean:
        np.testing.assert_allclose(new.sum(axis=0), 0, atol=1e-8)
        np.testing.assert_allclose(new.T @ new / C, np.eye(K), atol=1e-9)


@pytest.fixture(scope="module")
def simulated():
    """Two batches whose genes differ by a standard deviation of 0.5, and the same without."""
    clean = nbln.datasets.simulate(300, 60, 2, seed=5)
    rng = np.random.default_rng(8)
    adata, batch = clean.copy(), np.arange(300) % 2
    effect = rng.normal(0, 0.5, 60)
    # Thinning: what is kept of Poisson counts given rates are Poisson counts again.
    kept = np.exp(np.outer(batch, effect) - np.maximum(effect, 0))
    adata.X = rng.binomial(clean.X.toarray().astype(int), kept).astype(np.float32)
    adata.X[:, 0] += 1
    adata.obs["batch"] = np.array(["a", "b"])[batch]
    adata.obs["weight"] = rng.normal(60.0, 5.0, 300)
    return adata, effect


@pytest.fixture(scope="module")
def explained(simulated):
    return nbln.fit(simulated[0], formula="~ batch + weight", latent_dim=4, progress=False)


def test_effects_are_found_in_the_units_of_the_column(explained, simulated):
    effects = explained.get_covariate_effects()
    found = effects.sel(covariate="batch[T.b]")
    centred = simulated[1] - simulated[1].mean()
    kept = simulated[0].X.mean(axis=0) > 0.3
    assert np.corrcoef(found["mean"][kept], centred[kept])[0, 1] > 0.9
    nothing = effects["mean"].sel(covariate="weight").values * 5.0  # a standard deviation
    assert np.abs(nothing).mean() < 0.1
    assert (effects["sd"] > 0).all()


def test_no_program_holds_a_batch(explained, simulated):
    factors = explained.get_latent().values
    batch = (simulated[0].obs["batch"] == "b").to_numpy(float)
    rank = max(1, explained.w_prior_diagnostics["effective_rank"])
    for factor in factors.T[:rank]:
        assert np.corrcoef(factor, batch)[0, 1] ** 2 < 0.01


def test_new_cells_bring_their_columns(explained, simulated, tmp_path):
    adata = simulated[0]
    other = adata[:20].copy()
    other.obs_names = [f"new {name}" for name in other.obs_names]
    scores = explained.score(other)
    assert np.isfinite(scores).all()
    moved = other.copy()
    moved.obs["batch"] = ["b" if name == "a" else "a" for name in other.obs["batch"]]
    assert float(explained.score(moved).mean()) < float(scores.mean())
    explained.save(tmp_path / "fit.nc")
    again = nbln.load(tmp_path / "fit.nc")
    np.testing.assert_allclose(again.score(other), scores, rtol=1e-5)
    for name in ("mean", "sd"):
        found, saved = (r.get_covariate_effects()[name] for r in (explained, again))
        np.testing.assert_allclose(found, saved)
    other.obs["batch"] = "c"
    with pytest.raises(ValueError, match=r"adata.obs\['batch'\] has 'c', which no cell of the fit"):
        explained.transform(other)
    del other.obs["weight"]
    with pytest.raises(KeyError, match="no column 'weight'"):
        explained.score(other)


def test_everything_else_is_answered(explained, simulated):
    mean, variance = explained.get_count_moments()
    np.testing.assert_allclose(mean, simulated[0].X.mean(axis=0), rtol=0.4, atol=0.05)
    assert (variance > 0).all()
    shares = explained.get_variance_shares()
    np.testing.assert_allclose(sum(shares[name] for name in shares), 1, rtol=1e-6)
    table = explained.summary()
    assert table.loc["variance_covariates", "value"] > 0
    assert table.loc["misfit_mean", "status"] == "ok"
    assert np.isfinite(explained.get_compositional_samples(3)).all()
    assert explained.draw_parameters(2, 0)["beta"].dims == ("chain", "draw", "gene", "covariate")
    written = simulated[0].copy()
    explained.write_to(written)
    assert "nbln_beta_batch[T.b]" in written.var
    assert any("batch[T.b]" in sentence for _, sentence in explained.story())


def test_a_fit_without_covariates_has_no_effects(simulated):
    plain = nbln.fit(simulated[0], latent_dim=4, progress=False)
    with pytest.raises(ValueError, match="no covariates; fit with formula="):
        plain.get_covariate_effects()
