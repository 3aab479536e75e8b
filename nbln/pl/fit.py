"""Figures of a fit itself: how it converged, how many programs it keeps, what was captured."""

import numpy as np

from nbln.pl import style

CHANGES = ("loadings (relative)", "mu", "log d", "log r")


def plot_loss(res, ax=None):
    """How the fit converged.

    For SVI the negative evidence bound by step; for Laplace the change of the parameters in each
    iteration, and the fit of independent genes that it started from where there is one only in
    `plot_loss(res.cascade_source)`.
    """
    figure, ax = style.new_axes(ax)
    if res.kind == "svi":
        steps = np.arange(1, len(res.losses) + 1) * (res.n_steps / len(res.losses))
        ax.plot(steps, res.losses, color=style.GREY, marker=".", lw=0, label="one batch")
        running = np.cumsum(res.losses) / np.arange(1, len(res.losses) + 1)
        ax.plot(steps, running, color=style.BLUE, label="mean so far")
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.set(xlabel="step", ylabel="negative evidence bound (nats)", title="SVI")
        ax.legend(frameon=False)
    else:
        iterations = np.arange(1, len(res.trace) + 1)
        colours = (style.BLUE, style.ORANGE, style.GREEN, style.RED)
        for values, label, colour in zip(res.trace.T, CHANGES, colours, strict=True):
            if np.any(values > 0):
                ax.semilogy(iterations, values, color=colour, marker=".", label=label)
        ax.set(xlabel="iteration", ylabel="change in one iteration", title="Laplace")
        style.whole_numbers(ax.xaxis)
        ax.legend(frameon=False)
    return figure


def plot_w_shrinkage_spectrum(res, ax=None):
    """Norms of the columns of W_⊥, largest first, with the line at 5 % that counts as signal.

    The learned scale of each column is overlaid where the loadings prior has one, times the square
    root of the number of genes: the norm that it leads one to expect.
    """
    style.need_programs(res)
    figure, ax = style.new_axes(ax)
    found = res.w_prior_diagnostics
    norms = np.asarray(found["column_frobenius_compositional"])
    numbers = np.arange(1, len(norms) + 1)
    threshold = 0.05 * norms.max()
    signal = np.arange(len(norms)) < found["effective_rank"]
    floor = max(threshold / 100, 1e-12)
    for chosen, colour, label in ((signal, style.BLUE, "signal"), (~signal, style.GREY, "shrunk")):
        if chosen.any():
            shown = np.maximum(norms[chosen], floor)
            ax.scatter(numbers[chosen], shown, color=colour, label=f"norm, {label}", zorder=3)
    if {"psi", "lambda"} & set(res.scales):
        expected = np.asarray(found["sigma_k"]) * np.sqrt(res.fitted.n_genes)
        expected = np.maximum(expected, floor)
        ax.plot(
            numbers, expected, color=style.ORANGE, marker="_", lw=0.8, label="expected by scale"
        )
    ax.axhline(threshold, color=style.RED, ls="--", lw=1, label="5 % of the largest")
    ax.set_yscale("log")
    ax.set(xlabel="gene program", ylabel="norm of the column of W_⊥")
    style.whole_numbers(ax.xaxis)
    ax.set_title(f"{found['effective_rank']} of {len(norms)} programs carry signal")
    ax.legend(frameon=False, fontsize="small")
    return figure


def plot_capture(res, ax=None):
    """Capture loss η of every cell against its library size, and what the prior expects."""
    figure, ax = style.new_axes(ax)
    library, eta = res.fitted.library_size, np.asarray(res.eta)
    ax.scatter(library, eta, color=style.BLUE, label="cells", rasterized=True, **style.POINTS)
    rule = res.capture_rule
    sizes = np.geomspace(library.min(), library.max(), 50)
    top = rule.log_m0 if rule.log_library is None else rule.log_library
    ax.plot(sizes, top - np.log(sizes), color=style.ORANGE, label="expected by library size")
    if rule.sigma_m is not None:
        low, high = (top - np.log(sizes) + sign * rule.sigma_m for sign in (-1, 1))
        ax.fill_between(sizes, np.maximum(low, 0), high, color=style.ORANGE, alpha=0.15, lw=0)
    ax.set_xscale("log")
    style.plain_log(ax.xaxis)
    ax.set(xlabel="library size (counts)", ylabel="capture loss η (natural log)")
    ax.legend(frameon=False)
    return figure
