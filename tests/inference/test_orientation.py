"""Programs whose heavier tail is negative are turned; nothing else of a fit changes."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from nbln.inference.laplace.orientation import Signed
from nbln.linalg import small
from nbln.posterior.cells import CellPosterior
from nbln.posterior.mode import Parameters
from nbln.priors.loadings import FittedLoadings
from nbln.priors.sparse import HorseshoeSparse


@pytest.fixture(scope="module")
def signed():
    """Three factors, the first two with a tail on the negative side; a fourth coordinate, depth."""
    rng = np.random.default_rng(0)
    z = np.column_stack([-rng.exponential(size=(200, 2)), rng.exponential(size=(200, 2))])
    W = rng.normal(size=(5, 3)).astype(np.float32)
    rows = rng.normal(size=(5, 4, 4)).astype(np.float32)
    matrix = jnp.asarray(np.einsum("gij,gkj->ikg", rows, rows))
    normal = jnp.concatenate([matrix[0].T, small.pack(matrix[1:, 1:]).T], axis=1)
    nothing = np.zeros(200)
    cells = CellPosterior(z.astype(np.float32), *[nothing] * 5, np.ones(200, bool))
    parameters = Parameters(jnp.zeros(5), jnp.asarray(W), jnp.ones(5), None, jnp.zeros((5, 0)))
    scales = {"centre": jnp.asarray([0.1, -0.2, 0.3])}
    loadings = FittedLoadings(HorseshoeSparse(), scales, jnp.ones((5, 3)))
    return Signed(parameters, loadings, cells, normal)


def test_heavier_tails_are_positive(signed):
    z = signed.oriented().cells.z
    assert ((z[:, :3] ** 3).sum(axis=0) > 0).all()
    np.testing.assert_array_equal(z[:, 3], signed.cells.z[:, 3])


def test_log_rates_and_precisions_are_the_same(signed):
    new = signed.oriented()
    rates = [s.cells.z[:, :3] @ np.asarray(s.parameters.W).T for s in (signed, new)]
    np.testing.assert_allclose(*rates, rtol=1e-5)
    np.testing.assert_allclose(new.loadings.scales["centre"], [-0.1, 0.2, 0.3], rtol=1e-6)
    sign = np.diag([1.0, -1.0, -1.0, 1.0])
    old, turned = (np.asarray(small.unpack_bordered(s.normal)) for s in (signed, new))
    np.testing.assert_allclose(turned, np.einsum("ij,jkg,kl->ilg", sign, old, sign), rtol=1e-6)


def test_a_second_time_changes_nothing(signed):
    once = signed.oriented()
    assert eqx.tree_equal(once.cells.z, once.oriented().cells.z)
