"""Maps of cells: where each cell lies in the plane, coloured by what it uses or is."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from nbln.arguments import check_whole
from nbln.pl import style

# UMAP takes a minute for so many cells, and more points are a blot.
MOST_CELLS = 20_000
NEIGHBOURS = 15  # of UMAP, its default; a map of fewer cells than twice as many is of axes
MOST_KINDS = 12  # labels that have colours of their own; the rarer ones are grey
REACH = 3.0  # standard deviations of a factor where its colours end


def plot_cell_map(
    res,
    color: "Mapping[str, Sequence] | Sequence | None" = None,
    n_programs: int = 6,
    seed: int = 0,
    titles: Sequence[str] | None = None,
    plane: "Plane | None" = None,
    ax=None,
):
    """Cells in the plane, near each other where they use the same programs.

    By UMAP (McInnes, Healy & Melville 2018) of `get_embedding` where umap-learn is installed, else
    in the plane of its two principal axes. Of more than 20,000 cells a random part is shown.

    Parameters
    ----------
    color
        A value or a label of each cell, or several by name, a panel each. By default a panel for
        each of the largest programs, coloured by the cells' factors; of a model without programs by
        log10 of the library size.
    n_programs
        So many programs at most.
    seed
        Of UMAP and of the part.
    titles
        Names of the programs, as ``get_program_table()["name"]`` has them, to stand by their
        numbers.
    plane
        What `Plane.of` gave, so that several figures share one map; by default it is asked.
    ax
        As many axes as panels.

    Raises
    ------
    ValueError
        A model without factors, or colours of another number of cells.
    """
    style.need_factors(res)
    panels, of_programs = _panels(res, color, check_whole("n_programs", n_programs), titles)
    way, place, shown = Plane.of(res, seed) if plane is None else plane
    figure, axes = style.new_grid(ax, len(panels), 3 if len(panels) > 4 else 2, size=(2.9, 2.7))
    for i, (panel, (title, values)) in enumerate(zip(axes, panels.items(), strict=True)):
        _draw(panel, place, values[shown], of_programs)
        panel.set_title(style.labels([title])[0], fontsize="medium")
        panel.set(xticks=[], yticks=[], xlabel=f"{way} 1" if not i else "")
        panel.set_ylabel(f"{way} 2" if not i else "")
    return figure


class Plane(NamedTuple):
    """Where cells lie in the plane."""

    way: str  # what its axes are called
    place: Float[np.ndarray, "shown 2"]
    shown: Int[np.ndarray, " shown"]  # which cells, in any order: no kind lies on top

    @classmethod
    def of(cls, res, seed: int = 0) -> "Plane":
        """The plane of a fit's cells, or of a random part of very many."""
        embedding = _embedding(res)
        shown = np.random.default_rng(seed).permutation(len(embedding))[:MOST_CELLS]
        return cls(*_plane(embedding[shown], seed), shown)


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def _panels(
    res, color, n_programs: int, titles: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], bool]:
    """Values of all cells by the title of their panel; whether they are factors of programs."""
    n_cells = res.fitted.n_cells
    if isinstance(color, str):
        raise TypeError(
            f"color={color!r}: give values, not a name: color={{{color!r}: adata.obs[{color!r}]}}"
        )
    of_programs = color is None and res.has_programs
    if of_programs:
        rank = min(res.w_prior_diagnostics["effective_rank"], n_programs)
        z, shown = res.get_latent().values, range(max(rank, 1))
        names = [f"program {j + 1}" if titles is None else f"{j + 1}: {titles[j]}" for j in shown]
        found = {name: z[:, j] for name, j in zip(names, shown, strict=True)}
    elif color is None:
        known = res.fitted.counted
        depth = np.log10(res.fitted.library_size) if known else np.full(n_cells, "samples")
        found = {"log10 library size" if known else "": depth}
    else:
        given = color if isinstance(color, Mapping) else {getattr(color, "name", None) or "": color}
        found = {str(name): _plain(values) for name, values in given.items()}
    for name, values in found.items():
        if values.shape != (n_cells,):
            raise ValueError(
                f"color=: one value for each of {n_cells} cells, given {values.shape} for {name!r}"
            )
    return found, of_programs


def _plain(values) -> np.ndarray:
    """Numbers as they are, all else as text; what is missing too."""
    values = pd.Series(np.asarray(values).ravel() if np.ndim(values) > 1 else values)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return values.to_numpy(np.float64, na_value=np.nan)
    return values.astype(object).where(values.notna(), "missing").astype(str).to_numpy()


def _embedding(res) -> Float[np.ndarray, "cell factor"]:
    answer = res.get_embedding() if res.has_programs else res.get_latent()
    place = np.asarray(answer.values, np.float64)
    # A fit without a program has no direction at all.
    return place if place.shape[1] else np.zeros((len(place), 1))


def _plane(place: Float[np.ndarray, "cell factor"], seed: int) -> tuple[str, np.ndarray]:
    """What the axes are called, and the two coordinates of each cell."""
    if has_umap() and place.shape[1] > 2 and len(place) >= 2 * NEIGHBOURS:
        import umap  # pyright: ignore[reportMissingImports]  # an extra, which linting does without

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its threads, which a seed makes one
            made = umap.UMAP(n_neighbors=NEIGHBOURS, random_state=seed).fit_transform(place)
        return "UMAP", np.asarray(made)
    return "axis", style.principal_plane(place)


def _draw(ax, place: np.ndarray, values: np.ndarray, of_program: bool) -> None:
    size = dict(s=float(np.clip(4e3 / len(place), 0.5, 12)), linewidths=0, rasterized=True)
    if values.dtype.kind == "f":
        span = {"vmin": -REACH, "vmax": REACH, "cmap": "coolwarm"} if of_program else {}
        dots = ax.scatter(*place.T, c=values, **({"cmap": "viridis"} | span), **size)
        ax.figure.colorbar(dots, ax=ax, shrink=0.7)
        return
    kinds = sorted(pd.Series(values).value_counts().index[:MOST_KINDS])
    for i, kind in enumerate(kinds):
        here = values == kind
        (label,) = style.labels([kind])
        ax.scatter(*place[here].T, color=style.KINDS[i], label=label, **size)
    if (rest := ~np.isin(values, kinds)).any():
        ax.scatter(*place[rest].T, color=style.GREY, label="others", **size)
    ax.legend(
        frameon=False, fontsize="x-small", markerscale=5 / size["s"] ** 0.5,
        loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.1,
    )  # fmt: skip
