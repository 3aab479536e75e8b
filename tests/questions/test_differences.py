"""Correlations that differ between two fits, and expression as if cells had other covariates."""

import numpy as np
import pytest

import nbln
from nbln.questions import differences
from nbln.questions.intervals import CorrelationDraws, q_values

N, G, K = 60, 12, 2


def draws_of(W, names, seed, noise=0.05):
    rng = np.random.default_rng(seed)
    many = W + noise * rng.normal(size=(N, *W.shape))
    flat = np.full((N, len(W)), 0.2)
    return CorrelationDraws(many, flat, 0 * flat, flat, "log_rate", np.array(names))


def test_differences_that_are_there_are_called():
    """In the second group gene 0 has left its program; one gene is not in both."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(G, K))
    W[:4] = [1.5, 0.0]
    other = W.copy()
    other[0] = 0.0
    names = [f"g{i}" for i in range(G)]
    first, second = draws_of(W, names, 1), draws_of(other[::-1][1:], names[::-1][1:], 2)
    genes = np.array(names[:-1])
    table = differences.table(first, second, genes, 0.2, 0.1, 0.9)
    called = {tuple(sorted(x)) for x in zip(table["gene_a"], table["gene_b"], strict=True)}
    assert {("g0", "g1"), ("g0", "g2"), ("g0", "g3")} <= called
    assert all("g0" in pair for pair in called)
    row = table[(table["gene_a"] == "g0") & (table["gene_b"] == "g1")].iloc[0]
    zero, one = np.array([0]), np.array([1])
    means = [d.block(*(len(d.gene_names) - 1 - x if d is second else x for x in (zero, one))).mean()
             for d in (first, second)]  # fmt: skip
    np.testing.assert_allclose([row["mean_first"], row["mean_second"]], [means[0], 0], atol=0.1)
    assert row["low"] < row["mean"] < row["high"]
    assert (np.diff(table["q"]) >= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_calls_are_wrong_as_often_as_they_say(share):
    """Estimates with noise, of differences that most pairs do not have."""
    rng = np.random.default_rng(1)
    n = 20_000
    true = np.where(rng.random(n) < share, rng.normal(0, 0.4, n), 0)
    sd = rng.uniform(0.05, 0.2, n)
    mean = true + sd * rng.normal(size=n)
    prior = differences.Prior.learned(mean, sd)
    mixture = prior.posterior(mean, sd)
    up, down = differences.above(0.1, mixture), 1 - differences.above(-0.1, mixture)
    error = 1 - np.maximum(up, down)
    order = np.argsort(error)
    called = order[q_values(error[order]) <= 0.05]
    wrong = (np.abs(true[called]) < 0.1) | (np.sign(true[called]) != np.sign(mean[called]))
    assert wrong.sum() <= 0.08 * len(called)
    assert len(called) >= 0.3 * (np.abs(true) > 0.1).sum()


def test_ends_of_intervals_cover():
    rng = np.random.default_rng(2)
    true, sd = rng.normal(0, 0.2, 20_000), np.full(20_000, 0.1)
    mean = true + sd * rng.normal(size=len(true))
    mixture = differences.Prior.learned(mean, sd).posterior(mean, sd)
    low, high = (differences._quantile(p, mixture) for p in (0.05, 0.95))
    assert abs(np.mean((low < true) & (true < high)) - 0.9) < 0.015


@pytest.fixture(scope="module")
def posts():
    """Two fits of one truth, and their draws."""
    adata = nbln.datasets.simulate(300, 30, 2, seed=3)
    halves = adata[:150], adata[150:]
    fits = [nbln.fit(half.copy(), latent_dim=3, progress=False) for half in halves]
    return [fit.sample_posterior(40, 1, n_warmup=20, progress=False) for fit in fits]


def test_two_halves_of_one_truth_do_not_differ(posts):
    table = nbln.compare_correlations(*posts, min_abs=0.1)
    n = posts[0].fitted.n_genes
    assert len(table) < 0.02 * n * (n - 1) / 2


def test_only_draws_are_compared(posts):
    with pytest.raises(TypeError, match=r"compare_correlations\(second=\).*sample_posterior"):
        nbln.compare_correlations(posts[0], 3)
    with pytest.raises(ValueError, match=r"compare_correlations\(fdr"):
        nbln.compare_correlations(*posts, fdr=2)


def test_expression_as_if(adata):
    fit = nbln.fit(adata, formula="~ batch + age", latent_dim=2, progress=False)
    own, there = (fit.get_denoised(at=at)["mean"].values for at in (None, {"batch": "two"}))
    two = (adata.obs["batch"] == "two").to_numpy()
    np.testing.assert_allclose(there[two], own[two], rtol=1e-5)
    effect = np.exp(fit.get_covariate_effects()["mean"].sel(covariate="batch[T.two]").values)
    np.testing.assert_allclose(there[~two] / own[~two], np.tile(effect, (sum(~two), 1)), rtol=1e-3)
    share = fit.get_denoised("composition", at={"batch": "one", "age": 3.0})["mean"].values
    np.testing.assert_allclose(share.sum(axis=1), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown category of batch; choose one of one, two"):
        fit.get_denoised(at={"batch": "three"})
    with pytest.raises(ValueError, match="choose one of batch, age"):
        fit.get_denoised(at={"bach": "one"})
