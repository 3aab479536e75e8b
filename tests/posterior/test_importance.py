"""Importance ratios of a cell's coordinates; their mean is compared with quadrature elsewhere."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of, random_problem

from nbln.posterior import importance, mode


@pytest.mark.parametrize("channel", ["poisson", "nb"])
def test_without_residuals_counts_are_those_of_the_channel(channel):
    """However m was rounded: a compiler may compute it twice, and not alike."""
    p = random_problem(channel, "latent")
    with precision_of("float32"):
        parameters, cells = p.kernel("float32")
        parameters = dataclasses.replace(parameters, d=jnp.zeros_like(parameters.d))
        z = jnp.zeros((parameters.W.shape[1] + len(p.columns.value), len(p.u)), jnp.float32)
        X = mode.design(parameters.W, p.columns)
        m = parameters.mu + cells.offset[:, None]
        m = mode.rates(z, m, X, mode.scales(cells, parameters.W.shape[1]))
        exact = parameters.channel.log_prob(cells.counts, m).sum(axis=1)
        for rounded in (m, np.nextafter(m, np.float32(np.inf))):
            found = importance._log_marginal(parameters, cells, p.columns, z, rounded)
            np.testing.assert_allclose(found, exact, rtol=1e-4)
