"""Donors as random intercepts, from the fit to differences between groups of donors."""

import anndata
import numpy as np
import pytest

import nbln

N_DONORS, N_CELLS, G, EFFECT = 8, 50, 40, 1.2


@pytest.fixture(scope="module")
def donors():
    """Four donors in each of two groups; five genes differ between groups, all between donors."""
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(N_DONORS), N_CELLS)
    treated = donor % 2
    beta = np.zeros(G)
    beta[:5] = EFFECT * np.array([1, -1, 1, -1, 1])
    own = rng.normal(0, 0.3, (N_DONORS, G))
    W = rng.normal(size=(G, 1)) * (rng.random((G, 1)) < 0.4)
    x = 1.0 + own[donor] + np.outer(treated, beta) + rng.normal(size=(len(donor), 1)) @ W.T
    x += 0.3 * rng.normal(size=x.shape)
    adata = anndata.AnnData(rng.poisson(np.exp(x)).astype(np.float32))
    adata.X[:, -1] += 1
    adata.obs["donor"] = [f"d{i}" for i in donor]
    adata.obs["group"] = np.array(["control", "drug"])[treated]
    return adata, beta, own


@pytest.fixture(scope="module")
def fit(donors):
    given = {"formula": "~ group", "random": ["donor"], "latent_dim": 3, "progress": False}
    return nbln.fit(donors[0], **given)


@pytest.fixture(scope="module")
def post(fit):
    return fit.sample_posterior(60, 1, n_warmup=30, progress=False)


def test_effects_of_groups_are_judged_by_donors(fit, donors):
    adata, beta, _ = donors
    cells = nbln.fit(adata, formula="~ group", latent_dim=3, progress=False)
    null = beta == 0
    errors, sds = [], []
    for result in (fit, cells):
        effects = result.get_covariate_effects()
        assert list(effects.covariate.values) == ["group[T.drug]"]
        mean, sd = (effects[name].values[:, 0] for name in ("mean", "sd"))
        errors.append(np.mean(np.abs(mean[null] / sd[null]) > 1.96))
        sds.append(np.median(sd))
    assert errors[0] <= 0.1 < 0.3 < errors[1]
    assert sds[0] > 2 * sds[1]


def test_donors_are_found_and_no_program_holds_them(fit, donors):
    adata, _, own = donors
    effects = fit.get_random_effects()
    assert list(effects.donor.values) == [f"d{i}" for i in range(N_DONORS)]
    within = own - own.mean(axis=0)
    for i in range(2):  # a mean of a group cannot be told from its effect
        within[i::2] = own[i::2] - own[i::2].mean(axis=0)
    found = effects["mean"].values.T.copy()
    for i in range(2):
        found[i::2] -= found[i::2].mean(axis=0)
    assert np.corrcoef(found.ravel(), within.ravel())[0, 1] > 0.9
    assert 0.2 < float(effects["between"].median()) < 0.45
    donor = np.unique(adata.obs["donor"], return_inverse=True)[1]
    factor = fit.get_latent().values[:, 0]
    means = np.bincount(donor, factor) / np.bincount(donor)
    assert np.var(means[donor]) < 0.01 * np.var(factor)


def test_draws_say_which_genes_differ(post, donors):
    beta = donors[1]
    table = post.differential_expression("group", "drug", delta=0.25, fdr=0.1)
    genes = table.index[table["is_de_fdr"]].astype(int)
    assert set(genes) <= set(range(5))
    assert len(genes) >= 3
    true = beta[table.index.astype(int)] / np.log(2)
    # Shares of depth: that five genes change moves all others a little.
    covered = (table["lfc_low"] - 0.15 < true) & (true < table["lfc_high"] + 0.15)
    assert covered.mean() > 0.8
    back = post.differential_expression("group", "control", "drug", delta=0.25)
    both = table["lfc_mean"], back.loc[table.index, "lfc_mean"]
    np.testing.assert_allclose(both[0], -both[1], rtol=1e-5)
    assert (np.diff(table["q"]) >= 0).all()
    # Where most genes do not change, changes are shrunken, those that are called hardly.
    effects = post.get_covariate_effects()["mean"].sel(covariate="group[T.drug]")
    drawn = effects.sel(gene=table.index).values / np.log(2)
    called = table["lfc_mean"].to_numpy()[:3]
    assert (called / drawn[:3] > 0.85).all()
    np.testing.assert_allclose(drawn[:3], called, rtol=0.3)  # the learned prior moves some outwards
    rest = ~table["is_de_fdr"].to_numpy()
    assert np.abs(table["lfc_mean"][rest]).mean() < np.abs(drawn[rest]).mean()
    with pytest.raises(ValueError, match="unknown category of group.*did you mean 'drug'"):
        post.differential_expression("group", "druk")


def test_draws_keep_their_effects(post, fit, tmp_path):
    post.save(tmp_path / "draws.nc")
    again = nbln.load(tmp_path / "draws.nc")
    for call in (
        lambda p: p.get_covariate_effects()["mean"].values,
        lambda p: p.differential_expression("donor", "d1", "d3")["lfc_mean"].to_numpy(),
    ):
        np.testing.assert_allclose(call(again), call(post))
    assert post.to_datatree()["posterior"]["beta"].sizes["covariate"] == 1 + N_DONORS
    laplace = fit.get_covariate_effects()["mean"].values[:, 0]
    assert np.corrcoef(laplace, post.get_covariate_effects()["mean"][:, 0])[0, 1] > 0.9


def test_files_and_new_donors(fit, donors, tmp_path):
    fit.save(tmp_path / "fit.nc")
    again = nbln.load(tmp_path / "fit.nc")
    for name in ("mean", "sd", "between"):
        np.testing.assert_allclose(
            again.get_random_effects("donor")[name], fit.get_random_effects()[name]
        )
    new = donors[0][:10].copy()
    new.obs_names = [f"new{i}" for i in range(10)]
    known = fit.score(new)
    new.obs["donor"] = "somebody else"
    assert np.isfinite(fit.score(new)).all()
    assert not np.array_equal(fit.score(new), known)
    assert any("8 levels of donor" in sentence for _, sentence in fit.story())


def test_a_column_is_fixed_or_random(donors):
    with pytest.raises(ValueError, match="'group' is in the formula too"):
        nbln.fit(donors[0], formula="~ group", random=["group"])


def test_random_intercepts_alone(donors):
    fit = nbln.fit(donors[0], model="pln", random=["donor"], latent_dim=2, progress=False)
    assert fit.get_random_effects()["mean"].shape == (G, N_DONORS)
    with pytest.raises(ValueError, match="no covariates"):
        fit.get_covariate_effects()
    with pytest.raises(ValueError, match="unknown column"):
        fit.get_random_effects("group")


def test_draws_are_judged_by_their_effects_too(post):
    assert "effects" in post.get_diagnostics().index
    assert "ess_effects" in post.summary().index
