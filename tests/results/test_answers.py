"""What a kind of result does not answer is an error that says who does."""

import copy

import pytest

import nbln
from nbln.results.posterior import PosteriorDraws

OF_FITS = ("get_correlation", "get_W_compositional", "W", "sample_posterior", "top_pairs")


def bare(kind, model):
    """A result without fields but the one that messages need: no question gets as far as a fit."""
    made = object.__new__(kind)
    object.__setattr__(made, "model", model)
    return made


SCVI, NBVCP, NBLN, DRAWS = (
    bare(kind, model)
    for kind, model in (
        (nbln.VAEResult, "scvi"),
        (nbln.SVIResult, "nbvcp"),
        (nbln.LaplaceResult, "nbln"),
        (PosteriorDraws, "nbln"),
    )
)


@pytest.mark.parametrize("name", OF_FITS)
@pytest.mark.parametrize(
    ("result", "what"),
    [(SCVI, "VAEResult of scvi, counts from"), (NBVCP, "SVIResult of nbvcp, .* independent genes")],
    ids=["scvi", "nbvcp"],
)
def test_what_only_programs_answer(result, what, name):
    message = rf"^{name}: a {what}.*has no such answer; a fit of model='pln' or model='nbln'"
    with pytest.raises(AttributeError, match=message):
        getattr(result, name)
    assert not hasattr(result, name)


CASES = {
    "draws of others": (SCVI, "pairs", r"posterior of a fit of model='pln' or model='nbln'"),
    "draws of this": (NBLN, "pairs", r"draws from the posterior of this fit have it \(sample_post"),
    "of scvi": (NBLN, "get_elbo", "a fit of model='scvi'"),
    "of fits": (DRAWS, "score", "score: a PosteriorDraws of nbln.*a fit of .* has it"),
    "of nobody": (SCVI, "get_latents", "no attribute 'get_latents'; did you mean get_latent"),
    "private": (SCVI, "_hidden", "no attribute '_hidden'"),
    "a field": (SCVI, "network", "no attribute 'network'"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_questions(case):
    result, name, message = CASES[case]
    with pytest.raises(AttributeError, match=message):
        getattr(result, name)


def test_an_error_inside_an_answer_is_its_own(monkeypatch):
    monkeypatch.setattr(nbln.VAEResult, "history", property(lambda self: (3).nowhere))
    with pytest.raises(AttributeError, match="'int' object has no attribute 'nowhere'"):
        getattr(SCVI, "history")  # noqa: B009 - that it is asked for is the point


def test_a_copy_is_made():
    assert copy.copy(SCVI).model == "scvi"
