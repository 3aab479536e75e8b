"""Every wrong value of every keyword is an error that names it; see `hostile_arguments`."""

import inspect

import pytest
from hostile_arguments import CASES, UNKNOWN, WRONG
from hostile_data import BASE, Good, make

import nbln


@pytest.fixture(scope="module")
def adata():
    return make(Good(BASE), None)[0]


@pytest.mark.parametrize(
    ("name", "keyword", "value"),
    [pytest.param(n, k, v, id=f"{n}, {i}: {str(v)[:30]}") for n, i, k, v in CASES],
)
def test_wrong_value(name, keyword, value, adata):
    error, message, _, others = WRONG[name]
    quick = {"progress": False, "latent_dim": 2, "informative_priors_from": False}
    if "model" in others:
        quick = {"progress": False}
    if keyword.startswith("informative") or keyword == "svi":
        quick.pop("informative_priors_from", None)
    with pytest.raises(error, match=message):
        nbln.fit(adata, **quick | others | {keyword: value})


@pytest.mark.parametrize("keyword", UNKNOWN)
def test_unknown_keyword(keyword, adata):
    with pytest.raises(TypeError, match=rf"fit\({keyword}=.*unknown.*{UNKNOWN[keyword]}"):
        nbln.fit(adata, **{keyword: 1})


def test_every_keyword_is_in_the_table():
    known = {n for n in inspect.signature(nbln.fit).parameters if n not in ("adata", "unknown")}
    assert known == {name.partition(" ")[0] for name in WRONG}
