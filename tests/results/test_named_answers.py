"""Answers by the names that the field's packages have for them, and tables in a notebook."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

import nbln
from nbln import webpage
from nbln.questions import effects
from nbln.results import log_normal, notebook


@pytest.fixture(scope="module")
def with_formula(adata):
    given = dict(formula="~ batch + age", random=["donor"], latent_dim=2, progress=False)
    adata = adata.copy()
    adata.obs["donor"] = [f"d{i % 5}" for i in range(adata.n_obs)]
    return nbln.fit(adata, model="pln", informative_priors_from=False, **given)


@pytest.fixture(scope="module")
def draws(with_formula):
    return with_formula.sample_posterior(4, 1, n_warmup=2, progress=False)


def test_parameters_have_accessors(nbln_latent):
    for name in ("mu", "W", "d"):
        xr.testing.assert_identical(
            getattr(nbln_latent, f"get_{name}")(), getattr(nbln_latent, name)
        )


def test_sigma_is_made_of_W_and_d(nbln_latent):
    real = nbln_latent.fitted.gene_names[:-1]
    W, d = (x.sel(gene=real).values.astype(float) for x in (nbln_latent.W, nbln_latent.d))
    sigma = nbln_latent.get_sigma()
    assert sigma.dims == ("gene", "gene_")
    np.testing.assert_allclose(sigma, W @ W.T + np.diag(d), rtol=1e-5, atol=1e-8)
    some = [real[4], real[1]]
    xr.testing.assert_identical(nbln_latent.get_sigma(some), sigma.sel(gene=some, gene_=some))
    xr.testing.assert_allclose(nbln_latent.get_covariance("log_rate"), sigma)


def test_a_huge_sigma_is_refused(nbln_latent, monkeypatch):
    monkeypatch.setattr(log_normal, "LARGEST_MATRIX", 8 * 2**2)
    some = nbln_latent.fitted.gene_names[:3]
    assert nbln_latent.get_sigma(some[:2]).shape == (2, 2)
    with pytest.raises(ValueError, match=r"get_sigma\(\): a matrix of 3 x 3 genes.*get_W\(\)"):
        nbln_latent.get_sigma(some)


def test_unconverged_cells(nbln_latent):
    mask = nbln_latent.unconverged_cell_mask
    assert mask.dtype == bool
    assert mask["cell"].values.tolist() == nbln_latent.fitted.cell_names.tolist()
    np.testing.assert_array_equal(mask, ~nbln_latent.cell_converged)


@pytest.mark.parametrize("kind", ["mean_disp-mean_field", "nbln-frozen", "lnmvcp"])
def test_capture_efficiency(results, kind):
    captured = results[kind].get_p_capture()
    np.testing.assert_allclose(captured, np.exp(-results[kind].eta), rtol=1e-6)
    assert ((captured > 0) & (captured <= 1)).all()


def test_capture_efficiency_of_what_has_none(results):
    with pytest.raises(ValueError, match="get_p_capture: model lnm has no capture losses; fit"):
        results["lnm"].get_p_capture()
    with pytest.raises(ValueError, match="model pln has no capture losses where offsets are fixed"):
        results["pln"].get_p_capture()
    with pytest.raises(AttributeError, match="get_p_capture: a VAEResult .* has no such answer"):
        results["scvi"].get_p_capture  # noqa: B018


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize(
    "kind", ["mean_disp-mean_field", "nbln-latent-coverage", "scvi", "negbio_vae"]
)
def test_a_table_for_notebooks(results, kind):
    result = results[kind]
    page = Tags(result._repr_html_())
    assert page.tags == {"table", "caption", "tbody", "tr", "th", "td"}
    assert {"Model", "Data", "Seconds", "Warnings", result.title} <= {*page.texts}
    assert ("Programs" in page.texts) == result.has_programs


def test_nothing_in_the_table_acts(nbln_latent, monkeypatch):
    hostile = "<script>alert('\x1b')</script>"
    monkeypatch.setattr(type(nbln_latent), "title", hostile)
    monkeypatch.setattr(notebook, "doubts", lambda summary: [hostile])
    page = Tags(nbln_latent._repr_html_())
    assert "script" not in page.tags
    assert page.texts.count("<script>alert('\\x1b')</script>") == 2


def test_a_table_of_draws(draws):
    page = Tags(draws._repr_html_())
    assert {"PosteriorDraws", "1 chains of 4", "Programs"} <= {*page.texts}
    part = draws[["gene2", "gene7"]]
    texts = Tags(part._repr_html_()).texts
    assert {"GeneSubset", "2: gene2, gene7", "PosteriorDraws, model pln"} <= {*texts}
    assert part.get_correlation()["mean"].shape == (2, 2)
    assert part.get_W_compositional().sizes["gene"] == 2
    assert {*part.pairs(min_abs=0.0, fdr=0.9)["gene_a"]} <= {"gene2", "gene7"}
    assert dataclasses.is_dataclass(part)


def test_a_table_says_the_formula(with_formula, draws):
    fit = with_formula
    assert fit.formula_words == (
        "~ batch + age",
        "batch: 2 categories, compared with one",
        "age: a number, mean 44.5, standard deviation 26",
        "donor: random, 5 levels",
    )
    for asked in (fit, draws, fit[["gene2"]], draws[["gene2"]]):
        texts = Tags(asked._repr_html_()).texts
        assert texts[texts.index("Formula") + 1] == "~ batch + age"
        assert "donor: random, 5 levels" in texts

    shown = webpage.page(fit, fit.check(n_samples=4), fit.summary(checks=False), posterior=draws)
    assert "batch: two over one" in shown
    assert "age: 70.5 over 44.5" in shown
    assert "say which genes are called" not in shown
    assert len(re.findall("Calls are of changes", shown)) == 2


def test_strongest_effects():
    mean = np.log(2) * np.array([[3.0, 0.1], [-2.0, 0.4], [0.5, 0.0]])
    sd = np.log(2) * np.array([[2.0, 0.01], [0.1, 0.01], [0.1, 0.01]])
    dims = ("gene", "covariate")
    coords = {"gene": ["a", "b", "c"], "covariate": ["x", "y"]}
    given = xr.Dataset({"mean": (dims, mean), "sd": (dims, sd)}, coords)
    table = effects.strongest(given, np.array([1.0, 2.0]), 2)
    assert table["gene"].tolist() == ["b", "c", "b", "a"]  # of a's effect nothing is known
    np.testing.assert_allclose(table["log2_fold_change"], [-2, 0.5, 0.8, 0.2])
    np.testing.assert_allclose(table["sd"], [0.1, 0.1, 0.02, 0.02])
