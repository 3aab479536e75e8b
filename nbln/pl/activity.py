"""Figures of programs in several data sets."""

import numpy as np
import xarray as xr

from nbln.arguments import check_whole
from nbln.pl import style

WIDTH = 0.7  # of a program's place on the axis, over which its data sets stand


def plot_program_activity(res, n_programs: int = 8, ax=None):
    """How active each program is in each data set, with its interval where `res` is of draws.

    Parameters
    ----------
    res
        A fit with ``dataset_key=``, or its draws.
    n_programs
        So many programs at most, those whose activities differ most, in their order.
    """
    check_whole("n_programs", n_programs)
    if not getattr(res, "has_activities", False):
        raise ValueError(
            "plot_program_activity(res=): it is of no several data sets; fit with "
            "dataset_key='column', and give the fit or its draws"
        )
    found, datasets = res.get_program_activity(), res.datasets
    drawn = isinstance(found, xr.Dataset)
    mean = found["mean"].values if drawn else found.values
    differ = np.log(mean).std(axis=0)
    active = np.sort(np.argsort(-differ)[: min(n_programs, np.sum(differ > 0))])
    figure, ax = style.new_axes(ax, figsize=(1.5 + 0.9 * max(len(active), 2), 3.6))
    places = (np.arange(len(datasets)) + 0.5) / len(datasets) - 0.5
    colours = _colours(datasets)
    for i, j in enumerate(active):
        x = i + WIDTH * places
        ax.scatter(x, mean[:, j], c=colours, s=22, zorder=3)
        if drawn:
            ax.vlines(x, found["low"][:, j], found["high"][:, j], colors=colours, lw=2)
        if i:
            ax.axvline(i - 0.5, color=style.GREY, lw=0.4)
    ax.axhline(1, color="black", lw=0.6, zorder=0)
    ax.set_yscale("log")
    style.plain_log(ax.yaxis, "{x:g}")
    level = f", with {found.attrs['level']:.0%} intervals" if drawn else ""
    ax.set(xlabel="program", ylabel="activity (sd of the factor)")
    ax.set_xticks(np.arange(len(active)), [str(j + 1) for j in active])
    first = datasets.keys[0]
    ax.set_title(f"activity by {style.labels([first.column])[0]}{level}", fontsize=10)
    handles = [
        ax.scatter([], [], c=[_colour(i)], s=22, label=name)
        for i, name in enumerate(style.labels(first.levels))
    ]
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    ax.legend(handles=handles, frameon=False, fontsize=8, **beside)
    return figure


def _colours(datasets) -> list[str]:
    """Of each data set, by its level in the first column."""
    levels = datasets.keys[0].levels
    return [_colour(levels.index(member[0])) for member in datasets.members]


def _colour(i: int) -> str:
    return style.KINDS[i % len(style.KINDS)]
