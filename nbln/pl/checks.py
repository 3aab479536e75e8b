"""Figures that hold data against the model."""

from collections.abc import Sequence

import numpy as np

from nbln.data.slices import slices
from nbln.pl import style
from nbln.pl.genes import strongest_genes
from nbln.questions.checks import extreme, misfits

PANELS = {
    "mean": ("mean count", True),
    "variance": ("variance of counts", True),
    "zero_fraction": ("share of zeros", False),
    "quantile_99": ("99 % quantile", True),
}
CELLS_A_GROUP = 25  # of a pseudobulk: counting noise falls to a fifth
BLOCK = 512  # cells read at a time


def plot_ppc(
    res, ppc_level: str = "library_anchored", n_samples: int = 50, checks=None, counts=None, ax=None
):
    """Four statistics of each gene, observed against predicted, and the residuals' distances.

    Genes outside the predictive draws are marked: outside all of them, or outside the central
    99 % where there are 199 or more.

    Parameters
    ----------
    ppc_level, n_samples, counts
        As in `check`.
    checks
        What `check` gave, if it is there already.
    ax
        Five axes.
    """
    style.need_fit(res)
    figure, axes = style.new_grid(ax, 5, 3)
    checks = checks if checks is not None else res.check(ppc_level, n_samples, counts=counts)
    for panel, (name, (label, log)) in zip(axes, PANELS.items(), strict=False):
        _observed_predicted(panel, checks[name], misfits(checks, name), label, log)
    _residuals(axes[-1], checks)
    level, n_draws = checks.attrs["ppc_level"], checks.attrs["n_samples"]
    chance = f"{2 * extreme(checks):.0%} of genes lie outside by chance"
    figure.suptitle(f"Predictive checks, {level}, {n_draws} draws; {chance}")
    return figure


def _observed_predicted(ax, statistic, bad, label, log):
    observed, predicted, low, high = (
        statistic.sel(quantity=q).values for q in ("observed", "predicted", "low", "high")
    )
    if log:  # a zero has no place on a logarithmic axis: half of the smallest other value
        positive = np.concatenate([observed, predicted])
        least = positive[positive > 0].min(initial=1.0) / 2
        observed, predicted, low, high = (
            np.maximum(x, least) for x in (observed, predicted, low, high)
        )
    ax.vlines(observed, low, high, color=style.GREY, lw=0.4, alpha=0.5, rasterized=True)
    for shown, colour in ((~bad, style.BLUE), (bad, style.RED)):
        ax.scatter(observed[shown], predicted[shown], color=colour, rasterized=True, **style.POINTS)
    style.identity(ax, observed, predicted, log=log)
    ax.set(xlabel=f"observed {label}", ylabel="predicted")
    ax.set_title(f"{bad.sum()} of {len(bad)} genes outside the draws", fontsize="small")


def _residuals(ax, checks):
    distance = checks["residual_distance"].values
    bad = misfits(checks, "residuals")
    ax.hist(distance, bins=40, color=style.BLUE)
    if bad.any():
        ax.axvline(distance[bad].min(), color=style.RED, ls="--", lw=1)
    ax.set(xlabel="distance of residuals from uniform", ylabel="genes")
    ax.set_title(f"{bad.sum()} of {len(bad)} genes beyond 1 % level", fontsize="small")


def plot_mean_variance(res, counts=None, ax=None):
    """Variance of each gene's counts against its mean: data, model, and the Poisson line."""
    style.need_counts(res)
    figure, ax = style.new_axes(ax)
    data = res.fitted.data(counts)
    mean, variance = _moments(data)
    model_mean, model_variance = res.get_count_moments()
    ax.scatter(mean, variance, color=style.BLUE, label="data", rasterized=True, **style.POINTS)
    ax.scatter(
        model_mean,
        model_variance,
        facecolors="none",
        edgecolors=style.ORANGE,
        s=14,
        linewidths=0.6,
        label="model",
        rasterized=True,
    )
    line = np.array([min(mean.min(), model_mean.min()), max(mean.max(), model_mean.max())])
    ax.plot(line, line, color=style.GREY, lw=1, label="Poisson, equal depth")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set(xlabel="mean count", ylabel="variance of counts")
    ax.legend(frameon=False)
    return figure


