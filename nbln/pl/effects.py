"""Figures of effects of covariates."""

import numpy as np
import pandas as pd

from nbln.arguments import check_whole
from nbln.pl import style


def plot_effects(table: pd.DataFrame, n_labels: int = 12, ax=None):
    """Size of each gene's change beside how sure it is: a volcano.

    Parameters
    ----------
    table
        What `PosteriorDraws.differential_expression` gave, or `VAEResult.differential_expression`
        for one pair of groups.
    n_labels
        So many genes have their names, of those that are called the surest.
    """
    check_whole("n_labels", n_labels, 0)
    missing = [name for name in ("lfc_mean", "q", "is_de_fdr") if name not in table]
    if missing:
        raise ValueError(
            f"plot_effects(table=): has no column {missing[0]!r}; give what "
            "differential_expression() gave"
        )
    figure, ax = style.new_axes(ax, figsize=(5.4, 4.4))
    called = table["is_de_fdr"].to_numpy(bool)
    change, sure = table["lfc_mean"].to_numpy(), -np.log10(table["q"].clip(1e-16))
    colours = np.where(~called, style.GREY, np.where(change > 0, style.RED, style.BLUE))
    ax.scatter(change, sure, c=colours, s=np.where(called, 16, 8), linewidths=0)
    ax.axvline(0, color="black", lw=0.6)
    ax.set(xlabel="log2 fold change", ylabel="-log10 q (false discovery rate)")
    names = style.labels(table.index[called][:n_labels])
    places = zip(names, change[called], sure[called], strict=False)
    for i, (name, x, y) in enumerate(places):
        side = 1 if x > 0 else -1
        ax.annotate(
            name, (x, y), (5 * side, 7 * (i % 3) - 7), textcoords="offset points", fontsize=8,
            ha="left" if side > 0 else "right", va="center",
        )  # fmt: skip
    ax.margins(x=0.15)
    ax.set_title(f"{called.sum():,} of {len(table):,} genes are called", fontsize=10)
    return figure
