"""Programs that the cells have are found again in half of them, and others are not."""

import logging

import numpy as np
import pytest

import nbln
from nbln.questions.stability import found_again


@pytest.fixture(scope="module")
def fit():
    adata = nbln.datasets.simulate(400, 60, 2, seed=1)
    return nbln.fit(
        adata, model="nbln", latent_dim=4, informative_priors_from=False, progress=False
    )


def test_programs_of_the_truth_are_found_in_halves(fit):
    table = fit.rank_stability(n_halves=2, seed=3)
    k = fit.w_prior_diagnostics["effective_rank"]
    assert table.sizes == {"half": 2, "program": k}
    assert table.attrs["effective_rank"] == k
    assert table.attrs["cells"] == 200
    assert table["program"].values.tolist() == list(range(1, k + 1))
    assert (table["effective_rank"] >= 1).all()
    assert (table["span"] > 0.8).all()
    assert (table["cosine"] <= table["span"] + 1e-6).all()
    again = fit.rank_stability(n_halves=2, seed=3)
    np.testing.assert_array_equal(table["cosine"], again["cosine"])


def test_columns_are_matched_whatever_their_order_and_sign():
    rng = np.random.default_rng(0)
    W = np.linalg.qr(rng.normal(size=(200, 3)))[0]
    W -= W.mean(axis=0)
    cosine, span = found_again(W, -W[:, [2, 0]] * [3, 5])
    np.testing.assert_allclose(cosine, [1, 0, 1], atol=0.05)
    np.testing.assert_allclose(span, [1, 0, 1], atol=0.1)
    # A rotation spoils the match of columns, and not the space that they span.
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cosine, span = found_again(W, W @ turn)
    np.testing.assert_allclose(span, 1, atol=1e-6)
    assert cosine.max() < 0.999
    for one in found_again(W, W[:, :0]):
        np.testing.assert_array_equal(one, 0)
    assert found_again(W[:, :0], W)[0].shape == (0,)


@pytest.mark.parametrize("coverage", [None, pytest.param(0.8, marks=pytest.mark.slow)])
def test_genes_that_a_half_does_not_see_and_the_pool_are_allowed(coverage, caplog):
    adata = nbln.datasets.simulate(60, 40, 2, seed=2)
    adata.X[:, 5] = 0
    adata.X[7, 5] = 3  # a gene of a single cell
    given = dict(latent_dim=2, n_steps=3, progress=False, informative_priors_from=False)
    with caplog.at_level(logging.ERROR, "nbln"):
        fit = nbln.fit(adata, model="nbln", gene_coverage=coverage, **given)
        table = fit.rank_stability(n_halves=2)
    assert np.isfinite(table["cosine"]).all()


def test_what_cannot_be_asked(fit, tmp_path):
    fit.save(tmp_path / "fit.nc")
    with pytest.raises(ValueError, match="loaded from a file"):
        nbln.load(tmp_path / "fit.nc").rank_stability()
    with pytest.raises(ValueError, match="n_halves=0"):
        fit.rank_stability(n_halves=0)
    adata = nbln.datasets.simulate(9, 40, 2, seed=2)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    small = nbln.fit(adata, latent_dim=4, n_steps=2, progress=False, informative_priors_from=False)
    with pytest.raises(ValueError, match="smaller latent_dim"):
        small.rank_stability()
