"""Programs, pairs and networks for the page, and how sure they are."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from nbln import pl
from nbln.pl.maps import Plane, has_umap
from nbln.pl.posterior import spread_over_genes
from nbln.questions.diagnostics import doubts
from nbln.questions.program_table import AGAINST
from nbln.webpage.parts import Table, pictures, summary, table

SHOWN_PROGRAMS, PAIRS_EACH = 8, 5  # programs whose strongest pairs are shown, and how many
LEADING, OPPOSED = 30, 5  # genes of a program among which its strongest pairs are looked for
MAP_PROGRAMS = 4
HEAT_MAP = 24  # genes whose names can be read on a narrow page
AROUND = "Cells that use the same programs are near each other."
PRINCIPAL = " Axes are those in which cells differ most (with umap-learn installed, UMAP)."


def cell_map(result, named: pd.DataFrame, colors) -> list:
    """The map of cells, by programs and by columns of the data."""
    figures: list[tuple[str, str, Any]] = []
    if not len(named) and not result.has_latent:
        return []
    plane = Plane.of(result)
    if len(named):
        n, axes = min(len(named), MAP_PROGRAMS), "" if has_umap() else PRINCIPAL
        caption = (
            f"{AROUND}{axes} The {n} largest of {len(named)} programs: red cells use a program, "
            "blue ones have less of it than the average cell."
        )
        titles = [name.partition(AGAINST)[0] for name in named["name"]]
        drawn = pl.plot_cell_map(result, n_programs=MAP_PROGRAMS, titles=titles, plane=plane)
        figures.append(("Map of cells, by program", caption, drawn))
    else:
        drawn = pl.plot_cell_map(result, plane=plane)
        figures.append(("Map of cells", "Cells with alike factors are near each other.", drawn))
    if colors:
        caption = "The same map by columns of the data."
        drawn = pl.plot_cell_map(result, colors, plane=plane)
        figures.append(("Map of cells, by column", caption, drawn))
    return pictures(figures)


def programs(result, named: pd.DataFrame, posterior) -> dict[str, Any]:
    """The named programs, and their genes in a figure; `named` as `get_program_table` gives it."""
    shown = named.reset_index()
    small = named["effective_cells"] < 0.01 * result.fitted.n_cells
    found = pd.DataFrame(
        {
            "program": shown["program"],
            "name": shown["name"],
            "genes that go up with it": shown["top_genes"],
            "genes that go down": shown["opposed_genes"],
            "genes": shown["n_genes"],
            "cells that use it": shown["n_cells"],
            "share": [f"{x:.0%}" if x > 0.005 else "< 1%" for x in shown["share"]],
        }
    )
    if "found_again" in shown:
        found["found again in halves"] = shown["found_again"]
    if posterior is not None:
        same = posterior.get_program_stability()["same"].reindex(named.index)
        found["the same in draws"] = [f"{x:.0%}" for x in same]
    figures = [
        (
            "Genes of the programs",
            "Loadings: by how much the log expression of a gene rises where the factor of the "
            "program rises by one standard deviation.",
            pl.plot_gene_programs(result),
        )
    ]
    few = ", ".join(str(number) for number in named.index[small])
    return {"table": table(found), "few": few, "figures": pictures(figures)}


def strongest_pairs(result, named: pd.DataFrame, ask: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """The strongest pairs among the leading genes of each program, of no gene more than two.

    `ask` gives pairs among the genes that it is given, strongest first.
    """
    genes, found = result.program_genes, [pd.DataFrame()]
    for number in named.index[:SHOWN_PROGRAMS]:
        ways = (("up", LEADING), ("down", OPPOSED))
        leading = [x for way, n in ways for x in genes.leading(number - 1, way, n)]
        if len(leading) > 1:
            pairs = spread_over_genes(ask(genes=list(genes.names[leading])), PAIRS_EACH, most=2)
            found.append(pairs.assign(program=number))
    return pd.concat(found, ignore_index=True)


def pairs_table(result, pairs: pd.DataFrame, checks) -> Table | None:
    """Pairs in few columns, so that a narrow page has room; marked where doubtful."""
    if not len(pairs):
        return None
    marked = result.mark_pairs(pairs, checks)
    joined = [f"{a} – {b}" for a, b in zip(marked["gene_a"], marked["gene_b"], strict=True)]
    shown = {"program": marked["program"], "genes": joined}
    if "low" in marked:
        intervals = zip(marked["mean"], marked["low"], marked["high"], strict=True)
        shown["correlation"] = [f"{x:.2f} ({low:.2f} to {high:.2f})" for x, low, high in intervals]
        shown["q"] = marked["q"]
    else:
        shown["correlation"] = marked["correlation"]
    return table(pd.DataFrame(shown | {"note": marked["note"]}))


def correlations(result, drawn: bool) -> list:
    """Heat map and, where no draws have one, network of a fit, without intervals."""
    figures = [
        (
            "Correlations",
            "Genes that lead the programs, of each in turn, in the order of a clustering; point "
            "estimates of the fit.",
            pl.plot_correlation(result, n_genes=min(HEAT_MAP, result.fitted.n_genes)),
        )
    ]
    if not drawn:
        caption = (
            "The strongest partners of leading genes; orange edges are positive, blue ones "
            "negative. Points without an interval."
        )
        figures.append(("Network", caption, pl.plot_network(result)))
    return pictures(figures)


def certainty(
    posterior, called: pd.DataFrame, pairs: pd.DataFrame, network: pd.DataFrame
) -> dict[str, Any]:
    """How sure the correlations are: intervals, calls, network.

    `pairs` are those of the interval plot, `network` those of the network.
    """
    said = posterior.summary()
    return {
        "n_called": f"{len(called):,}",
        "min_abs": f"{called.attrs['min_abs']:g}",
        "fdr": f"{100 * called.attrs['fdr']:g} %",
        "doubts": len(doubts(said)),
        "figures": pictures(_of_draws(posterior, pairs, network)),
        "programs": table(posterior.get_program_stability().reset_index()),
        "summary": summary(said),
    }


def _of_draws(posterior, pairs: pd.DataFrame, network: pd.DataFrame) -> Iterator:
    yield (
        "Pairs with their intervals",
        "Called pairs of leading genes, of each program in turn; points are posterior means.",
        pl.plot_pair_intervals(posterior, pairs=pairs),
    )
    yield (
        "Network of called pairs",
        "The strongest called pairs of leading genes, of each program in turn; orange edges are "
        "positive, blue ones negative.",
        pl.plot_network(posterior, network),
    )
    yield (
        "Calls",
        "Left: pairs called at each false discovery rate. Right: the share of them expected to be "
        "wrong; it levels off where all pairs that are more likely right than wrong are called.",
        pl.plot_calls(posterior),
    )
