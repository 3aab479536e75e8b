"""What every result answers, whichever engine fitted it."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import xarray as xr

from nbln.posterior.mode import Parameters
from nbln.priors.capture import CaptureRule
from nbln.results import arviz, io, predictive, scoring
from nbln.results.base import Fitted, check_whole
from nbln.results.checks import predictive_checks

SUMMARY_DRAWS = 40  # of the predictive checks behind a summary


@dataclass(frozen=True, eq=False)
class Result(abc.ABC):
    """A fitted model.

    Attributes
    ----------
    fitted
        Cells, genes and settings.
    """

    kind: ClassVar[str]
    fitted: Fitted

    @property
    @abc.abstractmethod
    def parameters(self) -> Parameters:
        """The fitted parameters as the cells' kernel takes them."""

    @abc.abstractmethod
    def rate_sampler(self, ppc_level, n_samples, seed, data, size) -> predictive.Sampler:
        """Rates of predictive draws; see `nbln.results.predictive`."""

    @abc.abstractmethod
    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        """Draws of every parameter and of η, with dims (chain, draw, ...)."""

    @abc.abstractmethod
    def cell_log_likelihood(self, posterior: xr.Dataset, data):
        """Log-likelihood of every cell at draws of the parameters, (draw, cell), natural log."""

    @abc.abstractmethod
    def to_groups(self) -> io.Groups:
        """What a file of this result holds."""

    @abc.abstractmethod
    def _summarise(self, found: xr.Dataset | None, counts, seed: int) -> pd.DataFrame:
        """The summary, given predictive checks."""

    @property
    def capture_rule(self) -> CaptureRule:
        """How capture losses follow from library sizes."""
        return CaptureRule(**self.fitted.settings["capture"])

    def get_ppc_samples(
        self,
        ppc_level: str = "library_anchored",
        n_samples: int = 100,
        seed: int = 0,
        counts=None,
    ) -> xr.DataArray:
        """Counts drawn from the fitted model, (chain, draw, cell, gene).

        Parameters
        ----------
        ppc_level
            ``"marginal"``: fresh log-rates and capture losses resampled among the fitted cells;
            ``"library_anchored"``: fresh log-rates, the cell's own library size;
            ``"per_cell"``: log-rates from the cell's own posterior.
        n_samples
            Draws of the whole data set; memory is 4 bytes x draws x cells x genes. `check` needs
            a small part of that.
        seed
            Same seed, same draws.
        counts
            The AnnData of the fit; needed for ``per_cell`` after loading.
        """
        return predictive.all_counts(self, ppc_level, n_samples, seed, counts)

    def check(
        self,
        ppc_level: str = "library_anchored",
        n_samples: int = 100,
        genes: Sequence[str] | None = None,
        seed: int = 0,
        counts=None,
    ) -> xr.Dataset:
        """Predictive checks: what was counted beside what the model would count.

        Draws are made and summarised in blocks of cells, so that memory does not grow with
        cells x draws x genes.

        Parameters
        ----------
        ppc_level, n_samples, seed, counts
            As in `get_ppc_samples`.
        genes
            Genes whose pairwise correlations (of log-normalised counts) are checked; by default
            the 50 most abundant.

        Returns
        -------
        ``mean``, ``variance``, ``zero_fraction`` and ``quantile_99`` (quantity, gene);
        ``library_size`` (quantity, library), its mean, sd and quantiles over cells;
        ``correlation`` (quantity, pair); with quantity one of ``observed``, ``predicted`` (mean of
        the draws), ``low`` and ``high`` (5 % and 95 % of the draws) and ``p_value`` (uniform where
        the model is right, ties randomised). ``residual_distance`` and ``residual_p_value``
        (gene,): Kolmogorov–Smirnov test of randomised quantile residuals. Large counts are
        compared in bins of 2.5 %.

        Raises
        ------
        ValueError
            An unknown level, fewer than one draw, fewer than two genes.
        KeyError
            An unknown gene.
        """
        return predictive_checks(self, ppc_level, n_samples, genes, seed, counts)

    def summary(self, checks: xr.Dataset | bool = True, counts=None, seed: int = 0) -> pd.DataFrame:
        """Whether to believe the fit: one row a quantity, with columns value, status and note.

        A status of ``"warning"`` comes with a note that says what to do.

        Parameters
        ----------
        checks
            What `check` gave; True makes checks of 40 draws; False leaves out all that needs the
            counts: predictive checks and Pareto k̂ of the cells.
        counts
            The AnnData of the fit; needed after loading, unless `checks` is False.
        """
        if not isinstance(checks, bool | xr.Dataset):
            raise TypeError(
                f"summary(checks=): expected what check() gave, True or False; got "
                f"{type(checks).__name__}" + ("; the data are counts=" if counts is None else "")
            )
        if checks is False:
            return self._summarise(None, None, seed)
        data = self.fitted.data(counts)
        if checks is True:
            checks = self.check(n_samples=SUMMARY_DRAWS, seed=seed, counts=data)
        return self._summarise(checks, data, seed)

    def score(
        self, adata, n_samples: int = 1, layer: str | None = None, seed: int = 0
    ) -> xr.DataArray:
        """Log-evidence of cells that the model was not fitted to, (cell,), in nats.

        Parameters stay as fitted; factors, log-rates and capture losses are integrated out.

        Parameters
        ----------
        adata
            Cells with the genes of the fit, matched by name; other genes are left out.
        n_samples
            1: the Laplace approximation; more: importance sampling with so many draws a cell.
        layer
            The layer that holds the counts; by default that of the fit.
        seed
            Of the importance sampling.

        Raises
        ------
        ValueError
            A gene of the fit is missing (named), or the counts are not counts.
        """
        check_whole("n_samples", n_samples)
        return scoring.score(self, adata, layer, n_samples, seed)

    def transform(self, adata, layer: str | None = None) -> xr.Dataset:
        """Factors ``z`` (cell, factor) and capture losses ``eta`` (cell,) of any cells.

        Parameters of the fit are kept; cells of the fit itself get what they have there.
        Independent genes have no factors, so a fit of them gives ``eta`` only. Arguments and
        errors as in `score`.
        """
        return scoring.transform(self, adata, layer)

    def to_datatree(
        self, n_samples: int = 100, n_predictive: int = 20, seed: int = 0, counts=None
    ) -> xr.DataTree:
        """Draws for ArviZ.

        Groups ``posterior``, ``posterior_predictive`` (`n_predictive` draws, level ``per_cell``),
        ``observed_data``, ``log_likelihood`` (one observation a cell) and ``sample_stats``.

        Parameters
        ----------
        n_samples
            Draws of the parameters; each costs one pass over the cells.
        n_predictive
            Draws of the counts; memory is 4 bytes x draws x cells x genes.
        counts
            The AnnData of the fit; needed after loading.
        """
        return arviz.datatree(self, n_samples, n_predictive, seed, counts)

    def to_arviz(self, n_samples: int = 100, n_predictive: int = 20, seed: int = 0, counts=None):
        """`to_datatree` as the installed ArviZ wants it: InferenceData before ArviZ 1.0."""
        return arviz.to_arviz(self.to_datatree(n_samples, n_predictive, seed, counts))

    def save(self, path) -> None:
        """Save as NetCDF; `nbln.load` reads it. The counts are not in the file."""
        io.write(path, self.kind, self.to_groups())
