"""Predictive checks within groups of cells."""

import anndata
import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import nbln
from nbln.questions.groups import Groups

QUICK = dict(model="nbln", latent_dim=2, progress=False, informative_priors_from=False)


@pytest.fixture(scope="module")
def shifted():
    """Counts of which ten genes of forty are three times as abundant in a third of the cells."""
    adata = nbln.datasets.simulate(300, 40, 2, mean_log_dispersion=2.0, seed=5)
    rng = np.random.default_rng(0)
    counts = np.asarray(adata.X.todense()).astype(int)
    half = np.arange(300) % 3 == 1
    counts[np.ix_(half, range(10))] += rng.poisson(2 * counts[np.ix_(half, range(10))] + 1)
    counts[:, -1] += 1
    made = anndata.AnnData(counts.astype(np.float32))
    made.obs["half"] = np.where(half, "second", "first")
    made.obs["note"] = [None, *["x"] * 299]
    return made


@pytest.fixture(scope="module")
def without(shifted):
    return nbln.fit(shifted, **QUICK)


@pytest.fixture(scope="module")
def informed(shifted):
    return nbln.fit(shifted, formula="~ half", **QUICK)


def test_what_differs_between_groups_is_seen(without, informed, shifted):
    given = nbln.summarise_checks(without.check(n_samples=40, groupby="half", counts=shifted))
    told = nbln.summarise_checks(informed.check(n_samples=40, groupby="half"))
    assert given.index.tolist() == told.index.tolist() == ["first", "second"]
    assert given["cells"].tolist() == [200, 100]
    assert (given["mean"] > 0.2).all()
    assert (told["mean"] < 0.1).all()
    # Over all cells together the first fit looks right.
    assert nbln.summarise_checks(without.check(n_samples=40)).loc["all cells", "mean"] < 0.1


def test_a_group_is_checked_as_its_cells_would_be(without, shifted):
    """Sums over groups are those over all cells; observed values are those of the group alone."""
    every = without.check(n_samples=5)
    groups = without.check(n_samples=5, groupby=shifted.obs["half"])
    assert groups.sizes["group"] == 2
    pooled = (groups["mean"] * groups["n_cells"]).sum("group") / 300
    parts = ["observed", "predicted"]
    np.testing.assert_allclose(pooled.sel(quantity=parts), every["mean"].sel(quantity=parts))
    alone = shifted[shifted.obs["half"] == "first"].to_df()
    one = groups.sel(group="first").sel(quantity="observed")
    genes = without.fitted.gene_names
    np.testing.assert_allclose(one["mean"], alone[genes].mean())
    np.testing.assert_allclose(one["variance"], alone[genes].var())
    np.testing.assert_allclose(one["zero_fraction"], (alone[genes] == 0).mean())


def test_a_summary_has_rows_for_each_group(without, shifted):
    checks = without.check(n_samples=40, groupby=shifted.obs["half"].to_numpy())
    table = without.summary(checks)
    assert table.loc["misfit_mean[second]", "status"] == "warning"
    assert "misfit_mean" not in table.index


def test_values_are_put_into_the_order_of_the_cells(without, shifted):
    turned = shifted.obs["half"].iloc[::-1]
    ours = Groups.of(turned, without.fitted.data(), None, "check")
    np.testing.assert_array_equal(ours.names[ours.codes], shifted.obs["half"])


def test_figures_by_group(without, shifted):
    figure = nbln.pl.plot_ppc(without, n_samples=4, groupby="half", counts=shifted)
    assert len(figure.axes) == 10
    assert figure.axes[0].get_ylabel() == "first\npredicted"
    figure = nbln.pl.plot_gene_ppc(without, n_genes=2, n_samples=4, groupby=shifted.obs["half"])
    assert len(figure.axes) == 4
    assert figure.axes[0].get_title().endswith("\nfirst")
    many = without.check(n_samples=4, groupby=np.arange(300) // 30)
    assert len(nbln.pl.plot_ppc(without, checks=many).axes) == 30
    plt.close("all")


@pytest.mark.parametrize(
    ("groupby", "error", "words"),
    [
        (
            "half",
            KeyError,
            r"check\(groupby='half'\).*not told of this.*counts=adata",
        ),
        (3, ValueError, "one value for each of the 300 cells; got int"),
        (
            ["a"] * 299,
            ValueError,
            r"each of the 300 cells; got list of shape \(299,\)",
        ),
        (["a"] * 300, ValueError, "all cells are in one group, 'a'; leave groupby out"),
        (["a"] * 295 + ["b"] * 5, ValueError, "group 'b' has 5 cells, and each of the 2 groups"),
        ([None] * 20 + ["b"] * 280, ValueError, "20 cells have no value"),
    ],
)
def test_groups_that_cannot_be(without, groupby, error, words):
    with pytest.raises(error, match=words):
        without.check(n_samples=2, groupby=groupby)


def test_columns_that_cannot_be(without, informed, shifted):
    with pytest.raises(KeyError, match=r"adata.obs has no column 'hal'.*'half'"):
        without.check(groupby="hal", counts=shifted)
    with pytest.raises(ValueError, match=r"check\(adata\): adata.obs\['note'\] has no value in 1"):
        without.check(groupby="note", counts=shifted)
    with pytest.raises(KeyError, match="not told of this column, only of half"):
        informed.check(groupby="note")
    with pytest.raises(ValueError, match=r"ppc_level='marginal', groupby=.*like any of the fit"):
        informed.check("marginal", groupby="half")


def test_a_table_of_what_is_none():
    for wrong in (pd.DataFrame(), xr.Dataset(), None):
        with pytest.raises(TypeError, match=r"expected what res.check\(\) gave"):
            nbln.summarise_checks(wrong)
