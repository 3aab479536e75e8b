"""Scales of effects: learned by expectation, drawn from their conditional posterior."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nbln.priors.effects import DEGREES, SMALLEST_SD, EffectScales, EffectsPrior

PRIOR = EffectsPrior(2, (3, 4))
G = 50


def scales():
    rng = np.random.default_rng(0)
    variance = jnp.asarray(rng.uniform(0.1, 2, (G, 2)))
    return EffectScales(jnp.array([0.5, 2.0]), variance, jnp.array([0.2, 0.4]))


def test_each_effect_has_the_precision_of_its_kind():
    found = np.asarray(PRIOR.precision(scales()))
    assert found.shape == (G, PRIOR.n_covariates) == (G, 9)
    np.testing.assert_allclose(found[:, :2], [[4.0, 0.25]] * G, rtol=1e-6)
    variance = np.asarray(scales().variance)
    np.testing.assert_allclose(found[:, 2:5], 1 / variance[:, [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(found[:, 5:], 1 / variance[:, [1] * 4], rtol=1e-6)


def test_learning_finds_what_effects_came_from():
    """Of many genes with known effects the typical variance is that of the simulation."""
    rng = np.random.default_rng(1)
    n, typical = 4000, np.array([0.3, 0.05])
    variance = typical * DEGREES / rng.chisquare(DEGREES, (n, 2))
    levels = [rng.normal(size=(n, k)) * np.sqrt(variance[:, [i]]) for i, k in enumerate((3, 4))]
    effects = jnp.asarray(np.hstack([rng.normal(size=(n, 2)) * [0.7, 0.1], *levels]))
    at = PRIOR.start(n)
    for _ in range(300):
        at = PRIOR.learned(at, effects, jnp.zeros_like(effects))
    np.testing.assert_allclose(at.sd, [0.7, 0.1], rtol=0.05)
    np.testing.assert_allclose(at.typical, typical, rtol=0.1)
    assert np.corrcoef(np.log(at.variance[:, 0]), np.log(variance[:, 0]))[0, 1] > 0.6


def test_effects_of_none_do_not_vanish_for_ever():
    at = PRIOR.learned(PRIOR.start(G), jnp.zeros((G, 9)), jnp.zeros((G, 9)))
    for _ in range(200):
        at = PRIOR.learned(at, jnp.zeros((G, 9)), jnp.zeros((G, 9)))
    assert (at.sd >= SMALLEST_SD).all() and (at.typical >= SMALLEST_SD**2).all()


def test_draws_are_of_the_conditional_posterior():
    effects = jnp.asarray(np.random.default_rng(2).normal(0, 0.6, (G, 9)), jnp.float32)
    at, n = scales(), 3000
    drawn = jax.vmap(lambda key: PRIOR.draw(key, at, effects))(
        jax.random.split(jax.random.key(0), n)
    )
    squares = np.asarray(effects**2, float)
    s2 = stats.invgamma((G - 1) / 2, scale=squares[:, 0].sum() / 2)
    assert stats.kstest(np.asarray(drawn.sd[:, 0], float) ** 2, s2.cdf).pvalue > 1e-3
    rate = (DEGREES * 0.4 + squares[7, 5:].sum()) / 2
    own = stats.invgamma((DEGREES + 4) / 2, scale=rate)
    assert stats.kstest(np.asarray(drawn.variance[:, 7, 1], float), own.cdf).pvalue > 1e-3
    # Of the typical variance given the variances that were drawn with it: a probability of each.
    rest = DEGREES / 2 * (1 / np.asarray(drawn.variance[:, :, 0], float)).sum(axis=1)
    share = stats.gamma(DEGREES * G / 2 + 1, scale=1 / rest).cdf(np.asarray(drawn.typical[:, 0]))
    assert stats.kstest(share, "uniform").pvalue > 1e-3
