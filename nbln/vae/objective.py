"""What is maximised: the evidence lower bound, or without its divergence an auto-encoder's fit."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from nbln import registry
from nbln.vae.layers import Training
from nbln.vae.network import Now, Seen, learner
from nbln.vae.scvi import SCVI, Batch, Gaussian


class Terms(NamedTuple):
    """The parts of the bound, one number a cell (nats)."""

    reconstruction: Float[Array, " cell"]  # expected log-probability of the counts
    divergence: Float[Array, " cell"]  # of z from its prior
    library_divergence: Float[Array, " cell"]  # of the library from its prior; 0 where known

    @property
    def elbo(self) -> Float[Array, " cell"]:
        """The evidence lower bound."""
        return self.reconstruction - self.divergence - self.library_divergence


class Objective(eqx.Module):
    """What a step climbs."""

    has_prior: ClassVar[bool] = True  # whether z is held to its prior, and drawn

    @classmethod
    def of_draws(cls, n_draws: int) -> "Objective":
        """The same kind with so many draws of z a cell and step.

        Raises
        ------
        ValueError
            More than one, of an objective to which they are of no use.
        """
        if n_draws > 1:
            raise ValueError(
                f"VAEConfig(n_importance={n_draws}): only a fit with a prior has draws to weigh; "
                "leave it at 1, or inference_method= out"
            )
        return cls()

    @abc.abstractmethod
    def terms(self, model: Any, batch: Any, key: Array, now: Now | None) -> tuple[Terms, Seen]:
        """The parts for each cell, and the moments of the layers of each stack.

        Parameters
        ----------
        now
            Where the training stands; None where a model is only judged.
        """

    @abc.abstractmethod
    def value(self, terms: Terms, now: Now) -> Float[Array, " cell"]:
        """What is maximised by now."""


class EvidenceBound(Objective):
    """E_q[log p(u | z)] - KL(q || prior), with one draw of z a cell (Kingma & Welling 2014)."""

    @classmethod
    def of_draws(cls, n_draws):
        return cls() if n_draws == 1 else ImportanceBound(n_draws)

    def terms(self, model, batch, key, now):
        return _terms(model, batch, key, now, draw=True)

    def value(self, terms, now):
        return terms.reconstruction - now.warmth * terms.divergence - terms.library_divergence


class ImportanceBound(EvidenceBound):
    """log (1/K) Σ_k p(u, z_k) / q(z_k): nearer to the evidence than the bound of one draw.

    Burda, Grosse & Salakhutdinov (2016). Each draw is a pass of the decoder, so that a step costs
    about K times as much. Its `Terms` have the analytic divergence, and as reconstruction what
    makes the bound with it; while the divergence warms up, its missing part is added to the bound.
    """

    n_draws: int = eqx.field(static=True)

    def terms(self, model, batch, key, now):
        keys, learning = jax.random.split(key, 4), learner(now, batch.weight)
        q, own, seen = _encoded(model, batch, learning(keys[0]), learning(keys[1]))
        prior = model.prior_of_library(batch.groups)

        def log_weight(key):
            of_z, of_depth = jax.random.split(key)
            z, depth = q.draw(of_z), batch.log_library
            value = jnp.sum(Gaussian(0.0, 1.0).log_density(z) - q.log_density(z), axis=1)
            if own is not None:
                depth = own.draw(of_depth)
                value = value + prior.log_density(depth) - own.log_density(depth)
            f, bound, third = model.decode(z, depth, batch, learning(keys[2]))
            return value + jnp.sum(bound.log_prob(batch.counts, f), axis=1), third

        weights, third = jax.vmap(log_weight)(jax.random.split(keys[3], self.n_draws))
        bound = logsumexp(weights, axis=0) - np.log(self.n_draws)
        divergence = jnp.sum(q.divergence(0.0, 1.0), axis=1)
        of_library = _library_divergence(model, batch, own)
        third = jax.tree.map(lambda x: jnp.mean(x, axis=0), third)
        terms = Terms(bound + divergence + of_library, divergence, of_library)
        return terms, (*seen, third)


class EncoderBound(EvidenceBound):
    """The same bound with the decoder held: where it starts from a fit, the encoder learns first.

    Until then factors say nothing of cells, and a decoder would unlearn what it started from.
    """

    def terms(self, model, batch, key, now):
        held = jax.tree.map(
            lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x,
            (model.decoder, model.likelihood),
        )
        model = eqx.tree_at(lambda m: (m.decoder, m.likelihood), model, held)
        return super().terms(model, batch, key, now)


class Reconstruction(Objective):
    """log p(u | z at the encoder's mean): an auto-encoder, held back by weight decay alone.

    With a linear decoder, Gaussian noise and no bound on the weights its optimum is the span of the
    first principal components (Baldi & Hornik 1989).
    """

    has_prior = False

    def terms(self, model, batch, key, now):
        terms, moments = _terms(model, batch, key, now, draw=False)
        nothing = jnp.zeros_like(terms.divergence)
        return Terms(terms.reconstruction, nothing, nothing), moments

    def value(self, terms, now):
        del now
        return terms.reconstruction


OBJECTIVES: dict[str, type[Objective]] = {
    registry.VAE: EvidenceBound,
    registry.AE: Reconstruction,
}


def _terms(model: SCVI, batch: Batch, key: Array, now: Now | None, draw: bool):
    keys, learning = jax.random.split(key, 5), learner(now, batch.weight)
    q, own, seen = _encoded(model, batch, learning(keys[0]), learning(keys[2]))
    z = q.draw(keys[1]) if draw else q.mean
    log_library = batch.log_library
    if own is not None:
        log_library = own.draw(keys[3]) if draw else own.mean
    f, bound, third = model.decode(z, log_library, batch, learning(keys[4]))
    terms = Terms(
        jnp.sum(bound.log_prob(batch.counts, f), axis=1),
        jnp.sum(q.divergence(0.0, 1.0), axis=1),
        _library_divergence(model, batch, own),
    )
    return terms, (*seen, third)


def _encoded(
    model: SCVI, batch: Batch, of_z: Training | None, of_library: Training | None
) -> tuple[Gaussian, Gaussian | None, Seen]:
    """What the encoders say of z and of the log library, and the moments of their layers."""
    q, seen = model.encoder(batch.counts, of_z)
    if model.library is None:
        return q, None, (seen,)
    own, also = model.library(batch.counts, of_library)
    return q, jax.tree.map(lambda x: x[:, 0], own), (seen, also)


def _library_divergence(model: SCVI, batch: Batch, own: Gaussian | None) -> Float[Array, " cell"]:
    """Of the log library from its prior; 0 where it is known."""
    if own is None:
        return jnp.zeros_like(batch.weight)
    return own.divergence(*model.prior_of_library(batch.groups))
