"""The report of a fit as one web page that needs nothing but itself, and runs nothing.

The answer comes first: a verdict, a map of cells, the programs; then pairs of genes and how sure
they are, covariates, checks, and the settings last.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

import nbln
from nbln import report
from nbln.pl.genes import genes_in_turn
from nbln.questions.checks import extreme, worst_genes
from nbln.questions.diagnostics import WARNING
from nbln.text import visible
from nbln.webpage import checks as checked
from nbln.webpage import design, parts, programs

TEMPLATE = "report.html.jinja"
NETWORK_GENES = 60  # that lead the programs, in the network of called pairs
# What rows of the summary mean, by how their names begin; only of those that it has.
MEANINGS = {
    "effective_rank": "effective_rank: programs that carry signal.",
    "sigma_": "sigma: learned scales of the programs.",
    "gauge_": "gauge_contamination_ratio: variation that all genes share, which sequencing depth "
    "cannot be told from, relative to the rest.",
    "variance_": "variance: mean shares of a gene's variance of counts, by programs, of its own, "
    "by counting.",
    "pareto_k": "pareto_k_95: 95 % quantile over cells of Pareto k̂; below 0.7 the cells' factors "
    "can be trusted.",
    "factors_used": "factors_used: factors that say more of a cell than their prior.",
    "elbo_": "elbo: evidence lower bound, nats a cell.",
    "encoder_gap": "encoder_gap: nats a cell by which the encoder's bound is below the evidence.",
}


def page(
    result,
    checks,
    summary: pd.DataFrame,
    counts=None,
    truth=None,
    posterior=None,
    called: pd.DataFrame | None = None,
    colors: Mapping | None = None,
    named: pd.DataFrame | None = None,
) -> str:
    """The whole page.

    Names from data are shown, and do nothing: each is escaped, what is not printable is written
    as in Python, and a policy in the page forbids scripts and all that lies outside it.

    Parameters
    ----------
    checks, summary
        What `check` and `summary` gave.
    counts
        The counts of the fit; None where the result still has them.
    truth
        What simulated data were drawn from, as in `report.lines`.
    posterior
        Draws of the posterior; without them the page says that correlations carry no interval.
    called
        What their `pairs` gave; by default it is asked.
    colors
        Values or labels of all cells by name, to colour the map by.
    named
        What `get_program_table` gave; by default it is asked.
    """
    level = extreme(checks)
    if named is None:
        named = result.get_program_table() if result.has_programs else pd.DataFrame()
    colors = dict(colors or {})
    if result.batches is not None:
        colors.setdefault("batch", result.batches)
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            verdict=report.verdict(
                result, summary, None if posterior is None else posterior.summary()
            ),
            maps=programs.cell_map(result, named, colors),
            has_programs=result.has_programs,
            **_of_programs(result, checks, posterior, called, named),
            covariates=design.covariates(result, posterior),
            activities=design.activities(result, posterior),
            summary=parts.summary(summary),
            warnings=parts.summary(summary[summary["status"] == WARNING]),
            meanings=_meanings(summary.index),
            chance=f"{2 * level:.0%}",
            figures=checked.figures(result, checks, counts),
            level=f"{level:.1g}",
            worst=parts.table(worst_genes(checks, "zero_fraction").reset_index()),
            story=_story(report.lines(result, truth)),
            version=nbln.__version__,
        )
    )


def _of_programs(result, checks, posterior, called, named) -> dict:
    """The sections of a model with gene programs; none where no program was found."""
    if not len(named):
        return {**dict.fromkeys(("programs", "strongest", "certainty")), "correlations": []}
    given = result, named
    if posterior is None:
        pairs = programs.strongest_pairs(*given, partial(result.top_pairs, 1000))
        sure = None
    else:
        pairs, sure = _called(*given, posterior, called)
    return {
        "programs": programs.programs(*given, posterior),
        "strongest": programs.pairs_table(result, pairs, checks),
        "correlations": programs.correlations(result, posterior is not None),
        "certainty": sure,
    }


def _called(result, named, posterior, called) -> tuple[pd.DataFrame, dict]:
    """Called pairs of each program, and how sure the draws are."""
    called = posterior.pairs() if called is None else called
    limits = called.attrs["min_abs"], called.attrs["fdr"]

    def ask(genes):
        found = posterior.pairs(*limits, genes=genes)
        return found.iloc[np.argsort(-found["mean"].abs().to_numpy(), kind="stable")]

    pairs = programs.strongest_pairs(result, named, ask)
    leading = genes_in_turn(result, NETWORK_GENES)
    network = ask(list(leading)) if len(leading) > 1 else called.head(0)
    return pairs, programs.certainty(posterior, called, in_turn(pairs), network)


def in_turn(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of programs, the strongest of each first, each once."""
    if not len(pairs):
        return pairs
    turn = pairs.groupby("program").cumcount().to_numpy()
    # Two programs may have a pair in common.
    return pairs.iloc[np.argsort(turn, kind="stable")].drop_duplicates(["gene_a", "gene_b"])


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("nbln"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Escaping leaves marks that turn the direction of writing, and halves of characters.
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _story(lines: Iterable[report.Line]) -> list[tuple[str, list[str]]]:
    """Labels with their sentences; a line without a label continues the one above."""
    story: list[tuple[str, list[str]]] = []
    for label, sentence in lines:
        if label or not story:
            story.append((label, []))
        story[-1][1].append(sentence)
    return story


def _meanings(quantities: Iterable[str]) -> list[str]:
    """What the rows of a summary mean that say it nowhere else."""
    rows = list(quantities)
    return [x for start, x in MEANINGS.items() if any(row.startswith(start) for row in rows)]
