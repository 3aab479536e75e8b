"""With ``jax_enable_x64`` set for the whole process, as some packages do on import."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import anndata
import numpy as np
import nbln

model, folder = sys.argv[1:]
rng = np.random.default_rng(0)
rate = np.exp(1 + 0.5 * rng.normal(size=(40, 1)) @ rng.normal(size=(1, 12)))
adata = anndata.AnnData(rng.poisson(rate).astype(np.float32) + np.eye(40, 12, dtype=np.float32))
arguments = {} if model == "nbvcp" else {"latent_dim": 1}
for source in [None] if model == "nbvcp" else [None, False]:
    given = arguments | ({} if model == "nbvcp" else {"informative_priors_from": source})
    result = nbln.fit(adata, model=model, n_steps=10, progress=False, **given)
    result.save(f"{folder}/fit.nc")
    for one in (result, nbln.load(f"{folder}/fit.nc")):
        for n_samples in (1, 8):
            assert np.isfinite(one.score(adata[:5], n_samples=n_samples)).all()
        assert np.isfinite(one.transform(adata[:1])["eta"]).all()
    result.summary()
    result.to_datatree(2, 2)
    if model == "nbvcp":
        continue
    drawn = result.sample_posterior(4, 1, n_warmup=2, progress=False)
    drawn.save(f"{folder}/drawn.nc")
    nbln.load(f"{folder}/drawn.nc")
    assert np.isfinite(result.get_denoised().to_array()).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nbvcp", "pln", "nbln"])
def test_everything_works(model, tmp_path):
    call = [sys.executable, "-c", PROGRAM, model, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
