"""The network of correlated genes."""

import numpy as np
import pandas as pd

from nbln.arguments import check_whole
from nbln.pl import style
from nbln.pl.genes import genes_in_turn

LABELLED_NODES = 60  # genes whose names fit in a network: those with most partners
LEADING, PARTNERS = 40, 4  # genes of a fit's network, and strongest pairs of each


def plot_network(
    res, pairs: pd.DataFrame | None = None, n_pairs: int = 200, seed: int = 0, ax=None
):
    """Correlated genes as a network: genes as nodes, correlations as edges, orange where positive.

    Nodes have the colour of the program that varies the gene most, as numbered.

    Parameters
    ----------
    res
        Draws, of which called pairs are shown; or a fit, of which pairs without an interval are.
    pairs
        What `pairs` of draws gave, or `top_pairs` or `partners` of a fit, or a part of it. By
        default `to_graph` is asked, of a fit about the leading genes of its programs.
    n_pairs
        So many of them, the strongest of each program in turn, so that the picture can be read.
    seed
        Of the layout.
    """
    import networkx as nx

    style.need_programs_or_draws(res)
    check_whole("n_pairs", n_pairs)
    figure, ax = style.new_axes(ax, figsize=(5.6, 5.6))
    ax.axis("off")
    if pairs is not None:
        graph = res.graph_of(pairs)
    else:
        graph = res.to_graph(**({} if hasattr(res, "pairs") else _leading(res)))
    graph = graph.edge_subgraph(_in_turn(graph, n_pairs))
    if not len(graph):
        ax.text(0.5, 0.5, "no such pair", ha="center", va="center", transform=ax.transAxes)
        return figure
    weights = np.array([given for *_, given in graph.edges(data="correlation")])
    # Springs of one strength, and long: genes of a program would lie on top of each other.
    place = nx.spring_layout(graph, weight=None, seed=seed, k=5 / np.sqrt(len(graph)))
    colours = [style.RED if weight > 0 else style.BLUE for weight in weights]
    nx.draw_networkx_edges(
        graph, place, ax=ax, edge_color=colours, width=0.4 + 1.6 * np.abs(weights), alpha=0.5
    )
    programs = dict(graph.nodes(data="program", default=0))
    for program in sorted(set(programs.values())):
        nodes = [gene for gene in graph if programs[gene] == program]
        nx.draw_networkx_nodes(
            graph, place, nodes, ax=ax, node_size=[15 + 6 * graph.degree[gene] for gene in nodes],
            node_color=style.GREY if not program else style.KINDS[(program - 1) % len(style.KINDS)],
            label=f"program {program}" if program else "no program",
        )  # fmt: skip
    named = sorted(graph, key=lambda node: -graph.degree[node])[:LABELLED_NODES]
    labels = dict(zip(named, style.labels(named), strict=True))
    nx.draw_networkx_labels(graph, place, labels, ax=ax, font_size=8, verticalalignment="bottom")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0, 0), ncols=4)
    return figure


def _leading(res) -> dict:
    """Of a fit whose rare genes have strong partners by the thousand."""
    return {"genes": genes_in_turn(res, LEADING), "most": PARTNERS}


def _in_turn(graph, n: int) -> list[tuple]:
    """The strongest pair of each program in turn; a pair is of the program of its first gene."""
    by_program: dict[int, list] = {}
    order = sorted(graph.edges(data="weight"), key=lambda edge: -edge[2])
    for a, b, _ in order:
        by_program.setdefault(graph.nodes[a].get("program", 0), []).append((a, b))
    ranked = sorted(
        (rank, -graph.edges[pair]["weight"], pair)
        for pairs in by_program.values()
        for rank, pair in enumerate(pairs)
    )
    return [pair for *_, pair in ranked[:n]]
