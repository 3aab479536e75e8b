"""Log-rates relative to one gene: additive log-ratio coordinates (Aitchison 1986).

With y_g = x_g - x_ref, means and loadings are differences, and the reference's own variation is
shared by all: Cov(y) = V Vᵀ + diag(d) + d_ref 11ᵀ with v_g = w_g - w_ref.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.data.fitted import Fitted
from nbln.posterior.mode import Parameters


def alr(
    fitted: Fitted, parameters: Parameters, reference: str | None, genes: Sequence[str] | None
) -> xr.Dataset:
    """See `LaplaceResult.get_alr`."""
    real = fitted.real_genes
    labels = fitted.gene_names[real]
    mu, W, d = (
        np.asarray(x, np.float64)[real] for x in (parameters.mu, parameters.W, parameters.d)
    )
    if reference is None:
        base = int(np.argmax(mu + 0.5 * (np.sum(W**2, axis=1) + d)))
    elif isinstance(reference, str):
        (base,) = fitted.find([reference], labels)
    else:
        raise TypeError(
            f"get_alr(reference={reference!r}): expected the name of one gene, or None for the "
            f"most abundant; got {type(reference).__name__}"
        )
    rows = np.arange(len(labels)) if genes is None else fitted.find(genes, labels)
    if genes is not None and base in rows:
        raise ValueError(
            f"get_alr(genes=): {labels[base]!r} is the reference, whose log-ratio is 0; leave it "
            "out, or give another reference="
        )
    rows = rows[rows != base]
    loadings = W[rows] - W[base]
    covariance = loadings @ loadings.T + np.diag(d[rows]) + d[base]
    gene, both = (names.GENE,), (names.GENE, names.GENE_)
    variables = {
        names.MU: (gene, mu[rows] - mu[base]),
        names.LOADINGS: ((names.GENE, names.FACTOR), loadings),
        names.RESIDUAL: (gene, d[rows]),
        "d_reference": ((), d[base]),
        "Sigma": (both, covariance),
    }
    coords = {names.GENE: labels[rows], names.GENE_: labels[rows]}
    return xr.Dataset(variables, coords=coords, attrs={"reference": str(labels[base])})
