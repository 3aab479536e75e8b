"""Programs that are more or less active in data sets: found, sure of, saved, and answered for."""

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest

import nbln
from nbln.questions import arviz

N, G = 300, 60
RATIO = 1.8  # of the second program's activity, first over second condition


@pytest.fixture(scope="module")
def adata():
    """Two conditions with means of their own; the second of two programs differs in activity."""
    rng = np.random.default_rng(0)
    condition = np.repeat([0, 1], N)
    W = np.zeros((G, 2))
    W[:20, 0], W[15:35, 1] = rng.normal(0, 0.7, 20), rng.normal(0, 0.7, 20)
    s = np.array([[1.0, RATIO**0.5], [1.0, RATIO**-0.5]])
    z = rng.normal(size=(2 * N, 2)) * s[condition]
    own = rng.normal(0, 0.5, (2, G))
    x = 0.5 + own[condition] + z @ (W - W.mean(axis=0)).T + 0.3 * rng.normal(size=(2 * N, G))
    made = anndata.AnnData(rng.poisson(np.exp(x)).astype(np.float32))
    made.X[:, -1] += 1
    made.obs["condition"] = np.array(["drug", "vehicle"])[condition]
    made.obs["donor"] = [f"d{i % 4}" for i in range(2 * N)]
    made.uns["W"] = W - W.mean(axis=0)
    return made


@pytest.fixture(scope="module")
def fit(adata):
    return nbln.fit(adata, dataset_key="condition", latent_dim=4, progress=False)


@pytest.fixture(scope="module")
def post(fit):
    return fit.sample_posterior(80, 1, n_warmup=30, progress=False)


def program_of(result, adata, j):
    """Number of the factor that is the j-th program."""
    W = np.asarray(result.W)
    return int(np.argmax(np.abs(adata.uns["W"][:, j] @ W) / np.linalg.norm(W, axis=0).clip(1e-6)))


def test_activities_are_found(fit, adata):
    assert fit.converged
    assert fit.w_prior_diagnostics["effective_rank"] == 2
    s = fit.get_program_activity()
    assert list(s.dataset.values) == ["drug", "vehicle"]
    np.testing.assert_allclose(np.log(s.values).sum(axis=0), 0, atol=1e-5)
    first, second = (program_of(fit, adata, j) for j in range(2))
    ratios = (s.sel(dataset="drug") / s.sel(dataset="vehicle")).values
    assert ratios[second] == pytest.approx(RATIO, rel=0.15)
    assert ratios[first] == pytest.approx(1.0, rel=0.15)
    assert (ratios[2:] == 1).all()


def test_draws_say_how_sure_it_is(post, adata):
    table = post.differential_activity("condition", "drug", "vehicle", delta=0.2)
    second = 1 + int(np.argmax(np.abs(adata.uns["W"][:, 1] @ post.reference)))
    assert list(table.index[table["is_called"]]) == [second]
    row = table.loc[second]
    assert row["lfc_low"] < np.log2(RATIO) < row["lfc_high"]
    activity = post.get_program_activity()
    assert (activity["low"] < activity["high"]).all()


def test_pairs_that_differ_are_of_the_program_that_does(post, adata):
    table = post.differential_pairs("condition", "drug", "vehicle", min_abs=0.05, fdr=0.1)
    assert len(table) > 5
    # One gene at least: its part in the first program is diluted where the second is active.
    members, alone = ({f"{i}" for i in genes} for genes in (range(15, 35), range(20, 35)))
    assert (table["gene_a"].isin(members) | table["gene_b"].isin(members)).mean() > 0.9
    difference = table["mean_group"] - table["mean_reference"]
    np.testing.assert_allclose(table["mean"], difference, atol=1e-5)
    # Correlations between genes of this program alone grow with it.
    both = table[table["gene_a"].isin(alone) & table["gene_b"].isin(alone)]
    assert (np.abs(both["mean_group"]) > np.abs(both["mean_reference"])).mean() > 0.9


def test_a_data_set_by_itself(fit, post):
    s = fit.get_program_activity().sel(dataset="drug").values
    alone = fit.in_dataset("drug")
    np.testing.assert_allclose(alone.W, fit.W.values * s, rtol=1e-5)
    np.testing.assert_allclose(alone.get_latent() * s, fit.get_latent(), rtol=1e-4, atol=1e-6)
    pairs = [
        one.in_dataset("drug").get_correlation() - one.in_dataset("vehicle").get_correlation()
        for one in (fit, post)
    ]
    apart = np.abs(pairs[0].values - pairs[1]["mean"].values).max()
    assert apart < 0.12
    # Loadings scaled by s are as sure, relative to their size.
    wide, own = (one.get_distributions()["W"] for one in (fit, alone))
    np.testing.assert_allclose(own.scale[:, :2], wide.scale[:, :2] * s[:2], rtol=1e-2)


