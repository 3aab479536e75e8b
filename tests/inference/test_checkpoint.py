"""A fit that was interrupted goes on from its checkpoint and ends with the same numbers."""

import logging
import os
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import nbln
from nbln.inference import checkpoint
from nbln.inference.checkpoint import Checkpoint, Saver, Snapshot
from nbln.inference.laplace import engine as laplace
from nbln.inference.laplace import iterations
from nbln.inference.svi import engine as svi

STREAMED = {
    "svi": nbln.SVIConfig(resident_bytes=0),
    "laplace": nbln.LaplaceConfig(resident_bytes=0, chunk_bytes=8000),
}


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(150, 60, 2, seed=1)


def fit(adata, **keywords):
    given = {"svi": nbln.SVIConfig()} | keywords
    return nbln.fit(adata, latent_dim=3, progress=False, **given)


@pytest.fixture(scope="module")
def plain(adata):
    return fit(adata)


@pytest.fixture(scope="module")
def streamed(adata):
    return fit(adata, **STREAMED)


def same(a, b):
    parts = (a.parameters, a.cells, a.loadings, a.spread.normal, a.history)
    others = (b.parameters, b.cells, b.loadings, b.spread.normal, b.history)
    for x, y in zip(jax.tree.leaves(parts), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    # The loss is told, never used: how its sum is rounded differs between processes.
    np.testing.assert_allclose(a.cascade_source.losses, b.cascade_source.losses, rtol=1e-6)


def interrupt(patch, module, name, at):
    """Ctrl-C in call number `at` of a function."""
    function, calls = getattr(module, name), iter(range(10_000))

    def interrupted(*arguments):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*arguments)

    patch.setattr(module, name, interrupted)


@pytest.mark.parametrize(
    ("module", "name", "at"),
    [
        pytest.param(svi, "_run_block", 0, marks=pytest.mark.slow),
        (svi, "_run_block", 5),
        pytest.param(laplace, "first_state", 0, marks=pytest.mark.slow),
        pytest.param(iterations, "update", 0, marks=pytest.mark.slow),
        (iterations, "update", 7),
        pytest.param(laplace.pooled, "newton", 3, marks=pytest.mark.slow),
        (laplace.pooled, "newton", 11),
        (laplace, "_finish", 0),
    ],
)
def test_an_interrupted_fit_ends_with_the_same_numbers(adata, plain, tmp_path, module, name, at):
    path = tmp_path / "run.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, module, name, at)
        with pytest.raises(KeyboardInterrupt):
            fit(adata, checkpoint=Checkpoint(path, 3600.0))
    assert path.exists() or at == 0
    same(plain, fit(adata, checkpoint=path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "name"), [(svi, "_run_block"), (laplace.pooled, "newton")])
def test_counts_read_in_parts_go_on_too(adata, streamed, tmp_path, module, name):
    path = tmp_path / "run.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, module, name, 4)
        with pytest.raises(KeyboardInterrupt):
            fit(adata, checkpoint=path, **STREAMED)
    same(streamed, fit(adata, checkpoint=path, **STREAMED))


def test_a_kept_checkpoint_ends_the_same_call_at_once(adata, plain, tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path / "run.ckpt", keep=True)
    fit(adata, checkpoint=kept)
    monkeypatch.setattr(svi, "_run_block", None)
    monkeypatch.setattr(iterations, "update", None)
    same(plain, fit(adata, checkpoint=kept))
    with pytest.raises(ValueError, match="of another run"):
        fit(adata, checkpoint=kept, seed=1)
    with pytest.raises(ValueError, match="of another run"):
        fit(nbln.datasets.simulate(150, 60, 2, seed=2), checkpoint=kept)


def test_a_damaged_checkpoint_is_refused(adata, plain, tmp_path):
    kept = Checkpoint(tmp_path / "run.ckpt", keep=True)
    fit(adata, checkpoint=kept)
    whole, true = kept.path.read_bytes(), checkpoint._read(kept.path)
    random.seed(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        kept.path.write_bytes(damaged)
        try:
            arrays = checkpoint._read(kept.path)
        except ValueError:
            refused += 1
        else:
            assert all(np.array_equal(arrays[name], x) for name, x in true.items())
    assert refused > 150
    kept.path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="remove it, or name another file"):
        fit(adata, checkpoint=kept)


def test_a_folder_that_is_missing_is_told_before_the_fit(adata, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        fit(adata, checkpoint=tmp_path / "missing" / "run.ckpt")


def test_a_full_disk_does_not_stop_a_run(tmp_path, monkeypatch, caplog):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.atomic, "replacing", full)
    with caplog.at_level(logging.WARNING), Saver(Checkpoint(tmp_path / "x", 0.0)) as saver:
        saver.stage("svi").note(lambda: Snapshot(np.zeros(3)))
    assert "could not be written" in caplog.text


def test_a_run_that_diverged_leaves_no_checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"
    saver = Saver(Checkpoint(path, 0.0))
    saver.stage("svi").note(lambda: Snapshot(np.zeros(3)))
    assert path.exists()
    saver.__exit__(FloatingPointError, FloatingPointError(), None)
    assert not path.exists()


SCRIPT = """
import sys, nbln
adata = nbln.datasets.simulate(150, 60, 2, seed=1)
result = nbln.fit(adata, latent_dim=3, progress=False, checkpoint=nbln.Checkpoint(sys.argv[1], 0.0))
result.save(sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_ten_random_moments(adata, tmp_path):
    path, out = tmp_path / "run.ckpt", tmp_path / "fit.nc"
    command = [sys.executable, "-c", SCRIPT, path, out]
    whole = tmp_path / "whole.nc"
    began = time.monotonic()
    subprocess.run([*command[:-1], whole], check=True, env=os.environ)
    seconds = time.monotonic() - began
    random.seed(3)
    n_killed = 0
    for _ in range(10):
        with subprocess.Popen(command) as process:
            try:
                process.wait(seconds * random.uniform(0.3, 0.95))
            except subprocess.TimeoutExpired:
                process.kill()
                n_killed += 1
    subprocess.run(command, check=True)
    assert n_killed > 2
    same(nbln.load(whole), nbln.load(out))
