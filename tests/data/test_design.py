"""Columns of `adata.obs`: what a fit makes of them, and how new cells are read."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest

from nbln.data.design import Design, read_columns


@pytest.fixture
def obs():
    return pd.DataFrame(
        {
            "batch": pd.Categorical(["b", "a", "b", "c"], categories=["c", "b", "a", "unused"]),
            "age": [1.0, 2.0, 3.0, 6.0],
            "treated": [True, False, False, True],
            "lane": [7, 7, 7, 7],
        },
        index=["w", "x", "y", "z"],
    )


@pytest.fixture
def design(obs):
    return Design.of(obs, "batch", "treated", ["age", "treated", "lane"])


def test_columns_become_a_matrix(obs, design):
    matrix = design.matrix(obs, "fit")
    assert matrix.dtype == np.float32
    codes = design.batch_codes(obs, "fit")
    assert design.batch.levels == ("a", "b", "c")  # those that cells have
    np.testing.assert_array_equal(codes, [1, 0, 1, 2])
    np.testing.assert_array_equal(matrix[:, :3], np.eye(3)[codes])
    np.testing.assert_allclose(matrix[:, 3], (obs["age"] - 3) / obs["age"].std(ddof=0), rtol=1e-6)
    np.testing.assert_array_equal(matrix[:, 4:6], np.eye(2)[obs["treated"].astype(int)])
    np.testing.assert_array_equal(matrix[:, 6], 0)  # a constant is centred
    assert (design.n_batches, design.n_labels) == (3, 2)
    assert design.columns == ("batch", "treated", "age", "lane")


def test_new_cells_are_read_as_those_of_the_fit(obs, design):
    matrix = design.matrix(obs, "fit")
    np.testing.assert_array_equal(design.matrix(obs.iloc[[3, 0]], "score"), matrix[[3, 0]])
    np.testing.assert_array_equal(design.label_codes(obs.iloc[:1], "score"), [1])


def test_without_columns_all_cells_are_alike(obs):
    none = Design.of(obs, None, None, ())
    assert none.matrix(obs, "fit").shape == (4, 0)
    assert (none.n_batches, none.n_labels, none.columns) == (1, 1, ())
    np.testing.assert_array_equal(none.batch_codes(obs, "fit"), 0)


def test_a_design_survives_a_file(obs, design):
    assert Design.restore(json.loads(json.dumps(design.plain()))) == design
    none = Design.of(obs, None, None, ())
    assert Design.restore(json.loads(json.dumps(none.plain()))) == none


def test_a_batch_that_the_fit_did_not_know(obs, design):
    new = obs.assign(batch=["a", "bb", "b", "b"])
    message = r"score\(adata\): adata\.obs\['batch'\] has 'bb'.*it knew a, b, c; did you mean 'b'"
    with pytest.raises(ValueError, match=message):
        design.matrix(new, "score")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda o: o.drop(columns="age"),
            KeyError,
            r"fit\(adata\): adata\.obs has no column 'age'",
        ),
        (lambda o: o.rename(columns={"age": "Age"}), KeyError, r"did you mean 'Age'"),
        (lambda o: o.assign(age=[1, np.nan, 2, 3]), ValueError, r"\['age'\] has no value.*\"x\""),
        (lambda o: o.assign(age=[1, 2, np.inf, 3]), ValueError, r"\['age'\] has no value.*\"y\""),
        (lambda o: o.assign(batch=["a", None, "b", None]), ValueError, r"no value in 2 cells"),
    ],
)
def test_columns_that_cannot_be_read(obs, change, error, message):
    adata = anndata.AnnData(np.ones((4, 2), np.float32), obs=change(obs))
    with pytest.raises(error, match=message):
        read_columns(adata, ["batch", "age"], "fit")


def test_columns_are_copied(obs):
    adata = anndata.AnnData(np.ones((4, 2), np.float32), obs=obs)
    taken = read_columns(adata, ["age"], "fit")
    adata.obs.loc["w", "age"] = 100.0
    assert taken["age"].iloc[0] == 1.0
