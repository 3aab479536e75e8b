"""Draws by NUTS: what they answer and refuse, what is saved of them, and who may ask for them."""

import json

import h5py
import numpy as np
import pytest
import xarray as xr

import nbln
from nbln import registry

SHORT = nbln.MCMCConfig(n_warmup=12, n_draws=8, n_chains=2, target_accept=0.8, max_tree_depth=5)
LOG_NORMAL = [name for name, row in registry.MODELS.items() if "laplace" in row.engines]
GENES = [name for name, row in registry.MODELS.items() if "svi" in row.engines]


@pytest.fixture(scope="module")
def adata():
    simulated = nbln.datasets.simulate(24, 6, 1, seed=4)
    simulated.X = simulated.X.toarray() + 1  # no cell is empty
    return simulated


def fit(adata, model, **more):
    chosen = dict(inference_method="mcmc", mcmc=SHORT, progress=False)
    if model in LOG_NORMAL:
        chosen["latent_dim"] = 1
    return nbln.fit(adata, model=model, **chosen | more)


@pytest.fixture(scope="module")
def programs(adata):
    return fit(adata, "nbln")


@pytest.fixture(scope="module")
def genes(adata):
    return fit(adata, "zinbvcp")


@pytest.fixture(params=["programs", "genes"])
def result(request):
    return request.getfixturevalue(request.param)


def test_all_sites_are_drawn(result):
    row = registry.find(result.model)
    sizes = {"chain": 2, "draw": 8, "cell": 24, "gene": 6, "factor": 1}
    for name, values in result.sites.items():
        assert values.dims[:2] == ("chain", "draw"), name
        assert values.shape == tuple(sizes[dim] for dim in values.dims), name
        assert np.isfinite(values).all(), name
    assert "x" not in result.sites
    assert {"r", "eta"} < {*result.sites}
    assert ("z" in result.sites) == row.has_loadings
    assert (result.sites["r"] > 0).all()
    np.testing.assert_array_equal(result.sites["gene"], result.fitted.gene_names)
    assert str(result).startswith(f"{type(result).__name__}({result.model}, 2 chains of 8 draws")


def test_a_table_for_notebooks(result):
    page = result._repr_html_()
    for words in (type(result).__name__, "2 chains of 8", "24 cells x 6 genes"):
        assert words in page
    assert ("Programs" in page) == (result.model in LOG_NORMAL)


def test_save_and_load(result, tmp_path):
    result.save(tmp_path / "draws.nc")
    loaded = nbln.load(tmp_path / "draws.nc")
    assert type(loaded) is type(result)
    xr.testing.assert_identical(loaded.sites, result.sites)
    xr.testing.assert_identical(loaded.chains.steps, result.chains.steps)
    assert loaded.summary().equals(result.summary())
    assert loaded.fitted.settings == result.fitted.settings
    assert repr(loaded) == repr(result)
    with h5py.File(tmp_path / "draws.nc") as file:
        assert file["sites"].attrs["values"] == json.dumps({"model": result.model})
    if result.model in LOG_NORMAL:
        xr.testing.assert_identical(loaded.get_correlation(), result.get_correlation())
        assert loaded.pairs(0.0, 0.5).equals(result.pairs(0.0, 0.5))


def test_a_file_with_an_impossible_draw_is_refused(programs):
    groups = programs.to_groups()
    groups["sites"] = groups["sites"].assign(d=-groups["sites"]["d"])
    with pytest.raises(ValueError, match="sites/d must hold positive numbers"):
        nbln.results.rules.check(groups)


def test_correlations_are_those_of_the_draws(programs):
    W, d = (programs.sites[name].values.astype(float) for name in ("W", "d"))
    W = (W - W.mean(axis=2, keepdims=True)).reshape(-1, 6, 1)
    Sigma = W @ W.transpose(0, 2, 1) + d.reshape(-1, 6, 1) * np.eye(6)
    sd = np.sqrt(np.einsum("ngg->ng", Sigma))
    every = Sigma / (sd[:, :, None] * sd[:, None])
    found = programs.get_correlation()
    np.testing.assert_allclose(found["mean"], every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["sd"], every.std(axis=0), atol=1e-6)
    expression = programs.get_correlation("expression", genes=["gene1", "gene4"])
    assert expression["mean"].shape == (2, 2)
    assert len(programs.partners("gene2", 0.0, 0.9)) <= 5


def test_programs_and_overdispersion(programs):
    assert programs.get_W_compositional()["mean"].dims == ("gene", "factor")
    latent = programs.get_latent()
    np.testing.assert_allclose(
        latent["mean"], programs.sites["z"].mean(("chain", "draw")), atol=1e-6
    )
    total = programs.get_overdispersion()["total"]
    d, r = programs.sites["d"], programs.sites["r"]
    np.testing.assert_allclose(total, (d + np.log1p(1 / r)).mean(("chain", "draw")), rtol=1e-4)
    member = programs.get_membership()
    assert float(member.min()) >= 0
    assert float(member.max()) <= 1
    assert programs.get_n_programs().sum() == pytest.approx(1)


