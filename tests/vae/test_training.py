"""Training: each cell once an epoch, same numbers, early stopping, checkpoints, compilation."""

import logging

import anndata
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vae_cells import QUICK, annotated, fit, network

import nbln
from nbln.data.counts import Counts
from nbln.data.design import Design
from nbln.inference.checkpoint import Checkpoint
from nbln.vae import engine
from nbln.vae.cells import Cells, batches
from nbln.vae.config import VAEConfig
from nbln.vae.objective import EvidenceBound
from nbln.vae.pools import Pools

N_CELLS = 77  # no multiple of any batch or run here


@pytest.fixture(scope="module")
def adata():
    """Cells of two kinds that the count of their first gene names."""
    made = annotated(N_CELLS, 12)
    made.X[::2, 1:6] = 10 * made.X[::2, 1:6] + 10
    made.X[:, 0] = 1 + np.arange(N_CELLS)
    return made


@pytest.fixture
def short_runs(monkeypatch):
    """Files of these few cells are read in parts too."""
    monkeypatch.setattr("nbln.vae.pools.RUN", 16)


@pytest.fixture(params=["resident", "streamed", "on disk"])
def cells(request, adata, tmp_path, monkeypatch):
    given = adata
    if request.param != "resident":
        monkeypatch.setattr("nbln.vae.pools.RUN", 16)
    if request.param == "on disk":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        given = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    columns = ("batch", "age")
    counts = Counts.from_anndata(given, columns=columns)
    assert counts.on_disk == (request.param == "on disk")
    size = 2**31 if request.param == "resident" else 0
    made = Cells.of(counts, Design.of(counts.obs, "batch", None, ["age"]), "fit")
    return made, VAEConfig(batch_size=10, resident_bytes=size)


@pytest.mark.parametrize("batch_size", [3, 4, 7, 100])
@pytest.mark.parametrize("n_cells", [2, 3, 4, 5, 8, 13, 22, 101])
def test_no_batch_is_of_one_cell(n_cells, batch_size):
    order = np.random.default_rng(0).permutation(n_cells)
    dealt = batches(order, batch_size)
    assert dealt.shape[1] <= batch_size
    sizes = np.sum(dealt >= 0, axis=1)
    assert sizes.min() > 1
    assert np.ptp(sizes) <= 1
    np.testing.assert_array_equal(np.sort(dealt[dealt >= 0]), np.arange(n_cells))


