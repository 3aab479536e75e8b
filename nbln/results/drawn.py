"""Draws from a posterior, however they were made: whether to believe them, ArviZ, files."""

import abc
from collections.abc import Iterator
from functools import cached_property

import pandas as pd
import xarray as xr

from nbln.data.fitted import Fitted
from nbln.questions import arviz, diagnostics
from nbln.questions.diagnostics import Row
from nbln.results import io
from nbln.results.answers import Answers


class Drawn(Answers):
    """Draws of chains, with leading axes (chain, draw)."""

    fitted: Fitted

    @property
    @abc.abstractmethod
    def n_chains(self) -> int:
        """Number of chains."""

    @property
    @abc.abstractmethod
    def n_draws(self) -> int:
        """Draws of each chain."""

    @abc.abstractmethod
    def get_diagnostics(self) -> pd.DataFrame:
        """Effective draws (``ess``), ``ess_per_draw`` and ``r_hat`` of what matters, a row each."""

    @abc.abstractmethod
    def _rows(self) -> Iterator[Row]:
        """Rows of the summary."""

    @abc.abstractmethod
    def to_datatree(self) -> xr.DataTree:
        """Draws for ArviZ: groups ``posterior`` and ``sample_stats``."""

    @abc.abstractmethod
    def to_groups(self) -> io.Groups:
        """What a file of these draws holds."""

    @classmethod
    @abc.abstractmethod
    def from_groups(cls, groups: io.Groups) -> "Drawn":
        """The reverse of `to_groups`."""

    def summary(self) -> pd.DataFrame:
        """Whether to believe the draws: one row a quantity, with value, status and note."""
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        return diagnostics.table(self._rows())

    def to_arviz(self):
        """`to_datatree` as the installed ArviZ wants it: InferenceData before ArviZ 1.0."""
        tree = arviz.described(self.to_datatree(), self.fitted, self.model)
        return arviz.to_arviz(tree)

    def save(self, path) -> None:
        """Save as NetCDF; `nbln.load` reads it. The counts are not in the file."""
        io.write(path, self.kind, self.to_groups())
