"""The report of a fit on the terminal: sentences, warnings, the strongest pairs of genes."""

from collections.abc import Iterable
from typing import Any

import rich
from rich.table import Table
from rich.text import Text

from nbln import report
from nbln.questions.diagnostics import doubts
from nbln.session import say
from nbln.text import visible

SHOWN_PAIRS = 10
STYLES = {report.GOOD: "bold green", report.CAUTION: "bold yellow", report.BAD: "bold red"}


LEADING = 6  # genes of a program


def show(result, summary, truth, posterior, pairs_file: str, named) -> None:
    """Print it; `pairs_file` is the name of the table of pairs, `named` are the programs."""
    console = rich.get_console()
    console.print()
    of_draws = None if posterior is None else posterior.summary()
    level, sentence = report.verdict(result, summary, of_draws)
    say(sentence, STYLES[level])
    console.print()
    table = Table.grid(padding=(0, 2))
    for label, sentence in report.lines(result, truth):
        table.add_row(Text(label, style="bold"), Text(visible(sentence)))
    summaries = [summary] if of_draws is None else [summary, of_draws]
    for i, doubt in enumerate(doubt for one in summaries for doubt in doubts(one)):
        table.add_row(Text("" if i else "Warnings", style="bold red"), Text(visible(doubt)))
    console.print(table)
    console.print()
    if not result.has_programs:
        say(f"Model {result.model} has no correlations between genes, so there is no {pairs_file}.")
    elif len(named):
        console.print(programs_table(named))
        console.print()
        console.print(pairs_table(result.top_pairs(SHOWN_PAIRS), truth))
    else:
        say("No gene program was found: the correlations of all pairs of genes are 0.")


def programs_table(named) -> Table:
    """The programs: number, name, leading genes, cells that use it."""
    table = Table(title="Gene programs", title_justify="left", title_style="bold", box=None)
    for name in ("", "name", "leading genes"):
        table.add_column(name)
    table.add_column("cells that use it", justify="right", no_wrap=True)
    for number, row in named.iterrows():
        genes = ", ".join(row["top_genes"].split(", ")[:LEADING])
        texts = (Text(visible(x), overflow="fold") for x in (number, row["name"], genes))
        table.add_row(*texts, f"{row['n_cells']:,}")
    return table


def pairs_table(pairs, truth) -> Table:
    """Pairs of genes with their correlations, and the true ones where these are known."""
    table = Table(title="Strongest gene pairs", title_justify="left", title_style="bold", box=None)
    for name in ("gene", "gene"):
        table.add_column(name)
    # A long name goes over several lines, a number never does.
    table.add_column("correlation", justify="right", no_wrap=True)
    if truth is not None:
        table.add_column("true", justify="right", no_wrap=True)
    for first, second, value in pairs.itertuples(index=False):
        true = [] if truth is None else [f"{truth.correlation.loc[first, second]:.3f}"]
        names = (Text(visible(gene), overflow="fold") for gene in (first, second))
        table.add_row(*names, f"{value:.3f}", *true)
    return table


def groups_table(groups: Iterable[Any]) -> Table:
    """What became of each group, a row each."""
    rows = [one._asdict() for one in groups]
    table = Table(title="Groups", title_justify="left", title_style="bold", box=None)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(visible(x), overflow="fold") for x in row.values()))
    return table
