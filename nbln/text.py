"""Names from data as text: nothing that a terminal, a figure or a spreadsheet would act on.

A name of a gene, a cell, a layer or a file may hold any character. Each place that shows one asks
here; the web page escapes its own markup besides.
"""

import csv
from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")
APOSTROPHE = "'"


def visible(text: Any) -> str:
    """The text in one line of printable characters, all others as Python writes them: ``\\x1b``.

    Printable is what `str.isprintable` says: neither control characters, of which terminals make
    colours and line breaks, nor marks that turn the direction of writing, nor halves of characters.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: Any, most: int = 24) -> str:
    """The text as `visible` gives it, without its middle beyond `most` characters."""
    text = visible(text)
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def to_csv(table: pd.DataFrame) -> bytes:
    """The table as a CSV file in UTF-8, without its index, that a spreadsheet only displays.

    A spreadsheet takes what begins with one of ``= + - @``, a tab or a carriage return for a
    formula and may run it. A text that does has an apostrophe put before it, and so has one that
    begins with an apostrophe: the texts are had back by leaving one leading apostrophe out.
    Numbers stay as they are.
    """
    safe = table.apply(lambda column: column.map(_guarded))
    # Before Python 3.13 a carriage return in a name is not quoted by itself, and would end a line.
    returns = safe.apply(lambda column: column.map(lambda x: isinstance(x, str) and "\r" in x))
    quoting = csv.QUOTE_NONNUMERIC if returns.to_numpy().any() else csv.QUOTE_MINIMAL
    # UTF-8 has no halves of characters, which a damaged file may have in its names.
    return safe.to_csv(index=False, quoting=quoting).encode("utf-8", "backslashreplace")


def _guarded(value: Any) -> Any:
    risky = isinstance(value, str) and value.startswith((*FORMULA, APOSTROPHE))
    return APOSTROPHE + value if risky else value
