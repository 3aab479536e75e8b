"""The sentence with which a report begins."""

import pandas as pd
import pytest

from nbln import report


def summary_of(fit, **warnings):
    """Of a fit that is well but for these."""
    given = fit.summary(checks=False).assign(status="ok")
    for name in warnings:
        given.loc[name] = [True, "warning", "a note"]
    return given


@pytest.mark.parametrize(
    ("warnings", "level", "words"),
    [
        ({}, "good", "Nothing speaks against it"),
        ({"misfit_mean": 1}, "caution", "does not describe the counts of many genes"),
        ({"pareto_k_95": 1}, "caution", "factors of many cells are approximate"),
        ({"something_else": 1}, "caution", "with caution: something_else"),
        ({"converged": 1, "misfit_mean": 1}, "bad", "Do not rely on it yet: it did not converge"),
        ({"source_converged": 1}, "bad", "its first stage did not converge"),
    ],
)
def test_verdict(nbln_fit, warnings, level, words):
    found = report.verdict(nbln_fit, summary_of(nbln_fit, **warnings))
    assert found.level == level
    assert words in found.sentence
    rank = nbln_fit.w_prior_diagnostics["effective_rank"]
    assert found.sentence.startswith(f"{rank} gene programs were found in 90 cells")


def test_a_model_without_programs(nbvcp):
    given = summary_of(nbvcp)
    given.loc["misfit_mean"] = [0.0, "ok", ""]
    found = report.verdict(nbvcp, given)
    assert found.level == "good"
    assert "was fitted to 90 cells" in found.sentence
    assert "the model describes the counts" in found.sentence


def test_no_program(nbln_fit, monkeypatch):
    monkeypatch.setattr(
        type(nbln_fit), "w_prior_diagnostics", property(lambda fit: {"effective_rank": 0})
    )
    given = pd.DataFrame({"status": ["warning"]}, index=["effective_rank"])
    found = report.verdict(nbln_fit, given)
    assert found.sentence.startswith("No gene programs were found")
    assert "all correlations are 0" in found.sentence
