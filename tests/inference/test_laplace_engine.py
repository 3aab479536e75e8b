"""The Laplace engine: where the cells come from, gauge, limits, compilation, convergence."""

import logging
from dataclasses import replace

import anndata
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import nbln
from nbln.data.counts import Counts
from nbln.inference.laplace import iterations
from nbln.inference.laplace.config import LaplaceConfig
from nbln.inference.laplace.engine import fit_laplace
from nbln.inference.stream import CellStream
from nbln.inference.svi.engine import SVIConfig
from nbln.linalg import gauge
from nbln.models.nbln import NBLN
from nbln.models.pln import PLN
from nbln.priors.capture import CaptureRule, KnownCapture
from nbln.priors.columnwise import HorseshoeColumnwise
from nbln.priors.univariate import Frozen, InverseGamma, LogNormal, Normal

FIXED = LaplaceConfig(n_steps=6, tol=0.0)  # the same number of iterations, whatever happens


@pytest.fixture(scope="module")
def cells():
    """201 cells, so that chunks and devices need padding."""
    adata = nbln.datasets.simulate(201, 20, 2, seed=3)
    adata.X = adata.X.toarray() + np.eye(201, 20, dtype=np.float32)
    adata.X[:, 0] += 1
    return adata


def priors(**changes):
    weak = {
        "mu": Normal(jnp.asarray(0.0), jnp.asarray(jnp.inf)),
        "d": InverseGamma(jnp.asarray(20.0), jnp.asarray(2.8)),
        "r": LogNormal(jnp.log(5.0), jnp.asarray(1.0)),
    }
    return weak | changes


def library_offset(counts):
    return CaptureRule.library_offset(counts.library_size).of(counts.library_size).eta


def fit_model(counts, kind=NBLN, shift=0.0, config=FIXED, first_r=5.0, **changes):
    eta = library_offset(counts) + shift
    beliefs = priors(**changes)
    if kind is PLN:
        del beliefs["r"]
    model = kind(beliefs, HorseshoeColumnwise(), KnownCapture(eta), 2)
    mean = counts.gene_totals / np.exp(-np.asarray(eta, np.float64)).sum()
    return fit_laplace(model, counts, mean, np.full(counts.n_genes, np.log(first_r)), config)


def covariance(parameters):
    W = np.asarray(gauge.compositional(parameters.W), np.float64)
    return W @ W.T


def assert_same_fit(ours, theirs, tolerance=2e-3):
    np.testing.assert_allclose(
        covariance(ours.parameters), covariance(theirs.parameters), atol=tolerance
    )
    np.testing.assert_allclose(ours.parameters.mu, theirs.parameters.mu, atol=tolerance)
    np.testing.assert_allclose(ours.parameters.d, theirs.parameters.d, rtol=tolerance)
    np.testing.assert_allclose(
        ours.cells.log_evidence, theirs.cells.log_evidence, atol=20 * tolerance
    )


@pytest.fixture(scope="module")
def in_one_chunk(cells):
    counts = Counts.from_anndata(cells)
    config = replace(FIXED, chunk_bytes=2**30)
    return fit_model(counts, config=config)


@pytest.mark.parametrize("storage", ["resident", "streamed", "backed"])
def test_sums_do_not_depend_on_chunks(storage, cells, in_one_chunk, tmp_path):
    given = cells
    if storage == "backed":
        cells.write_h5ad(tmp_path / "cells.h5ad")
        given = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    counts = Counts.from_anndata(given)
    assert counts.on_disk == (storage == "backed")
    resident = 2**31 if storage == "resident" else 0
    config = replace(FIXED, chunk_bytes=64 * 20 * 4, resident_bytes=resident)
    chunked = fit_model(counts, config=config)
    known = KnownCapture(jnp.zeros(counts.n_cells))
    model = NBLN(priors(), HorseshoeColumnwise(), known, 2)
    stream = CellStream(counts, model.augmentation, resident, config.chunk_bytes)
    assert stream.n_chunks == 3
    assert_same_fit(chunked, in_one_chunk)


# Gauge


def test_a_shift_of_eta_moves_the_means_alone(cells):
    counts = Counts.from_anndata(cells)
    plain, shifted = fit_model(counts), fit_model(counts, shift=1.5)
    np.testing.assert_allclose(
        covariance(shifted.parameters), covariance(plain.parameters), atol=5e-3
    )
    np.testing.assert_allclose(shifted.parameters.mu, plain.parameters.mu + 1.5, atol=5e-3)
    np.testing.assert_allclose(shifted.parameters.d, plain.parameters.d, rtol=5e-3)


def test_compositions_are_blind_to_a_shift_of_every_log_rate(nbln_fit):
    mu, W = nbln_fit.parameters.mu, nbln_fit.parameters.W
    moved = mu + 2, W + np.array([0.5, -1.0, 2.0], np.float32)
    parameters = eqx.tree_at(lambda p: (p.mu, p.W), nbln_fit.parameters, moved)
    shifted = replace(nbln_fit, parameters=parameters)
    np.testing.assert_allclose(
        shifted.get_W_compositional(), nbln_fit.get_W_compositional(), atol=1e-5
    )
    np.testing.assert_allclose(shifted.get_correlation(), nbln_fit.get_correlation(), atol=1e-4)
    np.testing.assert_allclose(
        shifted.get_compositional_samples(20, seed=1),
        nbln_fit.get_compositional_samples(20, seed=1),
        rtol=1e-3,
    )


