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
