"""Checks that were made of a result are not made again, and never stand for other counts."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import nbln
from nbln.questions import histograms
from nbln.results import kept


@pytest.fixture
def fresh(nbln_fit):
    """The fit without any checks."""
    return dataclasses.replace(nbln_fit)


@pytest.fixture
def drawn(monkeypatch, fresh):
    """Which draws were made: level, number and seed."""
    made = []
    draw = type(fresh)._draws

    def note(self, level, n_samples, seed, counts):
        made.append((level, n_samples, seed))
        return draw(self, level, n_samples, seed, counts)

    monkeypatch.setattr(type(fresh), "_draws", note)
    return made


def test_checks_are_made_once(fresh, drawn):
    first = fresh.check(n_samples=45)
    xr.testing.assert_identical(first, fresh.check(n_samples=45))
    fresh.summary()
    nbln.pl.plot_ppc(fresh, n_samples=20)
    nbln.pl.plot_gene_ppc(fresh, n_samples=20)
    assert drawn == [("library_anchored", 45, 0)]
    fresh.check("per_cell", n_samples=45)
    fresh.check(n_samples=45, seed=1)
    fresh.check(n_samples=45, genes=["gene1", "gene2"])
    fresh.check(n_samples=12)
    assert len(drawn) == 5


def test_fewer_draws_than_are_asked_for_are_made_anew(fresh, drawn):
    fresh.check(n_samples=5)
    fresh.summary()
    assert [n for _, n, _ in drawn] == [5, 40]


def test_a_summary_by_checks_that_are_there_is_that_of_these_checks(fresh):
    checks = fresh.check(n_samples=45)
    assert fresh.summary().equals(fresh.summary(checks=checks))


def test_what_is_returned_can_be_changed(fresh):
    first = fresh.check(n_samples=5)
    first["mean"][:] = 0
    first.attrs["n_samples"] = 1
    again = fresh.check(n_samples=5)
    assert float(again["mean"].max()) > 0
    assert again.attrs["n_samples"] == 5


def test_another_result_has_none(fresh):
    fresh.check(n_samples=5)
    other = dataclasses.replace(fresh, model=fresh.model)
    assert other._kept.get(kept.Asked("library_anchored", 0, 5)) is None


def test_counts_that_were_changed_are_noticed_though_checks_are_kept(adata):
    own = adata.copy()
    result = nbln.fit(own, model="nbln", latent_dim=2, n_steps=2, progress=False)
    result.check(n_samples=5)
    values = own.X.data if hasattr(own.X, "data") and not isinstance(own.X, np.ndarray) else own.X
    values.flat[0] += 1
    for ask in (lambda: result.check(n_samples=5), result.summary, result.get_checks):
        with pytest.raises(ValueError, match="was changed since the fit"):
            ask()


def test_few_are_kept(fresh):
    for seed in range(kept.MOST + 2):
        fresh.check(n_samples=2, seed=seed)
    of = [fresh._kept.get(kept.Asked("library_anchored", s, 2)) for s in range(kept.MOST + 2)]
    assert [one is None for one in of] == [True] * 2 + [False] * kept.MOST


def test_histograms_are_those_of_the_draws(fresh):
    genes = fresh.fitted.gene_names[[3, 0]]
    data = histograms.counts_of(fresh.fitted.data(), np.array([3, 0]))
    drawn = fresh.get_ppc_samples(n_samples=4, genes=list(genes)).values[0]
    found = fresh.get_count_histograms(list(genes), n_samples=4)
    for g in range(2):
        edges = np.append(histograms.bin_starts(data[:, g]), np.iinfo(np.int64).max)
        for i in range(4):
            exact = np.histogram(drawn[i, :, g], edges)[0]
            np.testing.assert_array_equal(found[g][i], exact)


def test_histograms_of_checks_are_those_of_their_draws(fresh):
    genes = histograms.spread(fresh.fitted, fresh.fitted.data(), 6)
    names = list(fresh.fitted.gene_names[genes])
    before = dataclasses.replace(fresh).get_count_histograms(names, n_samples=3)
    fresh.check(n_samples=3)
    after = fresh.get_count_histograms(names, n_samples=3)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    # Genes that were not watched are drawn.
    other = fresh.fitted.gene_names[[g for g in range(10) if g not in genes][:1]]
    assert len(fresh.get_count_histograms(list(other), n_samples=3)[0]) == 3


def test_draws_without_measure_take_no_memory():
    """A draw of a log-normal may be a thousand million: it is one of the last bin."""
    found = histograms.binned(np.array([[0, 1, 10**9], [3, 2, 10**15]]), np.array([0, 1, 3]))
    np.testing.assert_array_equal(found, [[1, 1, 1], [0, 1, 2]])


def test_an_answer_is_made_once_and_a_changed_copy_does_no_harm(fresh, monkeypatch):
    first = fresh.get_pareto_k(n_cells=5)
    monkeypatch.setattr("nbln.questions.psis.pareto_k", None)
    again = fresh.get_pareto_k(n_cells=5)
    xr.testing.assert_identical(first, again)
    again[:] = 9
    xr.testing.assert_identical(first, fresh.get_pareto_k(n_cells=5))
    with pytest.raises(TypeError):
        fresh.get_pareto_k(n_cells=6)
