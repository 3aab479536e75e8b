"""Variational posteriors over the sites of a model: what SVI learns and its result keeps.

A site has an unconstrained coordinate, natural log for a positive site and logit for a
probability. Capture losses are independent of each other and of the genes.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.transforms import ExpTransform

from nbln import vocabulary as names
from nbln.compiled import quick_jit
from nbln.distributions.truncated import truncated_at_zero
from nbln.priors.coordinates import transform

Values = dict[str, jax.Array]
Pool = Callable[[Values], Values]
# Of a coordinate that no member determines; scales are positive.
SMALLEST_SCALE = 1e-3
NO_CELLS = np.arange(0)
POOL_DRAWS = 1000  # for a mean and a standard deviation


class Posterior(eqx.Module):
    """Approximate posterior of the genes' sites and of η (absent where η is known)."""

    eta: tuple[Array, Array] | None  # location, scale before truncation at 0

    @abc.abstractmethod
    def marginal(self) -> dict[str, tuple[Array, Array]]:
        """Mean and standard deviation of the genes' sites, unconstrained."""

    @abc.abstractmethod
    def sample_genes(self, key: Array, n_samples: int) -> Values:
        """Joint draws of the genes' sites, draws first."""

    @abc.abstractmethod
    def spreads(self, dims) -> dict[str, tuple[tuple[str, ...], Array]]:
        """Arrays beyond the locations, with their dims; `dims` gives those of a site."""

    @abc.abstractmethod
    def take(self, cells: np.ndarray, genes: np.ndarray) -> "Posterior":
        """The same for some of the cells and genes, or for all in another order."""

    @abc.abstractmethod
    def with_gene(self, members: np.ndarray, coordinates: Pool, whole: "Posterior") -> "Posterior":
        """One gene more, at the end: a function of these genes of `whole`.

        It has the mean and the standard deviation that draws have, and to first order their
        correlations with other genes.

        Parameters
        ----------
        coordinates
            From the unconstrained coordinates of the members, and those that genes share, those of
            the new gene.
        """

    @classmethod
    @abc.abstractmethod
    def of(cls, sites: list[str], arrays: dict[str, Array]) -> "Posterior":
        """From saved arrays: ``{site}_loc``, `spreads`, ``eta_loc`` and ``eta_scale``."""

    def locations(self) -> dict[str, Array]:
        """Location of the genes' sites, unconstrained."""
        return {name: loc for name, (loc, _) in self.marginal().items()}

    def distributions(self) -> dict[str, dist.Distribution]:
        """Marginal of each site as a NumPyro distribution."""
        result = {}
        for name, (loc, scale) in self.marginal().items():
            base = dist.Normal(loc, scale)
            positive = isinstance(transform(name), ExpTransform)
            result[name] = (
                dist.LogNormal(loc, scale)
                if positive
                else dist.TransformedDistribution(base, transform(name))
            )
        if self.eta is not None:
            result[names.ETA] = _losses(*self.eta)
        return result

    def map(self) -> Values:
        """The location of each site, on its natural scale."""
        values: Values = {}
        for name, (loc, _) in self.marginal().items():
            values[name] = jnp.asarray(transform(name)(loc))
        if self.eta is not None:
            values[names.ETA] = jnp.maximum(self.eta[0], 0.0)
        return values

    def eta_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of η of each cell, by truncation of its Gaussian at 0."""
        assert self.eta is not None, "η is known"
        mean, sd = truncated_at_zero(*self.eta)
        return np.asarray(mean), np.asarray(sd)

    def sample(self, key: Array, n_samples: int) -> Values:
        """Draws of all sites, draws first."""
        genes, cells = jax.random.split(key)
        draws = self.sample_genes(genes, n_samples)
        if self.eta is not None:
            draws[names.ETA] = _drawn_losses(cells, *self.eta, n_samples)
        return draws


class MeanFieldPosterior(Posterior):
    """All coordinates independent."""

    genes: dict[str, tuple[Array, Array]]

    def marginal(self):
        return self.genes

    def spreads(self, dims):
        return {f"{name}_scale": (dims(name), scale) for name, (_, scale) in self.genes.items()}

    def take(self, cells, genes):
        taken = {n: tuple(_of_genes(x, genes) for x in pair) for n, pair in self.genes.items()}
        return MeanFieldPosterior(_of_cells(self.eta, cells), taken)

    def with_gene(self, members, coordinates, whole):
        loc, sd, _ = _joined(whole, members, coordinates)
        genes = dict(self.genes)
        for name in loc:
            ours = zip(self.genes[name], (loc[name], sd[name]), strict=True)
            genes[name] = tuple(jnp.append(x, new) for x, new in ours)
        return MeanFieldPosterior(self.eta, genes)

    @classmethod
    def of(cls, sites, arrays):
        genes = {n: (arrays[f"{n}_loc"], arrays[f"{n}_scale"]) for n in sites}
        return cls(_saved_eta(arrays), genes)

    @quick_jit
    def sample_genes(self, key, n_samples):
        keys = jax.random.split(key, len(self.genes))
        return {
            name: transform(name)(loc + scale * jax.random.normal(k, (n_samples, *loc.shape)))
            for k, (name, (loc, scale)) in zip(keys, self.genes.items(), strict=True)
        }


class LowRankPosterior(Posterior):
    """Genes' coordinates, flattened by site, are Gaussian with covariance F Fᵀ + diag(s²)."""

    loc: dict[str, Array]
    factor: Float[Array, "coordinate rank"]
    scale: Float[Array, " coordinate"]

    def spreads(self, dims):
        coordinate = ("coordinate",)
        return {
            "genes_factor": ((*coordinate, "rank"), self.factor),
            "genes_scale": (coordinate, self.scale),
        }

    def take(self, cells, genes):
        loc = {name: _of_genes(x, genes) for name, x in self.loc.items()}
        places = self.unflatten(np.arange(len(self.scale)))
        order = np.concatenate([_of_genes(x, genes).ravel() for _, x in sorted(places.items())])
        return LowRankPosterior(
            _of_cells(self.eta, cells), loc, self.factor[order], self.scale[order]
        )

    def with_gene(self, members, coordinates, whole):
        loc, sd, slopes = _joined(whole, members, coordinates)
        factor, scale = self.unflatten(self.factor.T), self.unflatten(self.scale)
        part = whole.take(NO_CELLS, members)
        assert isinstance(part, LowRankPosterior), "a posterior is joined with its own kind"
        ours = dict(self.loc)
        for name, own in slopes.items():
            slope = jnp.concatenate([x.ravel() for _, x in sorted(own.items())])
            row, rest = slope @ part.factor, jnp.sum((slope * part.scale) ** 2)
            linear = jnp.maximum(jnp.sqrt(jnp.sum(row**2) + rest), SMALLEST_SCALE)
            width = sd[name] / linear  # to the standard deviation of draws
            ours[name] = jnp.append(ours[name], loc[name])
            factor[name] = jnp.append(factor[name], (width * row)[:, None], axis=1)
            own_scale = jnp.maximum(width * jnp.sqrt(rest), SMALLEST_SCALE)
            scale[name] = jnp.append(scale[name], own_scale)
        flat = [
            [part[n].reshape(-1, ours[n].size) for n in sorted(ours)] for part in (factor, scale)
        ]
        factor, scale = (np.concatenate(part, axis=1) for part in flat)
        return LowRankPosterior(self.eta, ours, jnp.asarray(factor.T), jnp.asarray(scale[0]))

    @classmethod
    def of(cls, sites, arrays):
        loc = {name: arrays[f"{name}_loc"] for name in sites}
        return cls(_saved_eta(arrays), loc, arrays["genes_factor"], arrays["genes_scale"])

    def unflatten(self, flat):
        """Split the last axis into sites, which are in alphabetical order."""
        sites, start = {}, 0
        for name, loc in sorted(self.loc.items()):
            part = flat[..., start : start + loc.size]
            sites[name] = part.reshape((*flat.shape[:-1], *loc.shape))
            start += loc.size
        return sites

    def marginal(self):
        sd = self.unflatten(jnp.sqrt(jnp.sum(self.factor**2, axis=1) + self.scale**2))
        return {name: (loc, sd[name]) for name, loc in self.loc.items()}

    @quick_jit
    def sample_genes(self, key, n_samples):
        common, own = jax.random.split(key)
        noise = jax.random.normal(common, (n_samples, self.factor.shape[1])) @ self.factor.T
        noise = noise + self.scale * jax.random.normal(own, (n_samples, *self.scale.shape))
        deviations = self.unflatten(noise)
        return {name: transform(name)(loc + deviations[name]) for name, loc in self.loc.items()}


