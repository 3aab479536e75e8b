"""Doublets by Scrublet, as scanpy has it: counts and a share in, scores and names out.

usage: python peer_scrublet.py IN.npz OUT.npz
"""

import sys

import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

with np.load(sys.argv[1]) as given:
    adata = ad.AnnData(sparse.csr_matrix(given["counts"]))
    share = float(given["share"])
sc.pp.scrublet(adata, expected_doublet_rate=share, verbose=False)
named = adata.obs["predicted_doublet"].to_numpy(bool)
np.savez(sys.argv[2], score=adata.obs["doublet_score"].to_numpy(), named=named)
