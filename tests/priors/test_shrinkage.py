"""When a column falls: phases, further steps, the edge of noise, settings out of range."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import nbln
from nbln.priors.columnwise import HorseshoeColumnwise
from nbln.priors.shrinkage import RULES, Phase, Shrinkage
from nbln.priors.sparse import HorseshoeSparse

N_GENES = 100
DEFAULT = Shrinkage()


def test_each_constant_has_a_rule_and_a_source():
    fields = [field.name for field in dataclasses.fields(Shrinkage)]
    assert set(RULES) == set(fields)
    document = Shrinkage.__doc__
    for name in fields:
        assert name in document


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"noise_edge": -1.0}, r"Shrinkage\(noise_edge=-1\.0\): must be a number at least 0"),
        ({"entry_iterations": 0}, r"Shrinkage\(entry_iterations=0\).*whole number, at least 1"),
        ({"signal_share": 2.0}, r"signal_share=2\.0\).*at most 1"),
        ({"smallest_scale": 0.0}, r"smallest_scale=0\.0\).*above 0"),
        ({"noise_steps": True}, r"noise_steps=True\).*whole number"),
        ({"least_inclusion": 0.6}, r"least_inclusion=0\.6\): must not exceed most_inclusion=0\.5"),
        ({"smallest_scale": 0.1}, r"must not exceed smallest_signal"),
    ],
)
def test_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        nbln.Shrinkage(**setting)


@pytest.mark.parametrize(
    ("n_cells", "expected"),
    [(10_000_000, DEFAULT.largest_share), (200, 1 - DEFAULT.noise_edge * 0.5), (20, 0.0)],
)
def test_share_of_the_posterior_variance(n_cells, expected):
    share = DEFAULT.posterior_share(jnp.asarray(float(n_cells)), N_GENES)
    assert float(share) == pytest.approx(expected, abs=1e-6)


def test_further_steps():
    """Only columns that fall take them: small ones one, those of noise five."""
    scales = jnp.asarray([1.0, 0.2, 1.0, 0.2])
    sizes = jnp.asarray([0.9, 0.9, 1.1, 1.1])  # of what the scales lead one to expect
    norms = sizes * N_GENES * scales**2
    for weak, steps in ((False, [0, 1, 0, 0]), (True, [5, 5, 0, 0])):
        sped, taken = DEFAULT.further_steps(norms, scales, jnp.full(4, weak), N_GENES)
        np.testing.assert_array_equal(taken, steps)
        np.testing.assert_allclose(sped, norms * sizes ** np.array(steps), rtol=1e-6)


def test_a_fixed_point_stays():
    scales = jnp.asarray([1.0, 0.1])
    norms = N_GENES * scales**2
    sped, taken = DEFAULT.further_steps(norms, scales, jnp.asarray([True, True]), N_GENES)
    np.testing.assert_allclose(sped, norms)
    assert not np.any(taken)


def phases(changes):
    phase, seen = Phase.start(), []
    for change in changes:
        seen.append(phase)
        phase = phase.after(jnp.asarray(change), DEFAULT)
    return [*seen, phase]


def test_columns_settle_only_after_they_have_formed():
    early = phases([0.0] * DEFAULT.forming_iterations)
    assert all(bool(phase.forming(DEFAULT)) for phase in early[:-1])
    assert not bool(early[-1].forming(DEFAULT))
    assert not any(bool(phase.settled) for phase in early)


def test_phases_follow_each_other_and_do_not_go_back():
    changes = [1.0] * 7 + [0.004] + [1.0] * 5
    reached = phases(changes)
    settled = [bool(phase.settled) for phase in reached]
    assert settled == [False] * 8 + [True] * 6
    by_entry = [bool(phase.entry_by_entry) for phase in reached]
    assert by_entry == [False] * 9 + [True] * 5
    may_stop = [bool(phase.entries_settled(DEFAULT)) for phase in reached]
    assert may_stop == [False] * 11 + [True] * 3


def test_who_may_stop_when():
    forming = Phase.start()
    assert bool(HorseshoeColumnwise().may_stop(forming))
    assert not bool(HorseshoeSparse().may_stop(forming))
    last = Phase(jnp.asarray(20), jnp.asarray(DEFAULT.entry_iterations))
    assert bool(HorseshoeSparse().may_stop(last))


def test_a_users_shrinkage_reaches_the_fit():
    adata = nbln.datasets.simulate(300, 60, 2, seed=4)
    loadings = {"type": "horseshoe_sparse", "shrinkage": Shrinkage(signal_share=0.99)}
    result = nbln.fit(adata, latent_dim=4, priors={"loadings": loadings}, progress=False)
    assert result.loadings.prior.shrinkage.signal_share == 0.99
    assert result.w_prior_diagnostics["effective_rank"] == 1
    with pytest.raises(TypeError, match=r"shrinkage=0\.5 must be an nbln\.Shrinkage"):
        nbln.fit(adata, priors={"loadings": {"type": "none", "shrinkage": 0.5}}, progress=False)
