"""Figures of what was found: correlations and gene programs."""

from collections.abc import Sequence

import numpy as np

from nbln.arguments import check_whole
from nbln.data.slices import slices
from nbln.pl import style

MOST_TOP = 100  # genes of a program that a figure has room for

BLOCK = 512  # cells read at a time
LABELLED = 60  # genes whose names fit beside a heat map


def plot_correlation(
    res,
    genes: Sequence[str] | None = None,
    n_genes: int = 50,
    kind: str = "compositional",
    ax=None,
):
    """Correlations between genes as a heat map, genes in the order of a clustering.

    Parameters
    ----------
    genes
        Names; by default the `n_genes` that the gene programs vary most.
    kind
        As in `get_correlation`.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    style.need_programs(res)
    if genes is None:
        genes = list(strongest_genes(res, check_whole("n_genes", n_genes, 2)))
    correlation = res.get_correlation(kind=kind, genes=genes)
    values = correlation.values
    if len(values) > 2:
        distance = squareform(np.clip(1 - values, 0, 2), checks=False)
        order = leaves_list(linkage(distance, "average"))
        values, correlation = values[np.ix_(order, order)], correlation[order, order]
    side = 5.0 if len(values) > LABELLED else max(4.0, 0.16 * len(values) + 1.5)
    figure, ax = style.new_axes(ax, figsize=(side + 1, side))
    image = ax.imshow(values, cmap=style.DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    if len(values) <= LABELLED:
        labels = style.labels(correlation["gene"].values)
        size = 9 if len(values) <= 30 else 7
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
        ax.set_yticks(range(len(labels)), labels, fontsize=size)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set(xlabel=f"{len(values):,} genes, clustered")
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, shrink=0.7, label=f"{kind.replace('_', ' ')} correlation")
    return figure


def counts_of(data, positions) -> np.ndarray:
    """(cell, gene) counts of these genes, read block by block."""
    blocks = slices(data.n_cells, BLOCK)
    return np.concatenate([data.rows(block)[:, positions] for block in blocks])


def strongest_genes(res, n: int) -> np.ndarray:
    """The genes that the gene programs vary most, the pool of the rarest aside."""
    real = np.flatnonzero(res.fitted.real_genes)
    strength = np.sum(np.asarray(res.get_W_compositional())[real] ** 2, axis=1)
    return res.fitted.gene_names[real[np.argsort(-strength, kind="stable")[:n]]]


def plot_gene_programs(res, n_top: int = 12, n_programs: int | None = None, ax=None):
    """The genes with the largest loadings of each program that carries signal.

    Parameters
    ----------
    n_top
        Genes a program, 100 at most.
    n_programs
        Programs, largest first; by default all that carry signal, nine at most.
    ax
        As many axes as programs.
    """
    style.need_programs(res)
    if n_programs is None:
        n_programs = min(max(res.w_prior_diagnostics["effective_rank"], 1), 9)
    if not 1 <= n_programs <= res.latent_dim:
        raise ValueError(f"n_programs={n_programs}: must be from 1 to {res.latent_dim}")
    real = np.flatnonzero(res.fitted.real_genes)
    W = np.asarray(res.get_W_compositional())[real]
    genes = res.fitted.gene_names[real]
    n_top = min(check_whole("n_top", n_top), MOST_TOP, len(genes))
    figure, axes = style.new_grid(ax, n_programs, 3, size=(3.0, 0.19 * n_top + 0.9))
    for k, panel in enumerate(axes):
        top = np.argsort(-np.abs(W[:, k]), kind="stable")[:n_top]
        top = top[np.argsort(W[top, k], kind="stable")]
        colours = np.where(W[top, k] > 0, style.RED, style.BLUE)
        panel.barh(range(n_top), W[top, k], color=colours)
        panel.set_yticks(range(n_top), style.labels(genes[top]), fontsize=8)
        panel.axvline(0, color="black", lw=0.6)
        panel.set_title(f"program {k + 1}", fontsize="medium")
        panel.set_xlabel("loading (natural log)")
    return figure
