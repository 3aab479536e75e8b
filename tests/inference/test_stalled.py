"""A fit that goes in circles is told so soon; one that converges slowly is not."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

import nbln
from nbln.inference.laplace import iterations
from nbln.inference.laplace.stalled import WINDOW, stalled
from nbln.inference.laplace.update import Change, Info
from nbln.priors.shrinkage import Phase

TOL = 3e-3


def history(changes):
    phase = Phase(np.array(50), np.array(0))
    return [
        Info(
            Change(change, TOL / 10, TOL / 10, TOL / 10),
            phase,
            np.array(True),
            np.ones(2),
            np.array([True, False]),
            np.zeros(2, int),
            np.zeros(3, bool),
        )
        for change in changes
    ]


def alternating(n):
    return np.where(np.arange(n) % 2, 0.2, 0.17)


@pytest.mark.parametrize("rate", [0.3, 0.9, 0.98])
def test_a_fit_that_comes_closer_is_left_alone(rate):
    assert stalled(history(0.5 * rate ** np.arange(40)), TOL) is None


def test_a_fit_that_comes_closer_in_turns_is_left_alone():
    turning = 0.5 * 0.95 ** np.arange(40) * np.where(np.arange(40) % 3, 1, 1.5)
    assert all(stalled(history(turning[:n]), TOL) is None for n in range(40))


def test_columns_that_shrink_one_after_another_are_left_alone():
    waves = 0.02 + 0.1 * np.abs(np.sin(np.arange(60) * np.pi / 10))
    assert all(stalled(history(waves[:n]), TOL) is None for n in range(60))


def test_a_circle_is_told_with_what_moves_and_what_to_do():
    said = stalled(history(alternating(2 * WINDOW)), TOL)
    assert said is not None
    assert said.startswith("loadings still changes by")
    assert "latent_dim" in said


def test_a_circle_is_told_while_columns_neither_settle_nor_stop_shrinking():
    turns = 6 * [0.06, 0.16, 0.19, 0.23, 0.27, 0.32]
    assert any(stalled(history(turns[:n]), TOL) for n in range(len(turns)))


def test_a_circle_is_told_soon_after_it_begins():
    closer = 0.5 * 0.8 ** np.arange(30)
    told = [stalled(history([*closer, *alternating(n)]), TOL) is not None for n in range(30)]
    assert not any(told[:8])
    assert told.index(True) <= 20


@pytest.mark.parametrize("largest", [TOL, 2.5 * TOL])
def test_changes_about_the_tolerance_are_none(largest):
    assert stalled(history(alternating(40) / 0.2 * largest), TOL) is None


@pytest.mark.parametrize("kind", ["horseshoe_sparse", "gaussian", "none"])
def test_the_engine_says_it_once(monkeypatch, caplog, kind):
    update = iterations.update

    def circling(model, state, sums, tails):
        state, info = update(model, state, sums, tails)
        mu = jnp.where(info.phase.iteration % 2, 0.3, 0.2)
        return state, info._replace(change=info.change._replace(mu=mu))

    monkeypatch.setattr(iterations, "update", circling)
    adata = nbln.datasets.simulate(100, 40, 2, seed=1)
    priors = {"loadings": {"type": kind}}
    with caplog.at_level(logging.WARNING, logger="nbln"):
        result = nbln.fit(adata, latent_dim=2, n_steps=60, progress=False, priors=priors)
    assert not result.converged
    said = [record.message for record in caplog.records if "come closer" in record.message]
    assert len(said) == 1
    assert "mu still changes by" in said[0]
