"""What a GPU or TPU must do as a CPU does it."""

import jax
import numpy as np
import pytest

import nbln


@pytest.mark.gpu
def test_an_accelerator_gives_the_numbers_of_a_cpu():
    if jax.default_backend() == "cpu":
        pytest.skip("there is no accelerator")
    adata = nbln.datasets.simulate(400, 100, 2, seed=0)
    here = nbln.fit(adata, progress=False).get_correlation().values
    with jax.default_device(jax.devices("cpu")[0]):
        there = nbln.fit(adata, progress=False).get_correlation().values
    assert np.sqrt(np.mean((here - there) ** 2)) < 0.01
