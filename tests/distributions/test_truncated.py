"""Moments of a Gaussian truncated at 0, against SciPy."""

import numpy as np
import pytest
from dense_reference import precision_of
from scipy import stats

from nbln.distributions.truncated import truncated_at_zero

LOC = np.array([-4.0, -1.0, 0.0, 0.3, 2.0, 40.0])
SCALE = np.array([1.0, 0.5, 2.0, 0.1, 1.0, 0.2])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("float64", 1e-9)])
def test_against_scipy(dtype, tolerance):
    with precision_of(dtype):
        mean, sd = truncated_at_zero(LOC.astype(dtype), SCALE.astype(dtype))
    exact = stats.truncnorm(-LOC / SCALE, np.inf, loc=LOC, scale=SCALE)
    np.testing.assert_allclose(mean, exact.mean(), rtol=tolerance)
    np.testing.assert_allclose(sd, exact.std(), rtol=20 * tolerance)


def test_where_nothing_is_truncated_the_gaussian_stays():
    mean, sd = truncated_at_zero(np.float32(50.0), np.float32(1.0))
    assert float(mean) == 50.0
    assert float(sd) == 1.0
