"""A model fitted to its own simulation gets its parameters back."""

import numpy as np
import pytest

import nbln


def true_correlation(adata):
    W = adata.varm["W"] - adata.varm["W"].mean(axis=0)
    Sigma = W @ W.T + np.diag(adata.var["d"])
    sd = np.sqrt(np.diag(Sigma))
    return Sigma / np.outer(sd, sd)


def test_programs_are_recovered():
    adata = nbln.datasets.simulate(600, 200, 3, seed=2)
    result = nbln.fit(adata, progress=False)
    assert result.converged
    assert result.n_unconverged == 0
    genes = result.fitted.gene_names
    truth = true_correlation(adata[:, genes])
    pairs = np.triu_indices(len(genes), 1)
    ours = result.get_correlation().values[pairs]
    assert np.corrcoef(ours, truth[pairs])[0, 1] >= 0.85
    assert 3 <= result.w_prior_diagnostics["effective_rank"] <= 5


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_independent_genes_have_no_programs(seed):
    adata = nbln.datasets.simulate(400, 150, 0, seed=seed)
    result = nbln.fit(adata, progress=False)
    assert result.w_prior_diagnostics["effective_rank"] <= 2


@pytest.mark.slow
def test_overdispersed_programs_are_kept():
    """Loadings whose signal-to-noise ratio is low one by one, and not all together."""
    adata = nbln.datasets.simulate(1200, 150, 3, mean_log_dispersion=0.0, seed=21)
    result = nbln.fit(adata, progress=False)
    assert result.w_prior_diagnostics["effective_rank"] == 3


def test_genes_that_few_cells_show_come_to_rest():
    """Under a prior of d that is given, so that nothing else holds the genes' own variances."""
    adata = nbln.datasets.simulate(400, 40, 3, seed=2)
    rng = np.random.default_rng(2)
    counts = adata.X.toarray()
    shown = rng.random((400, 4)) < 0.06
    counts[:, :4] = rng.poisson(3 * shown)
    adata.X = counts
    result = nbln.fit(adata, model="pln", latent_dim=3, priors={"d": (2.0, 0.3)}, progress=False)
    assert result.converged
    assert np.max(result.parameters.d) < 10


def test_programs_are_identified_with_their_genes():
    """Sparse loadings are recovered as they are, up to order and sign."""
    adata = nbln.datasets.simulate(1500, 300, 3, seed=4)
    result = nbln.fit(adata, progress=False)
    assert result.w_prior_diagnostics["effective_rank"] == 3
    truth = adata[:, result.fitted.gene_names].varm["W"]
    ours = result.get_W_compositional().values[:, :3]
    overlap = np.abs(np.corrcoef(truth.T, ours.T)[:3, 3:])
    match = overlap.argmax(axis=1)
    assert sorted(match) == [0, 1, 2]
    assert overlap.max(axis=1).min() > 0.9
    member = result.get_membership().values[:, match] > 0.5
    strong = np.abs(truth) > 0.5
    assert member[strong].mean() > 0.9
    assert member[np.abs(truth) < 0.1].mean() < 0.1


@pytest.mark.slow
def test_gaussian_loadings_lose_nothing_by_the_sparse_prior():
    rng = np.random.default_rng(5)
    adata = nbln.datasets.simulate(600, 150, 0, seed=5)
    W = rng.normal(0, 0.35, (150, 3))
    rate = np.exp(rng.normal(size=(600, 3)) @ W.T) * np.exp(adata.var["mu"].to_numpy())
    adata.X = rng.poisson(rng.gamma(5.0, rate / 5.0)).astype(np.float32)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    found = [
        nbln.fit(adata, progress=False, priors={"loadings": prior}).get_covariance().values
        for prior in ("horseshoe_sparse", "horseshoe_columnwise")
    ]
    W = W - W.mean(axis=0)
    pairs = np.triu_indices(len(W), 1)
    sparse, columns = (np.corrcoef(x[pairs], (W @ W.T)[pairs])[0, 1] for x in found)
    assert sparse > columns - 0.01


@pytest.mark.parametrize("d", [pytest.param(0.02, marks=pytest.mark.slow), 0.6])
@pytest.mark.parametrize(
    ("model", "loadings"),
    [
        ("nbln", "horseshoe_sparse"),
        pytest.param("nbln", "horseshoe_columnwise", marks=pytest.mark.slow),
        pytest.param("pln", "horseshoe_sparse", marks=pytest.mark.slow),
    ],
)
def test_no_fixed_prior_decides_how_large_correlations_are(model, loadings, d):
    """The prior of d has its mode at 0.1, five times the one and a sixth of the other."""
    rng = np.random.default_rng(3)
    adata = nbln.datasets.simulate(800, 200, 3, seed=3)
    x = adata.obsm["z"] @ adata.varm["W"].T + np.sqrt(d) * rng.normal(size=adata.shape)
    rate = np.exp(x + adata.var["mu"].to_numpy() + adata.obs[["log_depth"]].to_numpy())
    noise = rng.gamma(5.0, 1 / 5.0, rate.shape) if model == "nbln" else 1.0
    adata.X = rng.poisson(rate * noise).astype(np.float32)
    adata.var["d"] = d
    adata = adata[:, np.asarray(adata.X).sum(axis=0) > 0].copy()
    result = nbln.fit(adata, model=model, priors={"loadings": loadings}, progress=False)
    pairs = np.triu_indices(adata.n_vars, 1)
    truth = true_correlation(adata)[pairs]
    ours = result.get_correlation().values[pairs]
    assert 0.7 < truth @ ours / (truth @ truth) < 1.15
    assert d / 2 < np.median(result.d) < 2 * d


@pytest.mark.parametrize(
    ("count", "gene"), [pytest.param(1e5, 3, marks=pytest.mark.slow), (1e6, 50)]
)
def test_one_wild_cell_costs_nothing(count, gene):
    adata = nbln.datasets.simulate(500, 200, 3, seed=1)
    adata.X = adata.X.toarray()
    pairs = np.triu_indices(adata.n_vars, 1)
    truth = true_correlation(adata)[pairs]

    def recovery():
        result = nbln.fit(adata, progress=False)
        assert result.converged
        return np.corrcoef(result.get_correlation().values[pairs], truth)[0, 1]

    clean = recovery()
    adata.X[7, gene] = count
    assert recovery() > clean - 0.02
