"""Results that are asked of odd cells, without a program, or after the counts were changed."""

import hostile_data as data
import numpy as np
import pytest
from hostile_answers import all_finite

import nbln

ALONE = dict(model="nbln", informative_priors_from=False, latent_dim=2, n_steps=4)


@pytest.fixture(scope="module")
def adata():
    """Independent genes."""
    x = np.random.default_rng(0).poisson(3.0, data.BASE.shape) + np.eye(*data.BASE.shape)
    x[:, 0] += 1
    return data.make(data.Good(x), None)[0]


@pytest.fixture(scope="module")
def without_programs(adata):
    return nbln.fit(adata, progress=False, **ALONE)


def test_no_program_no_ratio(without_programs):
    assert without_programs.w_prior_diagnostics["effective_rank"] == 0
    row = without_programs.summary(checks=False).loc["gauge_contamination_ratio"]
    assert np.isnan(row["value"])
    assert (row["status"], row["note"]) == ("ok", "no program to compare with")
    assert not np.isinf(without_programs.get_gauge_diagnostics()["gauge_contamination_ratio"])


@pytest.mark.slow
def test_no_program_and_all_answers(without_programs, adata, tmp_path):
    all_finite(without_programs, adata, tmp_path)


def test_cells_deeper_than_the_capture_prior_allows_have_a_score(without_programs, adata):
    deep = adata[:5].copy()
    deep.X = deep.X * 10_000
    laplace = without_programs.score(deep)
    sampled = without_programs.score(deep, n_samples=8)
    assert np.isfinite(laplace).all()
    np.testing.assert_allclose(sampled, laplace, rtol=1e-5)


@pytest.mark.parametrize("n_samples", [1, 8])
def test_a_single_new_cell(without_programs, adata, n_samples):
    alone = without_programs.score(adata[:1], n_samples=n_samples)
    assert alone.shape == (1,)
    if n_samples == 1:
        np.testing.assert_allclose(alone, without_programs.score(adata[:3])[:1], rtol=1e-4)
    one, three = (without_programs.transform(adata[:n])["eta"] for n in (1, 3))
    np.testing.assert_allclose(one, three[:1], rtol=1e-3)


QUESTIONS = {
    "summary": lambda result: result.summary(),
    "check": lambda result: result.check(n_samples=2),
    "denoised": lambda result: result.get_denoised(),
    "pareto k": lambda result: result.get_pareto_k(4),
    "draws": lambda result: result.get_ppc_samples("per_cell", n_samples=1),
    "datatree": lambda result: result.to_datatree(2, 2),
    "sampler": lambda result: result.sample_posterior(4, 1, n_warmup=2, progress=False),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_counts_that_were_changed_in_place(question, adata):
    mine = adata.copy()
    result = nbln.fit(mine, progress=False, **ALONE)
    before = result.fitted.fingerprint
    mine.X[3, 4] += 1
    with pytest.raises(ValueError, match=r"adata\.X was changed since the fit, in place.*counts="):
        QUESTIONS[question](result)
    with pytest.raises(ValueError, match="not the data of this fit: the same names, other counts"):
        result.summary(counts=mine)
    result.summary(counts=adata, checks=False)
    mine.X[3, 4] -= 1
    result.fitted.data()
    assert nbln.fit(mine, progress=False, **ALONE).fitted.fingerprint == before


def test_a_gene_that_is_really_called_other_pools_nothing():
    adata = nbln.datasets.simulate(40, 12, 1, seed=0)
    adata.var_names = [*adata.var_names[:-1], "_other"]
    result = nbln.fit(adata, model="nbvcp", n_steps=1, progress=False)
    names = [*adata.var_names[:-1], "extra", "_other"]
    wider = np.insert(adata.X.toarray(), 11, 50.0, axis=1)
    wider = type(adata)(wider, var={"name": names})
    wider.var_names, wider.obs_names = names, adata.obs_names
    np.testing.assert_allclose(result.score(wider), result.score(adata), rtol=1e-5)
