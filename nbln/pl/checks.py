"""Figures that hold data against the model."""

import numpy as np

from nbln.data.slices import slices
from nbln.pl import style
from nbln.questions.checks import by_group, extreme, misfits

PANELS = {
    "mean": ("mean count", True),
    "variance": ("variance of counts", True),
    "zero_fraction": ("share of zeros", False),
    "quantile_99": ("99 % quantile", True),
}
MOST_GROUPS = 6  # rows of panels that a page has room for
FRAME = 100.0  # factor beyond the data's extremes at which a figure of moments ends
BLOCK = 512  # cells read at a time


def plot_ppc(
    res,
    ppc_level: str = "library_anchored",
    n_samples: int = 50,
    checks=None,
    counts=None,
    ax=None,
    groupby=None,
):
    """Four statistics of each gene, observed against predicted, and the residuals' distances.

    Genes outside the predictive draws are marked: outside all of them, or outside the central
    99 % where there are 199 or more.

    Parameters
    ----------
    ppc_level, n_samples, counts, groupby
        As in `check`. With groups of cells each has a row of panels, and six rows are shown at
        most: those of most misfits.
    checks
        What `check` gave; by default what it gave last, of so many draws at least, if it did.
    ax
        Five axes, or five a group.
    """
    style.need_fit(res)
    if checks is None and groupby is None:
        checks = res.get_checks(ppc_level, n_samples, counts=counts)
    elif checks is None:
        checks = res.check(ppc_level, n_samples, counts=counts, groupby=groupby)
    groups = _worst_groups(dict(by_group(checks)))
    n = len(PANELS) + 1
    grouped = None not in groups
    figure, axes = style.new_grid(ax, n * len(groups), n if grouped else 2)
    for i, (group, one) in enumerate(groups.items()):
        panels = axes[i * n : (i + 1) * n]
        for panel, (name, (label, log)) in zip(panels, PANELS.items(), strict=False):
            _observed_predicted(panel, one[name], misfits(one, name), label, log)
        _residuals(panels[-1], one)
        if grouped:
            (label,) = style.labels([group])
            panels[0].set_ylabel(f"{label}\npredicted")
    level, n_draws = checks.attrs["ppc_level"], checks.attrs["n_samples"]
    chance = f"{2 * extreme(checks):.0%} of genes lie outside by chance"
    figure.suptitle(f"Predictive checks, {level}, {n_draws} draws; {chance}")
    return figure


def _worst_groups(groups: dict) -> dict:
    """Of many groups those in which most genes are misfits, in their own order."""
    shares = {
        name: sum(misfits(one, what).mean() for what in (*PANELS, "residuals"))
        for name, one in groups.items()
    }
    worst = sorted(groups, key=lambda name: -shares[name])[:MOST_GROUPS]
    return {name: one for name, one in groups.items() if name in worst}


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
    # The tail of a log-normal can be without measure: what is beyond lies on the frame.
    model_mean, model_variance = (
        np.clip(model, data[data > 0].min(initial=1.0) / FRAME, FRAME * data.max())
        for model, data in zip(res.get_count_moments(), (mean, variance), strict=True)
    )
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
