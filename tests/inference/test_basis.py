"""The basis of the factors: log-rates stay, factors are standardised, columns turn to axes."""

import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of

from nbln.inference.laplace.basis import Rotation, expand
from nbln.linalg import gauge, small
from nbln.models.depth import InCounts
from nbln.priors.columnwise import HorseshoeColumnwise
from nbln.priors.effects import EffectsPrior
from nbln.priors.shrinkage import Phase
from nbln.priors.sparse import HorseshoeSparse

G, K, C = 30, 3, 200
SETTLED = Phase(jnp.asarray(9), jnp.asarray(1))


@pytest.fixture
def fitted():
    """Means, loadings, factors whose mean and covariance are not yet 0 and 1."""
    rng = np.random.default_rng(1)
    mix = np.array([[1.5, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 1.1]])
    z = rng.normal(size=(C, K)) @ mix.T + [0.5, -0.2, 0.1]
    return rng.normal(size=G), rng.normal(size=(G, K)) * [2.0, 1.0, 0.5], z


def moments(z):
    second = small.pack(jnp.asarray(z.T @ z)[:, :, None])[:, 0]
    return jnp.concatenate([jnp.asarray([float(len(z))]), jnp.asarray(z.sum(0)), second])


def run(fitted, prior, phase=None, absorb_mean=True):
    mu, W, z = fitted
    phase = Phase.start() if phase is None else phase
    none = jnp.zeros((len(mu), 0))
    given = jnp.asarray(mu), none, jnp.asarray(W), moments(z), prior, phase, absorb_mean
    turned = expand(*given, InCounts(), EffectsPrior())
    return turned, np.asarray(turned.rotation(jnp.asarray(z.T), jnp.zeros((len(z), 0)))).T


PRIORS = {"columns": HorseshoeColumnwise(), "sparse": HorseshoeSparse()}


@pytest.mark.parametrize("absorb_mean", [True, False])
@pytest.mark.parametrize("name", PRIORS)
def test_log_rates_stay_where_they_were(name, absorb_mean, fitted):
    mu, W, z = fitted
    with precision_of("float64"):
        turned, new_z = run(fitted, PRIORS[name], SETTLED, absorb_mean)
        before = mu + z @ W.T
        np.testing.assert_allclose(turned.mu + new_z @ turned.W.T, before, atol=1e-10)
        np.testing.assert_allclose(W @ turned.basis, turned.W, atol=1e-10)


@pytest.mark.parametrize("name", PRIORS)
def test_factors_are_standardised(name, fitted):
    with precision_of("float64"):
        _, z = run(fitted, PRIORS[name], SETTLED)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(z.T @ z / C, np.eye(K), atol=1e-10)


def test_a_frozen_mean_leaves_the_factors_theirs(fitted):
    with precision_of("float64"):
        turned, z = run(fitted, PRIORS["columns"], absorb_mean=False)
    np.testing.assert_array_equal(turned.mu, fitted[0])
    np.testing.assert_allclose(z.T @ z / C, np.eye(K), atol=1e-10)
    assert np.abs(z.mean(axis=0)).max() > 0.1


@pytest.mark.parametrize("name", PRIORS)
def test_columns_are_principal_axes_while_they_form(name, fitted):
    with precision_of("float64"):
        turned, _ = run(fitted, PRIORS[name])
        centred = np.asarray(gauge.compositional(turned.W))
    gram = centred.T @ centred
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-8)
    assert np.all(np.diff(np.diag(gram)) < 0)
    np.testing.assert_array_equal(turned.turn.shares, np.eye(K))


def test_a_settled_sparse_prior_turns_to_sparse_axes():
    rng = np.random.default_rng(2)
    W = rng.normal(size=(300, 2)) * (rng.random((300, 2)) < 0.2)
    W *= [2.0, 1.9]
    angle = 0.5
    rotated = W @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    z = rng.normal(size=(C, 2))
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T, bias=True)), (z - z.mean(0)).T).T
    with precision_of("float64"):
        turned, _ = run((np.zeros(300), rotated, z), PRIORS["sparse"], SETTLED)
    overlap = np.abs(np.corrcoef(W.T, np.asarray(turned.W).T)[:2, 2:])
    assert overlap.max(axis=0).min() > 0.99
    # What each old column lends to a new one adds up, and the turn mixed them.
    shares = np.asarray(turned.turn.shares)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-10)
    assert 0.1 < shares[0, 0] < 0.9


def test_extra_columns_stay_as_they_are():
    z = jnp.arange(12.0).reshape(4, 3)
    rotation = Rotation(2 * jnp.eye(2), jnp.asarray([[1.0], [0.0]]), jnp.zeros(3))
    turned = rotation(z, jnp.zeros((3, 0)))
    np.testing.assert_array_equal(turned[2:], z[2:])
    np.testing.assert_array_equal(turned[0], 2 * (z[0] - 1))
