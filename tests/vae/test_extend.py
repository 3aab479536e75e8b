"""Cells of a new batch: its weights are learned, the reference stays as it is."""

import jax
import numpy as np
import pytest
from vae_cells import annotated, fit

import nbln

CASES = {
    "mlp": {},
    "linear, zinb by cell": dict(decoder="linear", gene_likelihood="zinb", dispersion="gene-cell"),
    "theta and library by batch": dict(dispersion="gene-batch", library="latent"),
}
QUICK = nbln.VAEConfig(n_epochs=4)


@pytest.fixture(scope="module")
def adata():
    return annotated()


@pytest.mark.parametrize(
    "case", [c if c == "mlp" else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_a_new_batch(case, adata, tmp_path):
    reference = fit(adata, batch_key="batch", covariates=["age"], **CASES[case])
    query = adata[:40].copy()
    query.obs["batch"] = "new"
    # The new batch counts the first gene four times as often.
    counts = np.asarray(query.X.todense() if hasattr(query.X, "todense") else query.X).copy()
    counts[:, 0] *= 4
    query.X = counts
    with pytest.raises(ValueError, match="'new', which no cell"):
        reference.score(query)
    result = reference.extend(query, vae=QUICK, progress=False)
    assert result.design.batch.levels == (*reference.design.batch.levels, "new")
    assert result.network.library_prior.mean.shape == (result.design.n_batches,)
    np.testing.assert_allclose(reference.score(adata), result.score(adata), rtol=1e-5)
    for one, two in zip(
        jax.tree.leaves(reference.network.encoder),
        jax.tree.leaves(result.network.encoder),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    start = reference.extend(
        query, vae=nbln.VAEConfig(n_epochs=1, learning_rate=1e-12), progress=False
    )
    assert result.score(query).mean() > start.score(query).mean()
    result.save(tmp_path / "extended.nc")
    loaded = nbln.load(tmp_path / "extended.nc")
    np.testing.assert_array_equal(loaded.score(query), result.score(query))


def query_of(adata, **columns):
    query = adata[:40].copy()
    for name, value in columns.items():
        query.obs[name] = value
    return query


def test_new_categories_of_a_covariate_and_of_labels(adata, tmp_path):
    reference = fit(
        adata, batch_key="batch", covariates=["phase", "age"], decoder="linear",
        dispersion="gene-label", labels_key="label",
    )  # fmt: skip
    query = query_of(adata, phase="G2M", label="mono")
    result = reference.extend(query, vae=QUICK, progress=False)
    assert result.design.covariates[0].levels == ("G1", "S", "G2M")
    assert result.design.label.levels == ("b", "nk", "t", "mono")
    assert result.architecture.n_columns == reference.architecture.n_columns + 1
    np.testing.assert_allclose(reference.score(adata), result.score(adata), rtol=1e-5)
    # Columns of the design are batch one, two, phase G1, S, G2M, and age: only G2M has learned.
    old, new = (r.network.decoder.share.weight[:, -n:] for r, n in ((reference, 5), (result, 6)))
    np.testing.assert_array_equal(np.delete(new, 4, axis=1), old)
    assert not np.allclose(new[:, 4], old[:, 2:4].mean(axis=1))
    old, new = (r.network.likelihood.theta.value for r in (reference, result))
    np.testing.assert_array_equal(new[:3], old)
    assert not np.allclose(new[3], old.mean(axis=0))
    result.save(tmp_path / "extended.nc")
    loaded = nbln.load(tmp_path / "extended.nc")
    np.testing.assert_array_equal(loaded.score(query), result.score(query))


@pytest.mark.slow
def test_new_categories_without_batches(adata):
    reference = fit(adata, covariates=["phase"])
    result = reference.extend(query_of(adata, phase="G2M"), vae=QUICK, progress=False)
    assert result.design.n_batches == 1
    np.testing.assert_allclose(reference.score(adata), result.score(adata), rtol=1e-5)


def test_cells_of_known_categories_get_the_fit_itself(adata):
    config = nbln.VAEConfig(n_epochs=6, n_hidden=8, validation_share=0.3)
    reference = fit(adata, batch_key="batch", vae=config)
    result = reference.extend(adata[:40].copy(), progress=False)
    for one, two in zip(
        jax.tree.leaves(reference.network), jax.tree.leaves(result.network), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    kept = reference.history.iloc[: reference.best + 1]
    np.testing.assert_array_equal(result.history, kept)
    assert result.best == len(kept) - 1
    np.testing.assert_allclose(
        result.get_latent(), reference.get_latent()[:40], rtol=1e-4, atol=1e-5
    )


def test_without_batches(adata):
    with pytest.raises(ValueError, match="told of no batches"):
        fit(adata).extend(adata, progress=False)
