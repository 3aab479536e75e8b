"""Correlations compared by permuting labels over donors."""

import math

import anndata
import numpy as np
import pandas as pd
import pytest

import nbln
from nbln.data.counts import Counts
from nbln.questions import donors as by_donor

N_GENES, N_CHANGED = 40, 8


def simulated(seed, n_donors, cells=120, changed=0, paired=False):
    """Counts of donors whose programs, means and depths differ; in a second group some genes turn.

    `changed` of the genes have the other sign in all programs.
    """
    rng = np.random.default_rng(seed)
    W = rng.normal(0, 0.6, (N_GENES, 2)) * (rng.random((N_GENES, 2)) < 0.5)
    turned = W * np.where(np.arange(N_GENES) < changed, -1, 1)[:, None]
    mu = rng.normal(1, 0.7, N_GENES)
    counts, groups, names = [], [], []
    for group, loadings in {"healthy": W, "ill": turned}.items():
        for i in range(n_donors):
            own = loadings * rng.lognormal(0, 0.3, W.shape)
            x = mu + rng.normal(0, 0.3, N_GENES) + rng.normal(size=(cells, 2)) @ own.T
            depth = rng.lognormal(0, 0.5, (cells, 1))
            rate = np.exp(x) * depth * rng.gamma(4, 1 / 4, x.shape)
            counts.append(rng.poisson(rate) + 1 * (np.arange(N_GENES) == N_GENES - 1))
            groups += [group] * cells
            names += [f"d{i}" if paired else f"{group}{i}"] * cells
    made = anndata.AnnData(np.concatenate(counts).astype(np.float32))
    made.obs["state"], made.obs["donor"] = groups, names
    return made


def compared(adata, **more):
    return nbln.compare_correlations_by_donor(adata, "state", "ill", "healthy", "donor", **more)


@pytest.mark.parametrize("design", [(4, False), (6, True)])
def test_p_values_where_groups_do_not_differ(design):
    """Of any pair, and of any pair at all, they are uniform on the labelings there are."""
    n_donors, paired = design
    some, whole, called = [], [], 0
    rng = np.random.default_rng(0)
    for seed in range(80):
        table = compared(simulated(seed, n_donors, 60, paired=paired))
        some += rng.choice(table["p_value"], 5, replace=False).tolist()
        whole.append(table.attrs["p_value_any"])
        called += bool(table["is_different"].any())
    for found, limit, slack in ((some, 0.1, 0.04), (some, 0.5, 0.08), (whole, 0.1, 0.1)):
        assert np.mean(np.array(found) <= limit) < limit + slack
    assert np.mean(some) == pytest.approx(0.52, abs=0.06)
    assert called <= 10  # 4 are meant, and 10 or more have a probability below 1 %


@pytest.mark.parametrize("design", [(6, False), (8, True)])
def test_genes_that_turn_are_found(design):
    n_donors, paired = design
    table = compared(simulated(1, n_donors, 200, N_CHANGED, paired))
    turned = {str(i) for i in range(N_CHANGED)}
    one = table["gene_a"].isin(turned).to_numpy() != table["gene_b"].isin(turned).to_numpy()
    called = table["is_different"].to_numpy()
    assert called.sum() > 15
    assert one[called].mean() > 0.85
    assert table.attrs["p_value_any"] < 0.02
    assert table.attrs["paired"] == paired
    assert table["q"].is_monotonic_increasing


def test_pairs_are_judged_among_all(caplog):
    adata = simulated(1, 6, 200, N_CHANGED)
    whole = compared(adata).set_index(["gene_a", "gene_b"])
    a, b = whole.index[3]
    asked = pd.DataFrame({"gene_a": [b, "rare"], "gene_b": [a, a]})
    with caplog.at_level("INFO", logger="nbln"):
        part = compared(adata, pairs=asked)
    assert "1 pairs have a gene that varies too little" in caplog.text
    assert part["gene_a"].tolist() == [b, "rare"]
    assert part.loc[0, "q"] == whole.loc[(a, b), "q"]
    assert part.loc[0, "difference"] == pytest.approx(whole.loc[(a, b), "difference"])
    assert np.isnan(part.loc[1, "p_value"])
    assert part["is_different"].tolist() == [whole.loc[(a, b), "is_different"], False]


