"""What all results answer, whichever engine fitted them: the face of the questions."""

import abc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import check_whole, choose
from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.questions import arviz, diagnostics, predictive
from nbln.questions.checks import predictive_checks
from nbln.questions.convergence import Convergence
from nbln.questions.predictive import ANCHORED
from nbln.results import checking, io, notebook
from nbln.results.answers import Answers
from nbln.results.kept import Kept
from nbln.results.story import Line

# Draws of the predictive checks behind a summary: a gene is outside all by chance 2 times in 41.
SUMMARY_DRAWS = 40
# What is known of a new cell's depth before its counts.
DEPTHS = OWN_DEPTH, POPULATION = "own", "population"


@dataclass(frozen=True, eq=False)
class Result(Answers):
    """A fitted model.

    Attributes
    ----------
    fitted
        Cells, genes and settings.
    model
        Name of the model, as in ``fit(model=...)``.
    """

    has_programs: ClassVar[bool]  # whether it has loadings, and with them correlations
    has_latent: ClassVar[bool] = False  # whether a figure of the cells' factors says something
    fitted: Fitted
    model: str
    _kept: Kept = field(default_factory=Kept, init=False, repr=False)

    @property
    def has_effects(self) -> bool:
        """Whether covariates have effects on genes, for `get_covariate_effects`."""
        return False

    @property
    def earlier(self) -> "Result | None":
        """The fit whose values this one started from, if any."""
        return None

    @property
    def title(self) -> str:
        """What the model is, in a few words."""
        return registry.find(self.model).title

    @property
    def has_capture(self) -> bool:
        """Whether cells have capture losses."""
        return registry.find(self.model).has_capture

    @property
    def batches(self) -> np.ndarray | None:
        """(cell,) name of each cell's batch; None where the fit was told of none."""
        return None

    # What each kind of result says for itself

    @abc.abstractmethod
    def _sampler(self, ppc_level: str, n_samples: int, seed: int, counts) -> predictive.Sampler:
        """Log-rates and channel of predictive draws; see `nbln.questions.predictive`."""

    @abc.abstractmethod
    def _score(self, counts: Counts, n_samples: int, seed: int) -> Float[np.ndarray, " cell"]:
        """Log-evidence of cells with the genes of the fit (nats)."""

    @abc.abstractmethod
    def _of_population(self) -> "Result":
        """The same fit, to which the depth of a new cell is like those of its own cells."""

    @abc.abstractmethod
    def _transform(self, counts: Counts) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Latent variables of cells with the genes of the fit, as (dims, values)."""

    @abc.abstractmethod
    def _summary(self, counts: Counts | None, seed: int) -> Iterator[diagnostics.Row]:
        """The summary, predictive checks aside; without counts what needs none."""

    @abc.abstractmethod
    def _outliers(self, counts: Counts) -> Iterator[diagnostics.Row]:
        """Cells that are unlike all others."""

    @abc.abstractmethod
    def get_map(self) -> xr.Dataset:
        """All fitted parameters and latent variables."""

    @abc.abstractmethod
    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        """Draws of all parameters and of η, with dims (chain, draw, ...)."""

    @abc.abstractmethod
    def cell_log_likelihood(
        self, posterior: xr.Dataset, data: Counts
    ) -> Float[np.ndarray, "draw cell"]:
        """Log-likelihood of each cell at draws of the parameters (nats)."""

    @abc.abstractmethod
    def get_count_moments(self) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
        """Mean and variance of each gene's counts in the fitted cells, by the model."""

    @property
    @abc.abstractmethod
    def predicts_depth(self) -> bool:
        """Whether the evidence of a cell has to predict its depth, which offsets tell."""

    @property
    def totals_alone(self) -> bool:
        """Whether totals have a distribution in which nothing is said of the cell itself."""
        return False

    @property
    @abc.abstractmethod
    def n_parameters(self) -> int:
        """How many numbers the model learned of genes; of a network, its weights."""

    @property
    @abc.abstractmethod
    def convergence(self) -> Convergence:
        """How the fit converged, as curves."""

    @property
    @abc.abstractmethod
    def stages(self) -> dict[str, dict[str, float]]:
        """Wall-clock seconds of each stage of the fit, by part."""

    @abc.abstractmethod
    def story(self) -> Iterator[Line]:
        """What the fit has to say of itself, as labelled sentences."""

    @abc.abstractmethod
    def write_to(self, adata, key_added: str = "nbln") -> None:
        """Write the result into an AnnData; nothing else does."""

    @abc.abstractmethod
    def to_groups(self) -> io.Groups:
        """What a file of this result holds."""

    @classmethod
    @abc.abstractmethod
    def from_groups(cls, groups: io.Groups) -> "Result":
        """The reverse of `to_groups`."""

    # What they all answer

    def _repr_html_(self) -> str:
        return notebook.of_result(self)

    def _check_counted(self, caller: str) -> None:
        """Raise where the data are no counts."""
        if not self.fitted.counted:
            raise ValueError(
                f"{caller}: compares counts, but this fit is of other numbers; look at "
                "summary(checks=False) instead"
            )

    def _draws(self, ppc_level: str, n_samples: int, seed: int, counts) -> predictive.Draws:
        self._check_counted("predictive draws")
        predictive.check_draws(ppc_level, n_samples)
        sampler = self._sampler(ppc_level, n_samples, seed, counts)
        return predictive.count_draws(self.fitted, sampler, ppc_level, n_samples, seed)

    def get_ppc_samples(
        self,
        ppc_level: str = "library_anchored",
        n_samples: int = 100,
        seed: int = 0,
        counts=None,
        genes: Sequence[str] | None = None,
    ) -> xr.DataArray:
        """Counts drawn from the fitted model, (chain, draw, cell, gene).

        Parameters
        ----------
        ppc_level
            ``"marginal"``: fresh log-rates and capture losses resampled among the fitted cells;
            ``"library_anchored"``: fresh log-rates, the cell's own library size;
            ``"per_cell"``: log-rates from the cell's own posterior. A model of totals (lnm) draws
            them in the first, and has the cell's own in the last.
        n_samples
            Draws of the whole data set; memory is 4 bytes x draws x cells x genes. `check` needs
            a small part of that.
        seed
            Same seed, same draws.
        counts
            The AnnData of the fit; needed for ``per_cell`` after loading.
        genes
            Names of those that are kept; all are drawn, and all kept by default.
        """
        blocks = self._draws(ppc_level, n_samples, seed, counts)
        return predictive.all_counts(self.fitted, blocks, n_samples, self.fitted.find(genes))

    def check(
        self,
        ppc_level: str = "library_anchored",
        n_samples: int = 100,
        genes: Sequence[str] | None = None,
        seed: int = 0,
        counts=None,
        groupby: str | Sequence | None = None,
    ) -> xr.Dataset:
        """Predictive checks: what was counted beside what the model would count.

        Draws are made and summarised in blocks of cells, so that memory does not grow with
        cells x draws x genes. What they say is kept, so that asking again costs nothing.

        Parameters
        ----------
        ppc_level, n_samples, seed, counts
            As in `get_ppc_samples`.
        genes
            Genes whose pairwise correlations (of log-normalised counts) are checked; by default
            the 50 most abundant.
        groupby
            The same checks within each group of cells: a column of ``adata.obs`` that the fit knows
            or that ``counts=adata`` has, or a value for each cell. `nbln.summarise_checks` makes a
            table of them, a row a group. Memory grows with the number of groups.

        Returns
        -------
        ``mean``, ``variance``, ``zero_fraction`` and ``quantile_99`` (quantity, gene);
        ``library_size`` (quantity, library), its mean, sd and quantiles over cells;
        ``correlation`` (quantity, pair); with quantity one of ``observed``, ``predicted`` (mean of
        the draws), ``low`` and ``high`` (5 % and 95 % of the draws) and ``p_value`` (uniform where
        the model is right, ties randomised). ``residual_distance`` and ``residual_p_value``
        (gene,): Kolmogorov–Smirnov test of randomised quantile residuals. Large counts are
        compared in bins of 2.5 %. With `groupby` all have a first dim ``group``; ``n_cells``.

        Raises
        ------
        ValueError
            An unknown level, fewer than one draw, fewer than two genes, a group of fewer than ten
            cells; groups at ``marginal``, where draws are of cells like any of the fit.
        KeyError
            An unknown gene or column.
        """
        self._check_counted("check")
        data = self.fitted.data(counts)
        asked = genes, ppc_level, n_samples, seed
        if groupby is None:
            return checking.made(self, data, *asked).checks.copy(deep=True)
        groups = checking.groups(groupby, data, counts, ppc_level)
        blocks = self._draws(ppc_level, n_samples, seed, data)
        return predictive_checks(self.fitted, data, blocks, *asked, groups)

    def get_checks(
        self, ppc_level: str = ANCHORED, n_samples: int = SUMMARY_DRAWS, seed: int = 0, counts=None
    ) -> xr.Dataset:
        """Predictive checks of at least so many draws: those made already, or as `check` does."""
        data = self.fitted.data(counts)
        if found := self._kept.best(ppc_level, seed, n_samples):
            return found[0].checks.copy(deep=True)
        return self.check(ppc_level, n_samples, seed=seed, counts=data)

    def get_count_histograms(
        self, genes: Sequence[str], ppc_level: str = ANCHORED, n_samples: int = 50, counts=None
    ) -> list[Int[np.ndarray, "draw bin"]]:
        """How many cells of each draw have counts in each bin of `pl.plot_gene_ppc`, by gene.

        Of at least so many draws: those of checks made already, if they have these genes.
        """
        return checking.histograms(self, genes, ppc_level, n_samples, counts)

    def summary(self, checks: xr.Dataset | bool = True, counts=None, seed: int = 0) -> pd.DataFrame:
        """Whether to believe the fit: one row a quantity, with columns value, status and note.

        A status of ``"warning"`` comes with a note that says what to do.

        Parameters
        ----------
        checks
            What `check` gave, by group too; True takes those of this seed that were made already,
            of 40 draws at least, or makes them; False leaves out all that needs the counts:
            predictive checks and Pareto k̂ of the cells. Data that are no counts have none of these.
        counts
            The AnnData of the fit; needed after loading, unless `checks` is False.
        """
        if not isinstance(checks, bool | xr.Dataset):
            raise TypeError(
                f"summary(checks=): expected what check() gave, True or False; got "
                f"{type(checks).__name__}" + ("; the data are counts=" if counts is None else "")
            )
        if checks is False:
            return diagnostics.table(self._summary(None, seed))
        data = self.fitted.data(counts)
        if not self.fitted.counted:
            return diagnostics.table(self._summary(data, seed))
        if checks is True:
            checks = self.get_checks(seed=seed, counts=data)
        remedy = registry.find(self.model).remedy
        rows = self._summary(data, seed), self._outliers(data), diagnostics.misfit(checks, remedy)
        return diagnostics.table(itertools.chain(*rows))

    def score(
        self,
        adata,
        n_samples: int = 1,
        layer: str | None = None,
        seed: int = 0,
        depth: str = OWN_DEPTH,
    ) -> xr.DataArray:
        """Log-evidence of cells that the model was not fitted to, (cell,), in nats.

        Parameters stay as fitted; factors, log-rates and capture losses are integrated out.

        Parameters
        ----------
        adata
            Cells with the genes of the fit, matched by name; other genes are left out.
        n_samples
            1: the Laplace approximation; more: importance sampling with so many draws a cell. Where
            none of them is possible, of a cell far deeper than the capture prior allows, the
            Laplace approximation again. Of independent genes the evidence is exact, by quadrature.
        layer
            The layer that holds the counts; by default that of the fit.
        seed
            Of the importance sampling.
        depth
            ``"own"``: the prior of a cell's capture loss is centred by its own library size, as in
            fits. ``"population"``: new cells are as deep as those of the fit, the prior has mean
            and standard deviation of their losses. Only then is the evidence a probability of
            counts, to be compared with that of a model of totals (lnm), which it always is.

        Raises
        ------
        ValueError
            A gene of the fit is missing (named), or the counts are not counts.
        """
        check_whole("n_samples", n_samples)
        choose("score(depth", depth, DEPTHS)
        model = self._of_population() if depth == POPULATION else self
        counts = self.fitted.matched(adata, layer, "score")
        values = model._score(counts, n_samples, seed)
        coords = {names.CELL: counts.cell_names}
        return xr.DataArray(values, dims=(names.CELL,), coords=coords, name="log_evidence")

    def transform(self, adata, layer: str | None = None) -> xr.Dataset:
        """Factors ``z`` (cell, factor) and capture losses ``eta`` (cell,) of any cells.

        Parameters of the fit are kept; cells of the fit itself get what they have there.
        Independent genes have no factors, so a fit of them gives ``eta`` only. Arguments and
        errors as in `score`; a model without capture losses as well has nothing to give, and says
        so in a ValueError.
        """
        counts = self.fitted.matched(adata, layer, "transform")
        return xr.Dataset(self._transform(counts), coords={names.CELL: counts.cell_names})

    def to_datatree(
        self, n_samples: int = 100, n_predictive: int = 20, seed: int = 0, counts=None
    ) -> xr.DataTree:
        """Draws for ArviZ.

        Groups ``posterior``, ``posterior_predictive`` (`n_predictive` draws, level ``per_cell``),
        ``observed_data``, ``constant_data`` (library sizes), ``log_likelihood`` (one observation a
        cell) and ``sample_stats``.

        Parameters
        ----------
        n_samples
            Draws of the parameters; each costs one pass over the cells.
        n_predictive
            Draws of the counts; memory is 4 bytes x draws x cells x genes.
        counts
            The AnnData of the fit; needed after loading.
        """
        check_whole("n_samples", n_samples)
        self._check_counted("to_datatree")
        data = self.fitted.data(counts)
        posterior = self.draw_parameters(n_samples, seed)
        likelihood = self.cell_log_likelihood(posterior, data)
        drawn = self.get_ppc_samples(predictive.PER_CELL, n_predictive, seed, data)
        tree = arviz.datatree(self.fitted, data, posterior, likelihood, drawn)
        return arviz.described(tree, self.fitted, self.model)

    def to_arviz(self, n_samples: int = 100, n_predictive: int = 20, seed: int = 0, counts=None):
        """`to_datatree` as the installed ArviZ wants it: InferenceData before ArviZ 1.0."""
        return arviz.to_arviz(self.to_datatree(n_samples, n_predictive, seed, counts))

    def save(self, path) -> None:
        """Save as NetCDF; `nbln.load` reads it. The counts are not in the file."""
        io.write(path, self.kind, self.to_groups())
