"""Correlations that differ between two independent posteriors, and how sure that is.

Most pairs of genes differ by nothing or little, which neither posterior knows. So the true
differences of all pairs are given a prior, a mixture of Gaussians around 0 and of 0 itself, whose
weights are learned from the pairs' estimates and their errors (adaptive shrinkage, Stephens 2017).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax
from jaxtyping import Float, Int
from scipy.stats import norm

from nbln.data.slices import slices
from nbln.questions.correlation import EXPRESSION, Ingredients
from nbln.questions.intervals import TILE, CorrelationDraws, q_values, tile

# Pairs, at random, from which the weights are learned: a dozen numbers need no more.
MOST_LEARNED = 200_000
N_WIDTHS = 12  # of the mixture, beside 0
N_ROUNDS = 200  # of expectation and maximisation, which converge in some fifty
# Weight of the prior of no difference, in pairs or genes, as adaptive shrinkage has it: where the
# estimates do not decide between none and little, it is none.
NULL_ROWS = 10.0
HALVINGS = 40  # of an interval's end, to float32
ROUNDING = 1e-9  # an end that bisection finds this near 0 is at the difference that is none


def learned_shares(likelihood: Float[np.ndarray, "row part"]) -> Float[np.ndarray, " part"]:
    """Weights of the parts of a mixture, the first of them no change, by their likelihoods."""
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(N_ROUNDS):
        share = likelihood * weight
        weight = (share / share.sum(axis=1, keepdims=True)).sum(axis=0)
        weight[0] += NULL_ROWS
        weight /= weight.sum()
    return weight


class Prior(NamedTuple):
    """Of true differences: weights of Gaussians around 0 with these widths, the first 0."""

    weight: Float[np.ndarray, " width"]
    width: Float[np.ndarray, " width"]

    @classmethod
    def learned(cls, mean: Float[np.ndarray, " pair"], sd: Float[np.ndarray, " pair"]) -> "Prior":
        """From estimates and their standard errors."""
        least, most = np.median(sd) / 10, 2 * np.sqrt(np.max(mean**2))
        width = np.concatenate([[0.0], np.geomspace(least, max(most, 2 * least), N_WIDTHS)])
        likelihood = norm.pdf(mean[:, None], 0, np.hypot(width, sd[:, None]))
        likelihood /= likelihood.max(axis=1, keepdims=True)
        return cls(learned_shares(likelihood), width)

    def posterior(self, mean: Float[np.ndarray, " pair"], sd: Float[np.ndarray, " pair"]):
        """Weights, means and standard deviations (pair, width) of each pair's own mixture."""
        mean, sd = mean[:, None], sd[:, None]
        log = np.log(self.weight) + norm.logpdf(mean, 0, np.hypot(self.width, sd))
        weight = np.exp(log - log.max(axis=1, keepdims=True))
        kept = self.width**2 / (self.width**2 + sd**2)
        return weight / weight.sum(axis=1, keepdims=True), kept * mean, np.sqrt(kept) * sd


def above(limit, mixture) -> Float[np.ndarray, " pair"]:
    """Probability that each pair's difference is above a limit."""
    weight, mean, sd = mixture
    away = mean - np.asarray(limit)[..., None]
    inside = norm.cdf(away / np.maximum(sd, 1e-12))
    return np.sum(weight * np.where(sd > 0, inside, away > 0), axis=1)


def table(
    first: CorrelationDraws,
    second: CorrelationDraws,
    genes: np.ndarray,
    min_abs: float,
    fdr: float,
    level: float,
) -> pd.DataFrame:
    """Pairs that are called; see `nbln.compare_correlations`."""
    a, b = np.triu_indices(len(genes), 1)
    both = [_moments(draws, genes) for draws in (first, second)]
    mean = both[0][0][a, b] - both[1][0][a, b]
    sd = np.sqrt(both[0][1][a, b] + both[1][1][a, b])
    some = slice(None)
    if len(mean) > MOST_LEARNED:
        some = np.random.default_rng(0).choice(len(mean), MOST_LEARNED, replace=False)
    prior = Prior.learned(mean[some], sd[some])
    error, likely = np.empty(len(mean)), np.empty(len(mean))
    for block in slices(len(mean), MOST_LEARNED):
        mixture = prior.posterior(mean[block], sd[block])
        up, down = above(min_abs, mixture), 1 - above(np.nextafter(-min_abs, -1), mixture)
        error[block] = 1 - np.maximum(up, down)
        likely[block] = np.sum(mixture[0] * mixture[1], axis=1)
    order = np.lexsort((-np.abs(likely), error))
    q = q_values(error[order])
    called = order[q <= fdr]
    mixture = prior.posterior(mean[called], sd[called])
    tails = [_quantile(p, mixture) for p in ((1 - level) / 2, (1 + level) / 2)]
    positive, negative = above(0.0, mixture), 1 - above(np.nextafter(0.0, -1), mixture)
    columns = {
        "gene_a": genes[a[called]],
        "gene_b": genes[b[called]],
        "mean": likely[called],
        "low": tails[0],
        "high": tails[1],
        "mean_first": both[0][0][a[called], b[called]],
        "mean_second": both[1][0][a[called], b[called]],
        "lfsr": 1 - np.maximum(positive, negative),
        "error_probability": error[called],
        "q": q[: len(called)],
    }
    made = pd.DataFrame(columns)
    made.attrs = {"kind": first.kind, "min_abs": min_abs, "fdr": fdr, "level": level}
    return made


def _quantile(probability: float, mixture) -> Float[np.ndarray, " pair"]:
    """Where each pair's difference is below with this probability, by bisection."""
    low, high = np.full(len(mixture[0]), -2.0), np.full(len(mixture[0]), 2.0)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = 1 - above(middle, mixture) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    end = 0.5 * (low + high)
    return np.where(np.abs(end) < ROUNDING, 0.0, end)


def _moments(draws: CorrelationDraws, genes: np.ndarray):
    """Mean and variance over the draws of the correlations of these genes, (gene, gene)."""
    places = pd.Index(draws.gene_names).get_indexer(genes)
    parts = Ingredients(*(x[:, places] for x in draws.ingredients()))
    n, every = len(draws), np.arange(len(genes))
    total, square = (np.empty((len(genes),) * 2) for _ in range(2))
    for block in slices(len(genes), TILE):
        sums = _sums(parts, every[block], draws.kind == EXPRESSION)
        total[block], square[block] = (np.asarray(x, np.float64) for x in sums)
    mean = total / n
    # Of n draws, which stand for a posterior: half a draw's rounding keeps it from being 0.
    return mean, np.maximum(square / n - mean**2, 0) * n / max(n - 1, 1) + 1e-8


@partial(jax.jit, static_argnames="exponential")
def _sums(parts: Ingredients, rows: Int[np.ndarray, " row"], exponential: bool):
    """Sums over draws of correlations of rows with all genes, and of their squares."""

    def add(sums, draw: Ingredients):
        values = tile(draw, rows, every, exponential)
        return (sums[0] + values, sums[1] + values**2), None

    every = jnp.arange(parts.W.shape[1])
    zeros = jnp.zeros((len(rows), len(every)), jnp.float32)
    return lax.scan(add, (zeros, zeros), parts)[0]
