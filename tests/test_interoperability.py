"""Results where other packages of the field take them up: scanpy, MuData."""

import numpy as np
import pytest

import nbln

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def fitted():
    adata = nbln.datasets.simulate(300, 80, 3, seed=3)
    res = nbln.fit(adata, latent_dim=4, progress=False)
    res.write_to(adata, layers=True)
    return adata, res


def test_scanpy_finds_neighbours_maps_and_marker_genes(fitted):
    import scanpy as sc

    adata = fitted[0].copy()
    sc.pp.neighbors(adata, use_rep="X_nbln")
    sc.tl.umap(adata)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2)
    assert adata.obsm["X_umap"].shape == (300, 2)
    adata.layers["log_rate"] = np.log(adata.layers["nbln_rate"])
    adata.obs["half"] = np.where(adata.obsm["X_nbln"][:, 0] > 0, "high", "low")
    sc.tl.rank_genes_groups(adata, "half", layer="log_rate", method="wilcoxon")
    first = fitted[1].get_program_table()["top_genes"][1].split(", ")
    leading = [str(name) for name in adata.uns["rank_genes_groups"]["names"]["high"][:20]]
    assert len(set(leading) & set(first)) >= 5


def test_a_modality_of_mudata(fitted):
    import mudata

    modalities = mudata.MuData({"rna": fitted[0].copy(), "other": fitted[0][:, :10].copy()})
    res = nbln.fit(modalities["rna"], latent_dim=4, progress=False)
    res.write_to(modalities["rna"], key_added="again")
    assert "X_again" in modalities["rna"].obsm
    assert res.fitted.fingerprint == fitted[1].fitted.fingerprint


def test_a_whole_mudata_is_refused_with_what_to_do(fitted):
    import mudata

    with pytest.raises(TypeError, match="AnnData"):
        nbln.fit(mudata.MuData({"rna": fitted[0].copy()}))
