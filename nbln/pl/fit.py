"""Figures of a fit itself: how it converged, how many programs it keeps, what was captured."""

from collections.abc import Sequence

import numpy as np

from nbln.arguments import check_number
from nbln.linalg import gauge
from nbln.pl import style

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.GREY)


def plot_loss(res, ax=None):
    """How the fit converged.

    For SVI the negative evidence bound by step; for Laplace the change of the parameters in each
    iteration. A Laplace result shows its own iterations; those of the fit of independent genes that
    it took capture losses from are in ``plot_loss(res.cascade_source)``.
    """
    style.need_fit(res)
    figure, ax = style.new_axes(ax)
    course = res.convergence
    for curve, colour in zip(course.curves, COLOURS, strict=False):
        marker, width = "." if curve.marked else "", 1.5 if curve.joined else 0
        ax.plot(
            course.steps, curve.values, color=colour, marker=marker, lw=width, label=curve.label
        )
    if course.logarithmic:
        ax.set_yscale("log")
    else:
        ax.ticklabel_format(axis="y", useOffset=False)
    ax.set(xlabel=course.step, ylabel=course.quantity, title=course.title)
    style.whole_numbers(ax.xaxis)
    ax.legend(frameon=False)
    return figure


def plot_w_shrinkage_spectrum(
    res,
    show_sigma_k: bool = True,
    show_threshold: bool = True,
    threshold_fraction: float | None = None,
    ax=None,
):
    """Norms of the columns of W_⊥, largest first, with the line above which they count as signal.

    Parameters
    ----------
    show_sigma_k
        Whether the learned scale of each column is overlaid where the loadings prior has one, times
        the square root of the number of genes: the norm that it leads one to expect.
    show_threshold
        Whether the line is drawn.
    threshold_fraction
        Share of the longest norm at which it is; by default that of the fit (5 %). Programs are
        counted by it in this figure alone.
    """
    style.need_programs(res)
    figure, ax = style.new_axes(ax)
    sizes = res.w_prior_diagnostics
    norms = np.asarray(sizes["column_frobenius_compositional"])
    numbers = np.arange(1, len(norms) + 1)
    limits = res.loadings.prior.shrinkage
    share, per_gene = limits.signal_share, np.sqrt(res.fitted.n_genes)
    if threshold_fraction is not None:
        share = check_number("threshold_fraction", threshold_fraction, 0.0, 1.0, open_=False)
    threshold = share * norms.max()
    rank = gauge.effective_rank(norms, share, limits.smallest_signal * per_gene)
    signal = np.arange(len(norms)) < rank
    floor = max(threshold / 100, 1e-12)
    for of_kind, colour, label in ((signal, style.BLUE, "signal"), (~signal, style.GREY, "shrunk")):
        if of_kind.any():
            shown = np.maximum(norms[of_kind], floor)
            ax.scatter(numbers[of_kind], shown, color=colour, label=f"norm, {label}", zorder=3)
    if show_sigma_k and res.loadings.learned:
        expected = np.asarray(sizes["sigma_k"]) * per_gene
        expected = np.maximum(expected, floor)
        ax.plot(
            numbers, expected, color=style.ORANGE, marker="_", lw=0.8, label="expected by scale"
        )
    if show_threshold:
        label = f"{100 * share:g} % of the largest"
        ax.axhline(max(threshold, floor), color=style.RED, ls="--", lw=1, label=label)
    ax.set_yscale("log")
    ax.set(xlabel="gene program", ylabel="norm of the column of W_⊥")
    style.whole_numbers(ax.xaxis)
    ax.set_title(f"{rank} of {len(norms)} programs carry signal")
    ax.legend(frameon=False, fontsize="small")
    return figure


def plot_capture(res, ax=None):
    """Capture loss η of each cell against its library size, and what the prior expects."""
    style.need_fit(res)
    if not res.has_capture:
        raise ValueError(f"model {res.model} has no capture losses; fit model='nbln'")
    figure, ax = style.new_axes(ax)
    library, eta = res.fitted.library_size, np.asarray(res.eta)
    ax.scatter(library, eta, color=style.BLUE, label="cells", rasterized=True, **style.POINTS)
    rule = res.capture_rule
    sizes = np.geomspace(library.min(), library.max(), 50)
    expected = rule.expected(sizes)
    ax.plot(sizes, expected, color=style.ORANGE, label="expected by library size")
    if rule.sigma_m is not None:
        low, high = (expected + sign * rule.sigma_m for sign in (-1, 1))
        ax.fill_between(sizes, np.maximum(low, 0), high, color=style.ORANGE, alpha=0.15, lw=0)
    ax.set_xscale("log")
    style.plain_log(ax.xaxis)
    ax.set(xlabel="library size (counts)", ylabel="capture loss η (natural log)")
    ax.legend(frameon=False)
    return figure


def plot_latent(res, color: Sequence | None = None, ax=None):
    """Cells in the plane of the two principal directions of their factors.

    Parameters
    ----------
    color
        A value or a label of each cell; by default log10 of the library size, where there is
        one.
    ax
        Axes to draw on.

    Raises
    ------
    ValueError
        A model without factors, or colours of another number of cells.
    """
    style.need_factors(res)
    figure, ax = style.new_axes(ax)
    z = np.asarray(res.get_latent().values, np.float64)
    x, y = style.principal_plane(z).T
    if color is not None:
        values = np.asarray(color)
    elif res.fitted.counted:
        values = np.log10(res.fitted.library_size)
    else:
        values = np.full(len(z), "samples")
    if values.shape != (len(z),):
        raise ValueError(f"color=: one value for each of {len(z)} cells, given {values.shape}")
    if values.dtype.kind in "biuf":
        dots = ax.scatter(x, y, c=values, cmap="viridis", rasterized=True, **style.POINTS)
        name = "log10 library size" if color is None else "value"
        figure.colorbar(dots, ax=ax, label=name)
    else:
        names = values.astype(str)
        for name in sorted(set(names)):
            here = names == name
            label = style.labels([name])[0]
            ax.scatter(x[here], y[here], label=label, rasterized=True, **style.POINTS)
        ax.legend(
            frameon=False,
            fontsize="small",
            markerscale=2,
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )
    ax.set(xlabel="first direction of z", ylabel="second direction of z")
    return figure
