"""Data sets by columns of obs: which there are, what they have in common, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from nbln.data.datasets import Datasets


def table(*rows, repeats=10):
    donors, conditions = zip(*rows, strict=True)
    obs = pd.DataFrame({"donor": donors, "condition": conditions})
    return obs.loc[obs.index.repeat(repeats)].reset_index(drop=True)


NESTED = table(("a", "drug"), ("b", "drug"), ("c", "vehicle"), ("d", "vehicle"))
CROSSED = table(("a", "drug"), ("b", "drug"), ("a", "vehicle"), ("b", "vehicle"))


def test_one_column():
    datasets = Datasets.of(NESTED, ["condition"])
    assert datasets.names == ("drug", "vehicle")
    np.testing.assert_array_equal(datasets.levels, np.eye(2))
    assert datasets.indicators(NESTED, "fit").sum(axis=0).tolist() == [20, 20]


def test_nested_columns_are_two_terms():
    datasets = Datasets.of(NESTED, ["condition", "donor"])
    assert datasets.names == ("drug / a", "drug / b", "vehicle / c", "vehicle / d")
    assert datasets.sizes == (2, 4)
    assert np.linalg.matrix_rank(datasets.levels - datasets.levels.mean(axis=0)) == 3


def test_crossed_columns_have_their_combination_as_a_third_term():
    datasets = Datasets.of(CROSSED, ["condition", "donor"])
    assert datasets.sizes == (2, 2, 4)
    assert datasets.terms[2][0] == "condition:donor"
    weights = datasets.contrast("call", "condition", "drug")
    weights = weights - datasets.contrast("call", "condition", "vehicle")
    np.testing.assert_array_equal(weights, [1, -1, 0, 0, 0, 0, 0, 0])


def test_plain_values_restore_it():
    datasets = Datasets.of(CROSSED, ["condition", "donor"])
    assert Datasets.restore(datasets.plain()) == datasets


def test_numbers_are_names_of_levels_too():
    obs = NESTED.assign(batch=np.repeat([1, 2], 20))
    datasets = Datasets.of(obs, ["batch"])
    assert datasets.names == ("1", "2")
    np.testing.assert_array_equal(datasets.weights(2, "x"), [-0.5, 0.5])


@pytest.mark.parametrize(
    ("obs", "columns", "message"),
    [
        (NESTED.assign(condition="drug"), ["condition"], "is 'drug' in every cell"),
        (table(("a", "x"), ("b", "y"), repeats=3), ["donor"], "has 3 cells; a data set needs 10"),
        (
            table(*((f"d{i}", "x") for i in range(51))),
            ["donor"],
            "51 data sets; there can be 50",
        ),
    ],
)
def test_what_is_no_data_set_is_refused(obs, columns, message):
    with pytest.raises(ValueError, match=message):
        Datasets.of(obs, columns)


def test_unknown_data_sets_and_levels_are_named():
    datasets = Datasets.of(NESTED, ["condition", "donor"])
    with pytest.raises(ValueError, match=r"score\(adata\): a cell is of 'drug / c'"):
        datasets.codes(NESTED.assign(condition="drug"), "score")
    with pytest.raises(ValueError, match="unknown data set or level.*did you mean 'drug / a'"):
        datasets.weights("drug/a", "in_dataset('drug/a')")
    both = Datasets.of(NESTED.assign(donor=["drug"] * 20 + ["c"] * 20), ["condition", "donor"])
    with pytest.raises(ValueError, match="condition, donor have this level"):
        both.weights("drug", "in_dataset('drug')")
    with pytest.raises(ValueError, match="unknown level of condition"):
        datasets.contrast("call", "condition", "placebo")
    with pytest.raises(ValueError, match="unknown column"):
        datasets.contrast("call", "sex", "f")
