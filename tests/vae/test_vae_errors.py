"""Wrong arguments of amortised models are errors that name them."""

import re

import numpy as np
import pytest
from vae_cells import annotated, fit

import nbln
from nbln.amortised import SPELLINGS


@pytest.fixture(scope="module")
def adata():
    return annotated(60, 12)


@pytest.fixture(scope="module")
def result(adata):
    return fit(adata, batch_key="batch")


ARGUMENTS = {
    "likelihood": ({"gene_likelihood": "nbin"}, ValueError, r"nbin'\).*nb, zinb, poisson"),
    "dispersion": ({"dispersion": "batch"}, ValueError, r"dispersion='batch'\).*gene-batch"),
    "decoder": ({"decoder": "deep"}, ValueError, r"decoder='deep'\).*mlp, linear"),
    "library": ({"library": "known"}, ValueError, r"library='known'\).*observed, latent"),
    "labels unused": ({"labels_key": "label"}, ValueError, r"labels_key='label'.*gene-label"),
    "labels missing": ({"dispersion": "gene-label"}, ValueError, r"gene-label'\).*labels_key="),
    "covariates a word": ({"covariates": "age"}, TypeError, r"covariates='age'\): expected a list"),
    "covariates twice": ({"covariates": ["age", "age"]}, ValueError, r"'age' is given twice"),
    "covariate the batch": (
        {"covariates": ["batch"], "batch_key": "batch"}, ValueError, r"'batch' is given twice",
    ),
    "covariate no name": ({"covariates": [3]}, TypeError, r"covariates=3\): expected the name"),
    "batch no name": ({"batch_key": ["batch"]}, TypeError, r"batch_key=.*expected the name"),
    "no column": ({"batch_key": "bacth"}, KeyError, r"no column 'bacth'.*did you mean 'batch'"),
    "priors": ({"priors": {"r": (1.0, 1.0)}}, ValueError, r"fit\(priors=.*scvi.*weight_decay"),
    "config": ({"vae": nbln.LaplaceConfig()}, TypeError, r"fit\(vae=\).*VAEConfig.*LaplaceConfig"),
    "start a word": ({"start": "loadings"}, ValueError, r"start='loadings'\).*moments"),
    "start a number": ({"start": 3}, TypeError, r"fit\(start=\): expected 'moments'.*got int"),
    "no factor": ({"latent_dim": 0}, ValueError, r"latent_dim=0\): must be.*from 1 to 11"),
    "factors": ({"latent_dim": 12}, ValueError, r"latent_dim=12\).*from 1 to 11.*12 genes"),
    "half a factor": ({"latent_dim": 1.5}, ValueError, r"latent_dim=1\.5\).*whole number"),
    "engine": ({"inference_method": "svi"}, ValueError, r"no such pair.*scvi \+ vae, scvi \+ ae"),
    "of others": ({"n_steps": 3}, ValueError, r"n_steps=3\): model scvi does not use it"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments(case, adata):
    arguments, error, message = ARGUMENTS[case]
    with pytest.raises(error, match=message):
        fit(adata, **arguments)


ELSEWHERE = {
    "max_epochs": r"VAEConfig\(n_epochs=",
    "n_epochs": r"vae=nbln\.VAEConfig\(n_epochs=",
    "n_hidden": r"vae=nbln\.VAEConfig\(n_hidden=",
    "n_layers": r"VAEConfig\(n_layers=",
    "dropout_rate": r"VAEConfig\(dropout=",
    "lr": r"VAEConfig\(learning_rate=",
    "weight_decay": r"VAEConfig\(weight_decay=",
    "plan_kwargs": r"VAEConfig\(learning_rate=\.\.\., weight_decay=",
    "early_stopping": r"VAEConfig\(validation_share=",
    "train_size": r"VAEConfig\(validation_share=",
    "n_latent": "latent_dim=",
    "categorical_covariate_keys": "covariates=",
    "use_gpu": "JAX_PLATFORMS",
    "accelerator": "JAX_PLATFORMS",
    "guide": r"svi=nbln\.SVIConfig\(guide=",
}


@pytest.mark.parametrize("keyword", ELSEWHERE)
def test_what_is_set_elsewhere(keyword, adata):
    message = rf"fit\({keyword}=\.\.\.\): unknown keyword; .*{ELSEWHERE[keyword]}"
    with pytest.raises(TypeError, match=message):
        fit(adata, **{keyword: 1})


def test_every_setting_that_is_named_is_there():
    """What a message tells a user to write must be right."""
    for remedy in SPELLINGS.values():
        for name in re.findall(r"(\w+)=", remedy.partition("VAEConfig(")[2]):
            assert name in vars(nbln.VAEConfig())


def test_a_keyword_of_another_engine_that_is_a_setting_of_this(adata):
    message = r"batch_size=64\): model scvi does not use it; give vae=nbln\.VAEConfig\(batch_size="
    with pytest.raises(ValueError, match=message):
        fit(adata, batch_size=64)


@pytest.mark.parametrize("model", ["nbln", "pln", "nbvcp"])
def test_what_other_models_do_not_use(model, adata):
    message = rf"batch_key='batch'\): model {model} does not use it.*VAE.*scvi"
    with pytest.raises(ValueError, match=message):
        nbln.fit(adata, model=model, batch_key="batch", progress=False)


def test_a_cell_without_a_batch(adata):
    given = adata.copy()
    given.obs["age"] = np.where(np.arange(60) == 4, np.nan, 1.0)
    with pytest.raises(
        ValueError, match=rf"\['age'\] has no value in 1 cells.*{given.obs_names[4]}"
    ):
        fit(given, covariates=["age"])


@pytest.mark.slow
def test_a_batch_of_one_cell_is_one(adata):
    given = adata.copy()
    given.obs["batch"] = ["alone"] + ["rest"] * 59
    found = fit(given, batch_key="batch", dispersion="gene-batch", library="latent")
    assert np.isfinite(found.score(given[:1])).all()
    assert np.isfinite(found.get_elbo())


@pytest.mark.parametrize(
    "question", ["score", "transform", "get_elbo", "get_latent_representation"]
)
def test_cells_of_an_unknown_batch(question, adata, result):
    given = adata.copy()
    given.obs["batch"] = "three"
    with pytest.raises(ValueError, match=rf"{question}\(adata\).*'three'.*it knew one, two"):
        getattr(result, question)(given)
    del given.obs["batch"]
    with pytest.raises(KeyError, match=rf"{question}\(adata\).*no column 'batch'"):
        getattr(result, question)(given)


QUESTIONS = {
    "batch": (lambda r, a: r.get_normalized_expression(transform_batch="x"), "choose one of one"),
    "gene": (lambda r, a: r.get_normalized_expression(gene_list=["gene99"]), "gene99"),
    "size": (lambda r, a: r.get_normalized_expression(library_size=-1), "positive number"),
    "scale": (lambda r, a: r.get_denoised("count"), "choose one of rate"),
    "no draw": (lambda r, a: r.get_elbo(n_samples=0), "at least 1"),
    "neither way": (lambda r, a: r.differential_expression(), "give groupby="),
    "both ways": (
        lambda r, a: r.differential_expression("label", idx1=[1], adata=a), "give groupby=",
    ),
    "no data": (lambda r, a: r.differential_expression("label"), "give adata="),
    "no column": (
        lambda r, a: r.differential_expression("labels", adata=a), "labels.*did you mean",
    ),
    "no group": (
        lambda r, a: r.differential_expression("label", "c", adata=a), "choose one of b, nk, t",
    ),
    "no second": (
        lambda r, a: r.differential_expression("label", "b", "c", adata=a), "choose one of b, nk",
    ),
    "no cells": (lambda r, a: r.differential_expression(idx1=[]), "'one' has no cells"),
    "all cells": (lambda r, a: r.differential_expression(idx1=range(60)), "'rest' has no cells"),
    "overlap": (lambda r, a: r.differential_expression(idx1=[1, 2], idx2=[2, 3]), "share cells"),
    "number": (lambda r, a: r.differential_expression(idx1=[99]), r"idx1\).*from 0 to 59"),
    "mode": (lambda r, a: r.differential_expression(idx1=[1], mode="lfc"), "choose one of change"),
    "itself": (
        lambda r, a: r.differential_expression("label", "b", "b", adata=a), "group1 itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", QUESTIONS)
def test_wrong_questions(case, adata, result):
    ask, message = QUESTIONS[case]
    with pytest.raises((ValueError, KeyError), match=message):
        ask(result, adata)


def test_a_fit_without_batches_has_none_to_move_to(adata):
    with pytest.raises(ValueError, match=r"transform_batch='one'\).*told of no batches"):
        fit(adata).get_normalized_expression(transform_batch="one")


def test_nothing_is_changed(adata):
    before = adata.copy()
    fit(adata, batch_key="batch", covariates=["age", "phase"]).score(adata)
    np.testing.assert_array_equal(adata.X, before.X)
    assert adata.obs.equals(before.obs)