def _moments(data):
    total, square = np.zeros(data.n_genes), np.zeros(data.n_genes)
    for block in slices(data.n_cells, BLOCK):
        genes, values = data.nonzeros(block)
        total += np.bincount(genes, values, data.n_genes)
        square += np.bincount(genes, np.square(values, dtype=np.float64), data.n_genes)
    mean = total / data.n_cells
    return mean, (square / data.n_cells - mean**2) * data.n_cells / max(data.n_cells - 1, 1)


def plot_compositional_corner_ppc(
    res, genes: Sequence[str] | None = None, n_samples: int = 2000, counts=None, ax=None
):
    """Shares of genes in a cell, pair by pair: cells, pseudobulks and the model.

    Cells carry counting noise, the model (softmax of fresh log-rates) does not; pseudobulks, the
    pooled counts of about 25 cells that are alike in their factors, are in between. Shares are
    on a logarithmic scale.

    Parameters
    ----------
    genes
        Two to eight names; by default the four that the gene programs vary most.
    n_samples
        Cells drawn from the model.
    ax
        Axes for all pairs and genes: the square of the number of genes.
    """
    style.need_programs(res)
    fitted = res.fitted
    data = fitted.data(counts)
    names_ = strongest_genes(res, 4) if genes is None else np.asarray(genes)
    positions = fitted.find(names_)
    if not 2 <= len(positions) <= 8:
        raise ValueError(f"genes=: two to eight genes make a corner, given {len(positions)}")
    n = len(positions)
    labels = style.labels(fitted.gene_names[positions])
    figure, axes = style.new_grid(ax, n * n, n, size=(2.3, 2.1))
    drawn = res.get_compositional_samples(n_samples).values[0][:, positions]
    rows = np.concatenate([data.rows(block)[:, positions] for block in slices(data.n_cells, BLOCK)])
    groups = _groups(res)
    sizes = np.bincount(groups)
    pooled = np.stack([np.bincount(groups, column) for column in rows.T], axis=1)[sizes > 0]
    depth = np.bincount(groups, fitted.library_size)[sizes > 0]
    shares = {
        "cells": (np.log10((rows + 0.5) / fitted.library_size[:, None]), style.GREY),
        "pseudobulk": (np.log10((pooled + 0.5) / depth[:, None]), style.ORANGE),
        "model": (np.log10(drawn), style.BLUE),
    }
    for i in range(n):
        for j in range(n):
            panel = axes[i * n + j]
            if j > i:
                panel.set_visible(False)
                continue
            _density(panel, shares, i) if i == j else _pairs(panel, shares, i, j)
            panel.set_xlabel(f"log10 share of {labels[j]}" if i == n - 1 else "")
            label = "density" if i == j else labels[i]
            panel.set_ylabel(label if j == 0 or i == j else "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", frameon=False)
    return figure


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

    low = min(np.quantile(values[:, i], 0.002) for values, _ in shares.values())
    high = max(np.quantile(values[:, i], 0.998) for values, _ in shares.values())
    grid = np.linspace(low, high, 200)
    for name, (values, colour) in shares.items():
        column = values[:, i]
        if np.ptp(column) > 0:
            ax.plot(grid, gaussian_kde(column)(grid), color=colour, label=name)
    ax.set_yticks([])


def _pairs(ax, shares, i, j):
    for name in ("cells", "model", "pseudobulk"):
        values, colour = shares[name]
        alpha = {"cells": 0.35, "model": 0.15, "pseudobulk": 0.9}[name]
        ax.scatter(
            values[:, j],
            values[:, i],
            color=colour,
            s=4,
            alpha=alpha,
            linewidths=0,
            rasterized=True,
        )