def test_moments_are_those_of_the_rates():
    """Of many cells of one donor: correlations of the rates, whatever the depths."""
    rng = np.random.default_rng(3)
    n = 60_000
    sigma = np.array([[0.3, 0.2, 0], [0.2, 0.3, -0.1], [0, -0.1, 0.3]])
    x = rng.multivariate_normal([1.0, 0.5, 0.0], sigma, n)
    # A gene without variation that has nearly all counts, so that totals say what depths are.
    rate = np.exp(np.column_stack([x, np.full(n, 7.0)])) * rng.lognormal(0, 0.5, (n, 1))
    adata = anndata.AnnData(rng.poisson(rate).astype(np.float32))
    counts = Counts.from_anndata(adata)
    found = by_donor._moments(counts, np.arange(n), np.arange(3))
    np.testing.assert_allclose(found.covariance, np.exp(sigma) - 1, atol=0.02)
    np.testing.assert_allclose(found.totals, counts.gene_totals[:3])


@pytest.mark.parametrize("paired", [False, True])
def test_all_labelings_are_as_slow_ones(paired):
    """The statistics and rates, against loops over labelings and pairs."""
    rng = np.random.default_rng(0)
    n = 3
    values = rng.normal(0, 0.2, (2 * n, 12))
    design = by_donor.Design(paired, np.arange(n), np.arange(n, 2 * n))
    labels = list(by_donor._labelings(design, 100, 0))
    assert len(labels) == len({tuple(x) for x in labels}) == (8 if paired else math.comb(6, 3))
    statistics = []
    for label in labels:
        if paired:
            d = (values[:n] - values[n:]) * label[:, None]
            mean, error = d.mean(axis=0), d.std(axis=0, ddof=1) / np.sqrt(n)
        else:
            one, two = values[label > 0], values[label < 0]
            mean = one.mean(axis=0) - two.mean(axis=0)
            within = one.var(axis=0, ddof=1) + two.var(axis=0, ddof=1)
            error = np.sqrt(within / 2 * (2 / n))
        statistics.append(np.abs(mean / (error + np.median(error))))
    statistics = np.array(statistics)
    table = by_donor._judged(by_donor._Statistic(values, design), labels)
    true, close = statistics[0], 1 - 1e-9
    np.testing.assert_allclose(table["p_value"], (statistics >= true * close).mean(axis=0))
    rates = [
        min(1.0, (statistics >= t * close).sum() / len(labels) / (true >= t).sum()) for t in true
    ]
    q = [min(r for r, t in zip(rates, true, strict=True) if t <= own) for own in true]
    np.testing.assert_allclose(table["q"], q)
    assert table.attrs["n_labelings"] == len(labels)


def test_the_same_seed_gives_the_same_labelings(caplog):
    adata = simulated(2, 8, 30)
    first, second = (compared(adata, n_permutations=50, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first.attrs["n_labelings"] == 51
    assert not first.attrs["exact"]
    with caplog.at_level("INFO", logger="nbln"):
        few = compared(simulated(2, 3, 60))
    assert few.attrs["exact"]
    assert "labelled in 20 ways, so that no p-value and no q is below 0.1" in caplog.text


def changed(adata, **columns):
    return anndata.AnnData(adata.X, adata.obs.assign(**columns), adata.var)


def wrongs(adata):
    donor, state = adata.obs["donor"], adata.obs["state"]
    call = r"compare_correlations_by_donor"
    yield adata, {"n_permutations": 0}, ValueError, rf"{call}\(n_permutations=0"
    yield adata, {"fdr": 0.0}, ValueError, rf"{call}\(fdr=0.0"
    yield adata, {"seed": -1}, ValueError, rf"{call}\(seed=-1"
    yield adata, {"pairs": [("0", "1")]}, TypeError, r"gene_a and gene_b.*got list"
    yield adata, {"genes": ["0", "ghost"]}, KeyError, "no gene 'ghost'"
    yield adata, {"genes": ["0", "0"]}, ValueError, "named twice"
    yield adata, {"genes": ["0"]}, ValueError, "genes vary measurably.*two are needed"
    yield adata, {"layer": "raw"}, KeyError, rf"{call}\(layer=.raw.\): no such layer"
    yield changed(adata, donor="one"), {}, ValueError, "has 1 donor; labels can be permuted"
    some = donor.replace({"ill0": "healthy0"})
    yield changed(adata, donor=some), {}, ValueError, "1 donors have both groups, and 4 one"
    few = donor.copy()
    few.iloc[:5] = "new"
    yield changed(adata, donor=few), {}, ValueError, "donor 'new' has 5 cells in group 'healthy'"
    yield changed(adata, state=state.replace({"ill": "il"})), {}, ValueError, "did you mean 'il'"


@pytest.mark.parametrize("i", range(12))
def test_arguments_that_cannot_be(i):
    adata, more, error, words = list(wrongs(simulated(4, 3, 40)))[i]
    with pytest.raises(error, match=words):
        compared(adata, **more)
