"""The result of stochastic variational inference of independent genes."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.models.nbvcp import PARAMETERIZATIONS
from nbln.results import export, io, predictive
from nbln.results.base import Fitted
from nbln.results.variational import POSTERIORS, Posterior


@dataclass(frozen=True, eq=False)
class SVIResult:
    """A fitted NBVCP model.

    Attributes
    ----------
    fitted
        Cells, genes and settings.
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

    fitted: Fitted
    parameterization: str
    posterior: Posterior
    known_eta: np.ndarray | None
    losses: np.ndarray
    converged: bool
    n_steps: int
    kind: str = field(default="svi", init=False)

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

    def get_ppc_samples(
        self, ppc_level: str = "library_anchored", n_samples: int = 100, seed: int = 0
    ) -> xr.DataArray:
        """Counts drawn from the fitted model; see `LaplaceResult.get_ppc_samples`."""
        return predictive.svi_counts(self, ppc_level, n_samples, seed)

    def write_to(self, adata, key_added: str = "nbln") -> None:
        """Write mean, dispersion and capture loss into `adata`: var, obs and uns."""
        export.write_svi(self, adata, key_added)

    def save(self, path) -> None:
        """Save as NetCDF; `nbln.load` reads it. The counts are not in the file."""
        io.write(path, self.kind, self.to_groups())

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
