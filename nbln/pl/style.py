"""What all figures share: axes, colours that colour-blind readers tell apart, and limits."""

import io
from collections.abc import Iterable

import numpy as np

from nbln.text import short

# Okabe & Ito (2008).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
# For kinds of cells: those and lighter and darker ones, as many as are told apart in small dots.
KINDS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#F0E442", "#5B3A8C", "#8C564B", "#17BECF",
         "#BCBD22", "#000000")  # fmt: skip
DIVERGING = "RdBu_r"
POINTS = dict(s=9, alpha=0.6, linewidths=0)
# What TeX would act on, for those who let it set the text of their figures.
TEX = str.maketrans(
    {character: f"\\{character}" for character in "$&#_%{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
)


def need_fit(res) -> None:
    """Raise for draws, or for what is no result."""
    if not hasattr(res, "check"):
        raise TypeError(
            f"this figure needs a fit, not a {type(res).__name__}: give it what nbln.fit() "
            "returned without inference_method='mcmc'; of res[genes] its .whole, and names of genes"
        )


def need_programs(res) -> None:
    """Raise for a fit of independent genes."""
    need_fit(res)
    if not res.has_programs:
        raise ValueError(
            f"model {res.model} has no programs or correlations between genes; fit model='nbln'"
        )


def need_programs_or_draws(res) -> None:
    """Raise for what is neither draws of programs nor a fit of them."""
    if not hasattr(res, "pairs"):
        need_programs(res)


def need_factors(res) -> None:
    """Raise for a fit whose cells have no factors."""
    need_fit(res)
    if not (res.has_programs or res.has_latent):
        raise ValueError(
            f"model {res.model} has no factors of cells; fit model='nbln' or model='scvi'"
        )


def need_counts(res) -> None:
    """Raise for a fit of other data than counts."""
    need_fit(res)
    if not res.fitted.counted:
        raise ValueError("this figure is of counts, but this fit is of other numbers")


def need_draws(post) -> None:
    """Raise for a fit, whose correlations carry no intervals."""
    if not hasattr(post, "pairs"):
        raise TypeError(
            f"this figure needs draws, not a {type(post).__name__}: give it what "
            "res.sample_posterior() returned"
        )


def labels(names: Iterable) -> list[str]:
    """Names from data as labels: printable, of 24 characters at most, and never a formula.

    Matplotlib reads what is between two dollar signs as mathematics, and stops where it cannot.
    """
    import matplotlib as mpl

    escape = TEX if mpl.rcParams["text.usetex"] else {ord("$"): r"\$"}
    return [short(name).translate(escape) for name in names]


def new_axes(ax, figsize=(5.0, 4.0)):
    """The figure and axes to draw on: those given, or new ones."""
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax.figure, ax
    figure, ax = plt.subplots(figsize=figsize, layout="constrained")
    return figure, _open(ax)


def new_grid(ax, n, n_columns, size=(3.3, 3.0)):
    """The figure and `n` axes: those given, or a new grid whose spare places stay empty."""
    import matplotlib.pyplot as plt

    if ax is not None:
        axes = list(np.ravel(ax))
        if len(axes) != n:
            raise ValueError(f"ax=: this figure has {n} panels, given {len(axes)} axes")
        return axes[0].figure, axes
    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(size[0] * n_columns, size[1] * n_rows),
        layout="constrained",
        squeeze=False,
    )
    axes = list(grid.ravel())
    for spare in axes[n:]:
        spare.remove()
    return figure, [_open(one) for one in axes[:n]]


def identity(ax, *values, log: bool):
    """Equal limits on both axes around the values, and the line where they agree."""
    shown = np.concatenate([np.ravel(v) for v in values])
    shown = shown[np.isfinite(shown) & ((shown > 0) | (not log))]
    low, high = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
    if log:
        low, high = low / 1.5, high * 1.5
        ax.set_xscale("log")
        ax.set_yscale("log")
    else:
        margin = 0.04 * max(high - low, 1e-3)
        low, high = low - margin, high + margin
    ax.plot([low, high], [low, high], color=GREY, lw=1, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high))


def principal_plane(place: np.ndarray) -> np.ndarray:
    """(cell, 2) the two directions in which places (cell, factor) vary most, their mean at 0."""
    place = place - place.mean(axis=0)
    _, _, axes = np.linalg.svd(place.T @ place)
    plane = place @ axes[:2].T
    # A single direction is shown with nothing beside it.
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def to_png(figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file; it is closed."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # `savefig` would draw twice, the first time for the layout alone
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    pixels.save(buffer, format="png", dpi=(dpi, dpi))
    plt.close(figure)
    return buffer.getvalue()


def whole_numbers(axis):
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def plain_log(axis, written: str = "{x:,.0f}"):
    """Ticks of a logarithmic axis of a decade or two at 1, 2 and 5, written in full."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter(written))
    axis.set_minor_formatter(NullFormatter())


def _open(ax):
    ax.spines[["top", "right"]].set_visible(False)
    return ax
