"""Effects of covariates on independent genes: their regressions, answers of the result, cascade."""

import dataclasses

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import nbln
from nbln import report, webpage
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.inference.stream import CellStream
from nbln.inference.svi import regression
from nbln.models.nbvcp import NBVCP
from nbln.priors.capture import KnownCapture
from nbln.priors.effects import EffectsPrior

FORMULA = "~ batch + age"
QUICK = dict(model="nbvcp", progress=False)


@pytest.fixture(scope="module")
def truth():
    """Effects (gene, covariate) of which most of the first are 0; of numbers by their sd."""
    rng = np.random.default_rng(0)
    first = np.where(rng.random(80) < 0.2, rng.normal(0, 1, 80), 0)
    return np.column_stack([first, rng.normal(0, 0.3, 80)])


@pytest.fixture(scope="module")
def adata(truth):
    rng = np.random.default_rng(1)
    batch, age = rng.random(400) < 0.3, rng.normal(50, 10, 400)
    x = np.column_stack([batch, (age - 50) / 10])
    f = rng.normal(1, 1, 80) + x @ truth.T + rng.normal(0, 0.4, (400, 1))
    counts = rng.poisson(np.exp(f) * rng.gamma(3, 1 / 3, f.shape))
    counts[:, 0] += 1
    made = anndata.AnnData(counts.astype(np.float32))
    made.obs["batch"], made.obs["age"] = np.where(batch, "b", "a"), age
    return made


@pytest.fixture(scope="module")
def fit(adata):
    return nbln.fit(adata, formula=FORMULA, **QUICK)


@pytest.fixture(scope="module")
def without(adata):
    return nbln.fit(adata, **QUICK)


def relative(effects):
    """Effects less their median: that of all genes is one of depth."""
    return effects - np.median(effects, axis=0)


def test_effects_are_found(fit, truth):
    effects = fit.get_covariate_effects()
    assert effects["mean"].dims == ("gene", "covariate")
    assert effects["covariate"].values.tolist() == ["batch[T.b]", "age"]
    genes = fit.fitted.gene_names.astype(int)
    units = [1, fit.formula.units[1]]
    away = relative(effects["mean"].values * units) - relative(truth[genes])
    assert np.corrcoef(away[:, 0] + truth[genes, 0], truth[genes, 0])[0, 1] > 0.95
    z = away / (effects["sd"].values * units)
    assert (np.abs(z) < 1.645).mean() == pytest.approx(0.9, abs=0.08)
    assert np.sqrt(fit.gene_effects.typical)[1] == pytest.approx(0.2, rel=0.35)


def test_effects_are_a_mode_and_sd_is_by_curvature(fit, adata):
    """Of one gene, by automatic derivatives of the penalised log-likelihood, in float64."""
    with jax.enable_x64(True):
        data = fit.fitted.data(adata)
        counts = jnp.asarray(data.rows(slice(None)), jnp.float64)
        eta = jnp.asarray(fit.known_eta if fit.known_eta is not None else fit.eta, jnp.float64)
        x = fit.covariates.astype(np.float64)
        program = NBVCP({}, KnownCapture(eta), None, x)
        added = program.augment(program.capture)._replace(covariates=x)
        stream = CellStream(data, added, 2**30)
        program = dataclasses.replace(program, parameterization=fit._way)
        located, _, _, found = regression.fit(program, stream, stream.tails(), data.gene_totals)
        at, precision = found.mean, EffectsPrior(2).precision(found.scales)
        for gene in (3, 11, 40):
            start = np.array([located["mean"][gene], *at[gene], located["r"][gene]])
            best, sd = _regressed(counts[:, gene], x, eta, start, precision[gene])
            np.testing.assert_allclose(best, at[gene], atol=0.1 * sd.max())
            np.testing.assert_allclose(found.sd[gene], sd, rtol=0.1)


def _regressed(u, x, eta, theta, precision):
    """Effects that are most probable, by Newton steps of all coefficients, and their sds."""

    def minus(theta):
        channel = NegativeBinomial(theta[-1])
        f = theta[0] + x @ theta[1:-1] - eta
        prior = 0.5 * jnp.sum(precision * theta[1:-1] ** 2)
        weak = 0.5 * (theta[-1] - regression.FIRST_LOG_R) ** 2
        return prior + weak - jnp.sum(channel.log_prob(u, f))

    slope, curvature = jax.jit(jax.grad(minus)), jax.jit(jax.hessian(minus))
    for _ in range(60):
        step = np.linalg.solve(curvature(theta), slope(theta))
        theta = theta - np.clip(step, -0.5, 0.5)
    hessian = curvature(theta)[:-1, :-1]  # the dispersion is held
    return np.asarray(theta[1:-1]), np.sqrt(np.diag(np.linalg.inv(np.asarray(hessian)))[1:])


def moved(fit, obs):
    """A fit without covariates that has, in place of them, the means of cells like these."""
    shift = fit.formula.matrix(obs, "fit")[0] @ fit.gene_effects.mean.T
    genes = dict(fit.posterior.genes)
    loc, scale = genes["mean"]
    posterior = dataclasses.replace(fit.posterior, genes=genes | {"mean": (loc + shift, scale)})
    return dataclasses.replace(fit, posterior=posterior, gene_effects=None)


