"""An auto-encoder: no divergence, no draws, and by a linear decoder the first component."""

import anndata
import numpy as np
import pytest
from vae_cells import annotated, fit

import nbln

N_CELLS, N_GENES = 100, 12


@pytest.mark.slow
def test_it_reconstructs_at_least_as_well_as_with_a_prior():
    adata = annotated()
    config = nbln.VAEConfig(n_epochs=40, n_hidden=8, learning_rate=1e-2, weight_decay=0.0)
    with_prior, without = (
        fit(adata, vae=config, inference_method=engine) for engine in ("vae", "ae")
    )
    assert without.get_reconstruction_error() <= with_prior.get_reconstruction_error() + 1e-3
    assert without.latents.z_variance.max() < 1e-3  # it draws nothing


@pytest.fixture(scope="module")
def short():
    """An auto-encoder whose dispersions depend on the cell."""
    return fit(annotated(), inference_method="ae", dispersion="gene-cell")


QUESTIONS = {
    "score": lambda r: r.score(annotated()),
    "get_elbo": lambda r: r.get_elbo(),
    "get_marginal_ll": lambda r: r.get_marginal_ll(),
    r"get_latent\(refined=True\)": lambda r: r.get_latent(refined=True),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_says_nothing_that_needs_a_prior(question, short):
    with pytest.raises(ValueError, match=f"^{question}: this is an auto-encoder .*no prior"):
        QUESTIONS[question](short)


def test_a_dispersion_of_each_cell_is_told_by_its_mean(short):
    each = short.get_likelihood_parameters()["dispersion"]
    expected = np.exp(np.log(each.astype(float)).mean("cell"))
    np.testing.assert_allclose(short.get_map()["r"], expected, rtol=1e-4)


def test_a_linear_decoder_finds_the_first_component():
    """Log shares of rank 1 around their means, almost without noise: singular values tell them."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, N_GENES) + np.outer(rng.normal(size=N_CELLS), rng.normal(size=N_GENES))
    share = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    adata = anndata.AnnData(rng.poisson(30_000 * share).astype(np.float32))
    config = nbln.VAEConfig(
        n_epochs=300, n_hidden=32, batch_size=50, learning_rate=1e-2, weight_decay=0.0, dropout=0.0
    )
    result = fit(
        adata, inference_method="ae", decoder="linear", gene_likelihood="poisson", latent_dim=1,
        vae=config,
    )  # fmt: skip
    fitted = result.get_denoised("log_rate", n_samples=1)["mean"].values

    def first(x):
        x = x - x.mean(axis=1, keepdims=True)
        left, sizes, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        return left[:, 0], right[0]

    for ours, theirs in zip(first(fitted), first(truth), strict=True):
        assert abs(ours @ theirs) > 0.97
