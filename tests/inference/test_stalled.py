"""A fit that goes in circles is told within twenty iterations; one that converges slowly is not."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

import nbln
from nbln.inference.laplace import engine
from nbln.inference.laplace.stalled import WINDOW, stalled
from nbln.inference.laplace.update import Change, Info
from nbln.priors.shrinkage import Phase

TOL = 3e-3


def history(changes, shrank=(), settled=1):
    phase = Phase(np.array(50), np.array(settled))
    return [
        Info(
            Change(change, TOL / 10, TOL / 10, TOL / 10),
            phase,
            np.array(True),
            np.ones(2),
            np.array([i in shrank, False]),
            np.zeros(2, int),
            np.zeros(3, bool),
        )
        for i, change in enumerate(changes)
    ]


def alternating(n):
    return np.where(np.arange(n) % 2, 0.2, 0.17)


@pytest.mark.parametrize("rate", [0.3, 0.9, 0.98])
def test_a_fit_that_comes_closer_is_left_alone(rate):
    assert stalled(history(0.5 * rate ** np.arange(40)), TOL) is None


def test_a_circle_is_told_with_what_moves_and_what_to_do():
    said = stalled(history(alternating(2 * WINDOW)), TOL)
    assert said is not None
    assert said.startswith("loadings still changes by")
    assert "latent_dim" in said


def test_changes_below_the_tolerance_are_none():
    assert stalled(history(alternating(40) * TOL), TOL) is None


def test_columns_that_shrink_or_form_have_a_reason_to_move():
    assert stalled(history(alternating(40), shrank=[25]), TOL) is None
    assert stalled(history(alternating(40), settled=0), TOL) is None
    assert stalled(history(alternating(40), shrank=[10]), TOL) is not None


@pytest.mark.parametrize("kind", ["horseshoe_sparse", "gaussian", "none"])
def test_the_engine_says_it_once(monkeypatch, caplog, kind):
    update = engine.m_step

    def circling(model, state, sums, tails):
        state, info = update(model, state, sums, tails)
        change = info.change._replace(mu=jnp.asarray(0.3))
        return state, info._replace(change=change, shrank=jnp.zeros_like(info.shrank))

    monkeypatch.setattr(engine, "m_step", circling)
    adata = nbln.datasets.simulate(100, 40, 2, seed=1)
    priors = {"loadings": {"type": kind}}
    with caplog.at_level(logging.WARNING, logger="nbln"):
        result = nbln.fit(adata, latent_dim=2, n_steps=60, progress=False, priors=priors)
    assert not result.converged
    said = [record.message for record in caplog.records if "come closer" in record.message]
    assert len(said) == 1
    assert "mu still changes by 3.0e-01" in said[0]
