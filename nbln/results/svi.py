"""The result of stochastic variational inference of independent genes."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.models.nbvcp import PARAMETERIZATIONS
from nbln.posterior.mode import Parameters
from nbln.results import arviz, diagnostics, export, io, predictive
from nbln.results.result import Result
from nbln.results.variational import POSTERIORS, Posterior


@dataclass(frozen=True, eq=False)
class SVIResult(Result):
    """A fitted NBVCP model.

    Attributes
    ----------
    parameterization
        Name of the parameterization.
    posterior
        Approximate posterior of every site.
    known_eta
        (cell,) capture loss where it was not inferred; None where it was.
    losses
        (block,) negative evidence lower bound (nats) at the end of each block of steps.
    converged, n_steps
        Whether the locations settled, and after how many steps.
    """

    kind: ClassVar[str] = "svi"
    parameterization: str
    posterior: Posterior
    known_eta: np.ndarray | None
    losses: np.ndarray
    converged: bool
    n_steps: int

    def __repr__(self):
        state = "converged" if self.converged else "NOT converged"
        return (
            f"SVIResult(nbvcp {self.parameterization}, {self.fitted.n_cells} cells x "
            f"{self.fitted.n_genes} genes, {state} after {self.n_steps} steps)"
        )

    def _dims(self, name: str) -> tuple[str, ...]:
        sites = PARAMETERIZATIONS[self.parameterization].sites
        dims = {site.name: site.dims for site in sites}
        return {**dims, names.ETA: (names.CELL,)}.get(name, (names.GENE,))

    def _dataset(self, values: dict, leading: tuple[str, ...] = ()) -> xr.Dataset:
        return xr.Dataset(
            {
                name: self.fitted.label(value, (*leading, *self._dims(name)))
                for name, value in values.items()
            }
        )

    def _complete(self, values: dict) -> dict:
        """Add the mean and dispersion of every gene, and a known η."""
        mean, r = PARAMETERIZATIONS[self.parameterization]().expand(values)
        complete = dict(values) | {names.MEAN: mean, names.DISPERSION: r}
        if self.known_eta is not None:
            shape = np.shape(mean)[:-1]
            complete[names.ETA] = np.broadcast_to(self.known_eta, (*shape, self.known_eta.shape[0]))
        return complete

    def get_map(self) -> xr.Dataset:
        """Location of the posterior of every site, and mean and dispersion of every gene."""
        return self._dataset(self._complete(self.posterior.map()))

    def get_distributions(self) -> dict:
        """Marginal posterior of every site, as NumPyro distributions."""
        return self.posterior.distributions()

    def get_posterior_samples(self, n_samples: int = 1000, seed: int = 0) -> xr.Dataset:
        """Draws of every site, with dims (chain, draw, ...)."""
        draws = self._complete(self.posterior.sample(jax.random.key(seed), n_samples))
        draws = {name: np.asarray(value)[None] for name, value in draws.items()}
        return self._dataset(draws, (names.CHAIN, names.DRAW))

    def sample_genes(self, n_samples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Mean and dispersion of every gene in `get_posterior_samples`, (draw, gene) each."""
        genes, _ = jax.random.split(jax.random.key(seed))
        draws = self.posterior.sample_genes(genes, n_samples)
        mean, r = PARAMETERIZATIONS[self.parameterization]().expand(draws)
        return np.asarray(mean), np.asarray(r)

    @property
    def mean(self) -> xr.DataArray:
        """(gene,) mean expression at full capture (counts)."""
        return self.get_map()[names.MEAN]

    @property
    def r(self) -> xr.DataArray:
        """(gene,) dispersion: the variance is m + m²/r at mean m."""
        return self.get_map()[names.DISPERSION]

    @property
    def eta(self) -> xr.DataArray:
        """(cell,) capture loss, natural log."""
        return self.get_map()[names.ETA]

    @property
    def parameters(self) -> Parameters:
        """Mean and dispersion at the posterior's location: no factors, no residuals."""
        fitted = self.get_map()
        mean, r = (jnp.asarray(fitted[n].values) for n in (names.MEAN, names.DISPERSION))
        nothing = jnp.zeros_like(mean)
        channel = NegativeBinomial(jnp.log(r))
        return Parameters(jnp.log(mean), jnp.zeros((mean.size, 0)), nothing, channel)

    def rate_sampler(self, ppc_level, n_samples, seed, data, size):
        """Rates of predictive draws."""
        del data, size
        return predictive.svi_sampler(self, ppc_level, n_samples, seed)

    def draw_parameters(self, n_samples: int, seed: int) -> xr.Dataset:
        """As `get_posterior_samples`."""
        return self.get_posterior_samples(n_samples, seed)

    def cell_log_likelihood(self, posterior, data):
        """Log-probability of every cell's counts, (draw, cell)."""
        return arviz.svi_log_likelihood(self, posterior, data)

    def _summarise(self, found, counts, seed):
        del counts, seed
        return diagnostics.of_svi(self, found)

    def write_to(self, adata, key_added: str = "nbln") -> None:
        """Write mean, dispersion and capture loss into `adata`: var, obs and uns."""
        export.write_svi(self, adata, key_added)

    def to_groups(self) -> io.Groups:
        """What a file of this result holds."""
        plain = {
            "parameterization": self.parameterization,
            "converged": self.converged,
            "n_steps": self.n_steps,
            "posterior": type(self.posterior).__name__,
        }
        arrays = {"losses": (("block",), self.losses), names.ETA: ((names.CELL,), self.known_eta)}
        sites = {f"{n}_loc": (self._dims(n), x) for n, x in self.posterior.locations().items()}
        spread = {n: (dims, x) for n, (dims, x) in self.posterior.spreads(self._dims).items()}
        if self.posterior.eta is not None:
            loc, scale = self.posterior.eta
            sites |= {"eta_loc": ((names.CELL,), loc), "eta_scale": ((names.CELL,), scale)}
        return {
            "data": io.of_fitted(self.fitted),
            "fit": io.group(arrays, plain),
            "posterior": io.group(sites | spread),
        }

    @classmethod
    def from_groups(cls, groups: io.Groups) -> "SVIResult":
        """The reverse of `to_groups`."""
        fit, saved = groups["fit"], groups["posterior"]
        plain = io.values(fit)
        sites = PARAMETERIZATIONS[plain["parameterization"]].sites
        arrays = {name: jnp.asarray(saved[name].values) for name in saved}
        return cls(
            fitted=io.to_fitted(groups["data"]),
            parameterization=plain["parameterization"],
            posterior=POSTERIORS[plain["posterior"]].of([s.name for s in sites], arrays),
            known_eta=fit[names.ETA].values if names.ETA in fit else None,
            losses=fit["losses"].values,
            converged=plain["converged"],
            n_steps=plain["n_steps"],
        )
