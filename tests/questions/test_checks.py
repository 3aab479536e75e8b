"""Predictive checks are calibrated where the model is right, and see where it is not."""

import dataclasses

import anndata
import numpy as np
import pytest
from scipy import stats

import nbln
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.posterior.mode import Parameters
from nbln.questions.checks import worst_genes

N_SIMULATIONS = 200
STATISTICS = ("mean", "variance", "zero_fraction", "quantile_99", "library_size", "correlation")


def with_given_parameters(result, n_cells=60):
    """A result whose parameters are given, not fitted, and its draws of `n_cells` cells."""
    n_genes = result.fitted.n_genes
    rng = np.random.default_rng(0)
    mu = np.linspace(0.5, 3.0, n_genes)
    W = rng.normal(0, 0.5, (n_genes, 2))
    d = np.full(n_genes, 0.1)
    log_r = np.log(np.geomspace(0.5, 20, n_genes))
    channel = NegativeBinomial(log_r.astype(np.float32))
    parameters = Parameters(*(x.astype(np.float32) for x in (mu, W, d)), channel)
    cells = result.cells._replace(eta=rng.uniform(0, 1, n_cells).astype(np.float32))
    return dataclasses.replace(
        result, parameters=parameters, cells=cells, frozen=(), cascade_source=None
    )


def with_counts(result, counts):
    adata = anndata.AnnData(counts.astype(np.float32))
    adata.obs_names = [f"cell{i}" for i in range(len(counts))]
    adata.var_names = result.fitted.gene_names
    data = Counts.from_anndata(adata, genes=result.fitted.gene_names)
    fitted = Fitted.of(data, None, None, result.fitted.settings, {})
    return dataclasses.replace(result, fitted=fitted)


@pytest.fixture(scope="module")
def small():
    adata = nbln.datasets.simulate(60, 12, 2, mean_log_dispersion=1.0, seed=3)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    return nbln.fit(adata, model="nbln", latent_dim=2, n_steps=2, progress=False)


def test_p_values_are_uniform_where_the_model_is_right(small):
    """Data drawn at ``marginal`` from known parameters, never refitted."""
    result = with_given_parameters(small)
    template = with_counts(result, np.ones((60, 12)))
    data = template.get_ppc_samples("marginal", n_samples=N_SIMULATIONS, seed=1).values[0]
    rng = np.random.default_rng(2)
    found = {name: [] for name in (*STATISTICS, "residual_p_value")}
    for i, counts in enumerate(data):
        counts[:, 0] += counts.sum(axis=1) == 0  # a cell without counts is no cell
        checks = with_counts(result, counts).check("marginal", n_samples=39, seed=1000 + i)
        for name in STATISTICS:
            p = checks[name].sel(quantity="p_value").values
            found[name].append(p[rng.integers(len(p))])
        p = checks["residual_p_value"].values
        found["residual_p_value"].append(p[rng.integers(len(p))])
    for name, values in found.items():
        assert stats.kstest(values, "uniform").pvalue > 0.001, name


def test_overdispersion_that_poisson_cannot_describe_is_flagged():
    adata = nbln.datasets.simulate(1000, 150, 2, mean_log_dispersion=np.log(0.15), seed=4)
    result = nbln.fit(
        adata[:, adata.var["r"] <= 0.3].copy(), model="pln", latent_dim=3, progress=False
    )
    table = result.summary()
    for quantity in ("misfit_zero_fraction", "misfit_residuals"):
        assert table.loc[quantity, "status"] == "warning", table
        assert "nbln" in table.loc[quantity, "note"]


def test_statistics_are_those_of_the_counts(nbln_fit, adata):
    checks = nbln_fit.check("per_cell", n_samples=3, genes=["gene0", "gene3", "gene5"])
    X = np.asarray(adata.X[:, :-1], np.float64)  # the last gene was never seen
    observed = checks.sel(quantity="observed")
    np.testing.assert_allclose(observed["mean"], X.mean(axis=0))
    np.testing.assert_allclose(observed["variance"], X.var(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(observed["zero_fraction"], (X == 0).mean(axis=0))
    exact = np.quantile(X, 0.99, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(observed["quantile_99"], exact, rtol=0.025)
    library = X.sum(axis=1)
    np.testing.assert_allclose(observed["library_size"][:2], [library.mean(), library.std()])
    normalised = np.log1p(X / library[:, None] * np.median(library))
    names = list(nbln_fit.fitted.gene_names)
    for pair in range(3):
        a, b = (names.index(str(checks[key].values[pair])) for key in ("gene_a", "gene_b"))
        exact = np.corrcoef(normalised[:, a], normalised[:, b])[0, 1]
        assert float(observed["correlation"][pair]) == pytest.approx(exact, abs=1e-9)


def test_predicted_statistics_are_those_of_the_draws(nbln_fit, monkeypatch):
    # Blocks of a few cells, whose sums must be those of all.
    monkeypatch.setattr("nbln.questions.predictive.BLOCK_BYTES", 4 * 5 * 30 * 7)
    checks = nbln_fit.check("library_anchored", n_samples=5, seed=9)
    drawn = nbln_fit.get_ppc_samples("library_anchored", n_samples=5, seed=9).values[0]
    mean = drawn.mean(axis=1).mean(axis=0)
    np.testing.assert_allclose(checks["mean"].sel(quantity="predicted"), mean, rtol=1e-9)
    zeros = (drawn == 0).mean(axis=1).mean(axis=0)
    np.testing.assert_allclose(checks["zero_fraction"].sel(quantity="predicted"), zeros)


def test_worst_genes_are_the_most_extreme(nbln_fit):
    checks = nbln_fit.check(n_samples=20)
    worst = worst_genes(checks, "variance", 3)
    p = checks["variance"].sel(quantity="p_value").to_series()
    assert np.abs(worst["p_value"] - 0.5).min() == pytest.approx(np.abs(p - 0.5).nlargest(3).min())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ppc_level": "cells"}, ValueError, "marginal, library_anchored, per_cell"),
        ({"n_samples": 0}, ValueError, "n_samples=0"),
        ({"n_samples": 2.5}, ValueError, "whole number"),
        ({"genes": ["gene0"]}, ValueError, "two genes"),
        ({"genes": ["gene0", "nonsense"]}, KeyError, "nonsense"),
    ],
)
def test_errors(nbln_fit, arguments, error, message):
    with pytest.raises(error, match=message):
        nbln_fit.check(**arguments)
