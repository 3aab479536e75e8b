"""Correlations of genes over posterior draws, block by block: never all pairs for all draws."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax
from jaxtyping import Array, Float, Int

from nbln.arguments import check_number
from nbln.data.slices import slices
from nbln.linalg.products import dot
from nbln.questions import correlation
from nbln.questions.correlation import EXPRESSION, Ingredients

# Bytes of one block of pairs for all draws, float32.
BLOCK_BYTES = 64 * 2**20
# Genes a side of a tile of pairs whose draws are only counted: a megabyte stays in a core's cache.
TILE = 512
FEW = 8  # genes that are a tile of their own


class CorrelationDraws:
    """Draws of what determines all correlations of one kind.

    Parameters
    ----------
    W
        (draw, gene, factor) loadings of real genes.
    d, mu, noise
        (draw, gene) as in `correlation.of_kind`.
    kind
        As there.
    gene_names
        (gene,)
    """

    def __init__(
        self,
        W: Float[np.ndarray, "draw gene factor"],
        d: Float[np.ndarray, "draw gene"],
        mu: Float[np.ndarray, "draw gene"],
        noise: Float[np.ndarray, "draw gene"],
        kind: str,
        gene_names: np.ndarray,
    ):
        correlation.of_kind(kind, W[0], d[0], mu[0], noise[0])  # refuses an unknown kind
        self._parts, self.kind = (W, d, mu, noise), kind
        self.gene_names = gene_names

    def __len__(self):
        return len(self._parts[0])

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.gene_names)

    def each(self) -> Iterator[correlation.Covariance | correlation.ExpressionCovariance]:
        """The covariance of each draw."""
        for parts in zip(*self._parts, strict=True):
            yield correlation.of_kind(self.kind, *parts)

    def ingredients(self) -> Ingredients:
        """Those of all draws, (draw, ...), in float32."""
        each = (covariance.ingredients for covariance in self.each())
        return Ingredients(*(np.stack(x).astype(np.float32) for x in zip(*each, strict=True)))

    def sides(self) -> tuple[Ingredients, ...]:
        """What is added up in a tile: here these correlations themselves."""
        return (self.ingredients(),)

    def block(
        self, rows: Int[np.ndarray, " row"], columns: Int[np.ndarray, " column"]
    ) -> Float[np.ndarray, "draw row column"]:
        """Correlations of the given rows and columns in all draws."""
        shape = len(self), len(rows), len(columns)
        values = np.empty(shape, np.float32)
        for i, covariance in enumerate(self.each()):
            values[i] = covariance.correlation_block(rows, columns)
        return values

    def of_pairs(
        self, first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"]
    ) -> Float[np.ndarray, "draw pair"]:
        """Correlations of the given pairs in all draws."""
        values = np.empty((len(self), len(first)), np.float32)
        for i, covariance in enumerate(self.each()):
            values[i] = covariance.correlation_pairs(first, second)
        return values


class DifferenceDraws:
    """Draws of correlations less others of the same genes, kind and draws."""

    def __init__(self, first: CorrelationDraws, second: CorrelationDraws):
        self.first, self.second = first, second
        self.kind, self.gene_names, self.n_genes = first.kind, first.gene_names, first.n_genes

    def __len__(self):
        return len(self.first)

    def sides(self) -> tuple[Ingredients, ...]:
        """As of `CorrelationDraws`; what comes after the first is subtracted."""
        return self.first.ingredients(), self.second.ingredients()

    def of_pairs(
        self, first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"]
    ) -> Float[np.ndarray, "draw pair"]:
        """Differences of the given pairs in all draws."""
        return self.first.of_pairs(first, second) - self.second.of_pairs(first, second)


class Summary(NamedTuple):
    """What draws say of a number: mean, sd, ends of the interval, probability of its sign."""

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    prob_sign: np.ndarray


class Weights(NamedTuple):
    """How much draws count, (draw, row); over the draws of a row they sum to 1."""

    every: Float[np.ndarray, "draw row"]
    changed: Float[np.ndarray, "draw row"]  # the part of them where there is a change at all

    @classmethod
    def equal(cls, shape: tuple[int, ...]) -> "Weights":
        """Of draws as they are."""
        alike = np.broadcast_to(1 / shape[0], shape)
        return cls(alike, alike)


def check_level(level: float) -> float:
    """A probability that is inside 0 and 1."""
    return check_number("level", level, least=0.0, most=1.0, open_=True)


def summarise(draws: Float[np.ndarray, "draw ..."], level: float) -> Summary:
    """Over the first axis; intervals have equal tails."""
    mean = draws.mean(axis=0, dtype=np.float64)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(draws, tails, axis=0)
    positive = (draws > 0).mean(axis=0)
    negative = (draws < 0).mean(axis=0)
    sd = draws.std(axis=0, dtype=np.float64)
    return Summary(mean, sd, low, high, np.maximum(positive, negative))


def summarise_weighted(
    draws: Float[np.ndarray, "draw row"], weights: Weights, level: float
) -> Summary:
    """`summarise` of draws that count by their weight; no change has no sign."""
    weight, changed = weights
    mean = (weight * draws).sum(axis=0)
    sd = np.sqrt((weight * (draws - mean) ** 2).sum(axis=0))
    order = np.argsort(draws, axis=0)
    ordered = np.take_along_axis(draws, order, axis=0)
    below = np.cumsum(np.take_along_axis(weight, order, axis=0), axis=0)
    places = [np.argmax(below >= tail, axis=0) for tail in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (np.take_along_axis(ordered, place[None], axis=0)[0] for place in places)
    signs = [(changed * side).sum(axis=0) for side in (draws > 0, draws < 0)]
    return Summary(mean, sd, low, high, np.maximum(*signs))


def correlations(
    draws: CorrelationDraws,
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " column"],
    level: float,
) -> Summary:
    """`summarise` of all correlations of rows with columns, in blocks of rows."""
    size = max(1, BLOCK_BYTES // (4 * len(draws) * len(columns)))
    parts = [
        summarise(draws.block(rows[block], columns), level) for block in slices(len(rows), size)
    ]
    return Summary(*(np.concatenate(x) for x in zip(*parts, strict=True)))


class Counted(NamedTuple):
    """Of each pair, how often it was drawn on either side of limits, and its mean."""

    first: Int[np.ndarray, " pair"]
    second: Int[np.ndarray, " pair"]
    mean: Float[np.ndarray, " pair"]
    beyond: Float[np.ndarray, " pair"]  # share of draws beyond min_abs, on the likelier side
    sign: Float[np.ndarray, " pair"]  # share of draws of the likelier sign


def count(
    draws: CorrelationDraws | DifferenceDraws,
    min_abs: float,
    rows: Int[np.ndarray, " row"] | None = None,
) -> Counted:
    """The pairs that are beyond `min_abs` with one sign more likely than not.

    All pairs of genes, or those of `rows` with all other genes.
    """
    every = np.arange(draws.n_genes)
    parts = draws.sides()
    found = []
    for block in slices(len(every) if rows is None else len(rows), TILE):
        chosen = every[block] if rows is None else rows[block]
        for other in slices(draws.n_genes, TILE):
            columns = every[other]
            if rows is None and columns[-1] <= chosen[0]:
                continue  # these pairs come the other way round
            tallies = _tally(
                parts, _padded(chosen), _padded(columns), min_abs, draws.kind == EXPRESSION
            )
            inside = (np.asarray(x)[: len(chosen), : len(columns)] for x in tallies)
            wanted = chosen[:, None] < columns if rows is None else chosen[:, None] != columns
            found.append(_likely(len(draws), chosen, columns, wanted, *inside))
    return Counted(*(np.concatenate(x) for x in zip(*found, strict=True)))


def _padded(genes: Int[np.ndarray, " gene"]) -> Int[np.ndarray, " tile"]:
    """As many as a tile has, so that it is compiled once; the same for a handful."""
    return genes if len(genes) <= FEW else np.resize(genes, TILE)


def tile(draw: Ingredients, rows, columns, exponential: bool) -> Float[Array, "row column"]:
    """Correlations of rows with columns in one draw, for compiled sums over draws."""
    W, m, sd = draw
    values = dot(W[rows], W[columns].T) - m[rows][:, None] - m[columns]
    values = jnp.expm1(values) if exponential else values
    return lax.optimization_barrier(values / (sd[rows][:, None] * sd[columns]))


@partial(jax.jit, static_argnames="exponential")
def _tally(parts: tuple[Ingredients, ...], rows, columns, min_abs, exponential: bool):
    """Sums over draws of a tile of correlations: themselves, above, below, positive."""

    def add(tallies, draw: tuple[Ingredients, ...]):
        values, *less = (tile(side, rows, columns, exponential) for side in draw)
        values = values - sum(less) if less else values
        signs = (values > min_abs, values < -min_abs, values > 0)
        return tuple(a + b for a, b in zip(tallies, (values, *signs), strict=True)), None

    zeros = jnp.zeros((len(rows), len(columns)), jnp.float32)
    return lax.scan(add, (zeros,) * 4, parts)[0]


def _likely(n: int, rows, columns, wanted, total, over, under, positive) -> Counted:
    """The pairs of a tile that are beyond on one side in most of `n` draws."""
    up = over >= under
    beyond = np.where(up, over, under)
    first, second = at = np.nonzero(wanted & (beyond > 0.5 * n))
    sign = np.where(up, positive, n - positive)
    # In double precision: running means of them follow.
    shares = (x[at].astype(np.float64) / n for x in (total, beyond, sign))
    return Counted(rows[first], columns[second], *shares)


def pairs(
    draws: CorrelationDraws | DifferenceDraws,
    min_abs: float,
    fdr: float,
    level: float,
    rows: Int[np.ndarray, " row"] | None = None,
    among: bool = False,
) -> pd.DataFrame:
    """Pairs that are called at a Bayesian false discovery rate; see `PosteriorDraws.pairs`.

    All pairs, those of `rows` with all genes, or those of `rows` `among` themselves.
    """
    found = count(draws, min_abs, rows)
    if rows is not None and among:
        inside = (found.first < found.second) & np.isin(found.second, rows)
        found = Counted(*(x[inside] for x in found))
    n = len(draws)
    error, lfsr = rest(found.beyond, n), rest(found.sign, n)
    order = np.lexsort((-np.abs(found.mean), error))
    q = q_values(error[order])
    called = order[q <= fdr]
    low, high = _ends(draws, found.first[called], found.second[called], level)
    names = draws.gene_names
    table = pd.DataFrame(
        {
            "gene_a": names[found.first[called]],
            "gene_b": names[found.second[called]],
            "mean": found.mean[called],
            "low": low,
            "high": high,
            "lfsr": lfsr[called],
            "error_probability": error[called],
            "q": q[: len(called)],
        }
    )
    table.attrs = {"kind": draws.kind, "min_abs": min_abs, "fdr": fdr, "level": level}
    return table


def changes(
    draws: Float[np.ndarray, "draw row"],
    weights: Weights | None,
    delta: float,
    fdr: float,
    level: float,
    index: pd.Index,
) -> pd.DataFrame:
    """Differences that are called at a Bayesian false discovery rate, surest first, one row each.

    Draws are log2 fold changes, which count by their `weights` where these are given; a call is
    wrong if there is no change, it is smaller than `delta` or has the other sign. Columns are those
    of `PosteriorDraws.differential_expression`, but for the last.
    """
    n, level = len(draws), check_level(level)
    if weights is None:
        summary, weights = summarise(draws, level), Weights.equal(draws.shape)
    else:
        summary = summarise_weighted(draws, weights, level)
    up, down = ((weights.changed * (side > delta)).sum(axis=0) for side in (draws, -draws))
    error = rest(np.maximum(up, down), n)
    columns = {f"lfc_{name}": getattr(summary, name) for name in ("mean", "sd", "low", "high")}
    lfsr = rest(summary.prob_sign, n)
    table = pd.DataFrame({**columns, "lfsr": lfsr, "error_probability": error}, index=index)
    table = table.iloc[np.lexsort((-np.abs(summary.mean), error))]
    table["q"] = q_values(table["error_probability"].to_numpy())
    table.attrs = {"delta": delta, "fdr": fdr, "level": level}
    return table


def rest(share: Float[np.ndarray, " call"], n: int) -> Float[np.ndarray, " call"]:
    """Probability of everything else than what `share` of n draws say.

    None of n draws on the other side does not make it impossible: half a draw stands for that.
    """
    return (n * (1 - share) + 0.5) / (n + 1)


def q_values(error: Float[np.ndarray, " call"]) -> Float[np.ndarray, " call"]:
    """Expected share of wrong ones among the calls down to each, the surest first.

    `error` is the probability that a call is wrong, given the data (Müller et al. 2004).
    """
    return np.cumsum(error) / np.arange(1, len(error) + 1)


def _ends(draws: CorrelationDraws | DifferenceDraws, first, second, level: float):
    """Ends of the intervals of the given pairs."""
    size = max(1, BLOCK_BYTES // (4 * len(draws)))
    low, high = np.empty(len(first)), np.empty(len(first))
    for block in slices(len(first), size):
        summary = summarise(draws.of_pairs(first[block], second[block]), level)
        low[block], high[block] = summary.low, summary.high
    return low, high
