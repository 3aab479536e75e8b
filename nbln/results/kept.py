"""Predictive checks that were made of a result: draws cost much, and what they say takes little."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import xarray as xr

from nbln.questions.histograms import Histograms

# Checks that are kept, latest last: those of a session's figures, with three levels and more seeds
# than one. Each takes 200 bytes a gene and 25 a pair of the genes whose correlations are checked.
MOST = 8


class Asked(NamedTuple):
    """What the draws of checks depend on beside the fit and its counts."""

    ppc_level: str
    seed: int
    n_samples: int
    genes: tuple[str, ...] | None = None


class Checked(NamedTuple):
    """What is kept of draws."""

    checks: xr.Dataset
    histograms: Histograms


class Kept:
    """What was found out of one result; nothing in it is part of the result."""

    def __init__(self):
        self._made: dict[Asked, Checked] = {}
        self._answers: dict[Hashable, Any] = {}

    def once(self, question: Hashable, make: Callable[[], Any]) -> Any:
        """The answer to a question, made the first time; the last few are kept."""
        if question not in self._answers:
            self._answers[question] = make()
            if len(self._answers) > MOST:
                del self._answers[next(iter(self._answers))]
        return self._answers[question]

    def add(self, asked: Asked, checked: Checked) -> None:
        """Keep these, and forget the oldest where there are many."""
        self._made[asked] = checked
        while len(self._made) > MOST:
            del self._made[next(iter(self._made))]

    def get(self, asked: Asked) -> Checked | None:
        """Exactly these."""
        return self._made.get(asked)

    def best(self, ppc_level: str, seed: int, n_samples: int) -> list[Checked]:
        """Those of at least so many draws, most draws first; their pairs are the usual ones."""
        of = [
            asked
            for asked in self._made
            if (asked.ppc_level, asked.seed, asked.genes) == (ppc_level, seed, None)
            and asked.n_samples >= n_samples
        ]
        return [self._made[asked] for asked in sorted(of, key=lambda asked: -asked.n_samples)]
