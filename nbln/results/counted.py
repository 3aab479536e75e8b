"""Results whose cells the kernel takes: capture losses, evidence of new cells, moments."""

import abc
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import registry
from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.data.formula import Formula
from nbln.posterior.mode import Augmentation, Parameters, Search
from nbln.priors.capture import Capture, CaptureRule
from nbln.questions import moments, outliers, scoring
from nbln.questions.predictive import CellDesign
from nbln.results.result import Result


@dataclass(frozen=True, eq=False)
class CountedResult(Result):
    """A fit of counts given log-rates that are Gaussian, or the same but for capture in all cells.

    Attributes
    ----------
    capture_rule
        How capture losses follow from library sizes, for new cells.
    """

    capture_rule: CaptureRule

    @abc.abstractmethod
    def _located(self) -> tuple[Parameters, Search]:
        """The parameters as the kernel takes them, and when the search for a mode ends."""

    @property
    def covariates(self) -> Float[np.ndarray, "cell covariate"]:
        """Covariates of the cells of the fit, numbers standardised; none as a rule."""
        return np.zeros((self.fitted.n_cells, 0), np.float32)

    @property
    def design(self) -> CellDesign:
        """What log-rates of the cells of the fit depend on beside parameters and depth."""
        return CellDesign.like(self.covariates)

    def _datasets(self, counts: Counts, caller: str) -> Float[np.ndarray, "cell dataset"] | None:
        """Which data set any cells are of; None where the model has one."""
        del counts, caller
        return None

    @property
    def formula(self) -> Formula | None:
        """What is known of the covariates; None where there are none."""
        return None

    @property
    def has_effects(self):
        return self.formula is not None and bool(self.formula.fixed)

    @property
    def formula_words(self):
        return () if self.formula is None else self.formula.words

    def _covariates(
        self, counts: Counts, caller: str
    ) -> Float[np.ndarray, "cell covariate"] | None:
        """Covariates of any cells; None where the model has none. `caller` is for messages."""
        return None if self.formula is None else self.formula.matrix(counts.obs, caller)

    @property
    def predicts_depth(self) -> bool:
        return self.capture_rule.predicts_depth

    def get_count_moments(self):
        return moments.count_moments(self._located()[0], self._losses, self.design)

    def get_p_capture(self) -> xr.DataArray:
        """Capture efficiency e^{-η}, (cell,): the share of a cell's mRNA that was counted.

        Raises
        ------
        ValueError
            The model has no capture losses, or offsets were fixed by library size, which say how
            deep a cell is beside others and not how much was captured.
        """
        lacks = f"get_p_capture: model {self.model} has no capture losses"
        if not self.has_capture:
            raise ValueError(f"{lacks}; fit model='nbln'")
        if not self.capture_rule.predicts_depth:
            raise ValueError(
                f"{lacks} where offsets are fixed by library size (eta has these); fit with a "
                "capture prior"
            )
        eta = self.get_map()[names.ETA].values
        return self.fitted.label(np.exp(-eta), (names.CELL,), "p_capture")

    @property
    def _losses(self) -> Float[np.ndarray, " cell"]:
        """What log-rates of counts in each cell are less than those before capture."""
        return self.get_map()[names.ETA].values

    def _outliers(self, counts):
        located = self._located()[0]
        return outliers.rows(self.fitted, counts, located, self._losses, self.covariates)

    def _augment(self, counts: Counts, caller: str, capture: Capture | None = None) -> Augmentation:
        """What the model adds to any cells: by its capture prior, or with these losses."""
        if capture is None:
            capture = self.capture_rule.of(counts.library_size)
        added = registry.find(self.model).program.augment(capture)
        return added._replace(
            covariates=self._covariates(counts, caller), datasets=self._datasets(counts, caller)
        )

    def _of_population(self):
        # Without capture losses nothing is known of a cell beforehand.
        if not self.has_capture:
            return self
        if not self.capture_rule.predicts_depth:
            raise ValueError(
                f"score(depth='population'): this fit of {self.model} has fixed offsets, which are "
                "each cell's own depth; fit it with a capture prior"
            )
        rule = CaptureRule.population(self.get_map()[names.ETA].values)
        return replace(self, capture_rule=rule)

    def _score(self, counts, n_samples, seed):
        parameters, search = self._located()
        added = self._augment(counts, "score")
        return scoring.log_evidence(parameters, counts, added, search, n_samples, seed)
