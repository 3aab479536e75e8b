"""Arguments that a model does not use, and settings that cannot be: errors before any counts."""

import numpy as np
import pytest

import nbln
from nbln import log_normal, plan, registry
from nbln.api import fit

QUICK = dict(progress=False, n_steps=1)
DEFAULTS = {name: value for name, value in (fit.__kwdefaults__ or {}).items() if name != "unknown"}


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(60, 20, 1, seed=0)


UNUSED = {
    "laplace": "nonsense",
    "latent_dim": -3,
    "informative_priors_from": 3,
    "informative_priors_tau": -1,
    "informative_priors_freeze": ("r",),
    "informative_priors_match": "marginal",
    "informative_priors_n_samples": 7,
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_nbvcp_does_not_use(name, adata):
    with pytest.raises(ValueError, match=rf"fit\({name}=.*model nbvcp does not use it.*Laplace"):
        nbln.fit(adata, model="nbvcp", **{name: UNUSED[name]}, **QUICK)


def test_several_at_once(adata):
    with pytest.raises(
        ValueError, match=r"nbvcp does not use it.*\(pln, nbln, lnm.*, negbio_vae\)"
    ):
        nbln.fit(adata, model="nbvcp", **UNUSED, progress=False)


@pytest.mark.parametrize("model", ["nbln", "pln"])
@pytest.mark.parametrize(("name", "value"), [("batch_size", 10), ("parameterization", "mean_odds")])
def test_what_log_normal_models_do_not_use(name, value, model, adata):
    with pytest.raises(
        ValueError, match=rf"{name}=.*model {model} does not.*SVI \(nbvcp, nbdm, zinb, zinbvcp\)"
    ):
        nbln.fit(adata, model=model, **{name: value}, **QUICK)


@pytest.mark.parametrize(
    "arguments",
    [{"informative_priors_from": False}, {"priors": {"capture_efficiency": None}}],
    ids=["no source", "offsets"],
)
def test_settings_of_a_first_stage_that_there_is_not(arguments, adata):
    with pytest.raises(ValueError, match=r"fit\(svi=\): no NBVCP is fitted first"):
        nbln.fit(adata, svi=nbln.SVIConfig(), **arguments, **QUICK)


def test_a_default_that_is_written_out_is_no_argument(adata):
    result = nbln.fit(adata, model="nbvcp", latent_dim=16, informative_priors_tau=1.0, **QUICK)
    assert result.model == "nbvcp"


@pytest.mark.parametrize("one", [1, 1.0, np.float32(1), np.int64(1)])
def test_a_default_of_another_number_type_is_the_default(one):
    assert make(informative_priors_tau=one).cascade.freeze == ("eta",)
    assert make(model="nbvcp", informative_priors_tau=one).row.name == "nbvcp"


@pytest.mark.parametrize("other", [2, True, np.ones(2), "1"])
def test_what_is_not_the_default_is_no_default(other):
    with pytest.raises(ValueError, match="informative_priors_tau="):
        make(model="nbvcp", informative_priors_tau=other)


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        (nbln.LaplaceConfig, {"n_steps": 0}, r"LaplaceConfig\(n_steps=0\).*at least 1"),
        (nbln.LaplaceConfig, {"tol": -1.0}, r"LaplaceConfig\(tol=-1\.0\).*at least 0"),
        (nbln.LaplaceConfig, {"tol": np.nan}, r"LaplaceConfig\(tol=nan\)"),
        (nbln.LaplaceConfig, {"newton_tol": 0.0}, r"newton_tol=0\.0\).*above 0"),
        (nbln.LaplaceConfig, {"newton_steps": 1.5}, r"newton_steps=1\.5\).*whole number"),
        (nbln.LaplaceConfig, {"chunk_bytes": 0}, r"chunk_bytes=0\)"),
        (nbln.SVIConfig, {"block_steps": 0}, r"SVIConfig\(block_steps=0\).*at least 1"),
        (nbln.SVIConfig, {"batch_size": "many"}, r"SVIConfig\(batch_size='many'\).*whole"),
        (nbln.SVIConfig, {"learning_rate": 0.0}, r"learning_rate=0\.0\).*above 0"),
        (nbln.SVIConfig, {"tail": 1.5}, r"tail=1\.5\).*at most 1"),
        (nbln.SVIConfig, {"guide": "mean-field"}, r"guide='mean-field'\).*mean 'mean_field'\?"),
    ],
)
def test_settings_check_themselves(config, setting, message):
    with pytest.raises(ValueError, match=message):
        config(**setting)


def make(**arguments):
    return plan.make(DEFAULTS | arguments, DEFAULTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priors": {"capture_efficiency": "default"}}, "expected \\(log_M0, sigma_M\\)"),
        ({"priors": {"capture_efficiency": np.ones(3)}}, "expected \\(log_M0, sigma_M\\)"),
        ({"informative_priors_freeze": 3}, r"freeze=3\): expected names, of r, mu, eta"),
        ({"informative_priors_freeze": [["r"]]}, "expected names, of r, mu, eta"),
        ({"informative_priors_tau": True}, "must be a positive number"),
        ({"priors": {"loadings": {"type": "gaussian", "scale": True}}}, "positive number"),
    ],
)
def test_values_of_a_wrong_kind(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_the_pipeline_is_a_plan_in_two_stages():
    built = make(seed=3, n_steps=7, svi=nbln.SVIConfig(n_steps=50))
    assert isinstance(built, log_normal.LaplacePlan)
    assert built.config.n_steps == 7
    assert isinstance(built.source, plan.SVIPlan)
    assert (built.source.config.n_steps, built.source.seed) == (50, 3)
    assert built.cascade.freeze == ("eta",)
    assert np.isinf(built.cascade.tau)


def test_the_first_stage_has_the_capture_prior_of_the_target():
    built = make(priors={"capture_efficiency": (12.0, 0.3), "r": (1.0, 0.5)})
    assert built.source.priors.capture_prior == (12.0, 0.3)
    assert not built.source.priors.fixed_offset
    assert not built.source.priors.given


def test_without_a_source_there_is_one_stage():
    assert make(informative_priors_from=False).source is None
    assert make(priors={"capture_efficiency": None}).source is None


def test_each_model_has_an_engine_that_has_a_plan():
    for row in registry.MODELS.values():
        assert set(row.engines) <= set(plan.PLANS)
        assert row.title.startswith(row.name)
    for kind in plan.PLANS.values():
        assert set(kind.uses) <= set(DEFAULTS)
