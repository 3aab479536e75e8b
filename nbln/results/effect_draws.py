"""Answers about covariates that draws of their effects give."""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.arguments import check_number
from nbln.data.formula import Formula
from nbln.questions import adaptive, effects, intervals
from nbln.results.drawn_programs import LEVEL, DrawnPrograms


class EffectDraws(DrawnPrograms):
    """Draws of programs, and of effects of covariates beside them."""

    formula: Formula | None

    @property
    def formula_words(self):
        return () if self.formula is None else self.formula.words

    @property
    def _effects(self) -> Float[np.ndarray, "draw gene covariate"]:
        """Of real genes, chains one after the other."""
        return self._real(self.draws.effects)

    def get_covariate_effects(self, level: float = LEVEL) -> xr.Dataset:
        """Effect of each covariate on each gene's log-rate, (gene, covariate), natural log.

        ``mean``, ``sd``, ``low`` and ``high`` (ends of the interval of probability `level`) and
        ``prob_sign``. Units and reference are those of `LaplaceResult.get_covariate_effects`.

        Raises
        ------
        ValueError
            The fit had no formula.
        """
        formula = effects.check_fixed(self.formula)
        drawn = self._effects[..., : len(formula.fixed)] / formula.units
        summary = intervals.summarise(drawn, intervals.check_level(level))
        genes = self.fitted.gene_names[self.fitted.real_genes]
        return xr.Dataset(
            {
                name: ((names.GENE, names.COVARIATE), np.float32(x))
                for name, x in summary._asdict().items()
            },
            coords={names.GENE: genes, names.COVARIATE: list(formula.fixed)},
            attrs={"level": level},
        )

    def differential_expression(
        self,
        column: str,
        group: str | float,
        reference: str | float | None = None,
        delta: float = 0.25,
        fdr: float = 0.05,
        level: float = LEVEL,
    ) -> pd.DataFrame:
        """Genes whose expression differs between two groups of cells, surest first.

        Expression is relative to the depth of cells, and compared at the same factors and, but for
        `column`, the same covariates. With donors in ``fit(random=)`` groups of donors are compared
        with donors as replicates.

        The change by one fixed covariate has a prior that is learned from all genes, with a part
        for no effect (adaptive shrinkage, Stephens 2017), so that where few genes change, changes
        of the others are shrunken to nothing. Changes between two categories of which neither is
        the reference of the fit, and between donors, are as they were drawn.

        Parameters
        ----------
        column
            A column of the formula, or of a random intercept.
        group, reference
            Two of its categories, or two numbers; `reference` is by default that of the fit, which
            is the first category, or the mean of the numbers.
        delta
            Smallest change that matters, log2; 0 asks for the sign alone.
        fdr
            Share of wrong calls that is accepted (Bayesian false discovery rate). A call is wrong
            if the change is smaller than `delta` or has the other sign.
        level
            Probability that an interval covers.

        Returns
        -------
        One row a gene: ``lfc_mean``, ``lfc_sd``, ``lfc_low`` and ``lfc_high``, log2 fold change of
        `group` over `reference`; ``lfsr`` (local false sign rate), ``error_probability`` (that a
        call is wrong), ``q`` (mean of these down to this gene), ``is_de_fdr`` (``q <= fdr``).

        Raises
        ------
        ValueError
            The fit had no covariates, or not this column or category.
        """
        formula = effects.check_any(self.formula, "differential_expression()")
        delta = check_number("differential_expression(delta", delta, 0.0, np.inf, open_=False)
        fdr = check_number("differential_expression(fdr", fdr, 0.0, 1.0, open_=True)
        contrast = formula.contrast(column, group, reference)
        lfc = self._effects @ (contrast / np.log(2))
        genes = pd.Index(self.fitted.gene_names[self.fitted.real_genes], name=names.GENE)
        weights = self._weights(formula, contrast)
        table = intervals.changes(lfc, weights, delta, fdr, level, genes)
        table["is_de_fdr"] = table["q"] <= fdr
        table.attrs |= {"column": column, "group": group, "reference": reference}
        return table

    def _weights(
        self, formula: Formula, contrast: Float[np.ndarray, " covariate"]
    ) -> intervals.Weights | None:
        """Of draws, where a change is that of one fixed covariate."""
        (places,) = np.nonzero(contrast)
        if len(places) != 1 or places[0] >= len(formula.fixed):
            return None
        typical = self._flat(self.draws.effect_scales.typical)[:, places[0]]
        return adaptive.learned(self._effects[..., places[0]], typical).weights
