"""Draws from the posterior of a log-normal model by the sampler that starts at a fit."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.data.datasets import Datasets
from nbln.data.fitted import Fitted
from nbln.data.formula import Formula
from nbln.inference.sampler.engine import Draws
from nbln.inference.sampler.sweep import Taken
from nbln.priors.loadings import LoadingsPrior
from nbln.questions import sampling
from nbln.results import files, io
from nbln.results.activity_draws import ActivityDraws

POOL = ("log_phi_mean", "log_phi_sd", "logit_share_mean")


@dataclass(frozen=True, eq=False)
class PosteriorDraws(ActivityDraws):
    """Draws of everything, from `LaplaceResult.sample_posterior`.

    Attributes
    ----------
    fitted, model
        As of the fit.
    draws
        By part, with leading axes (chain, draw): means, loadings, d, the channel's fields, centres
        and scales of the programs, the pool, shares of accepted proposals.
    prior
        Of the loadings.
    reference
        (gene, factor) loadings of the fit that programs are matched to.
    z_mean, z_sd
        (cell, column) of every cell's coordinates.
    fit_converged
        Whether the fit that the chains started from had converged; `summary` says whether they
        have mixed.
    formula
        What is known of the covariates; None where there are none.
    datasets
        The data sets in which programs are more or less active; None where there is one.
    """

    kind: ClassVar[str] = "draws"
    fitted: Fitted
    model: str
    draws: Draws
    prior: LoadingsPrior
    reference: Float[np.ndarray, "gene factor"]
    z_mean: Float[np.ndarray, "cell column"]
    z_sd: Float[np.ndarray, "cell column"]
    fit_converged: bool
    formula: Formula | None = None
    datasets: Datasets | None = None

    def __repr__(self):
        return (
            f"PosteriorDraws({self.model}, {self.n_chains} chains of {self.n_draws} draws, "
            f"{self.fitted.n_cells} cells x {self.fitted.n_genes} genes, "
            f"{self.reference.shape[1]} programs)"
        )

    def _rows(self):
        return sampling.summary(self)

    def to_datatree(self) -> xr.DataTree:
        """Draws for ArviZ: groups ``posterior`` and ``sample_stats``.

        ``posterior`` holds mu, W_compositional (matched), d, the channel's parameters, effects of
        covariates, activities in data sets and the pool; ``sample_stats`` the shares of accepted
        proposals.
        """
        shape, gene = (names.CHAIN, names.DRAW), self.fitted.gene_names
        channel = {site: np.asarray(x) for site, x in self.channel.values().items()}
        arrays = {names.MU: self.draws.mu, names.RESIDUAL: self.draws.d, **channel}
        posterior = {name: ((*shape, names.GENE), x) for name, x in arrays.items()}
        W = self._aligned_draws()
        posterior["W_compositional"] = ((*shape, names.GENE, names.FACTOR), W)
        if self.formula is not None:
            posterior[names.EFFECTS] = (*shape, names.GENE, names.COVARIATE), self.draws.effects
        if self.datasets is not None:
            s = self._activities(self.datasets)
            s = s.reshape(self.n_chains, self.n_draws, *s.shape[1:])
            posterior["activity"] = (*shape, names.DATASET, names.FACTOR), s
        posterior |= {name: (shape, self.draws.pool[..., i]) for i, name in enumerate(POOL)}
        stats = {
            f"accepted_{step}": (shape, self.draws.accepted[..., i])
            for i, step in enumerate(Taken._fields)
        }
        coords = {
            names.CHAIN: np.arange(self.n_chains),
            names.DRAW: np.arange(self.n_draws),
            names.GENE: gene,
        }
        if self.formula is not None:
            coords[names.COVARIATE] = np.array(self.formula.names)
        if self.datasets is not None:
            coords[names.DATASET] = np.array(self.datasets.names)
        numbers = {dim: coords[dim] for dim in shape}
        return xr.DataTree.from_dict(
            {
                "/posterior": xr.Dataset(posterior, coords=coords),
                "/sample_stats": xr.Dataset(stats, coords=numbers),
            }
        )

    def to_groups(self):
        return files.draws_groups(self)

    @classmethod
    def from_groups(cls, groups: io.Groups) -> "PosteriorDraws":
        """From the groups of a file."""
        return cls(**files.draws_parts(groups))
