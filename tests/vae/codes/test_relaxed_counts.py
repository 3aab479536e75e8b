"""Draws of counts: exact ones against the pmf, relaxed ones against their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nbln.vae.codes import ContinuousTime, Gumbel, annealed
from nbln.vae.codes.spikes import NegativeBinomialCounts, PoissonCounts

DRAWS = 20_000


def times(posterior):
    """The posterior of DRAWS equal cells."""
    return jax.tree.map(lambda leaf: jnp.full((DRAWS,), leaf, jnp.float32), posterior)


def draws(posterior, relaxation, seed=0):
    drawn = jax.jit(lambda key: times(posterior).draw(key, relaxation))(jax.random.key(seed))
    return np.asarray(drawn, float)


def soft(kind, temperature, n, **keywords):
    return kind(jnp.float32(temperature), n, **keywords)


def p_value(z, pmf):
    """Of a chi-square test; the tail is one class."""
    expected = DRAWS * pmf(np.arange(400))
    last = np.flatnonzero(expected > 10)[-1]
    seen = np.bincount(z.astype(int), minlength=400)
    fold = [np.append(v[:last], v[last:].sum()) for v in (seen, expected)]
    keep = fold[1] > 10
    fold = [np.append(v[keep], v[~keep].sum()) for v in fold]
    return stats.chisquare(fold[0], fold[1] * fold[0].sum() / fold[1].sum() + 1e-9).pvalue


@pytest.mark.parametrize(
    "relaxation",
    [
        None,
        soft(Gumbel, 0.5, 24, straight_through=True),
        soft(ContinuousTime, 0.05, 24, straight_through=True),
    ],
    ids=["exact", "gumbel", "continuous time"],
)
@pytest.mark.parametrize(("log_r", "logit_p"), [(-3.0, 0.0), (0.0, 0.5), (1.6, 0.9)])
def test_hard_draws_are_negative_binomial(relaxation, log_r, logit_p):
    z = draws(NegativeBinomialCounts(log_r, logit_p), relaxation)
    np.testing.assert_allclose(z, np.round(z), atol=1e-5)
    z = np.round(z)
    pmf = stats.nbinom(np.exp(log_r), 1 / (1 + np.exp(-logit_p))).pmf
    assert p_value(z, pmf) > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("rate", [0.3, 1.5])
def test_moments_in_continuous_time(temperature, rate):
    z = draws(PoissonCounts(np.log(rate)), soft(ContinuousTime, temperature, 32))
    softplus = np.logaddexp(0, 1 / temperature)
    mean = rate * temperature * softplus
    variance = rate * temperature * (softplus - 1 / (1 + np.exp(-1 / temperature)))
    assert z.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / DRAWS) + 0.002 * mean)
    assert z.var() == pytest.approx(variance, rel=0.04)


@pytest.mark.parametrize("kind", [Gumbel, ContinuousTime])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("rate", [4.0, 10.0, 300.0])
def test_no_rate_is_too_large(kind, hard, rate):
    """With five places alone the mean of a rate of 10 would be 3.5."""
    relaxation = soft(kind, 0.05, 5, straight_through=hard)
    assert relaxation.largest_rate < rate
    z = draws(PoissonCounts(np.log(rate)), relaxation)
    assert z.mean() == pytest.approx(rate, rel=0.01)
    excess = rate - float(relaxation.largest_rate)
    assert z.var() == pytest.approx(rate - excess / (1 + excess), rel=0.06)
    assert z.min() >= 0


@pytest.mark.parametrize("kind", [Gumbel, ContinuousTime])
def test_cold_draws_are_poisson(kind):
    z = draws(PoissonCounts(np.log(2.0)), soft(kind, 0.02, 16))
    assert z.mean() == pytest.approx(2, abs=0.03)
    assert z.var() == pytest.approx(2, rel=0.04)


@pytest.mark.parametrize("kind", [Gumbel, ContinuousTime])
@pytest.mark.parametrize("parameters", [(0.3, 0.2), (2.5, -1.5), (-2.0, -0.5)])
def test_derivatives_are_finite_differences(kind, parameters):
    """Of a curved objective, with the same noise, in float64; some rates are beyond all places."""
    with jax.enable_x64(True):
        relaxation = kind(jnp.asarray(0.7), 16)

        @jax.jit
        def objective(v):
            posterior = NegativeBinomialCounts(jnp.full(200, v[0]), jnp.full(200, v[1]))
            return jnp.mean(jnp.sin(posterior.draw(jax.random.key(1), relaxation)))

        at = jnp.asarray(parameters)
        steps = 1e-5 * np.eye(2)
        differences = [(objective(at + s) - objective(at - s)) / 2e-5 for s in steps]
        np.testing.assert_allclose(jax.grad(objective)(at), differences, rtol=1e-5, atol=1e-8)


def test_straight_through_has_the_relaxed_derivative():
    def slope(hard):
        relaxation = soft(Gumbel, 0.5, 16, straight_through=hard)
        return jax.grad(lambda v: relaxation.counts(jax.random.key(0), v).sum())(jnp.ones(50))

    np.testing.assert_allclose(slope(True), slope(False), rtol=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_relaxed_categories(hard):
    probability = np.array([0.1, 0.2, 0.7])
    relaxation = soft(Gumbel, 0.1, 2, straight_through=hard)
    logits = jnp.broadcast_to(jnp.log(probability), (DRAWS, 3))
    z = np.asarray(relaxation.categories(jax.random.key(0), logits))
    np.testing.assert_allclose(z.sum(-1), 1, atol=1e-5)
    assert stats.chisquare(np.bincount(z.argmax(-1)), DRAWS * probability).pvalue > 1e-4
    assert not hard or set(np.unique(np.round(z, 5))) == {0.0, 1.0}


def test_temperatures():
    assert [round(float(annealed(epoch)), 3) for epoch in (0, 125, 250, 9999)] == [
        1,
        0.525,
        0.05,
        0.05,
    ]


@pytest.mark.parametrize(
    ("kind", "n", "says"), [(Gumbel, 1, "Gumbel(n_counts=1)"), (ContinuousTime, 0, "n_events=0")]
)
def test_too_few_places_are_refused(kind, n, says):
    with pytest.raises(ValueError, match="must be a whole number") as error:
        soft(kind, 1, n)
    assert says in str(error.value)
