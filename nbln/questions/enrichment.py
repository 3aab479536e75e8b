"""Which gene sets the genes of a program are enriched in: one-sided hypergeometric tests.

The tests are those of GSEApy (Fang, Liu & Peltz 2023); all is offline.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from nbln.arguments import check_whole
from nbln.questions.program_table import DIRECTIONS, ProgramGenes

NamedSets = Mapping[str, Iterable[str]]
GeneSets = NamedSets | str | Path  # by name, or in a GMT file
COLUMNS = ["program", "direction", "term", "overlap", "size", "odds_ratio", "p_value", "q_value",
           "genes"]  # fmt: skip
LEAST_OVERLAP = 2  # one gene in common is no enrichment
NONE = pd.DataFrame(columns=COLUMNS)


def enriched(genes: ProgramGenes, gene_sets: GeneSets, n_genes: int) -> pd.DataFrame:
    """See `LaplaceResult.enrichment`."""
    check_whole("enrichment(n_genes", n_genes)
    gseapy, sets = _gseapy(), within(gene_sets, genes.names)
    found, n_tests = [], 0
    for program in range(genes.loading.shape[1]):
        for direction in DIRECTIONS:
            leading = genes.names[genes.leading(program, direction, n_genes)]
            n_tests += len(sets) if len(leading) else 0
            if any(set(leading) & set(members) for members in sets.values()):
                given = gseapy.enrich(
                    leading.tolist(), sets, background=genes.names.tolist(), outdir=None,
                    no_plot=True,
                )  # fmt: skip
                found.append(_table(given.results, 1 + program, direction))
    if not found:
        return NONE.copy()
    every = pd.concat(found, ignore_index=True)
    # Sets without a gene in common are tests too, but GSEApy leaves them out.
    p_value = np.concatenate([every["p_value"], np.ones(n_tests - len(every))])
    every["q_value"] = stats.false_discovery_control(p_value)[: len(every)]
    every = every.query("overlap >= @LEAST_OVERLAP")
    return every.sort_values(["program", "p_value", "term"], ignore_index=True).loc[:, COLUMNS]


def read(gene_sets: GeneSets) -> dict[str, list[str]]:
    """Gene sets by name, from a GMT file or as they are given.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        No such file; neither a file nor sets by name; a file without gene sets.
    """
    if isinstance(gene_sets, Mapping):
        for name, genes in gene_sets.items():
            if isinstance(genes, str):
                raise TypeError(f"gene_sets=: {name!r}: give a list of genes, not {genes!r}")
        return {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    if not isinstance(gene_sets, str | Path):
        raise TypeError(
            "gene_sets=: expected a GMT file, or a dict of gene sets by name; got "
            f"{type(gene_sets).__name__}"
        )
    path = Path(gene_sets)
    if not path.is_file():
        raise FileNotFoundError(f"gene_sets=: {path}: no such file; give a GMT file")
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"gene_sets=: {path} is not a text file, so no GMT file") from error
    # Name, description, genes: what has fewer fields is another format.
    sets = {row[0]: [gene for gene in row[2:] if gene] for row in rows if len(row) > 2}
    if not sets:
        raise ValueError(
            f"gene_sets=: {path} has no gene sets; a GMT file has a set a line, its name, a "
            "description and its genes, separated by tabs"
        )
    return sets


def within(gene_sets: GeneSets, names: np.ndarray) -> dict[str, list[str]]:
    """Gene sets as far as they are of these genes; needs GSEApy, as what is done with them does.

    Raises
    ------
    ImportError, ValueError
        It is not installed; no gene of any set is among these.
    """
    _gseapy()
    known, sets = set(names), read(gene_sets)
    here = {name: sorted(known.intersection(genes)) for name, genes in sets.items()}
    here = {name: genes for name, genes in here.items() if genes}
    if here:
        return here
    theirs = next((gene for genes in sets.values() for gene in genes), "nothing")
    raise ValueError(
        f"gene_sets=: none of their genes is in the data: they are called {theirs!r} there, and "
        f"{str(names[0])!r} here; give names of the same kind (nbln fit --symbols COLUMN)"
    )


def _gseapy():
    try:
        import gseapy
    except ImportError as error:
        raise ImportError(
            'enrichment(): needs GSEApy; install it by pip install "nbln[enrichment]"'
        ) from error
    return gseapy


def _table(given: pd.DataFrame, program: int, direction: str) -> pd.DataFrame:
    overlap = given["Overlap"].str.split("/", expand=True).astype(int)
    return pd.DataFrame(
        {
            "program": program,
            "direction": direction,
            "term": given["Term"],
            "overlap": overlap[0],
            "size": overlap[1],
            "odds_ratio": given["Odds Ratio"],
            "p_value": given["P-value"],
            "genes": given["Genes"].str.replace(";", ", "),
        }
    )
