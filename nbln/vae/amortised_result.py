"""What a fitted amortised model holds, and what it answers as all results do."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.data.design import Design
from nbln.posterior.mode import Parameters
from nbln.questions import outliers
from nbln.results import export
from nbln.vae import decoded, marginal, predictive, story
from nbln.vae.cells import Cells, Known
from nbln.vae.decoded import Latents
from nbln.vae.objective import OBJECTIVES
from nbln.vae.scvi import SCVI, Architecture
from nbln.vae.trained import TrainedResult

LARGEST_THETA = 1e6  # of Poisson counts, whose own is infinite
NO_EVIDENCE = "take get_reconstruction_error(), or fit with inference_method='vae'"


@dataclass(frozen=True, eq=False)
class AmortisedResult(TrainedResult):
    """A model with an encoder and a decoder.

    Attributes
    ----------
    network
        Encoder, decoder and likelihood.
    architecture
        What decides their shapes.
    design
        How columns of ``adata.obs`` are read.
    known
        Depth and design of the cells of the fit.
    latents
        What the encoder says of the cells of the fit.
    inference_method
        ``"vae"``, or ``"ae"`` for an auto-encoder without a prior.
    """

    has_programs: ClassVar[bool] = False
    has_latent: ClassVar[bool] = True
    network: SCVI
    architecture: Architecture
    design: Design
    known: Known
    latents: Latents
    inference_method: str

    def _cells(self, counts=None) -> Cells:
        """The cells of the fit with their counts."""
        return Cells(self.fitted.data(counts), self.known)

    def _of(self, adata, layer: str | None, caller: str) -> Cells:
        """Any cells; those of the fit where none are given."""
        if adata is None:
            if self.fitted.counts is None:
                raise ValueError(
                    f"{caller}: this result was loaded from a file and does not hold the counts; "
                    "give cells with adata="
                )
            return self._cells()
        return Cells.of(self.fitted.matched(adata, layer, caller), self.design, caller)

    @property
    def batches(self):
        if self.design.batch is None:
            return None
        return np.asarray(self.design.batch.levels)[self.known.groups.batch]

    @property
    def has_prior(self) -> bool:
        """Whether factors were held to a prior: not those of an auto-encoder."""
        return OBJECTIVES[self.inference_method].has_prior

    # What all results answer

    def _sampler(self, ppc_level, n_samples, seed, counts):
        del seed, counts
        return predictive.sampler(self.network, self.known, self.latents, ppc_level, n_samples)

    def _score(self, counts, n_samples, seed):
        self._needs_prior("score", NO_EVIDENCE)
        return marginal.log_evidence(
            self.network, Cells.of(counts, self.design, "score"), n_samples, seed
        )

    def _transform(self, counts):
        found = decoded.latents(self.network, Cells.of(counts, self.design, "transform"))
        z = ((names.CELL, names.FACTOR), found.z_mean)
        return {"z": z, names.ETA: ((names.CELL,), -found.library_mean)}

    def _summary(self, counts, seed):
        return story.summary(self, None if counts is None else self._cells(counts), seed)

    def _outliers(self, counts):
        mean, variance = predictive.rate_spread(self.network, self.known, self.latents)
        theta = self._theta
        channel = NegativeBinomial(jnp.log(jnp.asarray(theta)))
        # A gene's log share over cells as a Gaussian, without factors.
        located = Parameters(mean, np.zeros((len(mean), 0)), variance, channel)
        return outliers.rows(self.fitted, counts, located, -self.latents.library_mean)

    @cached_property
    def _theta(self) -> Float[np.ndarray, " gene"]:
        """A gene's dispersion: the geometric mean over cells of the fit; large for Poisson counts.

        Where it depends on nothing, that is the dispersion itself.
        """
        log_theta = predictive.mean_log_theta(self.network, self.known, self.latents)
        return np.exp(np.minimum(log_theta, np.log(LARGEST_THETA)))

    def _needs_prior(self, question: str, remedy: str) -> None:
        """Raise where factors have no prior, and with them cells no posterior and no evidence."""
        if not self.has_prior:
            raise ValueError(
                f"{question}: this is an auto-encoder (inference_method={self.inference_method!r}),"
                f" whose factors have no prior, so that the number would mean nothing; {remedy}"
            )

    def get_map(self) -> xr.Dataset:
        """Factors and library sizes by the encoder, and dispersions."""
        per_cell = (names.CELL, names.FACTOR)
        found = {
            "z": self.fitted.label(self.latents.z_mean, per_cell),
            "z_sd": self.fitted.label(np.sqrt(self.latents.z_variance), per_cell),
            "log_library": self.fitted.label(self.latents.library_mean, (names.CELL,)),
            names.DISPERSION: self.fitted.label(self._theta, (names.GENE,)),
        }
        return xr.Dataset(found)

    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        """Draws of z and the log library by the encoder; weights are what they are."""
        rng, latents = np.random.default_rng(seed), self.latents
        shape = (1, n_samples)
        z = latents.z_mean + np.sqrt(latents.z_variance) * rng.standard_normal(
            (*shape, *latents.z_mean.shape)
        )
        spread = np.sqrt(latents.library_variance)
        library = latents.library_mean + spread * rng.standard_normal((*shape, len(spread)))
        sample = (names.CHAIN, names.DRAW)
        return xr.Dataset(
            {
                "z": self.fitted.label(z, (*sample, names.CELL, names.FACTOR)),
                "log_library": self.fitted.label(library, (*sample, names.CELL)),
            }
        )

    def cell_log_likelihood(self, posterior, data):
        return predictive.log_likelihood(self.network, Cells(data, self.known), posterior)

    def get_count_moments(self):
        return predictive.moments(self.network, self.known, self.latents)

    @property
    def predicts_depth(self):
        return self.network.library is not None

    def story(self):
        return story.of(self)

    def write_to(self, adata, key_added: str = "nbln") -> None:
        """Write factors, library sizes and dispersions into `adata`: obsm, obs, var and uns."""
        notes = {"best_epoch": int(self.best) + 1, "stopped": bool(self.stopped)}
        genes = {names.DISPERSION: self._theta}
        eta = -self.latents.library_mean
        export.write(adata, key_added, self.fitted, genes, eta, notes, factors=self.latents.z_mean)
