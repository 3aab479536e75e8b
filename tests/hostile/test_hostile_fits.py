"""Counts that are odd, yet counts: a fit of them answers every question with finite numbers."""

import numpy as np
import pytest
from hostile_answers import all_finite, not_finite
from hostile_data import BASE, GOOD, N_CELLS, N_GENES, Good, changed, make

import nbln

pytestmark = pytest.mark.usefixtures("room_after_each_test")

ALONE = dict(model="nbln", informative_priors_from=False, latent_dim=2, n_steps=4)


def _draw(seed=0):
    return np.random.default_rng(seed)


def _with(x, cells, genes, value):
    x = np.array(x, float)
    x[cells, genes] = value
    return x


OVERDISPERSED = np.floor(_draw().lognormal(0, 3, BASE.shape)).clip(0, 1e6) + np.eye(*BASE.shape)
OVERDISPERSED[:, 0] += 1
# Of one shape, so that only the first is compiled for.
COUNTS = {
    "ordinary": BASE,
    "all one": np.ones_like(BASE),
    "all equal": np.full_like(BASE, 7),
    "all large": np.full_like(BASE, 1e6),
    "identical cells": np.tile(np.arange(1.0, N_GENES + 1), (N_CELLS, 1)),
    "identical genes": np.tile(np.arange(N_CELLS)[:, None] % 9 + 1.0, (1, N_GENES)),
    "one gene in one cell": _with(np.tile(BASE[:, :1], (1, N_GENES)), slice(1, None), 5, 0),
    "a constant gene": _with(BASE, slice(None), 4, 3),
    "a gene seen once": _with(_with(BASE, slice(None), 4, 0), 11, 4, 1),
    "a cell with 1e5": changed(7, 4, 1e5),
    "a cell with 1e6": changed(7, 4, 1e6),
    "the largest count": changed(7, 4, 2.0**24),
    "Poisson": _draw().poisson(2.0, BASE.shape) + np.eye(*BASE.shape) + (np.arange(N_GENES) == 0),
    "very overdispersed": OVERDISPERSED,
    "doublets": np.vstack([BASE[:40], BASE[:20] + BASE[20:40]]),
    "empty droplets": np.vstack([BASE[:40], np.eye(20, N_GENES)]),
    "seen or not": np.minimum(BASE, 1),
    "a gene with all counts": BASE * (np.arange(N_GENES) > 0) + 1e4 * (np.arange(N_GENES) == 0),
    "one group, two depths": BASE * np.where(np.arange(N_CELLS) % 2, 1, 300)[:, None],
    "all at 2**24": np.full_like(BASE, 2.0**24),
}
QUICK = [name for name in COUNTS if name not in ("all one", "identical genes", "seen or not")][:15]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("fits")


def fit(x, tmp_path, **arguments):
    adata, where = make(x if isinstance(x, Good) else Good(np.asarray(x)), tmp_path / "c.h5ad")
    return nbln.fit(adata, progress=False, **where, **arguments), adata


@pytest.mark.parametrize("name", QUICK)
def test_summary_is_finite(name, tmp_path):
    result, adata = fit(COUNTS[name], tmp_path, **ALONE)
    table = result.summary()
    values = table["value"].drop("gauge_contamination_ratio").astype(float)
    assert np.isfinite(values).all(), values
    assert np.isfinite(result.score(adata[:1], n_samples=8)).all()
    assert all(np.isfinite(x).all() for x in result.transform(adata[:1]).values())
    for value in (result.get_correlation(), result.get_map(), result.get_denoised()):
        assert np.isfinite(value.to_array() if hasattr(value, "data_vars") else value).all()


def test_every_quick_answer_is_finite(nbln_latent):
    assert not_finite(nbln_latent, but=("sample_posterior", "rank_stability")) == {}


@pytest.mark.parametrize("model", ["nbvcp", "pln", "nbln"])
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.slow
def test_every_answer_is_finite(name, model, tmp_path):
    arguments = dict(model=model, n_steps=30) | ({} if model == "nbvcp" else {"latent_dim": 2})
    result, adata = fit(COUNTS[name], tmp_path, **arguments)
    all_finite(result, adata, tmp_path)


@pytest.mark.parametrize("name", [n for n in GOOD if not n.startswith("one gene")])
@pytest.mark.slow
def test_every_form_of_storage_fits(name, tmp_path):
    """Of the same counts under other names or in another form, all answers are finite."""
    result, adata = fit(GOOD[name], tmp_path, **ALONE | {"latent_dim": 1})
    all_finite(result, adata, tmp_path)


SHAPES = {"two cells": (2, 20), "few cells": (3, 500), "two genes": (60, 2), "few genes": (900, 3)}
SHAPES |= {"two of each": (2, 2), "five of each": (5, 5)}


@pytest.mark.parametrize("model", ["nbvcp", "pln", "nbln"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.slow
def test_small_and_oblong(name, model, tmp_path):
    x = _draw().poisson(3.0, SHAPES[name]) + 1.0
    arguments = dict(model=model, n_steps=10) | ({} if model == "nbvcp" else {"latent_dim": 1})
    result, adata = fit(x, tmp_path, **arguments)
    all_finite(result, adata, tmp_path)


def test_one_gene(tmp_path):
    with pytest.raises(ValueError, match="gene programs need at least two of each"):
        fit(BASE[:, :1], tmp_path, model="nbln", informative_priors_from=False)


@pytest.mark.slow
def test_one_gene_alone(tmp_path):
    assert not_finite(fit(BASE[:, :1], tmp_path, model="nbvcp", n_steps=10)[0]) == {}