def test_one_site(result):
    found = result.get_site("dispersion", 0.5)
    assert found.attrs == {"site": "r", "level": 0.5}
    draws = result.sites["r"].values.reshape(-1, 6)
    np.testing.assert_allclose(found["mean"], draws.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["low"], np.quantile(draws, 0.25, axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"get_site\(site='rr'\): unknown site.*mean 'r'"):
        result.get_site("rr")
    with pytest.raises(ValueError, match="level"):
        result.get_site("r", 2.0)


def test_what_they_say_of_themselves(result):
    table = result.summary()
    assert table.loc["chains", "value"] == 2
    assert table.loc["divergences", "value"] == result.n_divergences
    assert 0 < table.loc["accept_prob", "value"] <= 1
    assert table.loc["steps_a_draw", "value"] <= 31
    assert (table.loc[table["status"] == "warning", "note"] != "").all()
    diagnostics = result.get_diagnostics()
    assert {"ess", "ess_per_draw", "r_hat"} == {*diagnostics}
    assert {"eta", "correlations" if result.model in LOG_NORMAL else "mean"} <= {*diagnostics.index}


def test_for_arviz(result):
    tree = result.to_datatree()
    assert {*result.sites} <= {*tree["posterior"].dataset}
    stats = tree["sample_stats"].dataset
    assert {*stats} == {"accept_prob", "diverging", "n_steps", "cut_short"}
    assert stats["diverging"].dtype == bool
    assert result.to_arviz().posterior.sizes["draw"] == 8


def test_divergences_are_told(genes):
    steps = genes.chains.steps.copy(deep=True)
    steps["diverging"].values[0, :3] = True
    told = type(genes)(genes.fitted, genes.model, genes.chains._replace(steps=steps)).summary()
    assert told.loc["divergences", "value"] == 3
    assert told.loc["divergences", "status"] == "warning"
    assert "raise target_accept" in told.loc["divergences", "note"]


@pytest.mark.parametrize("name", ["check", "score", "write_to", "get_ppc_samples", "transform"])
def test_what_they_do_not_answer(result, name):
    who = r"has no such answer; a fit of model=.* without inference_method='mcmc' has it"
    with pytest.raises(AttributeError, match=rf"{name}: a {type(result).__name__} of .*{who}"):
        getattr(result, name)


def test_fits_say_who_has_sites():
    bare = object.__new__(nbln.LaplaceResult)
    object.__setattr__(bare, "model", "nbln")
    with pytest.raises(AttributeError, match="get_site.*a fit with inference_method='mcmc' has it"):
        bare.get_site("r")


def test_the_same_seed_gives_the_same_draws(adata, genes):
    xr.testing.assert_identical(fit(adata, "zinbvcp").sites, genes.sites)


def test_every_model_with_a_program_has_the_engine():
    assert all(registry.MCMC in registry.MODELS[name].engines for name in (*LOG_NORMAL, *GENES))


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("nbln", {"formula": "~ a"}, r"formula=.*nbln by inference_method='mcmc' does not use it"),
        ("nbln", {"parameterization": "canonical"}, r"parameterization=.*does not use it"),
        ("nbvcp", {"latent_dim": 3}, r"latent_dim=3\): model nbvcp by .* does not use it"),
        ("nbvcp", {"parameterization": "odds"}, r"parameterization='odds'\).*mean_odds"),
        ("pln", {"n_steps": 5}, r"n_steps=5\): model pln by inference_method='mcmc'"),
        ("scvi", {}, r"model='scvi', inference_method='mcmc'\): no such pair"),
    ],
)
def test_what_is_not_used_is_refused(adata, model, more, message):
    with pytest.raises(ValueError, match=message):
        fit(adata, model, **more)


@pytest.mark.parametrize(
    ("model", "remedy"), [("nbln", "sample_posterior"), ("nbvcp", "inference_method='svi'")]
)
def test_large_data_are_refused(adata, model, remedy):
    few = nbln.MCMCConfig(n_warmup=500, most_counts=100)
    message = rf"24 cells x 6 genes would take about .* minutes.*{remedy}.*most_counts=144"
    with pytest.raises(ValueError, match=message):
        fit(adata, model, mcmc=few)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pln", "lnm", "lnmvcp", "nbvcp", "nbdm", "zinb"])
def test_other_models(adata, model, tmp_path):
    result = fit(adata, model)
    result.save(tmp_path / "draws.nc")
    xr.testing.assert_identical(nbln.load(tmp_path / "draws.nc").sites, result.sites)
    row = registry.find(model)
    if row.has_loadings and row.program.depth.has_totals:
        for name in ("mu", "W"):  # what totals leave open is fixed
            np.testing.assert_allclose(result.sites[name].mean("gene"), 0, atol=1e-5)
        assert (result.sites["total_mean"] > 0).all()


@pytest.mark.slow
def test_offsets_that_are_fixed_stay(adata):
    result = fit(adata, "pln", priors={"capture_efficiency": None, "loadings": "gaussian"})
    assert "eta" not in result.get_diagnostics().index
    assert not np.ptp(result.sites["eta"].values, axis=(0, 1)).any()
    with pytest.raises(ValueError, match="spike and slab"):
        result.get_membership()
