"""Scales of effects: learned by expectation, drawn from their conditional posterior."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nbln.priors.effects import (
    FIXED_DEGREES,
    RANDOM_DEGREES,
    SMALLEST_SD,
    EffectScales,
    EffectsPrior,
)

PRIOR = EffectsPrior(2, (3, 4))  # two fixed covariates, random intercepts of 3 and 4 levels
SIZES, DEGREES = (1, 1, 3, 4), np.repeat([FIXED_DEGREES, RANDOM_DEGREES], 2)
G = 50


def scales():
    variance = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, (G, 4)))
    return EffectScales(variance, jnp.array([0.5, 2.0, 0.2, 0.4]))


def test_each_effect_has_the_precision_of_its_term():
    found = np.asarray(PRIOR.precision(scales()))
    assert found.shape == (G, PRIOR.n_covariates) == (G, 9)
    variance = np.repeat(scales().variance, SIZES, axis=1)
    np.testing.assert_allclose(found, 1 / variance, rtol=1e-6)


def test_learning_finds_what_effects_came_from():
    """Of many genes with known effects the typical variance is that of the simulation."""
    rng = np.random.default_rng(1)
    n, typical = 4000, np.array([0.5, 0.01, 0.3, 0.05])
    variance = typical * DEGREES / rng.chisquare(DEGREES, (n, 4))
    sd = np.repeat(np.sqrt(variance), SIZES, axis=1)
    effects = jnp.asarray(sd * rng.normal(size=(n, 9)), jnp.float32)
    at = PRIOR.start(n)
    for _ in range(300):
        at = PRIOR.learned(at, effects, jnp.zeros_like(effects))
    np.testing.assert_allclose(at.typical, typical, rtol=0.12)
    assert np.corrcoef(np.log(at.variance[:, 2]), np.log(variance[:, 2]))[0, 1] > 0.6


def test_effects_of_none_do_not_vanish_for_ever():
    at, nothing = PRIOR.start(G), jnp.zeros((G, 9))
    for _ in range(200):
        at = PRIOR.learned(at, nothing, nothing)
    assert (at.typical >= SMALLEST_SD**2).all()
    assert (at.variance > 0).all()


def test_draws_are_of_the_conditional_posterior():
    effects = jnp.asarray(np.random.default_rng(2).normal(0, 0.6, (G, 9)), jnp.float32)
    at, keys = scales(), jax.random.split(jax.random.key(0), 3000)
    drawn = jax.vmap(lambda key: PRIOR.draw(key, at, effects))(keys)
    squares = np.asarray(effects**2, float)
    for term, columns in ((0, slice(0, 1)), (3, slice(5, 9))):
        rate = (DEGREES[term] * float(at.typical[term]) + squares[7, columns].sum()) / 2
        own = stats.invgamma((DEGREES[term] + SIZES[term]) / 2, scale=rate)
        values = np.asarray(drawn.variance[:, 7, term], float)
        assert stats.kstest(values, own.cdf).pvalue > 1e-3
        # Of the typical variance given the variances drawn with it, a probability each time.
        rest = DEGREES[term] / 2 * (1 / np.asarray(drawn.variance[:, :, term], float)).sum(axis=1)
        shared = stats.gamma(DEGREES[term] * G / 2 + 1, scale=1 / rest)
        share = shared.cdf(np.asarray(drawn.typical[:, term], float))
        assert stats.kstest(share, "uniform").pvalue > 1e-3
