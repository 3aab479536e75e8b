"""Programs, pairs and networks for the page, and how sure they are."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from nbln import pl
from nbln.pl.posterior import spread_over_genes
from nbln.questions.diagnostics import doubts
from nbln.text import short
from nbln.webpage.parts import Table, pictures, summary, table

SHOWN_PAIRS = 30  # of calls
SHOWN_PROGRAMS, PAIRS_EACH = 8, 5  # of a fit: the strongest pairs of each of its programs
LEADING = 30  # genes of a program among which its strongest pairs are looked for
MAP_PROGRAMS = 4
LONGEST = 22  # characters of a program's name above its map
HEAT_MAP = 24  # genes whose names can be read on a narrow page
AROUND = "Cells that use the same programs are near each other."


def cell_map(result, named: pd.DataFrame, colors) -> list:
    """The map of cells, by programs and by columns of the data."""
    figures: list[tuple[str, str, Any]] = []
    if len(named):
        caption = (
            f"{AROUND} Red cells use a program, blue ones have less of it than the average cell."
        )
        titles = [short(name, LONGEST) for name in named["name"]]
        drawn = pl.plot_cell_map(result, n_programs=MAP_PROGRAMS, titles=titles)
        figures.append(("Map of cells, by program", caption, drawn))
    elif result.has_latent:
        drawn = pl.plot_cell_map(result)
        figures.append(("Map of cells", "Cells with alike factors are near each other.", drawn))
    if figures and colors:
        caption = "The same map by columns of the data."
        figures.append(("Map of cells, by column", caption, pl.plot_cell_map(result, colors)))
    return pictures(figures)


def programs(result, named: pd.DataFrame) -> dict[str, Any]:
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
            "share": [f"{share:.0%}" for share in shown["share"]],
        }
    )
    if "found_again" in shown:
        found["found again in halves"] = shown["found_again"]
    figures = [
        (
            "Genes of the programs",
            "Loadings: by how much the log expression of a gene rises where the factor of the "
            "program rises by one standard deviation.",
            pl.plot_gene_programs(result),
        )
    ]
    few = ", ".join(str(number) for number in named.index[small])
    return {"table": table(found), "few": few, "figures": pictures(figures) if len(named) else []}


def strongest_pairs(result, named: pd.DataFrame, checks) -> Table | None:
    """The strongest pairs among the leading genes of each program, marked where doubtful."""
    genes, found = result.program_genes, []
    for number in named.index[:SHOWN_PROGRAMS]:
        leading = [*genes.leading(number - 1, "up", LEADING), *genes.leading(number - 1, "down", 5)]
        if len(leading) > 1:
            pairs = result.top_pairs(10 * PAIRS_EACH, genes=list(genes.names[leading]))
            pairs = spread_over_genes(pairs, PAIRS_EACH, most=2)
            found.append(result.mark_pairs(pairs, checks).assign(program=number))
    if not found:
        return None
    every = pd.concat(found, ignore_index=True)
    return table(every[["program", "gene_a", "gene_b", "correlation", "note"]])


def correlations(result) -> list:
    """Heat map and network of a fit, without intervals."""
    n_genes = min(HEAT_MAP, result.fitted.n_genes)
    return pictures(
        [
            (
                "Correlations",
                "Genes that lead the programs, of each in turn, in the order of a clustering.",
                pl.plot_correlation(result, n_genes=n_genes),
            ),
            (
                "Network",
                "The strongest partners of leading genes; red edges are positive, blue ones "
                "negative. Points without an interval.",
                pl.plot_network(result),
            ),
        ]
    )


def certainty(result, posterior, called: pd.DataFrame | None, checks) -> dict[str, Any]:
    """How sure the correlations are: intervals, calls, network."""
    called = posterior.pairs() if called is None else called
    # Of the table and the figure no gene takes more than three rows.
    pairs = spread_over_genes(called, SHOWN_PAIRS)
    said = posterior.summary()
    return {
        "n_called": f"{len(called):,}",
        "min_abs": f"{called.attrs['min_abs']:g}",
        "fdr": f"{100 * called.attrs['fdr']:g} %",
        "doubts": "; ".join(doubts(said)),
        "figures": pictures(_of_draws(posterior, called, pairs)),
        "pairs": table(result.mark_pairs(pairs, checks)),
        "programs": table(posterior.get_program_stability().reset_index()),
        "summary": summary(said),
    }


def _of_draws(posterior, called: pd.DataFrame, pairs: pd.DataFrame) -> Iterator:
    yield (
        "Pairs with their intervals",
        "Twenty of the surest, at most three of a gene; points are posterior means.",
        pl.plot_pair_intervals(posterior, pairs=pairs),
    )
    yield (
        "Network of called pairs",
        "The strongest called pairs, of each program in turn; red edges are positive, blue ones "
        "negative.",
        pl.plot_network(posterior, called),
    )
    yield (
        "Calls",
        "Left: pairs called at each false discovery rate. Right: the share of them expected to be "
        "wrong; it levels off where all pairs that are more likely right than wrong are called.",
        pl.plot_calls(posterior),
    )
