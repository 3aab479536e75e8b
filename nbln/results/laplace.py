"""The result of a Laplace fit of a log-normal model, and the questions it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from nbln import vocabulary as names
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.channels.poisson import Poisson
from nbln.linalg import gauge
from nbln.posterior.mode import Columns, Parameters
from nbln.priors.loadings import SMALLEST_SD
from nbln.results import (
    arviz,
    correlation,
    denoised,
    diagnostics,
    distributions,
    export,
    io,
    predictive,
)
from nbln.results.base import find
from nbln.results.result import Result
from nbln.results.svi import SVIResult


@dataclass(frozen=True, eq=False)
class LaplaceResult(Result):
    """A fitted log-normal model.

    Plain arrays are what was fitted; accessors without ``_`` label them. The factors are largest
    first: under a prior of sparse loadings (the default) in the basis in which the loadings are
    sparse, which identifies them up to sign; under the others in the principal axes of W_⊥.

    Attributes
    ----------
    arrays
        ``mu`` (gene,), ``W`` (gene, factor), ``d`` (gene,), ``r`` (gene,) for NBLN; ``z`` (cell,
        factor); ``coordinates`` of the extra columns (cell, extra); ``offset`` (cell,) and
        ``scale`` (cell, extra), as the kernel takes them; ``eta`` (cell,) its posterior mean,
        ``eta_loc`` and ``eta_sd`` the Gaussian before truncation at 0; natural logs throughout.
    columns
        Columns of the design beyond the gene programs.
    scales
        Learned scales of the loadings prior.
    precision
        (gene, moments) packed complete-data precision of [mu, W] of each gene.
    loadings_precision
        (gene, factor) precision of the Gaussian prior that stands for the loadings' own.
    log_r_sd
        (gene,) conditional posterior sd of log r; None without a dispersion.
    trace
        (iteration, 4) change in each iteration of W_⊥W_⊥ᵀ, mu, log d and log r.
    converged
        Whether the parameters settled.
    cell_converged, gradient_norm, log_evidence
        (cell,) whether the mode was reached; gradient there in posterior standard deviations;
        Laplace evidence in nats.
    frozen
        Sites that were frozen from `cascade_source`.
    cascade_source
        The fit of independent genes that gave priors, frozen and starting values.
    """

    kind: ClassVar[str] = "laplace"
    model: str
    arrays: dict[str, np.ndarray]
    columns: Columns
    scales: dict[str, np.ndarray]
    precision: np.ndarray
    loadings_precision: np.ndarray
    log_r_sd: np.ndarray | None
    trace: np.ndarray
    converged: bool
    cell_converged: np.ndarray
    gradient_norm: np.ndarray
    log_evidence: np.ndarray
    frozen: tuple[str, ...] = ()
    cascade_source: SVIResult | None = None

    def __repr__(self):
        state = "converged" if self.converged else "NOT converged"
        return (
            f"LaplaceResult({self.model}, {self.fitted.n_cells} cells x {self.fitted.n_genes} "
            f"genes, effective rank {self.w_prior_diagnostics['effective_rank']} of "
            f"{self.latent_dim}, {state} after {len(self.trace)} iterations)"
        )

    def _gene(self, name: str) -> xr.DataArray:
        return self.fitted.label(self.arrays[name], (names.GENE,), name)

    @property
    def latent_dim(self) -> int:
        """Number of factors offered."""
        return self.arrays[names.LOADINGS].shape[1]

    @property
    def mu(self) -> xr.DataArray:
        """(gene,) mean log-rate."""
        return self._gene(names.MU)

    @property
    def d(self) -> xr.DataArray:
        """(gene,) variance of the gene's own log-rate."""
        return self._gene(names.RESIDUAL)

    @property
    def r(self) -> xr.DataArray:
        """(gene,) dispersion; infinite for a Poisson channel."""
        if names.DISPERSION not in self.arrays:
            return self.fitted.label(np.full(self.fitted.n_genes, np.inf), (names.GENE,), "r")
        return self._gene(names.DISPERSION)

    @property
    def W(self) -> xr.DataArray:
        """(gene, factor) loadings; see `get_W_compositional` for the part that is identified."""
        return self.fitted.label(
            self.arrays[names.LOADINGS], (names.GENE, names.FACTOR), names.LOADINGS
        )

    @property
    def eta(self) -> xr.DataArray:
        """(cell,) capture loss, natural log; capture efficiency is exp(-eta)."""
        return self.fitted.label(self.arrays[names.ETA], (names.CELL,), names.ETA)

    @property
    def n_unconverged(self) -> int:
        """Number of cells whose posterior mode was not reached."""
        return int((~self.cell_converged).sum())

    def get_latent(self) -> xr.DataArray:
        """z, (cell, factor): posterior mode of every cell's factors."""
        return self.fitted.label(self.arrays["z"], (names.CELL, names.FACTOR), "z")

    def get_W_compositional(self) -> xr.DataArray:
        """W_⊥, (gene, factor): loadings less their column means, which no capture loss changes."""
        centred = gauge.compositional(self.arrays[names.LOADINGS])
        return self.fitted.label(centred, (names.GENE, names.FACTOR), "W_compositional")

    def get_membership(self) -> xr.DataArray:
        """Posterior probability that each gene belongs to each program, (gene, factor).

        A gene belongs where its loading comes from the slab of spike and slab, conditional on the
        cells' factors and on the scales. Programs that do not carry signal have probability 0.

        Raises
        ------
        ValueError
            The fit had another loadings prior than ``horseshoe_sparse``.
        """
        return self.fitted.label(
            distributions.membership(self), (names.GENE, names.FACTOR), "membership"
        )

    def get_gauge_diagnostics(self) -> dict[str, float]:
        """Frobenius norms of W_⊥ and of the all-ones part 1w̄ᵀ, and the second over the first."""
        W = self.arrays[names.LOADINGS]
        centred = float(np.linalg.norm(W - W.mean(axis=0)))
        ones = float(np.linalg.norm(W.mean(axis=0)) * np.sqrt(len(W)))
        return {
            "W_compositional_norm": centred,
            "W_all_ones_component_norm": ones,
            "gauge_contamination_ratio": ones / centred if centred > 0 else np.inf,
        }

    @property
    def w_prior_diagnostics(self) -> dict:
        """Column norms and scales of W_⊥, and how many columns carry signal by each.

        A column counts when its norm exceeds 5 % of the largest and a hundredth of a natural log
        in every gene; ``scale_effective_rank`` counts column scales in the same way.
        """
        W = self.arrays[names.LOADINGS]
        norms = np.sqrt(np.asarray(gauge.squared_norms(W)))
        per_gene = norms / np.sqrt(len(W))
        if "psi" in self.scales:
            sigma = np.sqrt(self.scales["psi"])
        else:
            sigma = self.scales.get("lambda", per_gene)
        rank = gauge.effective_rank(norms, floor=SMALLEST_SD * np.sqrt(len(W)))
        return {
            "column_frobenius_compositional": norms,
            "column_norm_effective_rank": rank,
            "effective_rank": rank,
            "sigma_k": np.asarray(sigma),
            "scale_effective_rank": gauge.effective_rank(sigma, floor=SMALLEST_SD),
        }

    def _covariance(self, kind: str) -> tuple[correlation.Covariance, np.ndarray]:
        """Over real genes: the pool of the rarest is left out, and the rest is centred again."""
        real = self.fitted.real_genes
        W, d = self.arrays[names.LOADINGS][real], self.arrays[names.RESIDUAL][real]
        return correlation.Covariance(W, d, kind), self.fitted.gene_names[real]

    def _matrix(self, values, genes: np.ndarray, name: str) -> xr.DataArray:
        dims = names.GENE, names.GENE_
        return xr.DataArray(values, dims=dims, coords=dict.fromkeys(dims, genes), name=name)

    def get_covariance(
        self, kind: str = "compositional", genes: Sequence[str] | None = None
    ) -> xr.DataArray:
        """Covariance of log-rates, (gene, gene_); of the given genes, or of all.

        Parameters
        ----------
        kind
            ``"compositional"``, ``"log_rate"`` or ``"clr"``.
        genes
            Names; all genes by default, which forms a matrix of their number squared.

        Raises
        ------
        ValueError
            An unknown kind.
        KeyError
            An unknown gene.
        """
        covariance, known = self._covariance(kind)
        rows = np.arange(len(known)) if genes is None else find(genes, known, "genes")
        return self._matrix(covariance.block(rows, rows), known[rows], "covariance")

    def get_correlation(
        self, kind: str = "compositional", genes: Sequence[str] | None = None
    ) -> xr.DataArray:
        """Correlation of log-rates, (gene, gene_); arguments as in `get_covariance`."""
        covariance, known = self._covariance(kind)
        rows = np.arange(len(known)) if genes is None else find(genes, known, "genes")
        values = covariance.correlation_block(rows, rows)
        return self._matrix(values, known[rows], "correlation")

    def top_pairs(self, n: int = 100, kind: str = "compositional") -> pd.DataFrame:
        """The `n` most correlated pairs: gene_a, gene_b, correlation; strongest first."""
        return correlation.top_pairs(*self._covariance(kind), n)

    def get_map(self) -> xr.Dataset:
        """Every fitted parameter and latent variable."""
        values = [self.mu, self.W, self.d, self.eta, self.get_latent()]
        if names.DISPERSION in self.arrays:
            values.append(self.r)
        return xr.Dataset({value.name: value for value in values})

    def get_distributions(self) -> dict:
        """Posterior of every parameter and of η, as NumPyro distributions.

        Frozen sites have the distribution of `cascade_source`. The others are conditional on the
        cells' factors and on each other, which understates their spread: standard deviations are
        0.74 to 0.83 of the joint marginal ones for loadings.
        """
        return distributions.of_laplace(self)

    def get_compositional_samples(self, n_samples: int = 100, seed: int = 0) -> xr.DataArray:
        """Softmax of fresh log-rates, (chain, draw, gene): compositions without counting noise."""
        return predictive.compositions(self, n_samples, seed)

    def get_denoised(
        self, scale: str = "rate", genes: Sequence[str] | None = None, counts=None
    ) -> xr.Dataset:
        """Posterior ``mean`` and ``sd`` of every cell's expression at full capture, (cell, gene).

        Made chunk by chunk; memory is 8 bytes x cells x genes asked for.

        Parameters
        ----------
        scale
            ``"rate"``: expected counts at full capture; ``"log_rate"``: their natural log;
            ``"composition"``: shares of the cell's total.
        genes
            Names; all genes by default.
        counts
            The AnnData of the fit; needed after loading.
        """
        return denoised.denoised(self, scale, genes, counts)

    def get_variance_shares(self) -> xr.Dataset:
        """Shares of each gene's variance of counts at median depth, (gene,).

        ``programs``: what the gene programs explain; ``own``: the gene's own variation d;
        ``counting``: the channel's noise. They add up to 1 (law of total variance).
        """
        return diagnostics.variance_shares(self)

    def get_pareto_k(self, n_cells: int = 40, seed: int = 0, counts=None) -> xr.DataArray:
        """Pareto k̂ of importance ratios in z, (cell,), of a random sample of cells.

        Below 0.7 the Laplace approximation of a cell's factors can be trusted or corrected
        (Vehtari et al. 2024).
        """
        return diagnostics.pareto_k(self, counts, n_cells, seed)

    @property
    def parameters(self) -> Parameters:
        """The fitted parameters as the cells' kernel takes them."""
        arrays = {name: jnp.asarray(value) for name, value in self.arrays.items()}
        dispersion = arrays.get(names.DISPERSION)
        channel = Poisson() if dispersion is None else NegativeBinomial(jnp.log(dispersion))
        return Parameters(arrays[names.MU], arrays[names.LOADINGS], arrays[names.RESIDUAL], channel)

    def rate_sampler(self, ppc_level, n_samples, seed, data, size):
        """Rates of predictive draws."""
        return predictive.laplace_sampler(self, ppc_level, n_samples, seed, data, size)

    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        """Draws from `get_distributions`."""
        return arviz.laplace_draws(self, n_samples, seed)

    def cell_log_likelihood(self, posterior, data):
        """Laplace evidence of every cell, (draw, cell)."""
        return arviz.laplace_log_likelihood(self, posterior, data)

    def _summarise(self, found, counts, seed):
        return diagnostics.of_laplace(self, found, counts, seed)

    def write_to(self, adata, key_added: str = "nbln", layers: bool = False, counts=None) -> None:
        """Write factors, loadings, parameters and capture losses into `adata`; the only writer.

        ``obsm["X_nbln"]``, ``varm["nbln_loadings"]``, ``var["nbln_mu"]`` and so on,
        ``obs["nbln_eta"]``, ``uns["nbln"]``; with `layers` also the denoised expression,
        ``layers["nbln_rate"]`` and ``layers["nbln_rate_sd"]``, dense. Genes left out of the fit
        get NaN. `counts` is the AnnData of the fit, needed for `layers` after loading.
        """
        export.write_laplace(self, adata, key_added)
        if layers:
            export.write_denoised(self.get_denoised(counts=counts), adata, key_added)

    def to_groups(self) -> io.Groups:
        """What a file of this result holds."""
        plain = {
            "model": self.model,
            "converged": self.converged,
            "frozen": list(self.frozen),
            "columns": self.columns._asdict(),
        }
        fit = {
            "trace": (("iteration", "quantity"), self.trace),
            "cell_converged": ((names.CELL,), self.cell_converged.astype(np.int8)),
            "gradient_norm": ((names.CELL,), self.gradient_norm),
            "log_evidence": ((names.CELL,), self.log_evidence),
            "precision": ((names.GENE, "moment"), self.precision),
            "loadings_precision": ((names.GENE, names.FACTOR), self.loadings_precision),
            "log_r_sd": ((names.GENE,), self.log_r_sd),
        }
        scales = {n: ((names.FACTOR,) * np.ndim(x), x) for n, x in self.scales.items()}
        groups = {
            "data": io.of_fitted(self.fitted),
            "arrays": io.group({n: (_DIMS[n], x) for n, x in self.arrays.items()}),
            "scales": io.group(scales),
            "fit": io.group(fit, plain),
        }
        if self.cascade_source is not None:
            groups |= io.nest(self.cascade_source.to_groups(), "cascade_source")
        return groups

    @classmethod
    def from_groups(cls, groups: io.Groups) -> "LaplaceResult":
        """The reverse of `to_groups`."""
        fit, source = groups["fit"], io.nested(groups, "cascade_source")
        plain = io.values(fit)
        return cls(
            fitted=io.to_fitted(groups["data"]),
            model=plain["model"],
            arrays={str(n): groups["arrays"][n].values for n in groups["arrays"]},
            columns=Columns(**{n: tuple(x) for n, x in plain["columns"].items()}),
            scales={str(n): groups["scales"][n].values for n in groups["scales"]},
            precision=fit["precision"].values,
            loadings_precision=fit["loadings_precision"].values,
            log_r_sd=fit["log_r_sd"].values if "log_r_sd" in fit else None,
            trace=fit["trace"].values,
            converged=plain["converged"],
            cell_converged=fit["cell_converged"].values.astype(bool),
            gradient_norm=fit["gradient_norm"].values,
            log_evidence=fit["log_evidence"].values,
            frozen=tuple(plain["frozen"]),
            cascade_source=SVIResult.from_groups(source) if source else None,
        )


_DIMS = {
    names.MU: (names.GENE,),
    names.LOADINGS: (names.GENE, names.FACTOR),
    names.RESIDUAL: (names.GENE,),
    names.DISPERSION: (names.GENE,),
    "z": (names.CELL, names.FACTOR),
    "coordinates": (names.CELL, "extra"),
    "offset": (names.CELL,),
    "scale": (names.CELL, "extra"),
    names.ETA: (names.CELL,),
    "eta_loc": (names.CELL,),
    "eta_sd": (names.CELL,),
}
