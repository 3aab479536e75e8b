"""Figures of how sure the answers are: intervals of pairs, calls, the network of called pairs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nbln.arguments import check_whole
from nbln.pl import style

LABELLED_NODES = 80  # genes whose names fit in a network: those with most partners
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


def plot_network(
    post, pairs: pd.DataFrame | None = None, n_pairs: int = 200, seed: int = 0, ax=None
):
    """The called pairs as a network: genes as nodes, correlations as edges, red where positive.

    Parameters
    ----------
    pairs
        What `PosteriorDraws.pairs` gave, or a part of it; by default it is asked.
    n_pairs
        The strongest of them so many, so that the picture can be read.
    seed
        Of the layout.
    """
    import networkx as nx

    style.need_draws(post)
    pairs = post.pairs() if pairs is None else pairs
    order = np.argsort(-np.abs(pairs["mean"].to_numpy()), kind="stable")
    shown = pairs.iloc[order[: check_whole("n_pairs", n_pairs)]]
    figure, ax = style.new_axes(ax, figsize=(6.0, 6.0))
    ax.axis("off")
    if not len(shown):
        ax.text(0.5, 0.5, "no pair is called", ha="center", va="center", transform=ax.transAxes)
        return figure
    graph = nx.from_pandas_edgelist(shown, "gene_a", "gene_b", edge_attr="mean")
    weights = np.array([graph.edges[edge]["mean"] for edge in graph.edges])
    # Springs of one strength, and long: genes of a program would lie on top of each other.
    place = nx.spring_layout(graph, weight=None, seed=seed, k=5 / np.sqrt(len(graph)))
    colours = [style.RED if weight > 0 else style.BLUE for weight in weights]
    nx.draw_networkx_edges(
        graph, place, ax=ax, edge_color=colours, width=0.4 + 1.6 * np.abs(weights), alpha=0.6
    )
    degree = np.array([graph.degree[node] for node in graph])
    nx.draw_networkx_nodes(graph, place, ax=ax, node_size=15 + 6 * degree, node_color=style.GREY)
    named = sorted(graph, key=lambda node: -graph.degree[node])[:LABELLED_NODES]
    labels = dict(zip(named, style.labels(named), strict=True))
    nx.draw_networkx_labels(graph, place, labels, ax=ax, font_size=7, verticalalignment="bottom")
    return figure