def test_new_cells_bring_their_covariates(fit, adata):
    new = adata[:40].copy()
    new.obs_names = [f"new{i}" for i in range(40)]
    new.obs["batch"], new.obs["age"] = "b", 61.0
    plain = moved(fit, new.obs)
    np.testing.assert_allclose(fit.score(new), plain.score(new), rtol=1e-5)
    np.testing.assert_allclose(
        fit.transform(new)["eta"], plain.transform(new)["eta"], rtol=1e-4, atol=1e-4
    )
    for depth in ("own", "population"):
        other = new.copy()
        other.obs["batch"] = "a"
        assert (fit.score(new, depth=depth) != fit.score(other, depth=depth)).all()
    new.obs["batch"] = "c"
    with pytest.raises(ValueError, match=r"score\(adata\): adata.obs\['batch'\] has 'c'"):
        fit.score(new)
    del new.obs["batch"]
    with pytest.raises(KeyError, match="no column 'batch'"):
        fit.transform(new)


@pytest.mark.parametrize("level", ["library_anchored", "per_cell"])
def test_predictions_know_of_covariates(fit, without, adata, level):
    told = nbln.summarise_checks(fit.check(level, 20, groupby="batch"))
    untold = nbln.summarise_checks(without.check(level, 20, groupby="batch", counts=adata))
    assert (told["mean"] < 0.15).all()
    assert (untold["mean"] > 1.5 * told["mean"] + 0.05).all()
    mean, variance = fit.get_count_moments()
    data = adata.to_df()[fit.fitted.gene_names]
    np.testing.assert_allclose(mean, data.mean(), rtol=0.3)
    drawn = fit.get_ppc_samples("marginal", 20).mean(("chain", "draw", "cell"))
    np.testing.assert_allclose(drawn, data.mean(), rtol=0.4)


def test_likelihoods_know_of_covariates(fit, without):
    told, untold = (float(r.to_datatree(5, 2)["sample_stats"]["lp"].mean()) for r in (fit, without))
    assert told > untold + 100
    assert fit.score(fit_data(fit)).sum() > without.score(fit_data(fit)).sum() + 100


def fit_data(fit):
    counts = fit.fitted.data()
    made = anndata.AnnData(counts.rows(slice(None)), obs=counts.obs.copy())
    made.var_names, made.obs_names = counts.gene_names, counts.cell_names
    return made


def test_files_and_words(fit, adata, tmp_path):
    fit.save(tmp_path / "fit.nc")
    loaded = nbln.load(tmp_path / "fit.nc")
    xr.testing.assert_identical(loaded.get_covariate_effects(), fit.get_covariate_effects())
    xr.testing.assert_identical(loaded.get_map(), fit.get_map())
    np.testing.assert_array_equal(loaded.score(adata), fit.score(adata))
    assert loaded.get_map()["beta"].dims == ("gene", "covariate")
    assert loaded.formula_words[0] == FORMULA
    assert "Formula" in loaded._repr_html_()
    assert fit.fitted.settings["formula"] == FORMULA
    assert ("Formula", FORMULA) in list(report.lines(fit))
    assert fit[["3"]].get_covariate_effects().sizes == {"gene": 1, "covariate": 2}
    page = webpage.page(fit, fit.check(n_samples=4), fit.summary(checks=False))
    assert "<td>batch[T.b]</td>" in page
    copy = adata.copy()
    fit.write_to(copy)
    found = copy.var.loc[fit.fitted.gene_names, "nbln_beta_batch[T.b]"]
    np.testing.assert_allclose(found, fit.gene_effects.mean[:, 0])


def test_a_fit_without_formula_has_no_effects(without):
    assert not without.has_effects
    with pytest.raises(ValueError, match="no covariates; fit with formula="):
        without.get_covariate_effects()


def test_the_cascade_hands_on_what_covariates_leave(fit, adata):
    given = dict(latent_dim=2, progress=False, formula=FORMULA)
    laplace = nbln.fit(adata, svi=nbln.SVIConfig(), **given)
    source = laplace.cascade_source
    assert source.formula.text == FORMULA
    np.testing.assert_allclose(source.eta, fit.eta, atol=1e-3)
    ours, theirs = (x.get_covariate_effects()["mean"] for x in (laplace, fit))
    assert np.corrcoef(ours[:, 0], theirs[:, 0])[0, 1] > 0.98
    # New cells have their capture losses from the source, covariates and all.
    new = adata[:30].copy()
    new.obs_names = [f"new{i}" for i in range(30)]
    np.testing.assert_allclose(laplace.transform(new)["eta"], laplace.eta[:30], atol=0.05)
    turned = adata[::-1, ::-1].copy()
    again = nbln.fit(turned, informative_priors_from=fit, **given)
    np.testing.assert_allclose(again.eta[::-1], laplace.eta, atol=2e-3)


def test_formulas_of_a_cascade_agree(fit, without, adata, caplog):
    given = dict(latent_dim=2, progress=False, n_steps=1)
    for formula in (None, "~ batch"):
        with pytest.raises(
            ValueError, match=r"fitted with formula='~ batch \+ age'.*give the same"
        ):
            nbln.fit(adata, informative_priors_from=fit, formula=formula, **given)
    with pytest.raises(ValueError, match="genes that are pooled here; fit it with the same"):
        nbln.fit(adata, informative_priors_from=fit, formula=FORMULA, gene_coverage=0.7, **given)
    with caplog.at_level("INFO", logger="nbln"):
        nbln.fit(adata, informative_priors_from=without, formula=FORMULA, **given)
    assert "source of independent genes has no formula" in caplog.text


@pytest.mark.parametrize("guide", ["mean_field", "low_rank"])
def test_every_guide_has_the_same_effects(fit, adata, guide):
    svi = nbln.SVIConfig(guide=guide, n_steps=50)
    other = nbln.fit(adata, formula=FORMULA, svi=svi, **QUICK)
    np.testing.assert_array_equal(other.gene_effects.mean, fit.gene_effects.mean)
