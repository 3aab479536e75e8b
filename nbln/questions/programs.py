"""Gene programs as columns of W_⊥: how large they are, and how many carry signal."""

import numpy as np
from jaxtyping import Float

from nbln.linalg import gauge
from nbln.priors.loadings import FittedLoadings

NO_NORM = 1e-12  # loadings below it are rounding: nothing can be compared with them


def column_diagnostics(W: Float[np.ndarray, "gene factor"], loadings: FittedLoadings) -> dict:
    """See `LaplaceResult.w_prior_diagnostics`."""
    limits = loadings.prior.shrinkage
    norms = np.sqrt(np.asarray(gauge.squared_norms(W)))
    per_gene = np.sqrt(len(W))
    sd = norms / per_gene
    if loadings.learned:
        sd = np.asarray(loadings.prior.column_sd(loadings.scales, W.shape[1]))
    least = limits.smallest_signal
    rank = gauge.effective_rank(norms, limits.signal_share, least * per_gene)
    return {
        "column_frobenius_raw": np.linalg.norm(W, axis=0),
        "column_frobenius_compositional": norms,
        "column_norm_effective_rank": rank,
        "effective_rank": rank,
        "sigma_k": sd,
        "scale_effective_rank": gauge.effective_rank(sd, limits.signal_share, least),
        **loadings.prior.named(loadings.scales),
    }


def gauge_diagnostics(W: Float[np.ndarray, "gene factor"]) -> dict[str, float]:
    """See `LaplaceResult.get_gauge_diagnostics`."""
    centred = float(np.linalg.norm(W - W.mean(axis=0)))
    ones = float(np.linalg.norm(W.mean(axis=0)) * np.sqrt(len(W)))
    return {
        "W_compositional_norm": centred,
        "W_all_ones_component_norm": ones,
        "gauge_contamination_ratio": ones / centred if centred > NO_NORM else np.nan,
    }
