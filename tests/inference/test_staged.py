"""A sample of the cells first: the same fit, programs that it is too small to show, resuming."""

import logging

import numpy as np
import pytest

import nbln
from nbln import Checkpoint
from nbln.inference.laplace import hidden, iterations, pooled, staged

N_CELLS, N_GENES = 1000, 150


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(N_CELLS, N_GENES, 2, seed=3)


@pytest.fixture(scope="module")
def sampled():
    """Samples of data that are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged, "FEWEST_CELLS", 400)
        patch.setattr(staged, "FEWEST_ENTRIES", 0)
        yield


@pytest.fixture(scope="module")
def whole(adata):
    return nbln.fit(adata, progress=False)


@pytest.fixture(scope="module")
def result(adata, whole, sampled):
    return nbln.fit(adata, progress=False)


def test_a_sample_first_leads_to_the_same_fit(whole, result):
    a, b = result.get_correlation().values, whole.get_correlation().values
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.02
    assert len(result.trace) > len(whole.trace)  # most of them of few cells
    assert np.mean(result.cells.log_evidence) > np.mean(whole.cells.log_evidence) - 0.05
    ranks = [res.w_prior_diagnostics["effective_rank"] for res in (result, whole)]
    assert ranks == [2, 2]


def test_columns_that_were_left_out_come_back_empty(result):
    W = np.asarray(result.parameters.W)
    assert W.shape == (N_GENES, 16)
    empty = ~W.any(axis=0)
    assert 10 < empty.sum() < 14
    assert not result.cells.z[:, :16][:, empty].any()
    for size in (1, 3):
        first = result.get_correlation(genes=list(result.fitted.gene_names[:size]))
        assert np.isfinite(first.values).all()
    assert result.transform(nbln.datasets.simulate(20, N_GENES, 2, seed=4)) is not None


@pytest.mark.slow
def test_a_program_of_a_few_cells_is_not_lost(sampled, caplog):
    adata = nbln.datasets.simulate(2 * N_CELLS, N_GENES, 2, seed=3)
    counts, rng = adata.X.toarray(), np.random.default_rng(0)
    cells, genes = (
        rng.choice(len(counts), 16, replace=False),
        rng.choice(N_GENES, 30, replace=False),
    )
    counts[np.ix_(cells, genes)] += rng.poisson(4 * counts[:, genes].mean(axis=0), (16, 30))
    adata.X = counts
    with caplog.at_level(logging.INFO, "nbln"):
        found = nbln.fit(adata, progress=False)
    assert "all cells show programs" in caplog.text
    assert found.w_prior_diagnostics["effective_rank"] > 2


@pytest.mark.parametrize(
    ("module", "name", "at"),
    [
        pytest.param(iterations, "update", 5, marks=pytest.mark.slow),
        pytest.param(hidden, "programs", 0, marks=pytest.mark.slow),
        pytest.param(pooled, "newton", 13, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_fit_goes_on(adata, result, tmp_path, module, name, at):
    path, function, calls = tmp_path / "run.ckpt", getattr(module, name), iter(range(10_000))

    def interrupted(*arguments):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            nbln.fit(adata, progress=False, checkpoint=Checkpoint(path, 3600.0))
    assert path.exists()
    again = nbln.fit(adata, progress=False, checkpoint=path)
    np.testing.assert_array_equal(again.parameters.W, result.parameters.W)
    np.testing.assert_array_equal(again.cells.z, result.cells.z)
