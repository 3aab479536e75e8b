"""Covariances and correlations of genes from loadings, without a gene x gene matrix in between.

Of log-rates: ``compositional`` from W_⊥W_⊥ᵀ + diag(d), which no capture offset can change;
``log_rate`` from WWᵀ + diag(d); ``clr`` from HΣH with H = I - 11ᵀ/G, of centred log-ratios.
Of expression, the rates themselves with the channel's own variation: ``expression``.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from nbln import vocabulary as names
from nbln.arguments import check_whole, choose
from nbln.data.slices import slices

EXPRESSION = "expression"
LOG_RATES = ("compositional", "log_rate", "clr")
KINDS = (*LOG_RATES, EXPRESSION)
BLOCK = 512  # rows of a block: 40 MB of float64 at 10,000 genes


class Ingredients(NamedTuple):
    """The correlation of genes g and h is t(w_g·w_h - m_g - m_h)/(s_g s_h).

    t is the identity, or e^x - 1 for correlations of expression.
    """

    W: Float[np.ndarray, "gene factor"]
    row_mean: Float[np.ndarray, " gene"]
    sd: Float[np.ndarray, " gene"]


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
        choose("kind", kind, LOG_RATES)
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

    def correlation_pairs(self, first: np.ndarray, second: np.ndarray):
        """Correlations of pairs of different genes, one number each."""
        sd = np.sqrt(self.variance)
        return self.pairs(first, second) / (sd[first] * sd[second])

    @property
    def ingredients(self) -> Ingredients:
        """What the correlations of different genes are made of."""
        return Ingredients(self._W, self._row_mean, np.sqrt(self.variance))

    def pairs(self, first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, " pair"]:
        """Entries of pairs of different genes."""
        values = np.sum(self._W[first] * self._W[second], axis=1)
        return values - self._row_mean[first] - self._row_mean[second]


class ExpressionCovariance:
    """The covariance of expression λ = e^x · noise, x the log-rates of a cell's composition.

    With Σ the compositional covariance of x and m its mean expression it is m_g m_h (e^{Σ_gh} - 1),
    and on the diagonal m_g² [(1 + c_g) e^{Σ_gg} - 1], c the squared coefficient of variation of the
    noise (1/r for gamma rates): the log-normal law of Aitchison & Brown (1957), with noise that is
    independent between genes.

    Parameters
    ----------
    W, d
        As in `Covariance`.
    mu
        (gene,) mean log-rate.
    noise
        (gene,) squared coefficient of variation of the channel's own noise.
    """

    def __init__(
        self,
        W: Float[np.ndarray, "gene factor"],
        d: Float[np.ndarray, " gene"],
        mu: Float[np.ndarray, " gene"],
        noise: Float[np.ndarray, " gene"],
    ):
        self._log_rates = Covariance(W, d)
        own = self._log_rates.variance
        self._mean = np.exp(np.asarray(mu, np.float64) + own / 2)
        self._relative = np.expm1(own + np.log1p(noise))  # variance over m²

    @property
    def variance(self) -> Float[np.ndarray, " gene"]:
        """The diagonal."""
        return self._mean**2 * self._relative

    def block(self, rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "row column"]:
        """Entries of the given rows and columns."""
        return self._relative_block(rows, columns) * np.outer(self._mean[rows], self._mean[columns])

    def correlation_block(self, rows: np.ndarray, columns: np.ndarray):
        """Correlations of the given rows and columns, whatever the means."""
        sd = np.sqrt(self._relative)
        return self._relative_block(rows, columns) / np.outer(sd[rows], sd[columns])

    def correlation_pairs(self, first: np.ndarray, second: np.ndarray):
        """Correlations of pairs of different genes, one number each."""
        sd = np.sqrt(self._relative)
        return np.expm1(self._log_rates.pairs(first, second)) / (sd[first] * sd[second])

    @property
    def ingredients(self) -> Ingredients:
        """What the correlations of different genes are made of."""
        return self._log_rates.ingredients._replace(sd=np.sqrt(self._relative))

    def _relative_block(self, rows, columns):
        values = np.expm1(self._log_rates.block(rows, columns))
        return np.where(rows[:, None] == columns, self._relative[rows][:, None], values)


def of_kind(
    kind: str,
    W: Float[np.ndarray, "gene factor"],
    d: Float[np.ndarray, " gene"],
    mu: Float[np.ndarray, " gene"],
    noise: Float[np.ndarray, " gene"],
) -> Covariance | ExpressionCovariance:
    """The covariance of one kind.

    Raises
    ------
    ValueError
        An unknown kind.
    """
    choose("kind", kind, KINDS)
    return ExpressionCovariance(W, d, mu, noise) if kind == EXPRESSION else Covariance(W, d, kind)


def top_pairs(
    covariance: Covariance | ExpressionCovariance,
    gene_names: np.ndarray,
    n: int,
    among: Int[np.ndarray, " gene"] | None = None,
) -> pd.DataFrame:
    """The `n` pairs of genes with the largest absolute correlation, strongest first.

    `among` are the genes whose pairs are looked at; by default all.
    """
    n = check_whole("top_pairs(n", n)
    columns = np.arange(len(gene_names)) if among is None else np.unique(among)
    n_genes = len(columns)
    best = [(np.empty(0), np.empty(0, int), np.empty(0, int))]
    for block in slices(n_genes, BLOCK):
        rows = columns[block]
        values = covariance.correlation_block(rows, columns)
        values[rows[:, None] >= columns] = 0
        flat = np.abs(values).ravel()
        largest = np.argpartition(flat, -min(n, flat.size))[-min(n, flat.size) :]
        largest = largest[flat[largest] > 0]
        pair = rows[largest // n_genes], columns[largest % n_genes]
        best.append((values.ravel()[largest], *pair))
    value, first, second = (np.concatenate(parts) for parts in zip(*best, strict=True))
    order = np.argsort(-np.abs(value), kind="stable")[:n]
    return pd.DataFrame(
        {
            "gene_a": gene_names[first[order]],
            "gene_b": gene_names[second[order]],
            "correlation": value[order],
        }
    )


def gene_matrix(values: np.ndarray, genes: np.ndarray, name: str) -> xr.DataArray:
    """Values for pairs of genes, labelled."""
    dims = names.GENE, names.GENE_
    return xr.DataArray(values, dims=dims, coords=dict.fromkeys(dims, genes), name=name)
