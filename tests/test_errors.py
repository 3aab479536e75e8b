"""Every wrong input is an error that names it, and no AnnData is ever changed."""

import copy

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import nbln

QUICK = dict(progress=False, n_steps=1)
PROGRAMS = {"nbln": {"latent_dim": 2}, "pln": {"latent_dim": 2}}  # nbvcp has no programs


@pytest.fixture
def good():
    """A small AnnData with everything in it that could be changed by accident."""
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (12, 8)).astype(np.float32)
    x[:, 0] += 1
    x[0] += 1
    made = anndata.AnnData(
        x,
        obs=pd.DataFrame({"batch": list("ab" * 6)}, index=[f"cell{i}" for i in range(12)]),
        var=pd.DataFrame({"chromosome": range(8)}, index=[f"gene{i}" for i in range(8)]),
    )
    made.layers["raw"] = x.copy()
    made.obsm["X_pca"] = rng.normal(size=(12, 2))
    made.varm["PCs"] = rng.normal(size=(8, 2))
    made.uns["note"] = {"from": "test"}
    return made


def snapshot(adata):
    def plain(x):
        return np.array(x.todense() if sp.issparse(x) else x)

    parts = {"X": plain(adata.X), "obs": adata.obs.copy(), "var": adata.var.copy()}
    for name in ("layers", "obsm", "varm"):
        parts |= {f"{name}/{k}": plain(v) for k, v in getattr(adata, name).items()}
    return parts | {"uns": copy.deepcopy(dict(adata.uns))}


def assert_unchanged(adata, before):
    after = snapshot(adata)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(after[name], value)
        elif isinstance(value, dict):
            assert after[name] == value
        else:
            assert after[name].dtype == value.dtype
            np.testing.assert_array_equal(after[name], value)


# What the counts can be: (change of the data, error, what the message says)


def put(value):
    def change(adata):
        adata.X[2, 3] = value
        return adata

    return change


def put_in_layer(adata):
    adata.layers["raw"][2, 3] = -1
    return adata


def sparse(form):
    def change(adata):
        adata.X[2, 3] = 0.5
        adata.X = form(adata.X)
        return adata

    return change


def empty_cell(adata):
    adata.X[4] = 0
    return adata


def repeat(axis):
    def change(adata):
        names = list(getattr(adata, f"{axis}_names"))
        setattr(adata, f"{axis}_names", [names[1], *names[1:]])
        return adata

    return change


