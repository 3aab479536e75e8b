"""Draws of every kind of fit: models, priors, cascades, no programs at all, the command line."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import nbln
from nbln.cli import app


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(250, 50, 2, seed=5)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        pytest.param("pln", {}, marks=pytest.mark.slow),
        pytest.param("nbln", {"priors": {"d": (4.0, 0.5)}}, marks=pytest.mark.slow),
        pytest.param("nbln", {"priors": {"loadings": "gaussian"}}, marks=pytest.mark.slow),
        pytest.param("nbln", {"priors": {"capture_efficiency": None}}, marks=pytest.mark.slow),
        pytest.param("nbln", {"informative_priors_from": False}, marks=pytest.mark.slow),
    ],
)
def test_models_and_priors(adata, model, more):
    fit = nbln.fit(adata[:, :30].copy(), model=model, latent_dim=2, progress=False, **more)
    post = fit.sample_posterior(6, 1, n_warmup=4, progress=False)
    assert np.isfinite(post.get_correlation()["mean"]).all()
    assert post.draws.accepted.mean() > 0.3
    with_own = "log_r" in post.draws.channel
    assert with_own == (model == "nbln")


@pytest.mark.parametrize(
    ("freeze", "capture"),
    [
        (("r", "mu", "eta"), "source"),
        pytest.param(("r", "mu", "eta"), "latent", marks=pytest.mark.slow),
        pytest.param(("r", "eta"), "source", marks=pytest.mark.slow),
        pytest.param(("r", "eta"), "latent", marks=pytest.mark.slow),
    ],
)
def test_what_a_cascade_froze_stays(adata, freeze, capture):
    source = nbln.fit(adata, model="nbvcp", progress=False)
    fit = nbln.fit(
        adata,
        latent_dim=2,
        informative_priors_from=source,
        informative_priors_freeze=freeze,
        progress=False,
    )
    post = fit.sample_posterior(4, 1, n_warmup=2, capture=capture, progress=False)
    log_r = post.draws.channel["log_r"]
    np.testing.assert_allclose(np.exp(log_r[0, -1]), fit.r, rtol=1e-4)
    if "mu" in freeze:
        np.testing.assert_allclose(post.draws.mu[0, -1], fit.mu, rtol=1e-5)
    assert post.z_mean.shape[1] == post.reference.shape[1] + (capture == "latent")


@pytest.mark.slow
def test_independent_genes_are_not_called(tmp_path):
    rng = np.random.default_rng(0)
    depth = np.exp(0.4 * rng.normal(size=(300, 1)))
    mean = depth * rng.lognormal(0, 1, 60)
    adata = ad.AnnData(rng.poisson(rng.gamma(2.0, mean / 2.0)).astype(np.float32))
    fit = nbln.fit(adata, progress=False)
    post = fit.sample_posterior(60, 1, n_warmup=40, progress=False)
    assert not len(post.pairs(min_abs=0.3))


@pytest.mark.slow
def test_command_line(adata, tmp_path):
    adata.write_h5ad(tmp_path / "counts.h5ad")
    arguments = ["fit", tmp_path / "counts.h5ad", "--out", tmp_path / "out", "--draws", 20]
    done = CliRunner().invoke(app, [*map(str, arguments), "--no-progress"])
    assert done.exit_code == 0, done.output
    called = pd.read_csv(tmp_path / "out" / "called_pairs.csv")
    assert list(called)[:3] == ["gene_a", "gene_b", "mean"]
    post = nbln.load(tmp_path / "out" / "draws.nc")
    assert post.n_draws == 20
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pairs are called: their correlation is beyond" in page
    assert "Can the draws be trusted?" in page
    assert "carry no interval" not in page
    assert not list((tmp_path / "out").glob("*.checkpoint"))
