"""Draws of a posterior: what they answer, how they are refused, saved and drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import nbln
from nbln.questions import intervals, stability
from nbln.results import files, io


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(250, 50, 2, seed=5)


@pytest.fixture(scope="module")
def fit(adata):
    return nbln.fit(adata, latent_dim=4, progress=False)


@pytest.fixture(scope="module")
def post(fit):
    return fit.sample_posterior(60, 2, n_warmup=30, progress=False)


@pytest.mark.parametrize("kind", ["compositional", "log_rate", "clr", "expression"])
def test_correlations_are_those_of_every_draw(post, kind):
    genes = list(post.fitted.gene_names[[3, 8, 21]])
    found = post.get_correlation(kind, genes=genes, level=0.8)
    draws = post.correlation_draws(kind)
    values = draws.block(np.array([3, 8, 21]), np.array([3, 8, 21]))
    np.testing.assert_allclose(found["mean"], values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["low"], np.quantile(values, 0.1, axis=0), atol=1e-5)
    np.testing.assert_allclose(found["sd"], values.std(axis=0), atol=1e-5)
    assert found["prob_sign"].min() >= 0.5 - 1e-6
    pairs = draws.of_pairs(np.array([3, 3]), np.array([8, 21]))
    np.testing.assert_allclose(pairs, values[:, 0, 1:], atol=1e-5)


def test_files_whose_rows_and_overdispersions_were_accepted_apart_load(post):
    apart = np.insert(post.draws.accepted, 2, 0.5, axis=-1)
    groups = files.draws_groups(post)
    groups["draws"]["accepted"] = (("chain", "draw", "step"), apart)
    again = files.draws_parts(groups)["draws"].accepted
    np.testing.assert_array_equal(again, post.draws.accepted)


def test_intervals_hold_the_truth(post, adata):
    """Nine in ten of them do, over all pairs; fewer draws and one data set leave some slack."""
    truth = adata.varm["W"] - adata.varm["W"].mean(axis=0)
    covariance = truth @ truth.T + np.diag(adata.var["d"])
    sd = np.sqrt(np.diag(covariance))
    truth = (covariance / np.outer(sd, sd))[np.triu_indices(len(sd), 1)]
    found = post.get_correlation()
    low, high = (found[n].values[np.triu_indices(len(sd), 1)] for n in ("low", "high"))
    assert 0.75 < np.mean((low <= truth) & (truth <= high)) < 0.99


@pytest.mark.parametrize("kind", ["compositional", "clr", "expression"])
def test_calls_are_those_of_a_plain_count(post, kind):
    values = post.correlation_draws(kind).block(np.arange(50), np.arange(50))
    upper = np.triu_indices(50, 1)
    n = len(values)
    beyond = np.maximum((values > 0.2).sum(axis=0), (values < -0.2).sum(axis=0))[upper]
    error = np.sort((n - beyond[beyond > n / 2] + 0.5) / (n + 1))
    q = np.cumsum(error) / np.arange(1, len(error) + 1)
    called = post.pairs(min_abs=0.2, fdr=0.1, kind=kind)
    assert len(called) == (q <= 0.1).sum() > 0
    np.testing.assert_allclose(called["q"], q[: len(called)], rtol=1e-6)
    assert (called["q"].diff().dropna() >= -1e-12).all()
    assert (called["low"] <= called["mean"]).all()
    assert (called["mean"] <= called["high"]).all()
    assert (called["lfsr"] <= called["error_probability"] + 1e-9).all()


def test_pairs_of_some_genes_are_those_pairs(post):
    every = post.pairs(min_abs=0, fdr=0.999)
    genes = sorted(set(every["gene_a"]) | set(every["gene_b"]))[:6]
    some = post.pairs(min_abs=0, fdr=0.999, genes=genes)
    inside = every[every["gene_a"].isin(genes) & every["gene_b"].isin(genes)]
    columns = ["gene_a", "gene_b", "mean", "low", "high", "lfsr"]
    a, b = (table[columns].sort_values(columns).to_numpy() for table in (some, inside))
    assert (a[:, :2] == b[:, :2]).all()
    np.testing.assert_allclose(a[:, 2:].astype(float), b[:, 2:].astype(float), atol=1e-6)


def test_partners_are_the_pairs_of_one_gene(post):
    every = post.pairs(min_abs=0.0, fdr=0.999)
    gene = every["gene_a"].iloc[0]
    partners = post.partners(gene, min_abs=0, fdr=0.999)
    assert set(partners["gene_a"]) == {gene}
    mine = every[(every["gene_a"] == gene) | (every["gene_b"] == gene)]
    assert len(partners) == len(mine)


def test_calls_are_the_same_from_small_tiles(post, monkeypatch):
    monkeypatch.setattr(intervals, "TILE", 9)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 4 * 120 * 11)
    pd.testing.assert_frame_equal(post.pairs(fdr=0.2), _whole(post, monkeypatch))


def _whole(post, monkeypatch):
    monkeypatch.undo()
    return post.pairs(fdr=0.2)


def test_graph_of_draws(post):
    pairs = post.pairs(0.1, 0.2)
    graph = post.graph_of(pairs)
    assert graph.number_of_edges() == len(pairs)
    few = post.to_graph(0.1, 0.2, most=2)
    wanted = set()
    for gene in set(pairs["gene_a"]) | set(pairs["gene_b"]):
        own = pairs[(pairs["gene_a"] == gene) | (pairs["gene_b"] == gene)]
        first = own.loc[own["mean"].abs().nlargest(2).index]
        wanted |= set(map(frozenset, zip(first["gene_a"], first["gene_b"], strict=True)))
    assert {frozenset(edge) for edge in few.edges} == wanted
    row = pairs.iloc[0]
    edge = graph.edges[row["gene_a"], row["gene_b"]]
    assert edge["correlation"] == row["mean"]
    assert {"low", "high", "q", "lfsr", "sign"} <= set(edge)


def test_programs(post, fit):
    k = fit.w_prior_diagnostics["effective_rank"]
    table = post.get_program_stability()
    assert len(table) == k
    assert (table["norm_low"] <= table["norm"]).all()
    assert (table["cosine"] > 0.8).all()
    W = post.get_W_compositional()
    cosine = stability._unit(W["mean"].values) * stability._unit(fit.get_W_compositional()[:, :k])
    assert (np.abs(cosine.sum(axis=0)) > 0.9).all()
    member = post.get_membership()
    assert member.shape == (50, k)
    assert ((member >= 0) & (member <= 1)).all()
    assert post.get_n_programs().sum() == pytest.approx(1)


def test_factors_of_cells(post, fit):
    latent = post.get_latent()
    k = latent.sizes["factor"]
    for j in range(k):
        r = np.corrcoef(latent["mean"][:, j], fit.get_latent()[:, j])[0, 1]
        assert abs(r) > 0.9
    assert ((latent["sd"] > 0) & (latent["sd"] < 1.3)).all()


def test_alignment_undoes_order_and_sign():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(30, 3))
    turned = np.stack([reference[:, [2, 0, 1]] * [1, -1, 1], -reference])
    alignment = stability.align(turned, reference)
    centred = reference - reference.mean(axis=0)
    for draw in stability.aligned(turned, alignment):
        np.testing.assert_allclose(draw, centred, atol=1e-6)


def test_overdispersion_adds_up(post):
    over = post.get_overdispersion()
    assert ((over["share"] > 0) & (over["share"] < 1)).all()
    assert (over["total_low"] < over["total_high"]).all()


def test_summary_and_diagnostics(post):
    table = post.summary()
    assert {"draws", "r_hat_norms", "ess_correlations", "unstable_programs"} <= set(table.index)
    assert table.loc["draws", "value"] == 60
    assert (post.get_diagnostics()["ess"].dropna() > 0).all()
    assert "2 chains of 60 draws" in repr(post)


def test_save_and_load(post, tmp_path):
    post.save(tmp_path / "draws.nc")
    again = nbln.load(tmp_path / "draws.nc")
    pd.testing.assert_frame_equal(again.pairs(), post.pairs())
    pd.testing.assert_frame_equal(again.summary(), post.summary())
    assert repr(again) == repr(post)


@pytest.mark.parametrize(
    ("array", "value"), [("draws/d", 0.0), ("draws/mu", np.nan), ("scales/tau", -1.0)]
)
def test_draws_that_cannot_be_are_refused(post, array, value, tmp_path):
    groups = files.draws_groups(post)
    group, name = array.split("/")
    values = groups[group][name].values.copy()
    values.flat[0] = value
    groups[group][name] = (groups[group][name].dims, values)
    io.write(tmp_path / "made.nc", post.kind, groups)
    with pytest.raises(ValueError, match=rf"made\.nc.*{array} must hold"):
        nbln.load(tmp_path / "made.nc")


def test_a_saved_fit_can_be_sampled(fit, post, adata, tmp_path):
    fit.save(tmp_path / "fit.nc")
    loaded = nbln.load(tmp_path / "fit.nc")
    with pytest.raises(ValueError, match="counts"):
        loaded.sample_posterior(2, 1, n_warmup=1, progress=False)
    again = loaded.sample_posterior(3, 1, n_warmup=30, progress=False, counts=adata)
    np.testing.assert_allclose(again.draws.mu[0], post.draws.mu[0, :3], rtol=1e-4, atol=1e-4)


def test_to_arviz(post):
    tree = post.to_datatree()
    assert tree["posterior"]["W_compositional"].sizes["draw"] == 60
    assert "accepted_cells" in tree["sample_stats"]
    assert post.to_arviz() is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_draws": 0}, "n_draws"),
        ({"n_chains": 1.5}, "n_chains"),
        ({"n_warmup": -1}, "n_warmup"),
        ({"seed": -1}, "seed"),
        ({"capture": "laten"}, "latent"),
    ],
)
def test_settings_are_checked(fit, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit.sample_posterior(progress=False, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.pairs(min_abs=2), "min_abs"),
        (lambda p: p.pairs(fdr=0), "fdr"),
        (lambda p: p.pairs(kind="pearson"), "kind"),
        (lambda p: p.get_correlation(level=0), "level"),
    ],
)
def test_questions_are_checked(post, call, message):
    with pytest.raises(ValueError, match=message):
        call(post)


def test_an_unknown_gene_is_named(post):
    with pytest.raises(KeyError, match="no_gene"):
        post.partners("no_gene")


@pytest.mark.parametrize(
    "plot", [nbln.pl.plot_pair_intervals, nbln.pl.plot_calls, nbln.pl.plot_network]
)
def test_figures(post, plot):
    assert plot(post).axes
    figure, axes = plt.subplots(1, 2 if plot is nbln.pl.plot_calls else 1)
    assert plot(post, ax=axes) is figure
    plt.close("all")


def test_figures_without_calls(post):
    nothing = post.pairs().iloc[:0]
    assert nbln.pl.plot_pair_intervals(post, pairs=nothing).axes
    assert nbln.pl.plot_network(post, pairs=nothing).axes
    plt.close("all")
