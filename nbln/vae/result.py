"""The result of an scVI model: the face of the questions it answers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
import pandas as pd
import xarray as xr

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import check_flag, check_seed, check_whole, choose, number
from nbln.data.fitted import Fitted
from nbln.vae import decoded, differential, extend, files, marginal, story
from nbln.vae.amortised_result import NO_EVIDENCE, AmortisedResult
from nbln.vae.cells import Cells, library_prior
from nbln.vae.config import VAEConfig
from nbln.vae.decoded import Latents
from nbln.vae.engine import fit_vae
from nbln.vae.objective import OBJECTIVES, Terms

MARGINAL_DRAWS = 100  # of the importance sampling; repeatable to 0.1 nats a cell on PBMC


@dataclass(frozen=True, eq=False)
class VAEResult(AmortisedResult):
    """A fitted scVI model, by the names of this package and by those of scvi-tools."""

    kind: ClassVar[str] = registry.VAE

    def __repr__(self):
        return story.line(self)

    # Latent variables

    def get_latent(self, refined: bool = False, counts=None) -> xr.DataArray:
        """Factors of the cells of the fit, (cell, factor).

        Parameters
        ----------
        refined
            False: what the encoder says, its mean. True: the mode of each cell's own posterior, by
            Newton steps from there, which an encoder misses by some nats.
        counts
            The AnnData of the fit; needed to refine after loading.
        """
        z = self.latents.z_mean
        if refined:
            self._needs_prior("get_latent(refined=True)", "take get_latent()")
            z = decoded.refined(self.network, self._cells(counts))
        return self.fitted.label(z, (names.CELL, names.FACTOR), "z")

    def get_latent_representation(
        self, adata=None, give_mean: bool = True, return_dist: bool = False, layer=None
    ):
        """As in scvi-tools: the encoder's mean, (cell, factor); with `return_dist` also variances.

        Without `give_mean` one draw of the encoder's distribution.
        """
        latents = self._latents(adata, layer, "get_latent_representation")
        if return_dist:
            return latents.z_mean, latents.z_variance
        if give_mean:
            return latents.z_mean
        noise = np.random.default_rng(0).standard_normal(latents.z_mean.shape)
        return latents.z_mean + np.sqrt(latents.z_variance) * noise

    def get_latent_library_size(self, adata=None, layer: str | None = None) -> np.ndarray:
        """Library size of each cell, (cell,): the total, or what the encoder says where latent."""
        latents = self._latents(adata, layer, "get_latent_library_size")
        return np.exp(latents.library_mean)

    def _latents(self, adata, layer, caller: str) -> Latents:
        if adata is None:
            return self.latents
        return decoded.latents(self.network, self._of(adata, layer, caller))

    # Expression

    def get_denoised(
        self,
        scale: str = "rate",
        genes: Sequence[str] | None = None,
        n_samples: int = 25,
        seed: int = 0,
        counts=None,
    ) -> xr.Dataset:
        """Posterior ``mean`` and ``sd`` of each cell's expression, (cell, gene).

        Parameters
        ----------
        scale
            ``"rate"``: expected counts at the cell's depth; ``"log_rate"``: their natural log;
            ``"composition"``: shares of the cell's total.
        genes
            Names; all genes by default. Memory is 8 bytes x cells x genes.
        n_samples
            Draws of z by the encoder; 1 is the decoder at its mean.
        seed
            Of the draws.
        counts
            The AnnData of the fit; needed after loading.
        """
        choose("get_denoised(scale", scale, decoded.SCALES)
        check_whole("get_denoised(n_samples", n_samples)
        places, cells = self.fitted.find(genes), self._cells(counts)
        values = decoded.expression(self.network, cells, places, scale, n_samples, seed)
        labels = {names.CELL: self.fitted.cell_names, names.GENE: self.fitted.gene_names[places]}
        dims = (names.CELL, names.GENE)
        pairs = zip(("mean", "sd"), values, strict=True)
        return xr.Dataset({name: (dims, x) for name, x in pairs}, coords=labels)

    def get_normalized_expression(
        self,
        adata=None,
        transform_batch: str | Sequence[str] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | str = 1.0,
        n_samples: int = 1,
        seed: int = 0,
        layer: str | None = None,
    ) -> pd.DataFrame:
        """Decoded expression, cells in rows and genes in columns, as in scvi-tools.

        Parameters
        ----------
        adata
            Any cells with the genes of the fit; by default those of the fit.
        transform_batch
            A batch that all cells are decoded in, or several, over which is averaged; by default
            each cell's own.
        gene_list
            Names; all genes by default.
        library_size
            What the shares are multiplied by; ``"latent"``: the cell's library size.
        n_samples
            Draws of z; 1 is the decoder at the encoder's mean.
        seed
            Of the draws.

        Raises
        ------
        ValueError
            No such batch, or a library size that is neither positive nor ``"latent"``.
        KeyError
            No such gene.
        """
        call = "get_normalized_expression"
        check_whole(f"{call}(n_samples", n_samples)
        scale, factor = files.library_scale(f"{call}(library_size", library_size)
        cells, places = self._of(adata, layer, call), self.fitted.find(gene_list)
        moved = differential.in_batches(self.design, cells, transform_batch, call)
        each = (
            decoded.mean_expression(self.network, one, places, scale, n_samples, seed)
            for one in moved
        )
        total = next(each)
        for values in each:  # in place: of all genes of many cells a copy may not fit
            total += values
        total *= factor / len(moved)
        index, columns = cells.counts.cell_names, self.fitted.gene_names[places]
        return pd.DataFrame(total, index=index, columns=columns)

    def get_likelihood_parameters(self, adata=None, layer: str | None = None) -> xr.Dataset:
        """Of each count's distribution at the encoder's mean, (cell, gene).

        ``mean``; ``dispersion`` θ (variance mean + mean²/θ) unless counts are Poisson;
        ``dropout_logits``, the logit of a structural zero, where there are such.
        """
        cells = self._of(adata, layer, "get_likelihood_parameters")
        coords = {names.CELL: cells.counts.cell_names, names.GENE: self.fitted.gene_names}
        found = decoded.parameters(self.network, cells)
        dims = (names.CELL, names.GENE)
        return xr.Dataset({name: (dims, x) for name, x in found.items()}, coords=coords)

    def differential_expression(
        self,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1=None,
        idx2=None,
        mode: str = "change",
        delta: float = 0.25,
        fdr_target: float = 0.05,
        batch_correction: bool = False,
        n_samples: int = 1_000,
        seed: int = 0,
        adata=None,
    ) -> pd.DataFrame:
        """Genes whose mean expression differs between groups of cells.

        Called as in scvi-tools, but asked of the log2 fold change between the groups' mean shares,
        not between single pairs of cells, which differ in groups of the same mixture. Draws are of
        z of the cells and of the cells (Bayesian bootstrap). Cells and not donors are the units.
        Of a group of more than 2,000 cells so many are taken at random, by the seed: intervals are
        of their mean.

        Parameters
        ----------
        groupby
            A column of ``adata.obs``; needs `adata`. Each of its groups, or those of `group1`, is
            compared with `group2`, or with all other cells.
        idx1, idx2
            In place of it: numbers or a mask of the cells of each group; without `idx2` all others.
        mode
            ``"change"``: the probability that the absolute log2 fold change exceeds `delta`;
            ``"vanilla"``: Bayes factors of one group being higher.
        delta
            Least log2 fold change of interest.
        fdr_target
            Expected share of wrong ones among the genes of ``is_de_fdr``.
        batch_correction
            Compare both groups as they would be in the same batches, each batch weighing alike.
        n_samples
            Draws of the means.
        seed
            Of the draws.
        adata
            Any cells with the genes of the fit; by default those of the fit.

        Returns
        -------
        A table by gene, the surest first: ``proba_de``, ``bayes_factor``, ``lfc_mean``,
        ``lfc_median``, ``lfc_sd``, ``lfc_low`` and ``lfc_high`` (90 % interval), ``scale1`` and
        ``scale2`` (mean shares), ``is_de_fdr``, ``q`` (expected share of wrong ones up to here),
        ``group1``, ``group2``. Mode ``"vanilla"`` has ``proba_m1`` and ``proba_m2`` in place of
        ``proba_de`` and the last.

        Raises
        ------
        ValueError
            An unknown mode, an empty group, groups that overlap.
        """
        call = "differential_expression"
        asked = differential.Asked(
            choose(f"{call}(mode", mode, differential.MODES),
            number()(f"{call}(delta", delta), number(most=1.0)(f"{call}(fdr_target", fdr_target),
            check_flag(f"{call}(batch_correction", batch_correction),
            check_whole(f"{call}(n_samples", n_samples), check_seed(f"{call}(seed", seed),
        )  # fmt: skip
        cells = self._of(adata, None, call)
        n_cells = cells.counts.n_cells
        pairs = differential.groups(adata, n_cells, groupby, group1, group2, idx1, idx2)
        return differential.tables(self.network, self.design, cells, pairs, asked, self.fitted)

    def posterior_predictive_sample(
        self, n_samples: int = 1, seed: int = 0, counts=None
    ) -> xr.DataArray:
        """Counts drawn from each cell's own posterior, (chain, draw, cell, gene)."""
        return self.get_ppc_samples("per_cell", n_samples, seed, counts)

    # How well cells are described

    def _terms(self, adata, layer, caller: str, n_samples: int, seed: int) -> Terms:
        check_whole(f"{caller}(n_samples", n_samples)
        return decoded.terms(self.network, self._of(adata, layer, caller), n_samples, seed)

    def get_elbo(self, adata=None, layer: str | None = None, n_samples: int = 10, seed: int = 0):
        """Evidence lower bound, mean over cells (nats); higher is better.

        An auto-encoder has none: its factors have no prior.
        """
        self._needs_prior("get_elbo", NO_EVIDENCE)
        return float(self._terms(adata, layer, "get_elbo", n_samples, seed).elbo.mean())

    def get_reconstruction_error(
        self, adata=None, layer: str | None = None, n_samples: int = 10, seed: int = 0
    ) -> float:
        """Minus the expected log-probability of a cell's counts, mean over cells (nats)."""
        terms = self._terms(adata, layer, "get_reconstruction_error", n_samples, seed)
        return -float(terms.reconstruction.mean())

    def get_marginal_ll(
        self,
        adata=None,
        layer: str | None = None,
        n_mc_samples: int = MARGINAL_DRAWS,
        seed: int = 0,
    ) -> float:
        """Log-evidence, mean over cells (nats), by importance sampling about refined modes.

        An auto-encoder has none: its factors have no prior.
        """
        self._needs_prior("get_marginal_ll", NO_EVIDENCE)
        cells = self._of(adata, layer, "get_marginal_ll")
        return float(marginal.log_evidence(self.network, cells, n_mc_samples, seed).mean())

    # New batches

    def extend(
        self,
        adata,
        layer: str | None = None,
        vae: VAEConfig | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> "VAEResult":
        """The model for cells of new batches, fitted to them; what `load_query_data` is for.

        Weights of new batches, labels and categories of covariates alone are learned, so that
        factors mean what they did, and cells of the fit keep theirs.

        Parameters
        ----------
        adata
            Cells with the genes of the fit and its columns of ``obs``. Batches, labels and
            categories of covariates may be ones that it did not have, or that it had.
            Where all are known nothing is learned: the result is the fit itself for these cells,
            and its history that of the fit up to the epoch that was kept.
        vae
            Epochs, batch size and rate of the training.

        Returns
        -------
        A result whose cells are these.

        Raises
        ------
        ValueError
            The fit was told of no categories; a gene of the fit is missing.
        """
        if not self.design.has_categories:
            raise ValueError(
                "extend(adata): the fit was told of no batches or other categories (batch_key=, "
                "covariates=); for any cells transform(adata) gives factors"
            )
        counts = self.fitted.matched(adata, layer, "extend")
        design = self.design.extended(counts.obs)
        cells = Cells.of(counts, design, "extend")
        growth = extend.Growth.of(self.design, design)
        network, of = self.network, growth.architecture(self.architecture)
        history = jax.tree.map(lambda x: x[: self.best + 1], self.epochs)
        settings, seconds = self.fitted.settings, self.fitted.seconds
        if growth.is_any:
            prior = library_prior(cells.known, design.n_batches, self.design.n_batches)
            network, new = extend.extended(network, self.architecture, growth, prior)
            asked = VAEConfig() if vae is None else vae
            config = dataclasses.replace(asked, weight_decay=0.0, validation_share=0.0)
            whole = OBJECTIVES[self.inference_method].of_draws(config.n_importance)
            objective = extend.NewCategories(new, whole, self.architecture)
            fit = fit_vae(network, objective, cells, config, seed, progress)
            network, history = fit.model, fit.history
            settings, seconds = settings | {"seed": seed}, fit.seconds
        return dataclasses.replace(
            self,
            fitted=Fitted.of(
                counts, layer or self.fitted.layer, None, settings, seconds, by_name=True
            ),
            network=network,
            architecture=of,
            design=design,
            known=cells.known,
            latents=decoded.latents(network, cells),
            epochs=history,
            best=len(history.elbo_train) - 1,
            held_out=np.zeros(0, int),
            stopped=False,
        )

    def to_groups(self):
        return files.groups(self)

    @classmethod
    def from_groups(cls, groups):
        return cls(**files.parts(groups))
