"""Figures of what was found: correlations and gene programs."""

from collections.abc import Sequence

import numpy as np

from nbln.arguments import check_whole
from nbln.pl import style

MOST_TOP = 100  # genes of a program that a figure has room for

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
        Names; by default `n_genes`, of each program in turn those that it varies most.
    kind
        As in `get_correlation`.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    style.need_programs(res)
    if genes is None:
        genes = list(genes_in_turn(res, check_whole("n_genes", n_genes, 2)))
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


def strongest_genes(res, n: int) -> np.ndarray:
    """The genes that the gene programs vary most, the pool of the rarest aside."""
    real = np.flatnonzero(res.fitted.real_genes)
    strength = np.sum(np.asarray(res.get_W_compositional())[real] ** 2, axis=1)
    return res.fitted.gene_names[real[np.argsort(-strength, kind="stable")[:n]]]


def genes_in_turn(res, n: int) -> np.ndarray:
    """Of each program that carries signal in turn the gene that it varies most; `n` in all."""
    weight = np.abs(res.program_genes.weight)
    order = np.argsort(-weight, axis=0, kind="stable")[:n]
    used = np.take_along_axis(weight, order, axis=0) > 0
    chosen = list(dict.fromkeys(order[used].tolist()))[:n]  # row by row: programs take turns
    spare = len(chosen) < min(n, 2)  # no program, or one gene
    return strongest_genes(res, n) if spare else res.program_genes.names[chosen]


def plot_gene_programs(res, n_top: int = 12, n_programs: int | None = None, ax=None):
    """The leading genes of each program that carries signal, with their loadings.

    They lead by the share of the variance of their counts that the program makes, as in
    `get_program_table`: the largest loadings are often those of rare genes. A third of them go
    down with the program.

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
    heaviest = _heaviest(res, W, n_top)
    figure, axes = style.new_grid(ax, n_programs, 2, size=(3.2, 0.19 * n_top + 0.9))
    for k, panel in enumerate(axes):
        top = heaviest[:, k]
        top = top[np.argsort(W[top, k], kind="stable")]
        colours = np.where(W[top, k] > 0, style.RED, style.BLUE)
        panel.barh(range(n_top), W[top, k], color=colours)
        panel.set_yticks(range(n_top), style.labels(genes[top]), fontsize=8)
        panel.axvline(0, color="black", lw=0.6)
        panel.set_title(f"program {k + 1}", fontsize="medium")
        panel.set_xlabel("loading (natural log)")
    return figure


def _heaviest(res, W: np.ndarray, n: int) -> np.ndarray:
    """(rank, factor) the `n` genes of most weight in each program, both ways as far as there are.

    Two of three go up with it, where so many do.
    """
    weight = np.zeros(W.shape)
    known = res.program_genes.weight
    weight[:, : known.shape[1]] = known
    chosen = []
    for w, x in zip(W.T, weight.T, strict=True):
        order = np.lexsort([-np.abs(w), -np.abs(x)])
        up, down = order[w[order] > 0], order[w[order] <= 0]
        n_down = min(len(down), max(n // 3, n - len(up)))
        chosen.append(np.concatenate([up[: n - n_down], down[:n_down]]))
    return np.stack(chosen, axis=1)
