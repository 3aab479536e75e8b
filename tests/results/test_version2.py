"""Files that nbln 0.1.0 wrote, in format version 2, still load and answer as they did."""

import json
from pathlib import Path

import numpy as np
import pytest

import nbln

FOLDER = Path(__file__).parent / "version2"
ANSWERS = json.loads((FOLDER / "answers.json").read_text())


@pytest.fixture(scope="module")
def counts():
    """The counts that the files were fitted to."""
    adata = nbln.datasets.simulate(90, 20, 1, mean_log_dispersion=3.0, seed=2)
    adata.X = adata.X.toarray()
    adata.X[:, 0] += 1
    adata.X[0] += 1
    return adata


@pytest.fixture(scope="module", params=["nbln", "pln"])
def loaded(request):
    """A result, and what it answered when it was saved."""
    return nbln.load(FOLDER / f"{request.param}.nc"), ANSWERS[request.param]


def test_parameters(loaded):
    result, answers = loaded
    for name, values in result.get_map().items():
        if name in answers:
            np.testing.assert_allclose(values, answers[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert len(result.trace) == answers["iterations"]
    assert result.w_prior_diagnostics["effective_rank"] == answers["rank"]
    np.testing.assert_allclose(result.get_correlation(), answers["correlation"], atol=1e-5)
    np.testing.assert_allclose(result.get_distributions()["d"].mean, answers["d_mean"], rtol=1e-4)


def test_cells(loaded, counts):
    result, answers = loaded
    np.testing.assert_allclose(result.score(counts), answers["score"], rtol=1e-4, atol=2e-2)
    np.testing.assert_allclose(result.transform(counts)["eta"], answers["eta_new"], atol=2e-3)
    drawn = result.get_ppc_samples("per_cell", n_samples=1, counts=counts).values
    assert drawn.mean() == pytest.approx(answers["zero_share"], rel=0.1)


def test_membership_and_history(loaded):
    result, answers = loaded
    if "membership" in answers:
        np.testing.assert_allclose(result.get_membership(), answers["membership"], atol=1e-3)
    assert result.history.shrank is None  # version 2 did not keep it
    nbln.pl.plot_loss(result)


def test_the_source_comes_along():
    result = nbln.load(FOLDER / "nbln.nc")
    assert result.frozen == ("r", "eta")
    assert result.cascade_source.capture_rule == result.capture_rule
    assert result.fitted.gene_coverage == 0.98
    assert result.loadings.prior.shrinkage == nbln.Shrinkage()
    drawn = result.get_ppc_samples("marginal", n_samples=2)
    assert np.isfinite(drawn.values.mean())


def test_saved_again_it_is_of_the_present_version(loaded, tmp_path):
    result, _ = loaded
    result.save(tmp_path / "again.nc")
    again = nbln.load(tmp_path / "again.nc")
    assert again.get_map().identical(result.get_map())
    assert again.fitted.fingerprint == result.fitted.fingerprint