NAMED = r'"cell2", gene "gene3"'
DATA = {
    "not whole": (put(1.5), ValueError, rf"fit\(adata\).*{NAMED}.*1\.5.*whole.*layer="),
    "negative": (put(-1), ValueError, rf"fit\(adata\).*{NAMED}.*-1.*negative.*layer="),
    "nan": (put(np.nan), ValueError, rf"fit\(adata\).*{NAMED}.*nan.*finite.*layer="),
    "infinite": (put(np.inf), ValueError, rf"fit\(adata\).*{NAMED}.*inf.*finite.*layer="),
    "csr not whole": (sparse(sp.csr_matrix), ValueError, rf"{NAMED}.*0\.5"),
    "csc not whole": (sparse(sp.csc_matrix), ValueError, rf"{NAMED}.*0\.5"),
    "empty cell": (empty_cell, ValueError, r'fit\(adata\).*"cell4" has no counts'),
    "repeated cell": (repeat("obs"), ValueError, r'cell name "cell1".*obs_names_make_unique'),
    "repeated gene": (repeat("var"), ValueError, r'gene name "gene1".*var_names_make_unique'),
    "no cells": (lambda a: a[:0].copy(), ValueError, r"fit\(adata\).*no cells"),
    "no genes": (lambda a: a[:, :0].copy(), ValueError, r"fit\(adata\).*no genes"),
    "one cell": (lambda a: a[:1].copy(), ValueError, r"fit\(adata\).*fewer than two cells"),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("model", ["nbvcp", "nbln"])
@pytest.mark.parametrize("case", DATA)
def test_wrong_counts(case, model, good):
    change, error, message = DATA[case]
    adata = change(good)
    before = snapshot(adata)
    with pytest.raises(error, match=message):
        nbln.fit(adata, model=model, **QUICK, **PROGRAMS.get(model, {}))
    assert_unchanged(adata, before)


def test_wrong_counts_in_a_layer(good):
    with pytest.raises(ValueError, match=rf'fit\(layer="raw"\).*{NAMED}.*-1'):
        nbln.fit(put_in_layer(good), layer="raw", **QUICK)


@pytest.mark.parametrize("given", [np.ones((5, 4)), pd.DataFrame(np.ones((5, 4))), None, 3])
def test_no_anndata(given):
    with pytest.raises(TypeError, match=r"fit\(adata\): got a .*anndata\.AnnData"):
        nbln.fit(given, **QUICK)


# What the arguments can be: (arguments, error, what the message says); a function makes arguments
# that are refused as soon as they are made.

LOADINGS = r"fit\(priors=.*'loadings'"
ARGUMENTS = {
    "layer": ({"layer": "spliced"}, KeyError, r'fit\(layer="spliced"\).*layers raw'),
    "latent_dim 0": ({"latent_dim": 0}, ValueError, r"fit\(latent_dim=0\).*from 1 to 7"),
    "latent_dim genes": ({"latent_dim": 8}, ValueError, r"fit\(latent_dim=8\).*from 1 to 7"),
    "latent_dim real": ({"latent_dim": 2.5}, ValueError, r"fit\(latent_dim=2\.5\).*whole number"),
    "latent_dim true": ({"latent_dim": True}, ValueError, r"fit\(latent_dim=True\)"),
    "latent_dim text": ({"latent_dim": "4"}, ValueError, r"fit\(latent_dim='4'\)"),
    "seed": ({"seed": -1}, ValueError, r"fit\(seed=-1\): must be a whole number, at least 0"),
    "seed real": ({"seed": 1.5}, ValueError, r"fit\(seed=1\.5\): must be a whole number"),
    "M0 no log": (
        {"priors": {"capture_efficiency": (100_000, 0.5)}},
        ValueError,
        r"log_M0 is the natural log.*np\.log\(100000\), 0\.5\) meant",
    ),
    "M0 small": (
        {"priors": {"capture_efficiency": (-3.0, 0.5)}},
        ValueError,
        r"M0 = 0 counts a cell, and the largest library has \d+",
    ),
    "prior": ({"priors": {"loading": 1}}, ValueError, r"unknown prior; .*mean 'loadings'"),
    "keyword": ({"latentdim": 3}, TypeError, r"fit\(latentdim=.*unknown keyword.*latent_dim"),
    "model": ({"model": "nbl"}, ValueError, r"fit\(model='nbl'\).*nbvcp, pln, nbln"),
    "model number": ({"model": 3}, ValueError, r"fit\(model=3\).*nbvcp, pln, nbln"),
    "engine": (
        {"inference_method": "mcm"},
        ValueError,
        r"fit\(inference_method='mcm'\).*laplace, mcmc, svi",
    ),
    "pair": (
        {"inference_method": "svi"},
        ValueError,
        r"no such pair.*nbvcp \+ svi.*nbln \+ laplace",
    ),
    "pair nbvcp": (
        {"model": "nbvcp", "inference_method": "laplace"},
        ValueError,
        "no such pair.*nbvcp",
    ),
    "parameterization": (
        {"model": "nbvcp", "parameterization": "odds"},
        ValueError,
        r"fit\(parameterization='odds'\).*mean_disp, mean_odds, canonical",
    ),
    "parameterization of nbln": (
        {"parameterization": "mean_odds"},
        ValueError,
        r"fit\(parameterization='mean_odds'\).*nbln",
    ),
    "prior key": ({"priors": {"rr": (0, 1)}}, ValueError, r"fit\(priors=.*'rr'.*mu, r, d"),
    "prior key of another model": (
        {"model": "pln", "priors": {"r": (0, 1)}},
        ValueError,
        r"fit\(priors=.*'r'.*mu, d",
    ),
    "loadings of nbvcp": (
        {"model": "nbvcp", "priors": {"loadings": "none"}},
        ValueError,
        r"fit\(priors=.*mean, r",
    ),
    "priors list": ({"priors": [("r", (0, 1))]}, ValueError, r"fit\(priors=.*dict.*list"),
    "key and alias": (
        {"priors": {"r": (0, 1), "dispersion": (0, 1)}},
        ValueError,
        r"fit\(priors.*'r' and 'dispersion' are the same",
    ),
    "eta and capture": (
        {"priors": {"eta": (11, 1), "capture_efficiency": (11, 1)}},
        ValueError,
        "'eta' and 'capture_efficiency' are the same",
    ),
    "tuple of one": ({"priors": {"r": (1,)}}, ValueError, r"fit\(priors=\{'r'.*two finite"),
    "tuple of three": ({"priors": {"mu": (1, 2, 3)}}, ValueError, r"fit\(priors=\{'mu'"),
    "tuple of text": ({"priors": {"mu": ("a", 2)}}, ValueError, r"fit\(priors=\{'mu'"),
    "no tuple": ({"priors": {"d": 2.0}}, ValueError, r"fit\(priors=\{'d'.*shape, rate"),
    "negative sd": ({"priors": {"mu": (0, -1)}}, ValueError, r"fit\(priors=\{'mu'.*positive"),
    "zero shape": ({"priors": {"d": (0, 1)}}, ValueError, r"fit\(priors=\{'d'.*positive"),
    "infinite": ({"priors": {"mu": (np.inf, 1)}}, ValueError, r"fit\(priors=\{'mu'.*finite"),
    "capture tuple": (
        {"priors": {"capture_efficiency": (11,)}},
        ValueError,
        r"'capture_efficiency'.*log_M0",
    ),
    "capture zero sd": (
        {"priors": {"capture_efficiency": (11, 0)}},
        ValueError,
        r"'capture_efficiency'.*positive",
    ),
    "capture empty": (
        {"priors": {"capture_efficiency": ()}},
        ValueError,
        r"'capture_efficiency'.*log_M0",
    ),
    "loadings type": (
        {"priors": {"loadings": {"type": "horsehoe"}}},
        ValueError,
        rf"{LOADINGS}.*'horsehoe'.*none, gaussian, horseshoe_columnwise, horseshoe_sparse",
    ),
    "loadings text": (
        {"priors": {"loadings": "lasso"}},
        ValueError,
        rf"{LOADINGS}.*'lasso'.*choose one of none",
    ),
    "loadings without type": (
        {"priors": {"loadings": {"tau_scale": 1.0}}},
        ValueError,
        rf"{LOADINGS}.*types are none",
    ),
    "loadings parameter": (
        {"priors": {"loadings": {"type": "gaussian", "tau_scale": 1.0}}},
        ValueError,
        rf"{LOADINGS}.*gaussian has no parameter 'tau_scale'; it has scale",
    ),
    "loadings floor of another": (
        {"priors": {"loadings": {"type": "neg_columnwise", "lambda_min": 1e-4}}},
        ValueError,
        rf"{LOADINGS}.*no parameter 'lambda_min'; it has alpha, .*, init_scale, psi_min",
    ),
    "loadings floor": (
        {"priors": {"loadings": {"type": "neg_columnwise", "psi_min": 0.01}}},
        ValueError,
        rf"{LOADINGS}.*psi_min=0\.01 must not exceed 0\.0001",
    ),
    "loadings value": (
        {"priors": {"loadings": {"type": "gaussian", "scale": -1}}},
        ValueError,
        rf"{LOADINGS}.*scale=-1.*positive",
    ),
    "coverage": ({"gene_coverage": 1.5}, ValueError, r"fit\(gene_coverage=1\.5\)"),
    "coverage text": ({"gene_coverage": "all"}, TypeError, r"fit\(gene_coverage='all'\)"),
    "n_steps": ({"n_steps": 0}, ValueError, r"fit\(n_steps=0\).*at least 1"),
    "n_steps real": ({"n_steps": 1.5}, ValueError, r"fit\(n_steps=1\.5\).*whole number"),
    "tol": ({"tol": -1.0}, ValueError, r"fit\(tol=-1\.0\)"),
    "batch_size": ({"batch_size": 10}, ValueError, r"fit\(batch_size=.*SVI"),
    "svi": ({"svi": {"guide": "mean_field"}}, TypeError, r"fit\(svi=\).*SVIConfig.*dict"),
    "laplace": ({"laplace": 3}, TypeError, r"fit\(laplace=\).*LaplaceConfig.*int"),
    "guide": (
        lambda: {"model": "nbvcp", "svi": nbln.SVIConfig(guide="flow")},
        ValueError,
        r"guide='flow'.*mean_field, low_rank",
    ),
    "source": (
        {"informative_priors_from": "fit.nc"},
        TypeError,
        r"fit\(informative_priors_from=\).*str",
    ),
    "tau": (
        {"informative_priors_tau": 0.0},
        ValueError,
        r"fit\(informative_priors_tau=0\.0\).*positive",
    ),
    "match": (
        {"informative_priors_match": "moments"},
        ValueError,
        r"fit\(informative_priors_match='moments'\).*verbatim, marginal",
    ),
    "n_samples": (
        {"informative_priors_n_samples": 1},
        ValueError,
        r"fit\(informative_priors_n_samples=1\)",
    ),
    "freeze unknown": (
        {"informative_priors_freeze": ("d",)},
        ValueError,
        r"fit\(informative_priors_freeze='d'\).*r, mu, eta",
    ),
    "freeze alias": (
        {"informative_priors_freeze": ("r", "dispersion")},
        ValueError,
        r"fit\(informative_priors_freeze.*'r' and 'dispersion' are the same",
    ),
    "freeze twice": (
        {"informative_priors_freeze": ("r", "r")},
        ValueError,
        r"fit\(informative_priors_freeze.*'r' is given twice",
    ),
    "freeze r of pln": (
        {"model": "pln", "informative_priors_freeze": ("r",)},
        ValueError,
        r"fit\(informative_priors_freeze='r'\).*mu, eta",
    ),
    "cascade without source": (
        {"informative_priors_freeze": ("eta",)},
        ValueError,
        r"informative_priors_from=",
    ),
    "tau without source": (
        {"informative_priors_from": False, "informative_priors_tau": 2.0},
        ValueError,
        r"informative_priors_from=",
    ),
}


def quick_fit(adata, arguments):
    given = arguments() if callable(arguments) else arguments
    programs = PROGRAMS.get(given.get("model", "nbln"), {})
    nbln.fit(adata, **programs | QUICK | given)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments(case, good):
    arguments, error, message = ARGUMENTS[case]
    before = snapshot(good)
    with pytest.raises(error, match=message):
        quick_fit(good, arguments)
    assert_unchanged(good, before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "nbvcp"},
        {"informative_priors_from": False, "latent_dim": 2},
        {"informative_priors_from": False, "latent_dim": 2, "layer": "raw", "gene_coverage": 0.8},
    ],
    ids=["nbvcp", "nbln", "layer"],
)
def test_a_fit_changes_nothing(arguments, good):
    good.X = sp.csr_matrix(good.X) if "layer" not in arguments else good.X
    before = snapshot(good)
    result = nbln.fit(good, **{**QUICK, **arguments})
    result.get_ppc_samples(n_samples=1)
    assert_unchanged(good, before)
