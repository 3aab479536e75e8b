"""The result of NegBio-VAE: the face of the questions it answers."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import check_flag, check_seed, check_whole
from nbln.posterior.mode import Parameters
from nbln.questions import outliers
from nbln.results import export
from nbln.results.result import OWN_DEPTH
from nbln.vae.negbio import answers, classify, files, story
from nbln.vae.negbio.model import CodedArchitecture
from nbln.vae.trained import TrainedResult

ELBO, WEIGHTED = "elbo", "importance_weighted_bound"
CELL, GENE, FACTOR = names.CELL, names.GENE, names.FACTOR


@dataclass(frozen=True, eq=False)
class NegBioResult(TrainedResult):
    """A fitted auto-encoder with a code.

    A sample is a cell, an image, or a bin of spike trains; dimensions are called as in all results,
    cell, gene (feature) and factor (latent). Of a categorical code each category of each latent
    is a factor, one latent after the other.

    Attributes
    ----------
    architecture
        What decides the network's shapes, and which code and likelihood it has.
    said
        What the encoder says of the samples of the fit, (cell, head, latent).
    shape
        Of a sample before it was flattened.
    """

    kind: ClassVar[str] = registry.CODE_VAE
    has_programs: ClassVar[bool] = False
    has_latent: ClassVar[bool] = True
    architecture: CodedArchitecture
    said: Float[np.ndarray, "cell head latent"]
    shape: tuple[int, ...]

    def __repr__(self):
        return story.line(self)

    def _encoded(self, adata, layer: str | None, caller: str):
        """What the encoder says of any samples, and their names; of the fit's where None."""
        if adata is None:
            return self.said, self.fitted.cell_names
        data = self.fitted.matched(adata, layer, caller)
        return answers.heads(self.network, answers.cells_of(data)), data.cell_names

    # The code

    def get_latent(self, counts=None) -> xr.DataArray:
        """Expected code of each sample of the fit, (cell, factor); `counts` is not needed."""
        del counts
        mean = _flat(answers.moments(self.network, self.said)[0])
        return self.fitted.label(mean, (CELL, FACTOR), "z")

    def get_latent_counts(self, adata=None, layer: str | None = None, seed: int = 0):
        """A draw of each sample's counts, whole numbers (cell, factor).

        Parameters
        ----------
        adata
            Any samples with the features of the fit; by default those of the fit.
        seed
            Of the draw.

        Raises
        ------
        ValueError
            The code of this fit is no count.
        """
        call = "get_latent_counts"
        self._check_counts(call)
        said, cells = self._encoded(adata, layer, call)
        drawn = answers.draws(self.network, said, 1, check_seed(f"{call}(seed", seed))[0]
        whole = np.rint(drawn).astype(np.int64)
        return xr.DataArray(whole, dims=(CELL, FACTOR), coords={CELL: cells}, name="z")

    def get_dispersion(self) -> xr.Dataset:
        """Dispersion of the counts that are the code, by latent; variance mean + mean²/r.

        Returns
        -------
        ``prior_r``, ``prior_mean``, ``prior_variance``, ``prior_index`` (variance by mean);
        ``posterior_r`` (cell, factor), of each sample; ``aggregated_mean``,
        ``aggregated_variance`` and ``aggregated_index``, of the counts of all samples together:
        the spread between samples and that within. r is infinite of Poisson counts.

        Raises
        ------
        ValueError
            The code of this fit is no count.
        """
        self._check_counts("get_dispersion")
        prior = self.network.code.prior()
        mean, variance = answers.moments(self.network, self.said)
        aggregated = mean.mean(axis=0), variance.mean(axis=0) + mean.var(axis=0)
        found = {}
        pairs = {"prior": (np.asarray(prior.mean), np.asarray(prior.variance))}
        for name, (m, v) in (pairs | {"aggregated": aggregated}).items():
            parts = {f"{name}_mean": m, f"{name}_variance": v, f"{name}_index": v / m}
            found |= {part: ((FACTOR,), x) for part, x in parts.items()}
        found["prior_r"] = ((FACTOR,), np.asarray(prior.dispersion))
        own = ((CELL, FACTOR), answers.dispersions(self.network, self.said))
        return xr.Dataset(found | {"posterior_r": own}, coords={CELL: self.fitted.cell_names})

    def _check_counts(self, caller: str) -> None:
        if self.network.code.prior().dispersion is None:
            raise ValueError(
                f"{caller}: the code of this fit is {self.architecture.kind.code}, which is no "
                "count; fit with code='nb' or 'poisson'"
            )

    def few_shot_accuracy(
        self, labels, n_shots: int = 20, seed: int = 0, adata=None, layer: str | None = None
    ) -> float:
        """Share of samples whose label is told by their code, after few of each label were seen.

        Logistic regression on the standardised expected code of `n_shots` samples of each label,
        at random, asked of all others. Needs scikit-learn.

        Parameters
        ----------
        labels
            One for each sample.
        n_shots
            Samples of each label that are learned from.
        seed
            Of their choice.
        adata
            The samples; by default those of the fit.

        Raises
        ------
        ValueError
            Labels of another number of samples, a single label, or one with too few samples.
        ImportError
            scikit-learn is not installed.
        """
        call = "few_shot_accuracy"
        shots, seed = (
            check_whole(f"{call}(n_shots", n_shots),
            check_seed(f"{call}(seed", seed),
        )
        said, _ = self._encoded(adata, layer, call)
        code = _flat(answers.moments(self.network, said)[0])
        return classify.accuracy(code, np.asarray(labels), shots, seed)

    # Data from codes

    def reconstruct(
        self, adata=None, n_samples: int = 1, seed: int = 0, layer: str | None = None
    ) -> xr.DataArray:
        """Decoded means of samples, (cell, gene).

        Parameters
        ----------
        adata
            Any samples with the features of the fit; by default those of the fit.
        n_samples
            Draws of the code, over which is averaged; 0 decodes the expected code, which no
            training has seen.
        seed
            Of the draws.
        """
        call = "reconstruct"
        check_whole(f"{call}(n_samples", n_samples, 0)
        said, cells = self._encoded(adata, layer, call)
        values = answers.reconstructions(self.network, said, n_samples, check_seed(call, seed))
        coords = {CELL: cells, GENE: self.fitted.gene_names}
        return xr.DataArray(values, dims=(CELL, GENE), coords=coords, name="mean")

    def sample_prior(self, n_samples: int = 16, noise: bool = False, seed: int = 0) -> xr.DataArray:
        """Decoded means at draws of the prior, (sample, gene); with `noise`, draws of data."""
        call = "sample_prior"
        check_whole(f"{call}(n_samples", n_samples)
        check_flag(f"{call}(noise", noise)
        values = answers.of_prior(self.network, n_samples, check_seed(f"{call}(seed", seed), noise)
        coords = {GENE: self.fitted.gene_names}
        return xr.DataArray(np.asarray(values), dims=("sample", GENE), coords=coords, name="x")

    # What all results answer

    def score(
        self,
        adata,
        n_samples: int = 1,
        layer: str | None = None,
        seed: int = 0,
        depth: str = OWN_DEPTH,
    ) -> xr.DataArray:
        """A lower bound of the log-evidence of samples, (cell,), in nats, at exact draws.

        Parameters
        ----------
        adata
            Samples with the features of the fit, which are matched by name.
        n_samples
            1: the evidence lower bound (the array is called ``elbo``); more: the tighter
            importance-weighted bound with so many draws (``importance_weighted_bound``).
        layer
            The layer that holds the data; by default that of the fit.
        seed
            Of the draws.
        depth
            ``"own"`` alone: nothing is known of depth but what the code holds.

        Raises
        ------
        ValueError
            A feature of the fit is missing, or the data are not what the likelihood is of.
        """
        name = ELBO if n_samples == 1 else WEIGHTED
        return super().score(adata, n_samples, layer, seed, depth).rename(name)

    def _score(self, counts, n_samples, seed):
        cells = answers.cells_of(counts)
        if n_samples == 1:
            return answers.terms(self.network, cells, 1, seed).elbo
        return answers.importance(self.network, cells, n_samples, seed)

    def get_elbo(self, adata=None, layer: str | None = None, n_samples: int = 10, seed: int = 0):
        """Parts of the evidence lower bound, means over samples (nats), as a table.

        ``elbo``, ``reconstruction`` (expected log probability) and ``divergence`` (from the prior),
        at exact draws.
        """
        check_whole("get_elbo(n_samples", n_samples)
        if adata is None:
            data = self.fitted.data()
        else:
            data = self.fitted.matched(adata, layer, "get_elbo")
        terms = answers.terms(self.network, answers.cells_of(data), n_samples, seed)
        parts = {"elbo": terms.elbo, **terms._asdict()}
        del parts["library_divergence"]
        return pd.Series({name: float(np.mean(x)) for name, x in parts.items()})

    def _transform(self, counts):
        said = answers.heads(self.network, answers.cells_of(counts))
        return {"z": ((CELL, FACTOR), _flat(answers.moments(self.network, said)[0]))}

    def transform(self, adata, layer: str | None = None) -> xr.Dataset:
        """Expected code ``z`` (cell, factor) of any samples. Arguments and errors as in `score`."""
        return super().transform(adata, layer)

    def _sampler(self, ppc_level, n_samples, seed, counts):
        del seed, counts
        return answers.sampler(self.network, self.said, ppc_level, n_samples)

    def _summary(self, counts, seed):
        return story.summary(self, counts, seed)

    def story(self):
        return story.of(self)

    def _outliers(self, counts):
        depth = np.log(self.fitted.library_size)
        mean, variance = answers.rate_spread(self.network, self.said, depth)
        channel = self.network.observed.channel
        # A gene's log share over cells as a Gaussian, without factors.
        located = Parameters(mean, np.zeros((len(mean), 0)), variance, channel)
        return outliers.rows(self.fitted, counts, located, -depth)

    def get_map(self) -> xr.Dataset:
        """Expected code and its standard deviation, by the encoder; the prior's; decoder's noise.

        ``r`` is the dispersion of the decoder's counts and ``sigma`` its Gaussian noise, where
        the likelihood has one.
        """
        mean, variance = (_flat(x) for x in answers.moments(self.network, self.said))
        prior = self.network.code.prior()
        found = {
            "z": self.fitted.label(mean, (CELL, FACTOR)),
            "z_sd": self.fitted.label(np.sqrt(variance), (CELL, FACTOR)),
            "prior_mean": self.fitted.label(np.ravel(prior.mean), (FACTOR,)),
            "prior_sd": self.fitted.label(np.sqrt(np.ravel(prior.variance)), (FACTOR,)),
        }
        for name, values in self.network.observed.parameters().items():
            dims = (GENE,) if jnp.ndim(values) else ()
            found[name] = self.fitted.label(np.asarray(values), dims)
        return xr.Dataset(found)

    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        """Draws of the code by the encoder; weights are what they are."""
        z = answers.draws(self.network, self.said, n_samples, seed)
        dims = (names.CHAIN, names.DRAW, CELL, FACTOR)
        z = z.reshape(*z.shape[:2], -1)[None]
        return xr.Dataset({"z": self.fitted.label(z, dims)})

    def cell_log_likelihood(self, posterior, data):
        z = posterior["z"].values[0].astype(np.float32)
        return answers.log_likelihood(self.network, z, answers.cells_of(data))

    def get_count_moments(self):
        return answers.data_moments(self.network, self.said)

    @property
    def predicts_depth(self):
        return True

    def write_to(self, adata: Any, key_added: str = "nbln") -> None:
        """Write the expected code and the decoder's noise into `adata`: obsm, var and uns."""
        notes = {"best_epoch": int(self.best) + 1, "stopped": bool(self.stopped)}
        parameters = self.network.observed.parameters().items()
        genes = {n: np.asarray(x) for n, x in parameters if jnp.ndim(x)}
        code = self.get_latent().values
        export.write(adata, key_added, self.fitted, genes, None, notes, factors=code)

    def to_groups(self):
        return files.groups(self)

    @classmethod
    def from_groups(cls, groups):
        return cls(**files.parts(groups))


def _flat(code: np.ndarray) -> np.ndarray:
    """Categories of latents one after the other."""
    return code.reshape(len(code), -1)
