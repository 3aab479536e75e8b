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
    change, sure = table["lfc_mean"].to_numpy(), -np.log10(table["q"].to_numpy().clip(1e-16))
    colours = np.where(~called, style.GREY, np.where(change > 0, style.RED, style.BLUE))
    ax.scatter(change, sure, c=colours, s=np.where(called, 16, 8), linewidths=0)
    ax.axvline(0, color="black", lw=0.6)
    ax.set(xlabel="log2 fold change", ylabel="-log10 q (false discovery rate)")
    ax.margins(x=0.45)
    for side in (False, True):
        shown = np.flatnonzero(called)[:n_labels]
        shown = shown[(change[shown] > 0) == side]
        _label_beside(ax, table.index[shown], change[shown], sure[shown], right=side)
    title = f"{called.sum():,} of {len(table):,} genes are called"
    if table.attrs.get("reference") is not None:
        pair = (table.attrs[name] for name in ("group", "reference"))
        compared = style.labels(x if isinstance(x, str) else f"{x:.3g}" for x in pair)
        title = f"{compared[0]} over {compared[1]}:\n{title}"
    ax.set_title(title, fontsize=10)
    return figure


def _label_beside(ax, genes, x, y, right: bool) -> None:
    """Names in a column at one side, joined to their points: those points lie on each other."""
    order = np.lexsort((-np.abs(x), -y))
    step = min(0.055, 0.95 / max(len(order), 1))
    for i, (name, place) in enumerate(zip(style.labels(genes[order]), order, strict=True)):
        ax.annotate(
            name, (x[place], y[place]), (0.98 if right else 0.02, 0.97 - i * step),
            textcoords="axes fraction", fontsize=8, va="center", ha="right" if right else "left",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": style.GREY, "shrinkB": 2},
        )  # fmt: skip
