"""Differential expression: changed genes are found, and two halves of one group are alike."""

import anndata
import numpy as np
import pandas as pd
import pytest
from vae_cells import fit

import nbln

N_CELLS, N_GENES, N_CHANGED = 200, 60, 5


@pytest.fixture(scope="module")
def adata():
    """Negative-binomial counts of two groups; the first genes are four times higher in one."""
    rng = np.random.default_rng(0)
    level = rng.lognormal(1.5, 0.7, N_GENES)
    level[:N_CHANGED] = 4.0
    group = rng.random(N_CELLS) < 0.5
    rates = level * rng.lognormal(0, 0.3, (N_CELLS, 1))
    rates[group, :N_CHANGED] *= 4
    counts = rng.poisson(rates * rng.gamma(3, 1 / 3, rates.shape)).astype(np.float32)
    counts[:, -1] += 1
    obs = pd.DataFrame(
        {"group": np.where(group, "high", "low"), "half": rng.choice(["a", "b"], N_CELLS)},
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(60)]))


@pytest.fixture(scope="module")
def result(adata):
    config = nbln.VAEConfig(
        n_epochs=60, n_hidden=32, batch_size=50, learning_rate=1e-2, weight_decay=0.1
    )
    return fit(adata, latent_dim=2, vae=config, batch_key="half")


CHANGED = {f"g{i}" for i in range(N_CHANGED)}


@pytest.mark.parametrize("corrected", [False, True])
def test_changed_genes_are_found(result, adata, corrected):
    table = result.differential_expression(
        "group", "high", "low", adata=adata, batch_correction=corrected, delta=0.5
    )
    assert set(table.index[:N_CHANGED]) == CHANGED
    called = set(table.index[table["is_de_fdr"]])
    assert called >= CHANGED
    assert len(called - CHANGED) <= 1
    lfc = table.loc[sorted(CHANGED), "lfc_median"]
    # Of shares, which sum to 1, the truth is 1.76; few cells and decay of weights draw it to 0.
    assert ((lfc > 0.8) & (lfc < 2.2)).all()
    assert (table["lfc_low"] <= table["lfc_median"]).all()
    assert (table["lfc_median"] <= table["lfc_high"]).all()
    assert table["q"].is_monotonic_increasing
    assert len(table) == N_GENES


def test_the_other_way_around_is_the_negative(result, adata):
    table = result.differential_expression("group", "low", "high", adata=adata)
    assert (table.loc[sorted(CHANGED), "lfc_median"] < -0.8).all()
    by_number = result.differential_expression(idx1=(adata.obs["group"] == "low").to_numpy())
    assert set(by_number.index[:N_CHANGED]) == CHANGED


def test_bayes_factors_rank_the_same(result, adata):
    table = result.differential_expression("group", "high", mode="vanilla", adata=adata)
    assert (table.loc[sorted(CHANGED), "bayes_factor"] > 3).all()
    np.testing.assert_allclose(table["proba_m1"] + table["proba_m2"], 1)


def test_every_group_against_the_rest(result, adata):
    table = result.differential_expression("group", adata=adata, n_samples=50)
    assert len(table) == 2 * N_GENES
    assert set(table["group1"]) == {"high", "low"}
    assert set(table["group2"]) == {"rest"}


def test_random_halves_are_alike(result, adata):
    table = result.differential_expression("half", "a", "b", adata=adata, batch_correction=True)
    assert not table["is_de_fdr"].any()
    half = np.random.default_rng(3).random(N_CELLS) < 0.5
    assert not result.differential_expression(idx1=half)["is_de_fdr"].any()


def test_a_seed_decides_the_draws(result):
    first, again, other = (
        result.differential_expression(idx1=range(50), n_samples=40, seed=s) for s in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first["lfc_mean"].sort_index().equals(other["lfc_mean"].sort_index())