def test_files_hold_it(fit, post, tmp_path):
    for result in (fit, post):
        result.save(tmp_path / "x.nc")
        loaded = nbln.load(tmp_path / "x.nc")
        assert loaded.datasets == fit.datasets
        before, after = (one.get_program_activity() for one in (result, loaded))
        assert after.identical(before)


def test_the_figure_shows_programs_with_their_intervals(fit, post, adata):
    for result, n_lines in ((fit, 0), (post, 2)):
        (ax,) = nbln.pl.plot_program_activity(result).axes
        assert sum(hasattr(one, "get_segments") for one in ax.collections) == n_lines
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["drug", "vehicle"]
        assert len(ax.get_xticks()) == 2
    plt.close("all")
    with pytest.raises(ValueError, match="dataset_key"):
        nbln.pl.plot_program_activity(fit.in_dataset("drug"))


def test_draws_for_arviz_hold_activities(fit, post):
    tree = post.to_datatree()
    activity = tree["posterior"]["activity"]
    assert activity.dims == ("chain", "draw", "dataset", "factor")
    mean = post.get_program_activity()["mean"]
    np.testing.assert_allclose(activity.mean(("chain", "draw")), mean, rtol=1e-4)
    assert "activities" in post.get_diagnostics().index
    # Evidence of cells at draws of the other parameters is under the prior of their data sets.
    drawn = arviz.parameters_of_draws(fit.parameters, fit.draw_parameters(2, 0))
    assert all(one.log_activity is fit.parameters.log_activity for one in drawn)


def test_new_cells_bring_their_data_set(fit, adata):
    some = adata[::40].copy()
    scores = fit.score(some)
    alone = [fit.in_dataset(name).score(some).values for name in ("drug", "vehicle")]
    expected = np.where(some.obs["condition"] == "drug", *alone)
    np.testing.assert_allclose(scores, expected, atol=2e-2)
    with pytest.raises(ValueError, match="a data set that the fit did not have"):
        fit.score(renamed(some))


def renamed(adata):
    changed = adata[:2].copy()
    changed.obs["condition"] = "placebo"
    return changed


def test_predictive_draws_vary_as_the_programs_do(fit, adata):
    """Of a gene of the second program, variance of log counts is larger where it is active."""
    drawn = fit.get_ppc_samples(n_samples=20)
    gene = int(np.argmax(np.abs(adata.uns["W"][:, 1])))
    logs = np.log1p(drawn[0, :, :, gene].values)
    drug = adata.obs["condition"].to_numpy() == "drug"
    observed = np.log1p(adata.X[:, gene])
    for values in (logs, observed[None]):
        assert values[:, drug].var() > 1.2 * values[:, ~drug].var()


def test_donors_within_conditions(adata):
    """Two columns: data sets are donors of conditions, each with activities of its own."""
    fit = nbln.fit(adata, dataset_key=["condition", "donor"], latent_dim=3, progress=False)
    assert len(fit.datasets) == 8
    # Means of all data sets are random effects; new cells have them by the two columns.
    effects = fit.get_random_effects("condition:donor")
    assert effects["condition:donor"].values[0] == "drug / d0"
    np.testing.assert_allclose(
        fit.score(adata[:5].copy()), fit.score(adata[:9].copy())[:5], rtol=1e-4
    )
    s = np.log(fit.get_program_activity().values)
    second = program_of(fit, adata, 1)
    between = s[:4, second].mean() - s[4:, second].mean()
    assert between == pytest.approx(np.log(RATIO), abs=0.2)
    # A condition over its donors, which crossed effects of both together are no part of.
    ratio = fit.in_dataset("drug").W / fit.in_dataset("vehicle").W
    assert 0 < np.log(float(ratio[20, second])) <= between + 0.01


def test_a_fit_of_one_data_set_says_so(adata):
    plain = nbln.fit(adata[:, :20].copy(), latent_dim=2, n_steps=2, progress=False)
    with pytest.raises(ValueError, match="dataset_key"):
        plain.get_program_activity()
    with pytest.raises(ValueError, match="dataset_key"):
        plain.in_dataset("drug")
