"""What a page is made of: tables as text, and figures in it."""

import base64
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from nbln.pl.style import to_png

GENERAL = ".3g"


class Table(NamedTuple):
    """What a table of the page says, as text."""

    columns: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """A figure of the page: its heading, the words below it, and a PNG file in base64."""

    title: str
    caption: str
    png: str


def pictures(figures: Iterable[tuple[str, str, Any]]) -> list[Picture]:
    """Each figure is drawn before the next one is made, so that few are open at a time."""
    return [
        Picture(title, caption, base64.b64encode(to_png(figure)).decode())
        for title, caption, figure in figures
    ]


def summary(given: pd.DataFrame) -> Table:
    """What `summary` of a result gave."""
    return table(given.reset_index(), GENERAL)


def table(given: pd.DataFrame, form: str = ".3f") -> Table:
    """A table without its index; `form` is of its numbers."""
    rows = given.itertuples(index=False, name=None)
    return Table(list(map(str, given.columns)), [[_cell(x, form) for x in row] for row in rows])


def _cell(value: Any, form: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if not isinstance(value, float):
        return f"{value:,}"
    # Three digits of a thousand and more would be written as a power of ten.
    return f"{value:,.0f}" if form == GENERAL and abs(value) >= 1000 else f"{value:{form}}"
