"""Draws of log-rates have the mean and the covariance of the dense Laplace Gaussian."""

import jax
import numpy as np
import pytest
from dense_reference import posterior, random_problem

from nbln.posterior import draws, mode

N_DRAWS = 20_000


@pytest.mark.parametrize("columns", ["latent", "known", "flat"])
@pytest.mark.parametrize("channel", ["poisson", "nb"])
def test_mean_and_covariance(channel, columns):
    p = random_problem(channel, columns, n_cells=2, n_genes=5)
    parameters, cells = p.kernel("float32")
    f = mode.find(parameters, cells, p.columns, p.start("float32")).f
    x = draws.draw_rates(jax.random.key(0), parameters, cells, p.columns, f, N_DRAWS)
    x = np.asarray(x, np.float64)
    assert x.shape == (N_DRAWS, 2, 5)
    for c in range(2):
        dense = posterior(p, c)
        sd = np.sqrt(np.diag(dense.var_f))
        scaled = (x[:, c] - dense.f) / sd
        correlation = dense.var_f / np.outer(sd, sd)
        # Entries of a sample covariance have a standard error of at most sqrt(2 / n).
        np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=5 / np.sqrt(N_DRAWS))
        covariance = np.cov(scaled.T)
        np.testing.assert_allclose(covariance, correlation, atol=5 * np.sqrt(2 / N_DRAWS))


def test_same_key_same_draws():
    p = random_problem("nb", "latent", n_cells=2, n_genes=5)
    parameters, cells = p.kernel("float32")
    f = mode.find(parameters, cells, p.columns, p.start("float32")).f

    def drawn(seed):
        key = jax.random.key(seed)
        return np.asarray(draws.draw_rates(key, parameters, cells, p.columns, f, 3))

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert np.any(drawn(1) != drawn(2))
