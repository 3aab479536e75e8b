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


@pytest.mark.parametrize("seed", [0, 1])
def test_independent_genes_have_no_programs(seed):
    adata = nbln.datasets.simulate(400, 150, 0, seed=seed)
    result = nbln.fit(adata, progress=False)
    assert result.w_prior_diagnostics["effective_rank"] <= 2


def test_overdispersed_programs_are_kept():
    """Loadings whose signal-to-noise ratio is low one by one, and not all together."""
    adata = nbln.datasets.simulate(1200, 150, 3, mean_log_dispersion=0.0, seed=21)
    result = nbln.fit(adata, progress=False)
    assert result.w_prior_diagnostics["effective_rank"] == 3
