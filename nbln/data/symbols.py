"""Genes by their symbols, where a file names them by identifiers."""

import logging
import re

import pandas as pd
from anndata import AnnData

from nbln.arguments import hint as hint_at

log = logging.getLogger("nbln")

ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}")
# What tools call their column of symbols: CELLxGENE, scanpy's readers, Ensembl's exports.
COLUMNS = ("feature_name", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "symbol",
           "symbols", "name")  # fmt: skip
IDENTIFIER = "nbln_gene_id"  # the column of var that keeps what genes were called


def rename(adata: AnnData, column: str) -> None:
    """Call the genes of `adata` by a column of its ``var``; their old names go to ``nbln_gene_id``.

    Nothing is done where that is there already. A gene without a symbol keeps its name; of several
    with one symbol the first has it, the others have their names after it in brackets.

    Raises
    ------
    KeyError
        No such column; names those that there are.
    """
    if IDENTIFIER in adata.var:
        return
    check_column("--symbols", column, adata.var, "var")
    old = pd.Series(adata.var_names.astype(str), index=adata.var_names)
    given = adata.var[column].astype(object)
    symbol = given.where(given.notna() & (given.astype(str).str.strip() != ""), old).astype(str)
    taken = symbol.duplicated()
    new = symbol.where(~taken, symbol + " (" + old + ")")
    adata.var[IDENTIFIER] = old
    adata.var_names = new.tolist()


def check_column(option: str, column: str, table: pd.DataFrame, name: str) -> None:
    """Raise a KeyError where an option names a column that obs or var, `name`, does not have."""
    if column not in table:
        known = list(map(str, table.columns))
        has, near = ", ".join(known) or "none", hint_at(column, known)
        raise KeyError(f"{option} {column}: no such column of {name}; it has {has}{near}")


def hint(adata: AnnData) -> None:
    """Say it where genes are called by identifiers, and the file knows symbols."""
    sample = list(map(str, adata.var_names[:200]))
    known = [name for name in COLUMNS if name in adata.var]
    if known and sum(ENSEMBL.match(name) is not None for name in sample) > len(sample) / 2:
        log.info("genes are called by Ensembl identifiers; --symbols %s shows symbols", known[0])
