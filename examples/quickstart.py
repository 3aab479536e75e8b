"""The nbln pipeline in twenty lines, on simulated counts; about a minute, mostly compilation."""

import numpy as np

import nbln

adata = nbln.datasets.simulate(n_cells=1000, n_genes=400)  # or anndata.read_h5ad("counts.h5ad")

# In one call: NBVCP by SVI for the capture losses, then NBLN by Laplace.
res = nbln.fit(adata)
print(res)
print(res.top_pairs(5))

# The published recipe, step by step: dispersions and capture losses frozen from NBVCP.
capture = {"capture_efficiency": (np.log(100_000), 0.5)}
svi = nbln.fit(adata, model="nbvcp", parameterization="mean_odds", priors=capture, n_steps=50_000)
recipe = nbln.fit(
    adata,
    model="nbln",
    informative_priors_from=svi,
    informative_priors_tau=1.0,
    informative_priors_freeze=("r", "eta"),
    priors=capture | {"loadings": {"type": "horseshoe_columnwise", "tau_scale": 1.0}},
    latent_dim=16,
    n_steps=20_000,  # an upper bound: the fit stops when it has converged
)
print(recipe)

# What it found.
print("effective rank", res.w_prior_diagnostics["effective_rank"], "of", res.latent_dim)
strongest = res.top_pairs(1).iloc[0]
print(res.get_correlation(genes=[strongest.gene_a, strongest.gene_b]).to_pandas())
res.write_to(adata)  # obsm["X_nbln"], varm["nbln_loadings"], var["nbln_mu"], obs["nbln_eta"]
res.save("fit.nc")  # nbln.load("fit.nc") brings it back
