"""Results in a notebook: a small table whose every text is escaped."""

import itertools
from collections.abc import Iterable, Iterator
from html import escape

from nbln.data.fitted import Fitted
from nbln.questions.diagnostics import doubts
from nbln.text import short, visible

NAMED = 12  # genes of a subset that are named
LEFT = 'style="text-align: left"'


def of_result(result) -> str:
    """The fit as a table: model, data, programs, how it converged, seconds, warnings."""
    seconds = sum(s.get("total", sum(s.values())) for s in result.stages.values())
    return _table(type(result).__name__, [
        ("Model", result.title),
        ("Data", _data(result.fitted)),
        *_formula(result),
        *_programs(result),
        *_first(result.story()),
        ("Seconds", f"{seconds:,.1f}"),
        *_warnings(doubts(result.summary(checks=False))),
    ])  # fmt: skip


def of_draws(draws, n_programs: int | None = None) -> str:
    """Draws of the posterior as a table; independent genes have no programs."""
    programs = [] if n_programs is None else [("Programs", str(n_programs))]
    return _table(type(draws).__name__, [
        ("Model", draws.model),
        ("Data", _data(draws.fitted)),
        *_formula(draws),
        ("Draws", f"{draws.n_chains} chains of {draws.n_draws:,}"),
        *programs,
        *_warnings(doubts(draws.summary())),
    ])  # fmt: skip


def of_subset(part) -> str:
    """Some genes of a result as a table: which, and of what."""
    genes, whole = part.gene_names, part.whole
    more = len(genes) - NAMED
    named = ", ".join(map(short, genes[:NAMED])) + (f" and {more:,} more" if more > 0 else "")
    return _table(type(part).__name__, [
        ("Genes", f"{len(genes):,}: {named}"),
        ("Of", f"{type(whole).__name__}, model {whole.model}"),
        ("Data", _data(whole.fitted)),
        *_formula(whole),
        ("", "parameters are those of all genes; .whole is the whole result"),
    ])  # fmt: skip


def _data(fitted: Fitted) -> str:
    pool = " and the pool of the rarest" if fitted.has_other else ""
    return f"{fitted.n_cells:,} cells x {int(fitted.real_genes.sum()):,} genes{pool}"


def _formula(answers) -> Iterator[tuple[str, str]]:
    for i, words in enumerate(answers.formula_words):
        yield "" if i else "Formula", words


def _programs(result) -> Iterator[tuple[str, str]]:
    if result.has_programs:
        rank = result.w_prior_diagnostics["effective_rank"]
        yield "Programs", f"{rank} of {result.latent_dim} offered carry signal"


def _first(story: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The first line of a story, which says how the fit converged, with its continuations."""
    yield next(story)
    yield from itertools.takewhile(lambda line: not line[0], story)


def _warnings(found: list[str]) -> Iterator[tuple[str, str]]:
    for i, sentence in enumerate(found or ["none; summary() also compares with the counts"]):
        yield "" if i else "Warnings", sentence


def _table(name: str, lines: Iterable[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><th {LEFT}>{_text(label)}</th><td {LEFT}>{_text(sentence)}</td></tr>"
        for label, sentence in lines
    )
    return f"<table><caption>{_text(name)}</caption><tbody>{rows}</tbody></table>"


def _text(text: str) -> str:
    return escape(visible(text))
