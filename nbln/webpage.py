"""The report of a fit as one web page that needs nothing but itself, and runs nothing."""

import base64
from collections.abc import Iterable
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

import nbln
from nbln import pl, report
from nbln.pl.posterior import spread_over_genes
from nbln.pl.style import to_png
from nbln.questions import effects
from nbln.questions.checks import extreme, worst_genes
from nbln.questions.diagnostics import doubts
from nbln.text import visible

TEMPLATE = "report.html.jinja"
SHOWN_PAIRS = 30
# A page of many categories would be nothing but their tables; covariate_effects.csv has them all.
SHOWN_COVARIATES, SHOWN_EFFECTS, SHOWN_COMPARISONS = 10, 8, 6
HISTOGRAM_DRAWS = 20  # of all counts, for a band from 5 % to 95 %
GENERAL = ".3g"
# What rows of the summary mean, by how their names begin; only of those that it has.
MEANINGS = {
    "sigma_": "sigma: learned scales of the programs.",
    "variance_": "variance: mean shares of a gene's variance of counts, by programs, of its own, "
    "by counting.",
    "pareto_k": "pareto_k_95: 95 % quantile over cells of Pareto k̂; below 0.7 the cells' factors "
    "can be trusted.",
    "factors_used": "factors_used: factors that say more of a cell than their prior.",
    "elbo_": "elbo: evidence lower bound, nats a cell.",
    "encoder_gap": "encoder_gap: nats a cell by which the encoder's bound is below the evidence.",
}


class Table(NamedTuple):
    """What a table of the page says, as text."""

    columns: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """A figure of the page: its heading, the words below it, and a PNG file in base64."""

    title: str
    caption: str
    png: str


