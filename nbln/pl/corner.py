"""Shares of genes in a cell, pair by pair: cells, pseudobulks and the model."""

from collections.abc import Sequence

import numpy as np

from nbln.arguments import check_number, check_whole, choose
from nbln.pl import style
from nbln.pl.genes import strongest_genes
from nbln.questions.histograms import counts_of

CELLS_A_GROUP = 25  # of a pseudobulk: counting noise falls to a fifth
CANDIDATES = 200  # genes among which diverse correlations are looked for: the strongest
GRID = 80  # places on each axis where a density is estimated
LEAST_VARIANCE = 1e-10  # of two genes' log10 shares in their narrowest direction
BINS = 25  # of a histogram: a few draws in each


def plot_compositional_corner_ppc(
    res,
    genes: Sequence[str] | None = None,
    n_samples: int = 2000,
    counts=None,
    n_genes: int = 4,
    min_mean_umi: float = 0.0,
    gene_selection: str = "programs",
    contour_mass_levels: Sequence[float] = (0.5, 0.9),
    density_method: str = "kde",
    ax=None,
):
    """Shares of genes in a cell, pair by pair: cells, pseudobulks and the model.

    Cells carry counting noise, the model (softmax of fresh log-rates) does not; pseudobulks, the
    pooled counts of about 25 cells that are alike in their factors, are in between. Shares are
    on a logarithmic scale.

    Parameters
    ----------
    genes
        Two to eight names; by default `n_genes` are chosen.
    n_samples
        Cells drawn from the model.
    counts
        The AnnData of the fit; needed after loading.
    n_genes, min_mean_umi
        How many are chosen, of those that have this mean count in a cell at least. Shares of genes
        below one count a cell are mostly counting noise.
    gene_selection
        ``"programs"``: those that the gene programs vary most; ``"correlation_diverse"``: the pair
        that is most correlated, the gene whose correlation with one of them is most negative, and
        genes that are as little correlated with the others as can be.
    contour_mass_levels
        Shares of the model's cells that are inside its contours, where they are densest. Without
        any, each of its cells is a point.
    density_method
        How contours are found: ``"kde"``, by a Gaussian kernel, or ``"hist2d"``, by a histogram,
        which is rougher, and quicker where many cells are drawn.
    ax
        Axes for all pairs and genes: the square of the number of genes.

    Raises
    ------
    ValueError
        A word or a number that is not accepted, or fewer than two genes that are abundant enough.
    """
    style.need_programs(res)
    estimate = DENSITIES[choose("density_method", density_method, DENSITIES)]
    masses = [check_number("contour_mass_levels", m, 0, 1, open_=True) for m in contour_mass_levels]
    data = res.fitted.data(counts)
    chosen = _chosen(res, data, n_genes, min_mean_umi, gene_selection) if genes is None else genes
    positions = res.fitted.find(chosen)
    n = len(positions)
    if not 2 <= n <= 8:
        raise ValueError(f"genes=: two to eight genes make a corner, given {n}")
    labels = style.labels(res.fitted.gene_names[positions])
    figure, axes = style.new_grid(ax, n * n, n, size=(2.3, 2.1))
    shares = _shares(res, data, positions, n_samples)
    for i in range(n):
        for j in range(n):
            panel = axes[i * n + j]
            if j > i:
                panel.set_visible(False)
                continue
            if i == j:
                _density(panel, shares, i)
            else:
                _pairs(panel, shares, i, j, masses, estimate)
            panel.set_xlabel(f"log10 share of {labels[j]}" if i == n - 1 else "")
            label = "density" if i == j else labels[i]
            panel.set_ylabel(label if j == 0 or i == j else "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", frameon=False)
    return figure


def _chosen(res, data, n_genes: int, min_mean_umi: float, selection: str) -> np.ndarray:
    """Names of genes for a corner."""
    check_whole("n_genes", n_genes, 2)
    choose_them = SELECTIONS[choose("gene_selection", selection, SELECTIONS)]
    least = check_number("min_mean_umi", min_mean_umi, 0, np.inf, open_=False)
    ranked = strongest_genes(res, res.fitted.n_genes)
    means = data.gene_totals[res.fitted.find(ranked)] / data.n_cells
    ranked = ranked[means >= least]
    if len(ranked) < 2:
        raise ValueError(
            f"min_mean_umi={least:g}: {len(ranked)} genes have as many counts a cell; the largest "
            f"mean is {means.max():.3g}"
        )
    return choose_them(res, ranked, n_genes)


def _strongest(res, ranked: np.ndarray, n: int) -> np.ndarray:
    del res
    return ranked[:n]


