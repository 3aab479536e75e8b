"""Each likelihood, dispersion, decoder and library answers all that a result is asked."""

import jax
import numpy as np
import pytest
from vae_cells import annotated, fit

import nbln
from nbln.posterior.cells import over_blocks
from nbln.vae import decoded

CASES = {
    "nb": {"batch_key": "batch", "covariates": ["phase", "age"]},
    "zinb, theta of each batch": dict(
        gene_likelihood="zinb", dispersion="gene-batch", batch_key="batch", library="latent"
    ),
    "poisson, linear": dict(gene_likelihood="poisson", decoder="linear"),
    "theta of each label": dict(dispersion="gene-label", labels_key="label", decoder="linear"),
    "zinb, theta of each cell": dict(gene_likelihood="zinb", dispersion="gene-cell"),
}


@pytest.fixture(scope="module")
def adata():
    return annotated()


FAST = ("nb", "zinb, theta of each cell")


@pytest.mark.parametrize(
    "case", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_a_fit_answers(case, adata, tmp_path):
    arguments = CASES[case]
    result = fit(adata, **arguments)
    shape = (result.fitted.n_cells, result.fitted.n_genes)
    assert set(result.summary()["status"]) <= {"ok", "warning"}
    score = result.score(adata)
    assert np.isfinite(score).all()
    np.testing.assert_allclose(result.transform(adata)["z"], result.get_latent(), atol=1e-5)
    assert np.isfinite(result.get_latent(refined=True)).all()

    share = result.get_denoised("composition", n_samples=4)
    np.testing.assert_allclose(share["mean"].sum("gene"), 1, rtol=1e-4)
    assert (share["sd"] >= 0).all()
    moved = "one" if "batch_key" in arguments else None
    table = result.get_normalized_expression(adata, transform_batch=moved)
    assert table.shape == shape
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-4)
    parameters = result.get_likelihood_parameters()
    assert ("dispersion" in parameters) == (arguments.get("gene_likelihood") != "poisson")
    assert ("dropout_logits" in parameters) == (arguments.get("gene_likelihood") == "zinb")
    assert all(x.shape == shape and np.isfinite(x).all() for x in parameters.values())
    assert len(result.differential_expression(idx1=range(40), n_samples=50)) == shape[1]
    for level in ("marginal", "library_anchored", "per_cell"):
        assert np.isfinite(result.check(level, n_samples=4)["mean"]).all()
    assert "log_likelihood" in result.to_datatree(4, 2).children

    written = adata.copy()
    result.write_to(written)
    np.testing.assert_array_equal(written.obsm["X_nbln"], result.get_latent())
    result.save(tmp_path / "fit.nc")
    loaded = nbln.load(tmp_path / "fit.nc")
    pairs = zip(jax.tree.leaves(result.network), jax.tree.leaves(loaded.network), strict=True)
    for x, y in pairs:
        np.testing.assert_array_equal(x, y)
    assert repr(loaded) == repr(result)
    np.testing.assert_array_equal(loaded.score(adata), score)


def test_standard_deviations_that_nobody_asked_for_are_not_kept(adata, monkeypatch):
    """They are as large as the expression of all cells."""
    result = fit(adata, batch_key="batch")
    kept = []

    def recorded(*arguments):
        kept.append(over_blocks(*arguments))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "over_blocks", recorded)
        table = result.get_normalized_expression(transform_batch=["one", "two"], n_samples=3)
    assert [len(arrays) for arrays in kept] == [1, 1]
    each = [
        result.get_normalized_expression(transform_batch=name, n_samples=3)
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(table, (each[0] + each[1]) / 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_loadings_of_a_fit_to_start_from(decoder, adata):
    first = nbln.fit(adata, latent_dim=2, informative_priors_from=False, n_steps=20, progress=False)
    result = fit(adata, start=first, decoder=decoder)
    assert (result.network.decoder.loadings is not None) == (decoder == "mlp")
    assert np.isfinite(result.score(adata)).all()
    with pytest.raises(ValueError, match=r"fit\(start=\).*other genes"):
        fit(adata[:, :12].copy(), start=first, decoder=decoder)
