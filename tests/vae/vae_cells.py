"""Small networks, cells and counts that the tests of amortised models share."""

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import nbln
from nbln.vae.likelihoods import Groups
from nbln.vae.scvi import SCVI, Architecture, Batch, Gaussian

N_BATCHES, N_LABELS = 2, 3
QUICK = nbln.VAEConfig(n_epochs=3, n_hidden=8, batch_size=32)


def architecture(**changed) -> Architecture:
    """A small one; keywords replace its values."""
    values = dict(
        n_genes=8, n_columns=N_BATCHES, n_batches=N_BATCHES, n_labels=N_LABELS, latent_dim=2,
        n_hidden=8, n_layers=1, dropout=0.1, gene_likelihood="nb", dispersion="gene",
        linear=False, skip=False, latent_library=False,
    )  # fmt: skip
    return Architecture(**values | changed)


def network(seed: int = 0, scale: float = 2.0, **changed) -> SCVI:
    """Random weights, larger than a network starts with, so that factors say something."""
    prior = Gaussian(jnp.array([3.0, 4.0]), jnp.array([0.3, 0.2]))
    started = SCVI.start(jax.random.key(seed), architecture(**changed), prior)
    return jax.tree.map(lambda x: x * scale if jnp.ndim(x) == 2 else x, started)


def cells(n_cells: int = 6, n_genes: int = 8, seed: int = 0, mean: float = 5.0) -> Batch:
    """Overdispersed counts of cells in two batches, with three labels."""
    rng = np.random.default_rng(seed)
    rates = mean * rng.gamma(1.0, 1.0, (n_cells, n_genes))
    counts = rng.poisson(rates).astype(np.float32)
    counts[:, 0] += 1
    batch, label = np.arange(n_cells) % N_BATCHES, np.arange(n_cells) % N_LABELS
    design = np.eye(N_BATCHES, dtype=np.float32)[batch]
    groups = Groups(jnp.asarray(batch), jnp.asarray(label))
    total = np.log(counts.sum(axis=1))
    return Batch(*map(jnp.asarray, (counts, total, design)), groups, jnp.ones(n_cells))


def double(tree):
    """The same in double precision."""

    def convert(x):
        floating = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, jnp.float64) if floating else x

    return jax.tree.map(convert, tree)


def annotated(n_cells: int = 80, n_genes: int = 20, seed: int = 1) -> anndata.AnnData:
    """Simulated counts with the columns `batch`, `label`, `phase` and `age`."""
    made = nbln.datasets.simulate(n_cells, n_genes, 2, mean_log_dispersion=2.0, seed=seed)
    counts = np.asarray(made.X.todense())
    counts[:, 0] += 1
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "batch": rng.choice(["one", "two"], n_cells),
            "label": rng.choice(["b", "t", "nk"], n_cells),
            "phase": rng.choice(["G1", "S"], n_cells),
            "age": rng.normal(50, 10, n_cells),
        },
        index=made.obs_names,
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=made.var_names))


def fit(adata, **keywords):
    """A short fit of SCVI."""
    return nbln.fit(adata, **dict(model="scvi", latent_dim=2, progress=False, vae=QUICK) | keywords)
