"""Cells of a data set have the posterior of a model whose loadings are scaled by its activities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import random_problem

from nbln.posterior import evidence, importance, mode
from nbln.posterior.mode import Parameters

LOG_S = np.array([[0.4, -0.7], [-0.4, 0.7]], np.float32)


@pytest.mark.parametrize("columns", ["latent", "known", "flat"])
def test_posterior_and_evidence(columns):
    problem = random_problem("nb", columns, n_cells=6)
    plain, cells = problem.kernel("float32")
    code = np.arange(6) % 2
    own = plain.mu, plain.W, plain.d, plain.channel, None
    several = Parameters(*own, jnp.asarray(LOG_S))
    marked = cells._replace(datasets=jnp.asarray(np.eye(2, dtype=np.float32)[code]))
    found = mode.find(several, marked, problem.columns, problem.start("float32"))
    value = evidence.evidence(several, marked, problem.columns, found.f)
    for dataset in range(2):
        s = np.exp(LOG_S[dataset])
        one = Parameters(plain.mu, plain.W * s, plain.d, plain.channel)
        at = mode.find(one, cells, problem.columns, problem.start("float32"))
        here = code == dataset
        np.testing.assert_allclose(found.f[here], at.f[here], atol=2e-3)
        np.testing.assert_allclose(found.z[:2, here], at.z[:2, here] * s[:, None], atol=2e-3)
        expected = evidence.evidence(one, cells, problem.columns, at.f)
        np.testing.assert_allclose(value[here], expected[here], atol=3e-3)


def test_importance_sampling_has_the_prior_of_the_data_set():
    """With many draws it agrees with that of the scaled model."""
    problem = random_problem("nb", "known", n_cells=2)
    plain, cells = problem.kernel("float32")
    several = Parameters(plain.mu, plain.W, plain.d, plain.channel, None, jnp.asarray(LOG_S))
    marked = cells._replace(datasets=jnp.asarray([[1.0, 0.0], [1.0, 0.0]]))
    one = Parameters(plain.mu, plain.W * np.exp(LOG_S[0]), plain.d, plain.channel)
    found = []
    for parameters, known in ((several, marked), (one, cells)):
        at = mode.find(parameters, known, problem.columns, problem.start("float32"))
        key = jax.random.key(0)
        ratios = importance.log_ratios(key, parameters, known, problem.columns, at.f, 2000)
        found.append(jax.scipy.special.logsumexp(ratios, axis=0) - np.log(2000))
    np.testing.assert_allclose(*found, atol=0.02)