def page(
    result,
    checks,
    summary: pd.DataFrame,
    counts=None,
    truth=None,
    posterior=None,
    called: pd.DataFrame | None = None,
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
    """
    level = extreme(checks)
    strongest, certainty = None, None
    if result.has_programs:
        if result.w_prior_diagnostics["effective_rank"]:
            strongest = _table(result.top_pairs(SHOWN_PAIRS))
        certainty = None if posterior is None else _certainty(posterior, called)
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            story=_story(report.lines(result, truth)),
            summary=_summary(summary),
            meanings=_meanings(summary.index),
            chance=f"{2 * level:.0%}",
            figures=_pictures(_figures(result, checks, counts)),
            covariates=_covariates(result, posterior),
            activities=_activities(result, posterior),
            has_programs=result.has_programs,
            strongest=strongest,
            certainty=certainty,
            level=f"{level:.1g}",
            worst=_table(worst_genes(checks, "zero_fraction").reset_index()),
            version=nbln.__version__,
        )
    )


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


def _covariates(result, posterior) -> dict[str, Any] | None:
    """The design in words, the strongest effects, and by draws the genes that are called."""
    if not result.formula_words:
        return None
    shown: dict[str, Any] = {"words": result.formula_words, "strongest": None, "comparisons": []}
    if result.has_effects:
        asked = result if posterior is None else posterior
        every = asked.get_covariate_effects()
        some = every.isel(covariate=slice(SHOWN_COVARIATES))
        units = result.formula.units[:SHOWN_COVARIATES]
        shown["strongest"] = _table(effects.strongest(some, units, SHOWN_EFFECTS))
        shown["further"] = every.sizes["covariate"] - some.sizes["covariate"]
        shown["drawn"] = posterior is not None
    if posterior is not None:
        compared = result.formula.comparisons
        shown["comparisons"] = [_comparison(posterior, *x) for x in compared[:SHOWN_COMPARISONS]]
    return shown


def _comparison(posterior, column: str, group, reference) -> dict[str, Any]:
    """One group over its reference: a volcano, and the surest genes."""
    table = posterior.differential_expression(column, group, reference)
    delta, fdr = table.attrs["delta"], table.attrs["fdr"]
    caption = (
        f"Calls are of changes beyond {delta:g} (log2); at most {fdr:.0%} of them are expected to "
        "be wrong."
    )
    names = [x if isinstance(x, str) else f"{x:.3g}" for x in (group, reference)]
    title = f"{column}: {names[0]} over {names[1]}"
    (picture,) = _pictures([(title, caption, pl.plot_effects(table))])
    return {"picture": picture, "genes": _table(table.head(SHOWN_EFFECTS).reset_index())}


def _activities(result, posterior) -> dict[str, Any] | None:
    """How active programs are in data sets, and by draws how sure differences are."""
    if not result.has_activities:
        return None
    asked, compared = result if posterior is None else posterior, []
    title = "Programs that are more or less active"
    caption = (
        "Standard deviation of a program's factor over the cells of a data set; 1 is typical of "
        "the program. Points of one colour are data sets of one level."
    )
    (picture,) = _pictures([(title, caption, pl.plot_program_activity(asked))])
    for key in result.datasets.keys:
        if posterior is not None and len(key.levels) == 2:
            table = posterior.differential_activity(key.column, *key.levels)
            title = f"{key.column}: {key.levels[0]} over {key.levels[1]}"
            compared.append({"title": title, "programs": _table(table.reset_index())})
    return {"picture": picture, "compared": compared}


def _certainty(posterior, called: pd.DataFrame | None) -> dict[str, Any]:
    """How sure the correlations are: intervals, calls, network."""
    called = posterior.pairs() if called is None else called
    # Of the table and the figure no gene takes more than three rows.
    pairs = spread_over_genes(called, SHOWN_PAIRS)
    summary = posterior.summary()
    figures = (
        (
            "Pairs with their intervals",
            "Twenty of the surest, at most three of a gene; points are posterior means.",
            pl.plot_pair_intervals(posterior, pairs=pairs),
        ),
        (
            "Calls",
            "Left: pairs called at each false discovery rate. Right: the share of them expected to "
            "be wrong; it levels off where all pairs that are more likely right than wrong are "
            "called.",
            pl.plot_calls(posterior),
        ),
        (
            "Network of called pairs",
            "The strongest called pairs; red edges are positive, blue ones negative.",
            pl.plot_network(posterior, called),
        ),
    )
    return {
        "n_called": f"{len(called):,}",
        "min_abs": f"{called.attrs['min_abs']:g}",
        "fdr": f"{100 * called.attrs['fdr']:g} %",
        "doubts": "; ".join(doubts(summary)),
        "figures": _pictures(figures),
        "pairs": _table(pairs),
        "programs": _table(posterior.get_program_stability().reset_index()),
        "summary": _summary(summary),
    }


def _figures(result, checks, counts):
    """Title, caption and figure, in the order of the questions that a reader asks."""
    yield (
        "Does it describe the data?",
        "Statistics of each gene in the data against draws from the fitted model. Points on the "
        "line agree; orange ones lie outside all draws.",
        pl.plot_ppc(result, checks=checks),
    )
    yield (
        "Mean and variance",
        "Counts of each gene in the data and by the model.",
        pl.plot_mean_variance(result, counts=counts),
    )
    yield (
        "Counts of single genes",
        "Genes from rare to abundant. Bars are shares of cells in the data; the band holds 90 % of "
        "draws from the model. The last bin holds all larger counts.",
        pl.plot_gene_ppc(result, n_samples=HISTOGRAM_DRAWS, counts=counts),
    )
    if result.has_programs:
        yield from _programs(result, counts)
    if result.has_latent:
        yield (
            "Factors of the cells",
            "The two directions in which the cells' factors vary most.",
            pl.plot_latent(result),
        )
        if result.batches is not None:
            yield (
                "Batches of the cells",
                "The same, by batch. Where kinds of cells lie apart by batch, the factors still "
                "hold it, or the batches hold different cells.",
                pl.plot_latent(result, color=result.batches),
            )
    if result.has_capture:
        yield (
            "Capture",
            "Capture loss of each cell; the line and the band are what its library size leads one "
            "to expect.",
            pl.plot_capture(result),
        )
    yield "Convergence", "How the fit settled.", pl.plot_loss(result)
    if result.earlier is not None:
        yield (
            "Convergence of the independent genes",
            "The first stage, whose capture losses and starting values the fit took over.",
            pl.plot_loss(result.earlier),
        )


def _programs(result, counts):
    yield (
        "How many programs?",
        "Columns of the loadings, largest first; shrinkage removes those that the data do not ask "
        "for.",
        pl.plot_w_shrinkage_spectrum(result),
    )
    if result.w_prior_diagnostics["effective_rank"]:
        yield (
            "Gene programs",
            "Genes with the largest loadings. The sign of a whole program is arbitrary.",
            pl.plot_gene_programs(result),
        )
    yield (
        "Correlations",
        "Genes that the programs vary most, in the order of a clustering.",
        pl.plot_correlation(result, n_genes=min(40, result.fitted.n_genes)),
    )
    yield (
        "Shares of genes in a cell",
        "Cells carry counting noise, the model does not: its contours hold half and nine tenths of "
        "its draws. Pseudobulks of about 25 similar cells are in between.",
        pl.plot_compositional_corner_ppc(result, counts=counts),
    )


def _story(lines: Iterable[report.Line]) -> list[tuple[str, list[str]]]:
    """Labels with their sentences; a line without a label continues the one above."""
    story: list[tuple[str, list[str]]] = []
    for label, sentence in lines:
        if label or not story:
            story.append((label, []))
        story[-1][1].append(sentence)
    return story


def _pictures(figures: Iterable[tuple[str, str, Any]]) -> list[Picture]:
    """Each figure is drawn before the next one is made, so that few are open at a time."""
    return [
        Picture(title, caption, base64.b64encode(to_png(figure)).decode())
        for title, caption, figure in figures
    ]


def _meanings(quantities: Iterable[str]) -> list[str]:
    """What the rows of a summary mean that say it nowhere else."""
    rows = list(quantities)
    return [x for start, x in MEANINGS.items() if any(row.startswith(start) for row in rows)]


def _summary(summary: pd.DataFrame) -> Table:
    return _table(summary.reset_index(), GENERAL)


def _table(table: pd.DataFrame, form: str = ".3f") -> Table:
    rows = table.itertuples(index=False, name=None)
    return Table(list(map(str, table.columns)), [[_cell(x, form) for x in row] for row in rows])


def _cell(value: Any, form: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if not isinstance(value, float):
        return f"{value:,}"
    # Three digits of a thousand and more would be written as a power of ten.
    return f"{value:,.0f}" if form == GENERAL and abs(value) >= 1000 else f"{value:{form}}"
