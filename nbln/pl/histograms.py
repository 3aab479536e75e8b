"""Counts of single genes held against the model."""

from collections.abc import Sequence

import numpy as np

from nbln.arguments import check_whole
from nbln.pl import style
from nbln.questions.groups import Groups
from nbln.questions.histograms import bin_starts, binned, counts_of, spread

COLUMNS = 2
LABELS = 4  # of bins, below a panel


def plot_gene_ppc(
    res,
    genes: Sequence[str] | None = None,
    n_genes: int = 6,
    ppc_level: str = "library_anchored",
    n_samples: int = 50,
    counts=None,
    ax=None,
    groupby=None,
):
    """Histograms of the counts of single genes: the data, and where the model expects them.

    Bars are shares of cells on a logarithmic scale; the band holds 90 % of the model's draws (5 %
    to 95 %), its line is their median. Zeros have a bin of their own, and the last bin holds all
    counts from its number on. A bin without a cell has no bar.

    Parameters
    ----------
    genes
        Names; by default `n_genes` at equal steps of log mean count, rarest first.
    ppc_level, n_samples, counts
        As in `get_ppc_samples`; memory is 4 bytes x draws x cells x genes that are shown.
    ax
        As many axes as genes, or genes times groups.
    groupby
        A panel for each group of cells, as in `check`; a gene has a row of them.

    Raises
    ------
    ValueError
        The data are no counts, or an unknown level.
    KeyError
        An unknown gene.
    """
    style.need_counts(res)
    data = res.fitted.data(counts)
    n_genes = check_whole("n_genes", n_genes)
    positions = spread(res.fitted, data, n_genes) if genes is None else res.fitted.find(genes)
    names = res.fitted.gene_names[positions]
    groups = _groups(groupby, data, counts)
    n_columns = COLUMNS if groupby is None else len(groups)
    panels = [(i, group) for i in range(len(names)) for group in groups]
    figure, axes = style.new_grid(ax, len(panels), n_columns, size=(3.2, 2.2))
    rows, labels = counts_of(data, positions), style.labels(names)
    drawn = _drawn(res, names, groups, ppc_level, n_samples, data, rows)
    for place, (panel, (i, group)) in enumerate(zip(axes, panels, strict=True)):
        cells = groups[group]
        _histogram(panel, rows[cells, i], drawn[group][i])
        title = f"{labels[i]}, mean {rows[cells, i].mean():.3g}"
        below = "" if groupby is None else f"\n{style.labels([group])[0]}"
        panel.set_title(title + below, fontsize="small")
        panel.set_xlabel("counts in a cell" if place >= len(panels) - n_columns else "")
        panel.set_ylabel("" if place % n_columns else "share of cells")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=2, frameon=False, fontsize="small")
    return figure


def _drawn(res, names, groups, ppc_level, n_samples, data, rows) -> dict[str, Sequence[np.ndarray]]:
    """Of each group, for each gene, (draw, bin) numbers of cells; of all they may be there."""
    if len(groups) == 1:
        (name,) = groups
        return {name: res.get_count_histograms(names, ppc_level, n_samples, counts=data)}
    drawn = res.get_ppc_samples(ppc_level, n_samples, counts=data, genes=names).values[0]
    every = range(len(names))
    return {
        name: [binned(drawn[:, cells, i], bin_starts(rows[cells, i])) for i in every]
        for name, cells in groups.items()
    }


def _groups(groupby, data, given) -> dict[str, np.ndarray]:
    """(cell,) masks of the groups by name; one of all cells where there are none."""
    if groupby is None:
        return {"": np.ones(data.n_cells, bool)}
    groups = Groups.of(groupby, data, given, "plot_gene_ppc")
    return {name: groups.codes == i for i, name in enumerate(groups.names)}


def _histogram(ax, observed: np.ndarray, drawn: np.ndarray) -> None:
    """One gene: counts (cell,) observed, and (draw, bin) numbers of cells drawn."""
    starts = bin_starts(observed)
    data = binned(observed[None], starts)[0] / len(observed)
    draws = drawn / len(observed)
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    edges = np.arange(len(starts) + 1) - 0.5
    least = 0.5 / len(observed)  # half a cell: the foot of the bars
    ax.bar(
        np.arange(len(starts)), np.maximum(data - least, 0), bottom=least, width=1.0,
        color=style.GREY, alpha=0.5, label="data",
    )  # fmt: skip
    floored = [np.maximum(x, least) for x in (low, middle, high)]
    ax.stairs(
        floored[2], edges, baseline=floored[0], fill=True, color=style.BLUE, alpha=0.35,
        label="model, 90 %",
    )  # fmt: skip
    ax.stairs(floored[1], edges, baseline=None, color=style.BLUE, lw=1.2)
    ax.set_yscale("log")
    ax.set(xlim=(edges[0], edges[-1]), ylim=(least, 1.5))
    _number_bins(ax, starts)


def _number_bins(ax, starts: np.ndarray) -> None:
    """Numbers below the bins: of single counts in the middle, of several where their bin begins."""
    last = len(starts) - 1
    shown = np.unique(np.linspace(0, last, LABELS).round().astype(int))
    single = np.append(np.diff(starts) == 1, True)
    labels = [f"≥ {starts[i]}" if i == last else f"{starts[i]}" for i in shown]
    ax.set_xticks(np.where(single, 0.0, -0.5)[shown] + shown, labels)
