"""Cells that are unlike all others are named, and recovery does not suffer from them."""

import anndata as ad
import numpy as np
import pytest

import nbln
from nbln.questions import outliers

N_CELLS, N_GENES = 200, 60


@pytest.fixture(scope="module")
def clean():
    adata = nbln.datasets.simulate(N_CELLS, N_GENES, 2, seed=1)
    adata.X = adata.X.toarray()
    return adata


def fitted(adata, model="nbln", **cells):
    adata = adata.copy()
    for cell, (gene, count) in cells.items():
        adata.X[adata.obs_names.get_loc(cell), gene] = count
    return nbln.fit(adata, model=model, latent_dim=3, progress=False)


def truth(adata):
    W = adata.varm["W"] - adata.varm["W"].mean(axis=0)
    covariance = W @ W.T + np.diag(adata.var["d"])
    sd = np.sqrt(np.diag(covariance))
    return (covariance / np.outer(sd, sd))[np.triu_indices(N_GENES, 1)]


def recovery(result, true):
    found = result.get_correlation().to_numpy()[np.triu_indices(N_GENES, 1)]
    return np.corrcoef(found, true)[0, 1]


def test_no_cell_of_the_model_is_wild(clean):
    table = fitted(clean).summary()
    assert table.loc["wild_count_cells", "value"] == 0
    assert table.loc["wild_count_cells", "status"] == "ok"


def test_cells_with_wild_counts_are_named_and_do_no_harm(clean):
    wild = fitted(clean, cell7=(3, 1e5), cell50=(20, 1e6))
    row = wild.summary().loc["wild_count_cells"]
    assert (row["value"], row["status"]) == (2, "warning")
    assert "cell50 (1,000,000 of gene20), cell7 (100,000 of gene3)" in row["note"]
    true = truth(clean)
    assert recovery(wild, true) > recovery(fitted(clean), true) - 0.03


def test_a_wild_count_that_its_gene_has_taken_up_is_named():
    """So few cells that the count makes the variance of its gene, and its cell's depth."""
    adata = nbln.datasets.simulate(250, 50, 2, seed=5)
    adata.X = adata.X.toarray()
    row = fitted(adata, cell7=(3, 1e6), cell50=(20, 1e6)).summary().loc["wild_count_cells"]
    assert row["value"] == 2
    assert "cell7 (1,000,000 of gene3)" in row["note"]


def test_cells_of_a_wild_depth_are_named(clean):
    adata = clean.copy()
    adata.X[11] = np.random.default_rng(0).poisson(clean.X.mean(axis=0) * 0.03)
    adata.X[11, 0] += 1
    table = nbln.fit(adata, model="nbvcp", progress=False).summary()
    assert "cell11" in table.loc["shallow_cells", "note"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nbln", "lnm"])
def test_droplets_of_ambient_rna_are_named(model):
    """Draws from the mean profile at the usual depth; no cell of the model is like them."""
    adata = nbln.datasets.simulate(300, 200, 2, seed=1)
    adata.X = adata.X.toarray()
    assert fitted(adata, model).summary().loc["ambient_cells", "value"] == 0
    rng, profile = np.random.default_rng(0), adata.X.sum(axis=0) / adata.X.sum()
    for cell in (11, 42):
        adata.X[cell] = rng.multinomial(int(np.median(adata.X.sum(axis=1))), profile)
    row = fitted(adata, model).summary().loc["ambient_cells"]
    assert row["value"] == 2
    assert {"cell11", "cell42"} == set(row["note"].split(": ")[-1].split(", "))


def test_cells_that_do_not_differ_are_no_droplets():
    """Nothing but counting varies in them: the model and a mean profile predict them alike."""
    rate = np.exp(np.random.default_rng(0).normal(0.5, 1, N_GENES))
    adata = ad.AnnData(np.random.default_rng(1).poisson(rate, (300, N_GENES)).astype(np.float32))
    found = fitted(adata).summary()
    assert found.loc["ambient_cells", "value"] < 3


def test_depths_are_judged_by_their_own_spread(clean):
    class Depths:
        library_size = np.exp(np.random.default_rng(0).normal(8, 1.5, 2000))

    shallow, deep = outliers.wild_depths(Depths)
    assert len(shallow) + len(deep) < 10


def with_doublets(adata, n_doublets, seed):
    """Other cells at the end, each the sum of two; names of these begin with a d."""
    rng = np.random.default_rng(seed)
    pairs = np.array([rng.choice(adata.n_obs, 2, replace=False) for _ in range(n_doublets)])
    counts = np.vstack([adata.X, adata.X[pairs[:, 0]] + adata.X[pairs[:, 1]]])
    together = ad.AnnData(counts)
    together.obs_names = [*adata.obs_names, *(f"d{i}" for i in range(n_doublets))]
    return together


def test_doublets_are_named():
    """Four of eight at least, by 200 genes and without types; of single cells hardly one."""
    adata = nbln.datasets.simulate(400, 200, 3, mean_log_dispersion=1.5, seed=1)
    adata.X = adata.X.toarray()
    together = with_doublets(adata, 8, seed=2)
    names = together.obs_names.to_numpy()
    result = fitted(together)
    probability = result.get_doublet_probability()
    found = set(names[probability.to_numpy() > 0.5])
    row = result.summary().loc["doublet_cells"]
    assert row["value"] == len(found)
    assert row["note"].split(": ")[-1].split(", ")[0] == names[np.argmax(probability.to_numpy())]
    assert sum(name.startswith("d") for name in found) >= 4
    assert sum(not name.startswith("d") for name in found) <= 1
    few = result.get_doublet_probability(n_cells=20)
    assert (few > 0).sum() == 20
    np.testing.assert_allclose(few[few > 0], probability[few > 0], rtol=1e-2)
    with pytest.raises(ValueError, match="get_doublet_probability\\(n_cells=0"):
        result.get_doublet_probability(n_cells=0)