@pytest.mark.parametrize("n_cells", [20, 39, 40])
def test_batches_of_one_shape(n_cells):
    dealt = batches(np.arange(n_cells), 10, 4)
    assert dealt.shape == (4, 10)
    np.testing.assert_array_equal(np.sort(dealt[dealt >= 0]), np.arange(n_cells))
    assert np.ptp(np.sum(dealt >= 0, axis=1)) <= 1


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_each_cell_is_seen_once_an_epoch(cells, share, adata):
    made, config = cells
    config = VAEConfig(**vars(config) | {"validation_share": share})
    held_out, train = engine.split(N_CELLS, config, 0)
    np.testing.assert_array_equal(np.sort(np.r_[held_out, train]), np.arange(N_CELLS))
    pools = Pools(made, train, config, 0)
    orders = []
    for epoch in range(3):
        seen, n_steps, shapes = [], 0, set()
        for resident, order in pools.of(epoch):
            shapes.add((resident.rows.shape, order.shape))
            for index in order:
                batch = resident.batch(index)
                here = np.asarray(batch.weight) > 0
                assert here.sum() > 1
                number = np.asarray(batch.counts)[here, 0].astype(int) - 1
                known = made.known.take(number)
                np.testing.assert_array_equal(np.asarray(batch.design)[here], known.design)
                np.testing.assert_array_equal(np.asarray(batch.counts)[here], adata.X[number])
                np.testing.assert_array_equal(
                    np.asarray(batch.groups.batch)[here], known.groups.batch
                )
                seen.extend(number)
                n_steps += 1
        assert len(shapes) == 1  # one program for all pools
        assert n_steps == pools.n_steps
        np.testing.assert_array_equal(np.sort(seen), train)
        orders.append(seen)
    assert orders[0] != orders[1]
    once, again = (np.concatenate([np.ravel(x) for _, x in pools.of(1)]) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def same_weights(one, two):
    for x, y in zip(jax.tree.leaves(one.network), jax.tree.leaves(two.network), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_seed_decides_the_numbers(adata):
    first, again, other = (fit(adata, seed=seed, batch_key="batch") for seed in (3, 3, 4))
    same_weights(first, again)
    np.testing.assert_array_equal(first.history, again.history)
    np.testing.assert_array_equal(first.get_latent(), again.get_latent())
    assert not np.allclose(first.get_latent(), other.get_latent())


@pytest.mark.slow
def test_a_streamed_fit_learns_the_same(adata, short_runs, tmp_path):
    settings = dict(n_epochs=25, learning_rate=3e-2, n_hidden=8, batch_size=16, weight_decay=0.0)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    whole = fit(adata, vae=VAEConfig(**settings))
    config = VAEConfig(**settings, resident_bytes=0)
    parts, disk = (fit(given, vae=config) for given in (adata, backed))
    same_weights(parts, disk)
    still = VAEConfig(**settings | {"n_epochs": 1, "learning_rate": 1e-9})
    learned = whole.get_elbo() - fit(adata, vae=still).get_elbo()
    assert learned > 1
    assert abs(parts.get_elbo() - whole.get_elbo()) < 0.3 * learned


def test_a_second_fit_of_the_same_shape_compiles_nothing(adata, short_runs, caplog):
    config = VAEConfig(n_epochs=2, n_hidden=8, batch_size=10, validation_share=0.3)
    streamed = VAEConfig(**vars(config) | {"resident_bytes": 0})
    for one in (config, streamed):
        fit(adata, vae=one, batch_key="batch")
    other = adata.copy()
    other.X[:] = other.X[::-1]
    with caplog.at_level(logging.WARNING), jax.log_compiles(True):
        for one in (config, streamed):
            fit(other, vae=one, batch_key="batch", seed=5)
    compiled = [r.getMessage()[:200] for r in caplog.records if "Compiling" in r.getMessage()]
    assert compiled == []


def test_the_best_epoch_is_kept(adata):
    config = VAEConfig(
        n_epochs=200, n_hidden=8, batch_size=10, validation_share=0.3, patience=4,
        learning_rate=0.05, weight_decay=0.0,
    )  # fmt: skip
    result = fit(adata, vae=config)
    history = result.history
    assert result.stopped
    assert result.best == int(np.argmax(history["elbo_validation"]))
    assert len(history) == result.best + 1 + config.patience
    assert len(result.held_out) == round(0.3 * N_CELLS)
    counts = Counts.from_anndata(adata)
    judge = engine.Judge(
        Cells.of(counts, Design.of(counts.obs, None, None, ()), "fit"), result.held_out
    )
    elbo = engine._evaluate(
        result.network, EvidenceBound(), judge._resident, judge._order, jax.random.key(0)
    ).elbo
    assert float(elbo) == pytest.approx(history["elbo_validation"][result.best], rel=1e-5)


def test_without_held_out_cells_the_last_epoch_is_kept(adata):
    """So it is where a share of very few cells is none."""
    config = VAEConfig(n_epochs=6, n_hidden=8, validation_share=0.005, patience=1)
    result = fit(adata, vae=config)
    assert len(result.held_out) == 0
    assert not result.stopped
    assert (len(result.history), result.best) == (6, 5)


def test_a_rate_too_high_names_step_and_parameter(adata):
    config = VAEConfig(n_epochs=20, n_hidden=8, batch_size=10, learning_rate=1e30)
    message = r"model='scvi'\): step \d+ gave a gradient that is not finite in .*learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        fit(adata, vae=config)


def test_a_number_that_is_none_is_named(adata):
    counts = Counts.from_anndata(adata)
    made = Cells.of(counts, Design.of(counts.obs, None, None, ()), "fit")
    model = network(n_genes=12, n_columns=0)
    model = eqx.tree_at(
        lambda m: m.encoder.log_variance.bias, model, jnp.full(2, jnp.nan, jnp.float32)
    )
    with pytest.raises(FloatingPointError, match=r"step 1 gave.*encoder\..*weight"):
        engine.fit_vae(model, EvidenceBound(), made, QUICK)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupted_fit_ends_with_the_same_numbers(adata, streamed, short_runs, tmp_path):
    config = VAEConfig(
        n_epochs=6, n_hidden=8, batch_size=10, validation_share=0.2,
        resident_bytes=0 if streamed else 2**31,
    )  # fmt: skip
    whole = fit(adata, vae=config)
    path, run, calls = tmp_path / "run.ckpt", engine._run, iter(range(1000))

    def interrupted(*arguments):
        if next(calls) == (9 if streamed else 4):
            raise KeyboardInterrupt
        return run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(adata, vae=config, checkpoint=Checkpoint(path, 3600.0))
    assert path.exists()
    with pytest.raises(ValueError, match="of another run"):
        fit(adata, vae=config, checkpoint=path, seed=1)
    resumed = fit(adata, vae=config, checkpoint=path)
    same_weights(whole, resumed)
    np.testing.assert_array_equal(whole.history, resumed.history)
    assert (whole.best, list(whole.held_out)) == (resumed.best, list(resumed.held_out))
    assert list(tmp_path.iterdir()) == []


def test_a_kept_checkpoint_ends_the_same_call_at_once(adata, tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path / "run.ckpt", keep=True)
    whole = fit(adata, checkpoint=kept)
    monkeypatch.setattr(engine, "_run", None)
    same_weights(whole, fit(adata, checkpoint=kept))


def test_what_the_number_of_cells_decides():
    few, many, very = (VAEConfig().of(n, False) for n in (100, 10_000, 1_000_000))
    assert (few.n_epochs, few.validation_share, few.weight_decay) == (120, 0.0, 20.0)
    assert (many.n_epochs, many.validation_share, many.weight_decay) == (60, 0.1, 0.2)
    assert very.n_epochs == 10
    assert VAEConfig().of(100, True).learning_rate < few.learning_rate
    given = nbln.VAEConfig(n_epochs=5, weight_decay=0.0, validation_share=0.2).of(100, False)
    assert (given.n_epochs, given.weight_decay, given.validation_share) == (5, 0.0, 0.2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_hidden": 0}, r"VAEConfig\(n_hidden=0\).*at least 1"),
        ({"batch_size": 2}, r"VAEConfig\(batch_size=2\).*at least 3"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0\).*above 0"),
        ({"dropout": 1.0}, r"dropout=1\.0\).*at most 0\.95"),
        ({"validation_share": 0.6}, r"validation_share=0\.6\).*at most 0\.5"),
        ({"n_epochs": 2.5}, r"n_epochs=2\.5\).*whole number"),
        ({"patience": 0}, r"patience=0\)"),
    ],
)
def test_settings_check_themselves(setting, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**setting)
