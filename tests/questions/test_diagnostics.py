"""The summary says what is wrong; importance ratios and ArviZ's groups are what they claim."""

import arviz
import numpy as np
import pytest
import xarray as xr

from nbln.questions import psis

KINDS = ("mean_disp-mean_field", "nbln-frozen", "nbln-latent-coverage", "pln")


@pytest.mark.parametrize("kind", [*KINDS, "scvi"])
def test_summary(results, kind):
    table = results[kind].summary()
    assert list(table.columns) == ["value", "status", "note"]
    assert set(table["status"]) <= {"ok", "warning"}
    warned = table["status"] == "warning"
    assert (table.loc[warned, "note"].str.len() > 10).all()
    # Nothing is wrong with rows that only name cells, or say why there is no number.
    told = table.index.isin(
        ["shallow_cells", "deep_cells", "doublet_cells", "gauge_contamination_ratio"]
    )
    assert (table.loc[~warned & ~told, "note"] == "").all()
    assert table.loc["cells", "value"] == 90
    short = results[kind].summary(checks=False)
    assert set(short.index) < set(table.index)


def test_variance_shares_add_up(results):
    for kind in KINDS[1:]:
        shares = results[kind].get_variance_shares()
        total = shares["programs"] + shares["own"] + shares["counting"]
        np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_variance_shares_are_those_of_simulated_counts(pln_fit):
    """Law of total variance, by brute force for one gene at median depth."""
    rng = np.random.default_rng(0)
    p, g, n = pln_fit.parameters, 3, 2_000_000
    W = p.W - p.W.mean(axis=0)
    z = rng.standard_normal((n, W.shape[1]))
    log_mean = p.mu[g] - np.median(pln_fit.eta) + z @ W[g]
    given_z = np.exp(log_mean + p.d[g] / 2)
    own = given_z**2 * np.expm1(p.d[g])
    parts = np.array([given_z.var(), own.mean(), given_z.mean()])
    shares = pln_fit.get_variance_shares().isel(gene=g)
    ours = [float(shares[name]) for name in ("programs", "own", "counting")]
    np.testing.assert_allclose(ours, parts / parts.sum(), atol=0.01)


def test_genes_whose_means_are_far_off_are_named(nbln_fit):
    checks = nbln_fit.check(n_samples=10)
    assert nbln_fit.summary(checks=checks).loc["far_genes", "status"] == "ok"
    gene = checks["gene"].values[3]
    where = {"gene": gene, "quantity": ["observed", "p_value"]}
    checks["mean"].loc[where] = np.array([1e3, 1.0])
    row = nbln_fit.summary(checks=checks).loc["far_genes"]
    assert (row["value"], row["status"]) == (1, "warning")
    assert gene in row["note"]


def test_pareto_k(nbln_fit):
    k = nbln_fit.get_pareto_k(n_cells=10)
    assert k.dims == ("cell",)
    assert k.size == 10
    assert set(k["cell"].values) <= set(nbln_fit.fitted.cell_names)
    assert (k < 1).all()


def test_pareto_k_of_equal_ratios_is_no_alarm():
    """As of a fit without programs: all that differs between draws is rounding."""
    rng = np.random.default_rng(0)
    rounding = np.float32(-165) + np.float32(1.5e-5) * rng.integers(0, 2, (2, 500))
    k = psis.pareto_k(np.concatenate([rounding, np.full((1, 500), -1e5)]))
    assert (k == 0).all()


def test_pareto_k_is_the_shape_of_the_tail():
    """Whichever ArviZ is installed, and whichever sign it wants."""
    rng = np.random.default_rng(0)
    for shape in (0.2, 0.5, 0.9):
        ratios = rng.pareto(1 / shape, (8, 2000)) + 1
        k = psis.pareto_k(np.log(ratios))
        assert abs(k.mean() - shape) < 0.2


@pytest.mark.parametrize(
    "kind", ["mean_disp-mean_field", "nbln-frozen", "nbln-latent-coverage", "scvi"]
)
def test_arviz(results, kind):
    result = results[kind]
    tree = result.to_datatree(n_samples=20, n_predictive=3)
    groups = {"posterior", "posterior_predictive", "observed_data", "log_likelihood"}
    assert set(tree.children) == groups | {"sample_stats", "constant_data"}
    assert tree["posterior"].attrs["inference_library"] == "nbln"
    np.testing.assert_array_equal(tree["constant_data"]["library_size"], result.fitted.library_size)
    likelihood = tree["log_likelihood"]["counts"]
    assert likelihood.dims == ("chain", "draw", "cell")
    assert tree["observed_data"]["counts"].dims == ("cell", "gene")
    data = result.to_arviz(n_samples=20, n_predictive=3)
    assert np.isfinite(float(arviz.loo(data).elpd_loo if hasattr(arviz, "psislw") else 0))
    site = {"svi": "mean", "laplace": "mu", "vae": "log_library"}[result.kind]
    n = result.fitted.n_cells if result.kind == "vae" else result.fitted.n_genes
    assert len(arviz.summary(data, var_names=[site])) == n


def test_log_likelihood_at_the_fit_is_the_evidence(nbln_fit):
    sites = (nbln_fit.mu, nbln_fit.W, nbln_fit.d, nbln_fit.r)
    values = {site.name: site.expand_dims(("chain", "draw")) for site in sites}
    at_the_fit = nbln_fit.cell_log_likelihood(xr.Dataset(values), nbln_fit.fitted.counts)
    np.testing.assert_allclose(at_the_fit[0], nbln_fit.log_evidence, atol=0.05)
