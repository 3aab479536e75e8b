"""Formulas over columns of obs: what they make of cells, and what they refuse."""

import re

import numpy as np
import pandas as pd
import pytest

from nbln.data.formula import Formula, columns_of

N = 40


@pytest.fixture
def obs():
    rng = np.random.default_rng(0)
    treatment = pd.Categorical(np.array(["b", "a", "c"])[np.arange(N) % 3], ["b", "a", "c"])
    table = {
        "treatment": treatment,
        "percent mito": rng.normal(5, 2, N),
        "day": np.arange(N) // 2 % 4,
        "same": "u",
        "constant": 2.0,
        "copy": treatment.astype(str),
        "lonely": ["u", *["v"] * (N - 1)],
    }
    return pd.DataFrame(table, index=[f"cell{i}" for i in range(N)])


def test_categories_and_numbers(obs):
    formula = Formula.of("~ treatment + `percent mito`", obs)
    assert formula.names == ("treatment[T.a]", "treatment[T.c]", "percent mito")
    made = formula.matrix(obs, "fit")
    np.testing.assert_array_equal(made[:, 0], obs["treatment"] == "a")
    values = obs["percent mito"]
    expected = (values - values.mean()) / values.std(ddof=0)
    np.testing.assert_allclose(made[:, 2], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(formula.units, [1, 1, values.std(ddof=0)])


def test_the_reference_is_named(obs):
    formula = Formula.of("~ C(treatment, Treatment('c')) * day", obs)
    assert formula.names[:3] == ("treatment[T.b]", "treatment[T.a]", "day")
    assert formula.names[3] == "treatment[T.b]:day"
    sd = obs["day"].std(ddof=0)
    np.testing.assert_allclose(formula.units[2:], sd)
    levels = Formula.of("~ C(day)", obs)
    assert levels.names == ("day[T.1]", "day[T.2]", "day[T.3]")


def test_through_a_file(obs):
    formula = Formula.of("~ C(treatment, Treatment('c')) + `percent mito`:day", obs)
    again = Formula.restore(formula.plain())
    np.testing.assert_array_equal(again.matrix(obs[:5], "x"), formula.matrix(obs, "x")[:5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~ a +", "not a formula"),
        ("~ a:b(", "not a formula"),
        ("y ~ a", "begin with '~'"),
        ("~ 0 + a", "no '0 \\+'"),
        ("~ a - 1", "no '0 \\+'"),
        ("~ 1", "names no column"),
        ("", "names no column"),
        ("~ a + (1 | donor)", r"give random=\['donor'\]"),
        ("~ open('x')", "is not a column"),
        ("~ np.log(a)", "is not a column"),
    ],
)
def test_refused_without_data(text, message):
    with pytest.raises(ValueError, match=message):
        columns_of(text)


def test_a_formula_is_text():
    with pytest.raises(TypeError, match=r"fit\(formula=3\).*got int"):
        columns_of(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~ same", "'same'] is 'u' in every cell"),
        ("~ constant", "'constant'] is 2.0 in every cell"),
        ("~ lonely", "'lonely'] is 'u' in a single cell"),
        ("~ treatment + copy", "follows from the mean, treatment"),
        ("~ C(treatment, Treatment('z'))", "has no category 'z'; it has b, a, c"),
    ],
)
def test_refused_with_data(text, message, obs):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Formula.of(text, obs)
    assert "fit(formula=" in str(error.value)


def test_an_unknown_category(obs):
    formula = Formula.of("~ treatment", obs)
    other = obs.assign(treatment="zzz")
    with pytest.raises(ValueError, match="has 'zzz', which no cell .* it knew b, a, c"):
        formula.matrix(other, "transform")


def test_random_intercepts_come_after_the_formula(obs):
    formula = Formula.of("~ treatment", obs, ["day", "copy"])
    assert formula.fixed == ("treatment[T.a]", "treatment[T.c]")
    assert formula.names[2:] == (
        "day[0]",
        "day[1]",
        "day[2]",
        "day[3]",
        "copy[a]",
        "copy[b]",
        "copy[c]",
    )
    assert formula.n_levels == (4, 3)
    made = formula.matrix(obs, "fit")
    np.testing.assert_array_equal(made[:, 3], obs["day"] == 1)
    other = obs.assign(day=77)
    assert not formula.matrix(other, "transform")[:, 2:6].any()
    again = Formula.restore(formula.plain())
    np.testing.assert_array_equal(again.matrix(obs, "x"), made)
    alone = Formula.restore(Formula.of(None, obs, ["day"]).plain())
    assert alone.fixed == ()
    assert alone.matrix(obs, "x").shape == (N, 4)
    assert len(alone.units) == 0


@pytest.mark.parametrize(
    ("column", "message"),
    [("same", "'same'] is 'u' in every cell"), ("percent mito", "has one level for each cell")],
)
def test_random_intercepts_that_cannot_be(column, message, obs):
    with pytest.raises(ValueError, match=re.escape(message)):
        Formula.of("~ treatment", obs, [column])


def test_contrasts(obs):
    formula = Formula.of("~ treatment * `percent mito`", obs, ["day"])
    found = formula.contrast("treatment", "c", "a")
    np.testing.assert_allclose(found[:3], [-1, 1, 0], atol=1e-6)
    assert not found[3:].any()  # at the mean of the numbers
    np.testing.assert_allclose(formula.contrast("treatment", "a", None)[:2], [1, 0])
    sd = obs["percent mito"].std(ddof=0)
    np.testing.assert_allclose(formula.contrast("percent mito", 7.0, 5.0)[2], 2 / sd, rtol=1e-5)
    np.testing.assert_allclose(formula.contrast("day", "2", "0")[-4:], [-1, 0, 1, 0])
    for call in (("treatmen", "a", None), ("treatment", "d", None), ("day", "9", "1")):
        with pytest.raises(ValueError, match="differential_expression.*choose one of"):
            formula.contrast(*call)
    with pytest.raises(ValueError, match="'b' is compared with itself.*that of the fit"):
        formula.contrast("treatment", "b", None)
    np.testing.assert_array_equal(formula.contrast("day", 2, 0), formula.contrast("day", "2", "0"))
    with pytest.raises((TypeError, ValueError), match="percent mito"):
        formula.contrast("percent mito", "high", None)


def test_replicates_are_missed_where_there_are_none(obs):
    obs = obs.assign(donor=np.arange(N) % 2, half=np.arange(N) % 2, four=np.arange(N) % 4)
    formula = Formula.of("~ C(half) + `percent mito`", obs, ["donor"])
    assert formula.without_replicates(obs) == [("half[T.1]", "donor")]
    for column in ("four", "treatment"):  # two donors of each half, and donors of both halves
        assert Formula.of("~ C(half)", obs, [column]).without_replicates(obs) == []
    with_day = Formula.of("~ `percent mito`", obs, ["donor"])
    assert with_day.without_replicates(obs) == []
