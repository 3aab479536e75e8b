"""Chains: the same draws from the same seed, on disk as in memory, killed or not."""

import jax
import numpy as np
import pytest

import nbln
from nbln.inference.checkpoint import Saver
from nbln.inference.sampler import engine
from nbln.inference.sampler.engine import SamplerConfig
from nbln.results import sampling

SHORT = SamplerConfig(n_draws=4, n_chains=2, n_warmup=2, seed=3)


@pytest.fixture(scope="module")
def fit():
    adata = nbln.datasets.simulate(120, 40, 2, seed=1)
    return nbln.fit(adata, latent_dim=3, progress=False)


@pytest.fixture(scope="module")
def start(fit):
    return sampling._start(fit, fit.fitted.data(None), sampling.LATENT)


@pytest.fixture(scope="module")
def plain(fit, start):
    return engine.sample(fit.fitted.data(None), start, SHORT)


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a.draws), jax.tree.leaves(b.draws), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_every_sweep_is_the_same_program(fit, start, monkeypatch):
    """Types that change in the first sweep would have each of its steps compiled twice."""
    seen = set()
    sweep = engine.sweep

    def noted(key, target, stream, state, cells, *flags):
        leaves = jax.tree.leaves((state, cells, flags))
        seen.add(tuple((x.shape, x.dtype, x.weak_type) for x in leaves))
        return sweep(key, target, stream, state, cells, *flags)

    monkeypatch.setattr(engine, "sweep", noted)
    engine.sample(fit.fitted.data(None), start, SHORT)
    assert len(seen) == 1


def test_shapes(plain, start):
    n_genes, k = start.parameters.W.shape
    assert plain.draws.mu.shape == (2, 4, n_genes)
    assert plain.draws.W.shape == (2, 4, n_genes, k)
    assert plain.draws.channel["log_r"].shape == (2, 4, n_genes)
    assert plain.z_mean.shape == (120, k + 1)  # and the capture loss
    assert np.isfinite(plain.z_sd).all()


def test_chains_differ_and_seeds_repeat(fit, start, plain):
    again = engine.sample(fit.fitted.data(None), start, SHORT)
    same(plain, again, rtol=0)
    assert np.abs(plain.draws.W[0] - plain.draws.W[1]).max() > 1e-3


def test_counts_read_in_parts_give_the_same_draws(fit, start, plain, monkeypatch):
    monkeypatch.setattr(engine, "RESIDENT_BYTES", 0)
    parts = engine.sample(fit.fitted.data(None), start, SHORT)
    same(plain, parts, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_a_killed_run_goes_on_with_the_same_draws(fit, start, plain, tmp_path, monkeypatch, at):
    path = tmp_path / "run"
    advance, count = engine._advance, iter(range(100))

    def killed(*arguments):
        if next(count) == at:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(engine, "_advance", killed)
    with pytest.raises(KeyboardInterrupt), Saver(path) as saver:
        engine.sample(fit.fitted.data(None), start, SHORT, saver=saver)
    assert path.exists()
    monkeypatch.setattr(engine, "_advance", advance)
    with Saver(path) as saver:
        went_on = engine.sample(fit.fitted.data(None), start, SHORT, saver=saver)
    same(plain, went_on, rtol=0)
    np.testing.assert_allclose(plain.z_mean, went_on.z_mean)
    assert not path.exists()
