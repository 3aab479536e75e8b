"""Figures of how sure the answers are: intervals of pairs, and calls."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nbln.arguments import check_whole
from nbln.pl import style

NOMINAL = np.array([0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


def plot_pair_intervals(post, n_pairs: int = 20, pairs: pd.DataFrame | None = None, ax=None):
    """Correlations of pairs of genes with their intervals, strongest first.

    Parameters
    ----------
    n_pairs
        So many pairs, the surest.
    pairs
        What `PosteriorDraws.pairs` or `partners` gave, or a part of it. By default `pairs` is
        asked, and each gene is shown three times at most.
    """
    style.need_draws(post)
    check_whole("n_pairs", n_pairs)
    shown = spread_over_genes(post.pairs(), n_pairs) if pairs is None else pairs.head(n_pairs)
    shown = shown.iloc[::-1]
    figure, ax = style.new_axes(ax, figsize=(5.0, max(1.6, 0.24 * len(shown) + 0.9)))
    y = np.arange(len(shown))
    colours = np.where(shown["mean"] > 0, style.RED, style.BLUE)
    ax.hlines(y, shown["low"], shown["high"], colors=colours, lw=2)
    ax.scatter(shown["mean"], y, c=colours, s=22, zorder=3)
    genes = (style.labels(shown[name]) for name in ("gene_a", "gene_b"))
    labels = [f"{a} – {b}" for a, b in zip(*genes, strict=True)]
    ax.set_yticks(y, labels, fontsize=8)
    level = f"{shown.attrs['level']:.0%} " if "level" in shown.attrs else ""
    ax.set_xlabel(f"correlation, with its {level}interval")
    # Short intervals far from 0 are to be seen as intervals.
    if not len(shown) or shown["low"].min() <= 0 <= shown["high"].max():
        ax.axvline(0, color="black", lw=0.6)
        ax.set_xlim(-1.02, 1.02)
    if not len(shown):
        ax.text(0, 0.5, "no pair is called", ha="center", va="center")
    return figure


def spread_over_genes(pairs: pd.DataFrame, n: int, most: int = 3) -> pd.DataFrame:
    """The first `n` pairs of which no gene has more than `most`."""
    used: dict[str, int] = {}
    kept = []
    for i, genes in enumerate(zip(pairs["gene_a"], pairs["gene_b"], strict=True)):
        if max(used.get(gene, 0) for gene in genes) < most:
            kept.append(i)
            used |= {gene: used.get(gene, 0) + 1 for gene in genes}
        if len(kept) == n:
            break
    return pairs.iloc[kept]


def plot_calls(post, min_abs: Sequence[float] = (0.0, 0.1, 0.3), ax=None):
    """How many pairs are called at each false discovery rate, and the rate that is expected.

    Two panels: numbers of calls, and the mean probability that a call is wrong against the rate
    that was asked for, which it approaches from below.

    Parameters
    ----------
    min_abs
        Sizes of correlations that matter, one line each.
    ax
        Two axes.
    """
    style.need_draws(post)
    figure, (left, right) = style.new_grid(ax, 2, 2, size=(3.4, 3.0))
    for limit, colour in zip(
        min_abs, (style.BLUE, style.GREEN, style.ORANGE, style.RED), strict=False
    ):
        # One list of the most calls holds all shorter ones.
        q = post.pairs(min_abs=limit, fdr=NOMINAL.max())["q"].to_numpy()
        numbers = np.searchsorted(q, NOMINAL, side="right")
        expected = [q[n - 1] if n else np.nan for n in numbers]
        label = f"|correlation| > {limit:g}" if limit else "sign"
        left.plot(NOMINAL, numbers, "o-", color=colour, ms=4, label=label)
        right.plot(NOMINAL, expected, "o", color=colour, ms=4)
    left.set(xlabel="false discovery rate asked for", ylabel="pairs called", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    style.identity(right, np.array([0.0, NOMINAL.max()]), log=False)
    right.set(xlabel="false discovery rate asked for", ylabel="expected share of wrong calls")
    return figure
