"""Simulated data whose truth is known."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from nbln.distributions.sampling import gamma_rates

__all__ = ["simulate"]


def simulate(
    n_cells: int = 1000,
    n_genes: int = 400,
    n_programs: int = 4,
    *,
    depth_sd: float = 0.4,
    mean_log_dispersion: float = 1.6,
    seed: int = 0,
) -> ad.AnnData:
    """Counts drawn from the NBLN model.

    Three genes in ten belong to a program, with loadings of standard deviation 0.6; the others
    have 0.05. A gene's own log-rate variance is uniform in [0.05, 0.2], its log dispersion normal
    with sd 0.7, its mean count between 0.05 and 20 in a cell of average depth.

    Parameters
    ----------
    n_cells, n_genes
        Size.
    n_programs
        Factors of the log-rates; 0 gives independent genes.
    depth_sd
        Standard deviation of the natural log of a cell's depth.
    mean_log_dispersion
        Mean over genes of log r.
    seed
        Same seed, same data.

    Returns
    -------
    AnnData with CSR counts. The truth: ``varm["W"]``, ``var["mu", "d", "r"]``, ``obsm["z"]``,
    ``obs["log_depth"]``.
    """
    rng = np.random.default_rng(seed)
    strong = rng.random((n_genes, n_programs)) < 0.3
    W = rng.normal(0, np.where(strong, 0.6, 0.05))
    W = W - W.mean(axis=0) if n_programs else W
    d = rng.uniform(0.05, 0.2, n_genes)
    r = rng.lognormal(mean_log_dispersion, 0.7, n_genes)
    variance = np.sum(W**2, axis=1) + d
    log_mean = np.clip(rng.normal(-0.5, 1.2, n_genes) + variance / 2, np.log(0.05), np.log(20))
    mu = log_mean - variance / 2
    log_depth = rng.normal(-(depth_sd**2) / 2, depth_sd, n_cells)
    z = rng.normal(size=(n_cells, n_programs))
    x = mu + z @ W.T + rng.normal(size=(n_cells, n_genes)) * np.sqrt(d)
    rate = np.exp(x + log_depth[:, None])
    counts = rng.poisson(gamma_rates(rng, rate, r))
    adata = ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"log_depth": log_depth}, index=pd.Index([f"cell{i}" for i in range(n_cells)])
        ),
        var=pd.DataFrame(
            {"mu": mu, "d": d, "r": r}, index=pd.Index([f"gene{i}" for i in range(n_genes)])
        ),
    )
    adata.varm["W"] = W
    adata.obsm["z"] = z
    return adata
