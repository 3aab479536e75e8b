"""The search for a mode where parameters have more bits than counts."""

import jax
import numpy as np

import nbln


def test_new_cells_where_the_fit_has_64_bits():
    adata = nbln.datasets.simulate(40, 12, 1, seed=0)
    with jax.enable_x64(True):
        result = nbln.fit(adata, model="nbvcp", n_steps=1, progress=False)
        assert np.isfinite(result.score(adata)).all()
        assert np.isfinite(result.transform(adata[:1])["eta"]).all()