def test_nbln_without_overdispersion_is_pln(cells):
    counts = Counts.from_anndata(cells)
    nearly = fit_model(counts, first_r=1e4, r=Frozen(jnp.full(counts.n_genes, 1e4)))
    pln = fit_model(counts, kind=PLN)
    ours, theirs = covariance(nearly.parameters), covariance(pln.parameters)
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)
    np.testing.assert_allclose(nearly.parameters.mu, pln.parameters.mu, atol=0.1)
    np.testing.assert_allclose(
        nearly.cells.log_evidence, pln.cells.log_evidence, atol=1.0, rtol=0.01
    )


# Compilation and transfers


def same_shape(seed):
    """Data whose shapes agree down to the bins of the largest count."""
    adata = nbln.datasets.simulate(70, 12, 1, seed=seed)
    x = np.minimum(adata.X.toarray(), 200)
    x[:, 0] += 1
    x[0] += 1
    x[1, 1] = 250
    adata.X = x
    return adata


PIPELINES = {
    "nbvcp": {"model": "nbvcp", "svi": SVIConfig(n_steps=100)},
    "pipeline": {"latent_dim": 2, "svi": SVIConfig(n_steps=100)},
    "pln": {"model": "pln", "latent_dim": 2, "informative_priors_from": False},
}


@pytest.mark.parametrize("arguments", PIPELINES.values(), ids=PIPELINES)
def test_a_second_fit_of_the_same_shape_compiles_nothing(arguments, caplog):
    nbln.fit(same_shape(0), progress=False, **arguments)
    data = same_shape(1)
    with caplog.at_level(logging.WARNING), jax.log_compiles(True):
        nbln.fit(data, progress=False, seed=5, **arguments)
    compiled = [r.getMessage()[:200] for r in caplog.records if "Compiling" in r.getMessage()]
    assert compiled == []


def test_passes_and_updates_move_nothing_between_host_and_device(cells, monkeypatch):
    def guarded(function):
        def call(*arguments):
            with jax.transfer_guard("disallow"):
                return function(*arguments)

        return call

    monkeypatch.setattr(iterations, "update", guarded(iterations.update))
    monkeypatch.setattr(CellStream, "scan", guarded(CellStream.scan))
    assert np.isfinite(nbln.fit(cells, latent_dim=2, progress=False).mu).all()


# Convergence


def test_convergence_is_reported(cells, caplog):
    with caplog.at_level(logging.WARNING, logger="nbln"):
        result = nbln.fit(
            cells, latent_dim=2, n_steps=1, informative_priors_from=False, progress=False
        )
    assert not result.converged
    assert len(result.trace) == 1
    assert "did not converge in n_steps=1" in caplog.text
    assert "NOT converged" in repr(result)


def test_svi_convergence_is_reported(cells, caplog):
    with caplog.at_level(logging.WARNING, logger="nbln"):
        result = nbln.fit(cells, model="nbvcp", n_steps=1, progress=False)
    assert not result.converged
    assert "SVI did not converge" in caplog.text


def test_a_generous_bound_stops_early(nbln_fit, nbln_latent, nbvcp):
    for result in (nbln_fit, nbln_latent):
        assert result.converged
        assert len(result.trace) < 200
        assert result.n_unconverged == 0
        assert np.all(result.gradient_norm < 0.01)
    assert nbvcp.converged
    assert nbvcp.n_steps < 5_000


def test_unconverged_cells_are_counted_and_logged(cells, caplog):
    config = nbln.LaplaceConfig(n_steps=1, newton_steps=1, newton_tol=1e-7)
    with caplog.at_level(logging.WARNING, logger="nbln"):
        result = nbln.fit(
            cells, latent_dim=2, laplace=config, informative_priors_from=False, progress=False
        )
    assert result.n_unconverged > 0
    assert f"{result.n_unconverged} of 201 cells" in caplog.text


@pytest.mark.parametrize("model", ["nbvcp", "pln"])
def test_same_seed_same_numbers(model, cells):
    arguments = dict(model=model, n_steps=60 if model == "nbvcp" else 4, progress=False)
    if model == "pln":
        arguments |= {"latent_dim": 2, "informative_priors_from": False}
    first, second = (nbln.fit(cells, seed=7, **arguments).get_map() for _ in range(2))
    assert first.identical(second)


def test_storage_makes_no_difference(cells):
    """Dense, CSR, CSC and a layer give the same fit."""
    arguments = dict(model="pln", latent_dim=2, informative_priors_from=False, n_steps=4)
    expected = nbln.fit(cells, progress=False, **arguments)
    for form in (sp.csr_matrix, sp.csc_matrix):
        other = cells.copy()
        other.X = form(cells.X)
        assert nbln.fit(other, progress=False, **arguments).mu.equals(expected.mu)
    layered = cells.copy()
    layered.layers["raw"], layered.X = cells.X, np.zeros_like(cells.X)
    assert nbln.fit(layered, layer="raw", progress=False, **arguments).mu.equals(expected.mu)
