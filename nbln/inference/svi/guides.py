"""Variational guides on whitened coordinates: location = start + start's sd x parameter.

So one learning rate serves a rare gene and an abundant one. A guide is a NumPyro program, and
`posterior` is what its parameters mean.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array

from nbln import vocabulary as names
from nbln.posterior.variational import LowRankPosterior, MeanFieldPosterior, Posterior
from nbln.priors.coordinates import transform

Parameters = dict[str, Array]
Start = dict[str, tuple[Array, Array]]  # site -> location and sd, unconstrained


class Guide(eqx.Module):
    """A family of posteriors around a start."""

    genes: Start
    eta: tuple[Array, Array] | None

    @abc.abstractmethod
    def initial(self) -> Parameters:
        """Parameters at the start."""

    @abc.abstractmethod
    def sample_genes(self, parameters: Parameters) -> None:
        """Sample the genes' sites, as a NumPyro program."""

    @abc.abstractmethod
    def posterior(self, parameters: Parameters) -> Posterior:
        """The posterior that these parameters stand for."""

    def __call__(self, counts: Array, index: Array) -> None:
        """The NumPyro program, for the cells `index`."""
        initial = self.initial()
        parameters = {name: numpyro.param(name, value) for name, value in initial.items()}
        self.sample_genes(parameters)
        eta = self.posterior(parameters).eta
        if eta is not None:
            loc, scale = eta
            with numpyro.handlers.scale(scale=loc.shape[0] / index.shape[0]):
                posterior = dist.TruncatedNormal(loc[index], scale[index], low=0.0)
                numpyro.sample(names.ETA, posterior.to_event(1))

    def _eta(self, parameters):
        if self.eta is None:
            return None
        return _unwhiten(self.eta, parameters["eta_loc"], parameters["eta_scale"])

    def _initial_eta(self):
        if self.eta is None:
            return {}
        zeros = jnp.zeros_like(self.eta[0])
        return {"eta_loc": zeros, "eta_scale": zeros}


class MeanField(Guide):
    """All coordinates independent."""

    name: ClassVar[str] = "mean_field"

    def initial(self):
        zeros = {}
        for name, (loc, _) in self.genes.items():
            zeros |= {f"{name}_loc": jnp.zeros_like(loc), f"{name}_scale": jnp.zeros_like(loc)}
        return zeros | self._initial_eta()

    def sample_genes(self, parameters):
        for name, (loc, scale) in self.posterior(parameters).genes.items():
            base = dist.Normal(loc, scale).to_event(loc.ndim)
            numpyro.sample(name, dist.TransformedDistribution(base, transform(name)))

    def posterior(self, parameters):
        genes = {
            name: _unwhiten(start, parameters[f"{name}_loc"], parameters[f"{name}_scale"])
            for name, start in self.genes.items()
        }
        return MeanFieldPosterior(self._eta(parameters), genes)


class LowRank(Guide):
    """Genes' coordinates jointly Gaussian, covariance of low rank plus diagonal."""

    name: ClassVar[str] = "low_rank"
    rank: int = 8

    def initial(self):
        zeros = {f"{name}_loc": jnp.zeros_like(loc) for name, (loc, _) in self.genes.items()}
        size = sum(loc.size for loc, _ in self.genes.values())
        # Small and different columns: at zero, the gradient in the factor would vanish.
        waves = jnp.cos(jnp.outer(jnp.arange(size) + 0.5, jnp.arange(1, self.rank + 1)))
        return zeros | {"factor": 0.1 * waves, "genes_scale": jnp.zeros(size)} | self._initial_eta()

    def sample_genes(self, parameters):
        joint = self.posterior(parameters)
        loc = jnp.concatenate([loc.ravel() for _, loc in sorted(joint.loc.items())])
        flat = numpyro.sample(
            "_genes",
            dist.LowRankMultivariateNormal(loc, joint.factor, joint.scale**2),
            infer={"is_auxiliary": True},
        )
        for name, value in joint.unflatten(flat).items():
            bijection = transform(name)
            constrained = bijection(value)
            jacobian = bijection.log_abs_det_jacobian(value, constrained)
            numpyro.sample(name, dist.Delta(constrained, -jacobian).to_event(value.ndim))

    def posterior(self, parameters):
        sd = jnp.concatenate([sd.ravel() for _, (_, sd) in sorted(self.genes.items())])
        loc = {
            name: loc + scale * parameters[f"{name}_loc"]
            for name, (loc, scale) in self.genes.items()
        }
        factor = sd[:, None] * parameters["factor"]
        scale = sd * jnp.exp(parameters["genes_scale"])
        return LowRankPosterior(self._eta(parameters), loc, factor, scale)


GUIDES = {guide.name: guide for guide in (MeanField, LowRank)}


@jax.jit
def _unwhiten(start, loc, log_scale):
    return start[0] + start[1] * loc, start[1] * jnp.exp(log_scale)
