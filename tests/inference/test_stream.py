"""The cells of an engine are the same whether they are resident or read in groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

from nbln.data.counts import Counts
from nbln.inference import stream as streams
from nbln.inference.stream import CellStream
from nbln.posterior.mode import Augmentation, Columns

N_CELLS, N_GENES, SIZE = 1_000, 7, 70  # 15 chunks


def visit(weights, cells, z):
    """Sums of which the order matters in float32, and something of another shape for each cell."""
    total = cells.counts @ weights + cells.offset + z[0]
    return jnp.sum(jnp.sin(total) * cells.mask), (total, cells.counts[:, :2])


@pytest.fixture(scope="module")
def adata():
    x = np.random.default_rng(0).poisson(1.0, (N_CELLS, N_GENES)) + np.eye(N_CELLS, N_GENES)
    x[:, 0] += 1
    return AnnData(sp.csr_matrix(x.astype(np.float32)))


@pytest.fixture
def stream(adata, monkeypatch, tmp_path):
    """A stream of counts in memory or on disk, in groups of some chunks."""

    def make(on_disk=False, resident=0, chunks_of_a_group=4):
        monkeypatch.setattr(streams, "GROUP_BYTES", chunks_of_a_group * 4 * SIZE * N_GENES)
        given = adata
        if on_disk:
            adata.write_h5ad(tmp_path / "cells.h5ad")
            given = read_h5ad(tmp_path / "cells.h5ad", backed="r")
        offset = np.arange(N_CELLS, dtype=np.float32)
        beside = Augmentation(offset, np.zeros((N_CELLS, 0), np.float32), Columns())
        made = CellStream(Counts.from_anndata(given), beside, resident, 4 * SIZE * N_GENES)
        assert made.n_chunks == 15
        return made

    return make


def outcome(stream, passes=2):
    weights = jnp.linspace(0.0, 1.0, N_GENES)
    for _ in range(passes):
        z = stream.zeros(1)
        total, parts = stream.scan(visit, z, weights)
    return float(total), *stream.join(parts)


@pytest.mark.parametrize("n", [1, 4, 7, 100])
@pytest.mark.parametrize("kept", [0, 5_000, 2**30])
@pytest.mark.parametrize("on_disk", [False, True])
def test_groups_give_the_numbers_of_resident_cells(stream, adata, n, kept, on_disk):
    resident = outcome(stream(resident=2**30, chunks_of_a_group=n))
    for ours, theirs in zip(outcome(stream(on_disk, kept, n)), resident, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(resident[2], adata.X[:, :2].toarray())


@pytest.mark.parametrize("resident", [0, 2**30])
def test_coordinates_by_chunk_and_back(stream, resident):
    made = stream(resident=resident)
    values = np.arange(N_CELLS, dtype=np.float32)
    split = made.split(values)
    chunks = made.chunks_of(split)
    assert len(chunks) == 15
    np.testing.assert_array_equal(np.concatenate(chunks)[:N_CELLS], values)
    again = made.chunks_of(made.together(chunks))
    jax.tree.map(np.testing.assert_array_equal, again, chunks)


def test_a_pass_that_is_made_once_is_another_program_with_the_same_sums(stream, monkeypatch):
    made, weights, used = stream(), jnp.linspace(0.0, 1.0, N_GENES), []

    def noted(*given):
        used.append("once")
        return streams._over_chunks(*given)

    monkeypatch.setattr(streams, "_once", noted)
    once, _ = made.scan_once(visit, made.zeros(1), weights)
    usual, _ = made.scan(visit, made.zeros(1), weights)
    np.testing.assert_allclose(once, usual, rtol=1e-5)
    assert len(used) == made._n_groups
    monkeypatch.setattr(streams, "FEW_ENTRIES", 0)  # of many, what is optimised pays
    made.scan_once(visit, made.zeros(1), weights)
    assert len(used) == made._n_groups


def test_an_error_of_reading_is_that_of_the_scan(stream, monkeypatch):
    made = stream(on_disk=True)

    def broken(number, rows):
        raise OSError("gone")

    outcome(made)
    monkeypatch.setattr(made.kept, "fill", broken)
    with pytest.raises(OSError, match="gone"):
        outcome(made)
