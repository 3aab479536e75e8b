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


def test_without_batches(adata):
    with pytest.raises(ValueError, match="told of no batches"):
        fit(adata).extend(adata, progress=False)
