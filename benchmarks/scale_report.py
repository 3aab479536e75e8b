"""What scale.py measured, as rows of a table and as a figure."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from nbln.pl.style import BLUE, GREEN, GREY, ORANGE

HEADER = (
    "data", "fit s", "warm s", "Laplace s", "steps", "ns", "peak GiB", "r", "slope", "AUPRC",
    "rank", "moments s", "r", "÷ it", "Laplace ÷ it", "÷ float32", "PlnPCA s", "r", "÷ it",
)  # fmt: skip
# What varies in each series, and what does not.
PANELS = {
    "cells": ("cells", "2,000 genes, on disk"),
    "genes": ("genes", "5,000 cells"),
    "rank": ("latent_dim", "5,000 cells x 1,000 genes"),
}


def rows(found: list[dict]) -> list[tuple[str, ...]]:
    """A row for each case, under the header."""
    return [_row(x) for x in found]


def _row(x: dict) -> tuple[str, ...]:
    if "failed" in x:
        return (x["name"], f"ended with {x['failed']}", *("",) * (len(HEADER) - 2))
    fit = x["warm"] or x["first"]
    moments, plnpca = x.get("moments float64"), x.get("plnpca")
    return (
        x["name"],
        _number(x["first"]),
        _number(x["warm"]),
        _number(x["laplace"]),
        f"{x['iterations']}{'' if x['converged'] else ' (not converged)'}",
        f"{x['ns']:.2f}",
        f"{x['peak'] / 2**30:.2f}",
        *(f"{x[name]:.4f}" for name in ("r", "slope", "AUPRC")),
        str(x["rank"]),
        _number(moments),
        _number(x.get("moments r")),
        _ratio(fit, moments),
        _ratio(x["laplace"], moments),
        _ratio(fit, x.get("moments float32")),
        _number(plnpca),
        _number(x.get("plnpca r")),
        _ratio(fit, plnpca),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _ratio(value: float, by: float | None) -> str:
    return "-" if by is None else f"{value / by:.3g}"


def exponent(found: list[dict], what: str) -> float:
    """Slope of the natural log of seconds against that of cells."""
    x = np.log([case["cells"] for case in found])
    return float(np.polyfit(x, np.log([case[what] for case in found]), 1)[0])


def figure(found: list[dict], path: Path) -> None:
    """Seconds in the upper row, memory in the lower, against cells, genes and programs offered."""
    fitted = [x for x in found if "failed" not in x]
    shown = [series for series in PANELS if any(x["series"] == series for x in fitted)]
    size = 3.6 * len(shown), 5.5
    shared = {"sharex": "col", "sharey": "row", "layout": "constrained"}
    whole, axes = plt.subplots(2, len(shown), figsize=size, squeeze=False, **shared)
    for (time, memory), series in zip(axes.T, shown, strict=True):
        key, title = PANELS[series]
        own = [x for x in fitted if x["series"] == series]
        own.sort(key=lambda x: x[key])
        at = [x[key] for x in own]
        for what, label, colour in (
            ("first", "fit, compilation included", BLUE),
            ("warm", "fit, compiled", GREEN),
            ("laplace", "Laplace stage", ORANGE),
            ("moments float64", "moments (CS-CORE)", GREY),
        ):
            points = [(x, case[what]) for x, case in zip(at, own, strict=True) if case.get(what)]
            if points:
                time.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
        memory.plot(at, [case["peak"] / 2**30 for case in own], "o-", color=BLUE, label="peak")
        imports = [case["before"] / 2**30 for case in own]
        memory.plot(at, imports, "--", color=GREY, label="packages alone")
        time.set(xscale="log", yscale="log", title=title)
        time.set_xticks(at, [f"{x:,}" for x in at])
        for axis in (time.xaxis, time.yaxis):
            axis.set_minor_formatter(NullFormatter())
        time.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        memory.set(xlabel=key if key == series else f"programs offered ({key})", ylim=(0, None))
        time.legend(frameon=False, fontsize="small")
        memory.legend(frameon=False, fontsize="small")
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("resident memory (GiB)")
    whole.savefig(path, dpi=150)
    plt.close(whole)
