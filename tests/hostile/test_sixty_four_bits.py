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


AMORTISED = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import anndata
import numpy as np
import pandas as pd
import nbln

engine, folder = sys.argv[1:]
rng = np.random.default_rng(0)
rate = np.exp(1 + 0.5 * rng.normal(size=(40, 1)) @ rng.normal(size=(1, 12)))
x = rng.poisson(rate).astype(np.float32) + np.eye(40, 12, dtype=np.float32)
columns = {"batch": list("ab") * 20, "age": rng.normal(size=40)}
adata = anndata.AnnData(x, obs=pd.DataFrame(columns, index=map(str, range(40))))
vae = nbln.VAEConfig(n_epochs=2, n_hidden=4, batch_size=10, validation_share=0.2)
result = nbln.fit(
    adata, model="scvi", inference_method=engine, latent_dim=2, vae=vae, progress=False,
    batch_key="batch", covariates=["age"], gene_likelihood="zinb", dispersion="gene-batch",
    library="latent", checkpoint=f"{folder}/fit.checkpoint",
)
result.save(f"{folder}/fit.nc")
for one in (result, nbln.load(f"{folder}/fit.nc")):
    assert np.isfinite(one.transform(adata[:1])["z"]).all()
    if result.has_prior:
        assert np.isfinite(one.get_latent(refined=True, counts=adata)).all()
        for n_samples in (1, 8):
            assert np.isfinite(one.score(adata[:5], n_samples=n_samples)).all()
        assert np.isfinite(one.get_elbo(adata))
result.summary()
result.to_datatree(2, 2)
assert np.isfinite(result.get_denoised(n_samples=2).to_array()).all()
assert np.isfinite(result.get_normalized_expression(transform_batch="a")).all(axis=None)
assert len(result.differential_expression(idx1=range(20), n_samples=20)) == 12
query = adata[:20].copy()
query.obs["batch"] = "c"
assert np.isfinite(result.extend(query, vae=vae, progress=False).transform(query)["z"]).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vae", "ae"])
def test_amortised_models_work(engine, tmp_path):
    call = [sys.executable, "-c", AMORTISED, engine, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nbvcp", "pln", "nbln"])
def test_everything_works(model, tmp_path):
    call = [sys.executable, "-c", PROGRAM, model, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
