"""Correlated genes as a graph, for tools that read networks."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from nbln import atomic
from nbln import vocabulary as names
from nbln.data.slices import slices
from nbln.questions.correlation import BLOCK, Covariance, ExpressionCovariance
from nbln.text import visible

if TYPE_CHECKING:
    import networkx


def strongest_partners(
    covariance: Covariance | ExpressionCovariance,
    gene_names: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    most: int,
    min_abs: float,
) -> pd.DataFrame:
    """Of each gene of `rows` the `most` strongest pairs with genes of `columns` beyond a size.

    Strongest first; gene_a is of `rows`. A pair that both genes choose is there once.
    """
    first, second, value = [], [], []
    most = min(most, len(columns))
    for block in slices(len(rows), BLOCK):
        here = rows[block]
        values = covariance.correlation_block(here, columns)
        values[here[:, None] == columns] = 0
        size = np.abs(values)
        chosen = np.argpartition(size, -most, axis=1)[:, -most:]
        kept = np.take_along_axis(size, chosen, axis=1)
        at = np.nonzero((kept >= min_abs) & (kept > 0))
        first.append(here[at[0]])
        second.append(columns[chosen[at]])
        value.append(np.take_along_axis(values, chosen, axis=1)[at])
    a, b, correlation = (np.concatenate(x) for x in (first, second, value))
    order = np.argsort(-np.abs(correlation), kind="stable")
    pair = np.sort(np.stack([a, b])[:, order], axis=0)
    kept = order[np.sort(np.unique(pair, axis=1, return_index=True)[1])]
    found = gene_names[a[kept]], gene_names[b[kept]], correlation[kept]
    return pd.DataFrame(dict(zip(("gene_a", "gene_b", "correlation"), found, strict=True)))


def of_each_gene(pairs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Pairs that draws call which are among the `most` strongest of one of their genes."""
    order = np.argsort(-pairs["mean"].abs().to_numpy(), kind="stable")
    ends = pairs[["gene_a", "gene_b"]].to_numpy()[order].ravel()
    place = pd.Series(ends).groupby(ends, sort=False).cumcount().to_numpy().reshape(-1, 2)
    return pairs.iloc[np.sort(order[place.min(axis=1) < most])]


def graph(
    pairs: pd.DataFrame,
    mean: Float[np.ndarray, " gene"],
    program: np.ndarray,
    gene_names: np.ndarray,
) -> "networkx.Graph":
    """Genes that are in a pair as nodes, pairs as edges; genes that nothing is known of are bare.

    Parameters
    ----------
    pairs
        ``gene_a``, ``gene_b`` and numbers, which become attributes of edges; the first of them is
        the correlation.
    mean, program
        Of all genes: mean log-rate, and the program that varies it most (0 for none).
    """
    import networkx as nx

    table = pairs.rename(columns={"mean": "correlation"})
    table = table.assign(
        weight=table["correlation"].abs(),
        sign=np.where(table["correlation"] > 0, "positive", "negative"),
    )
    made = nx.from_pandas_edgelist(table, "gene_a", "gene_b", edge_attr=True)
    place = {str(gene): i for i, gene in enumerate(gene_names)}
    for gene in made.nodes & place.keys():
        i = place[gene]
        made.nodes[gene].update({names.MU: float(mean[i]), "program": int(program[i])})
    return made


def _write_graphml(graph: "networkx.Graph", path: Path) -> None:
    import networkx as nx

    _write(nx.generate_graphml(_printable(graph)), path)


def _write_gml(graph: "networkx.Graph", path: Path) -> None:
    import networkx as nx

    _write(nx.generate_gml(_printable(graph)), path)


def _write(lines: Iterable[str], path: Path) -> None:
    atomic.write(path, "\n".join(lines).encode())


def _printable(graph: "networkx.Graph") -> "networkx.Graph":
    """Names that a file of text can hold: XML has no control characters."""
    import networkx as nx

    return nx.relabel_nodes(graph, {gene: visible(gene) for gene in graph})


# How a graph is written, by the end of a file's name: GraphML for Cytoscape and Gephi, GML for
# igraph.
FORMATS = {".graphml": _write_graphml, ".gml": _write_gml}
