"""Covariances and correlations of log-rates from loadings, without a gene x gene matrix in between.

Three kinds: ``compositional`` from W_⊥W_⊥ᵀ + diag(d), which no capture offset can change;
``log_rate`` from WWᵀ + diag(d); ``clr`` from HΣH with H = I - 11ᵀ/G, of centred log-ratios.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from nbln.arguments import check_whole, choose
from nbln.data.slices import slices

KINDS = ("compositional", "log_rate", "clr")
BLOCK = 512  # rows of a block: 40 MB of float64 at 10,000 genes


class Covariance:
    """A covariance of log-rates that is evaluated where it is asked for.

    Parameters
    ----------
    W
        (gene, factor) loadings.
    d
        (gene,) variance of the gene's own log-rate.
    kind
        ``"compositional"``, ``"log_rate"`` or ``"clr"``.

    Raises
    ------
    ValueError
        An unknown kind.
    """

    def __init__(
        self,
        W: Float[np.ndarray, "gene factor"],
        d: Float[np.ndarray, " gene"],
        kind: str = "compositional",
    ):
        choose("kind", kind, KINDS)
        W, d = np.asarray(W, np.float64), np.asarray(d, np.float64)
        self._W = W - W.mean(axis=0) if kind == "compositional" else W
        self._d = d
        self._row_mean = np.zeros(len(d))
        if kind == "clr":
            row_mean = (W @ W.sum(axis=0) + d) / len(d)
            # (HΣH)_gh = Σ_gh - s_g - s_h + s, with s the mean of the row means.
            self._row_mean = row_mean - row_mean.mean() / 2

    @property
    def variance(self) -> Float[np.ndarray, " gene"]:
        """The diagonal."""
        return np.sum(self._W**2, axis=1) + self._d - 2 * self._row_mean

    def block(self, rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "row column"]:
        """Entries of the given rows and columns."""
        values = self._W[rows] @ self._W[columns].T
        values -= self._row_mean[rows][:, None] + self._row_mean[columns]
        return values + np.where(rows[:, None] == columns, self._d[rows][:, None], 0)

    def correlation_block(self, rows: np.ndarray, columns: np.ndarray):
        """Correlations of the given rows and columns."""
        sd = np.sqrt(self.variance)
        return self.block(rows, columns) / np.outer(sd[rows], sd[columns])


def top_pairs(covariance: Covariance, gene_names: np.ndarray, n: int) -> pd.DataFrame:
    """The `n` pairs of genes with the largest absolute correlation, strongest first."""
    n = check_whole("top_pairs(n", n)
    n_genes = len(gene_names)
    columns = np.arange(n_genes)
    best = [(np.empty(0), np.empty(0, int), np.empty(0, int))]
    for block in slices(n_genes, BLOCK):
        rows = columns[block]
        values = covariance.correlation_block(rows, columns)
        values[rows[:, None] >= columns] = 0
        flat = np.abs(values).ravel()
        largest = np.argpartition(flat, -min(n, flat.size))[-min(n, flat.size) :]
        largest = largest[flat[largest] > 0]
        best.append((values.ravel()[largest], rows[largest // n_genes], largest % n_genes))
    value, first, second = (np.concatenate(parts) for parts in zip(*best, strict=True))
    order = np.argsort(-np.abs(value), kind="stable")[:n]
    return pd.DataFrame(
        {
            "gene_a": gene_names[first[order]],
            "gene_b": gene_names[second[order]],
            "correlation": value[order],
        }
    )