POSTERIORS = {kind.__name__: kind for kind in (MeanFieldPosterior, LowRankPosterior)}


def _joined(whole: Posterior, members: np.ndarray, coordinates: Pool):
    """Coordinates of a gene made of others: mean and standard deviation, by draws, and slopes."""
    drawn = whole.sample_genes(jax.random.key(0), POOL_DRAWS)
    drawn = {n: transform(n).inv(x[:, members] if x.ndim > 1 else x) for n, x in drawn.items()}
    joined = jax.vmap(coordinates)(drawn)
    loc = {name: jnp.mean(x) for name, x in joined.items()}
    sd = {name: jnp.maximum(jnp.std(x), SMALLEST_SCALE) for name, x in joined.items()}
    at = {name: jnp.mean(x, axis=0) for name, x in drawn.items()}
    return loc, sd, jax.jacobian(coordinates)(at)


def _losses(loc, scale) -> dist.Distribution:
    return dist.TruncatedNormal(loc, scale, low=0.0)


@quick_jit
def _drawn_losses(key, loc, scale, n_samples: int):
    return _losses(loc, scale).sample(key, (n_samples,))


def _of_genes(values, genes):
    """Values of these genes; a number that all genes share stays."""
    return values[genes] if np.ndim(values) else values


def _of_cells(eta, cells):
    return None if eta is None else (eta[0][cells], eta[1][cells])


def _saved_eta(arrays):
    return (arrays["eta_loc"], arrays["eta_scale"]) if "eta_loc" in arrays else None