def _diverse(res, ranked: np.ndarray, n: int) -> np.ndarray:
    """Genes of ranked names whose correlations differ as much as can be."""
    names = ranked[:CANDIDATES]
    correlation = res.get_correlation(genes=names).values
    others = correlation - 2 * np.eye(len(names))
    chosen = [int(i) for i in np.unravel_index(np.argmax(others), others.shape)]
    chosen.append(int(np.argmin(correlation[chosen].min(axis=0))))
    chosen = list(dict.fromkeys(chosen))[:n]
    while len(chosen) < min(n, len(names)):
        closest = np.abs(correlation[:, chosen]).max(axis=1)
        closest[chosen] = np.inf
        chosen.append(int(np.argmin(closest)))
    return names[chosen]


SELECTIONS = {"programs": _strongest, "correlation_diverse": _diverse}


def _shares(res, data, positions, n_samples: int) -> dict[str, tuple[np.ndarray, str]]:
    """For cells, pseudobulks and the model, log10 shares (sample, gene), and a colour."""
    drawn = res.get_compositional_samples(n_samples).values[0][:, positions]
    rows = counts_of(data, positions)
    library, groups = res.fitted.library_size, _groups(res)
    sizes = np.bincount(groups)
    pooled = np.stack([np.bincount(groups, column) for column in rows.T], axis=1)[sizes > 0]
    depth = np.bincount(groups, library)[sizes > 0]
    return {
        "cells": (np.log10((rows + 0.5) / library[:, None]), style.GREY),
        "pseudobulk": (np.log10((pooled + 0.5) / depth[:, None]), style.ORANGE),
        "model": (np.log10(drawn), style.BLUE),
    }


def _groups(res):
    """Cells in groups of about 25 that are alike in their factors."""
    from scipy.cluster.vq import kmeans2

    rank = max(res.w_prior_diagnostics["effective_rank"], 1)
    z = np.asarray(res.get_latent(), np.float64)[:, :rank]
    n_groups = max(2, len(z) // CELLS_A_GROUP)
    rng = np.random.default_rng(0)
    return kmeans2(z, n_groups, rng=rng, minit="++")[1]


def _density(ax, shares, i):
    from scipy.stats import gaussian_kde

    grid = np.linspace(*_limits(shares, i), 200)
    for name, (values, colour) in shares.items():
        column = values[:, i]
        if np.ptp(column) > 0:
            ax.plot(grid, gaussian_kde(column)(grid), color=colour, label=name)
    ax.set_yticks([])


def _limits(shares, i) -> tuple[float, float]:
    """Between which nearly all shares of a gene are."""
    ends = [np.quantile(values[:, i], [0.002, 0.998]) for values, _ in shares.values()]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _pairs(ax, shares, i, j, masses, estimate):
    for name, alpha in (("cells", 0.35), ("model", 0.15), ("pseudobulk", 0.9)):
        values, colour = shares[name]
        x, y = values[:, j], values[:, i]
        # Where one gene follows from the other there is a line, and no density.
        if name == "model" and masses and np.linalg.eigvalsh(np.cov(x, y))[0] > LEAST_VARIANCE:
            grid, density = estimate(x, y)
            levels = highest_density(density, masses)
            ax.contour(*grid, density, levels=levels, colors=colour, linewidths=1, zorder=2)
            continue
        ax.scatter(x, y, color=colour, s=4, alpha=alpha, linewidths=0, rasterized=True)
    ax.set(xlim=_limits(shares, j), ylim=_limits(shares, i))


def highest_density(density: np.ndarray, masses: Sequence[float]) -> np.ndarray:
    """Values of a density on a grid above which the densest places hold these shares; rising."""
    falling = np.sort(density, axis=None)[::-1]
    held = np.cumsum(falling) / falling.sum()
    places = np.minimum(np.searchsorted(held, masses), len(held) - 1)
    return np.unique(falling[places])


def _kernel(x, y):
    from scipy.stats import gaussian_kde

    grid = np.meshgrid(*(_axis(values) for values in (x, y)))
    found = gaussian_kde(np.stack([x, y]))(np.stack([axis.ravel() for axis in grid]))
    return grid, found.reshape(grid[0].shape)


def _axis(values):
    """Places on an axis, beyond the values by a tenth, where a kernel has fallen off."""
    margin = 0.1 * np.ptp(values)
    return np.linspace(values.min() - margin, values.max() + margin, GRID)


def _histogram(x, y):
    counts, *edges = np.histogram2d(x, y, bins=BINS)
    return np.meshgrid(*((edge[1:] + edge[:-1]) / 2 for edge in edges)), counts.T


DENSITIES = {"kde": _kernel, "hist2d": _histogram}
