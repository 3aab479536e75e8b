"""What is maximised: the evidence lower bound, or without its divergence an auto-encoder's fit."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nbln.vae.layers import Training
from nbln.vae.network import Now, Seen
from nbln.vae.scvi import SCVI, Batch


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

    def terms(self, model, batch, key, now):
        return _terms(model, batch, key, now, draw=True)

    def value(self, terms, now):
        return terms.reconstruction - now.warmth * terms.divergence - terms.library_divergence


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


OBJECTIVES: dict[str, type[Objective]] = {"vae": EvidenceBound, "ae": Reconstruction}


def _terms(model: SCVI, batch: Batch, key: Array, now: Now | None, draw: bool):
    keys = jax.random.split(key, 5)

    def learning(key):
        return None if now is None else Training(key, batch.weight)

    q, first = model.encoder(batch.counts, learning(keys[0]))
    z = q.draw(keys[1]) if draw else q.mean
    log_library, of_library, second = batch.log_library, jnp.zeros_like(batch.weight), []
    if model.library is not None:
        own, seen = model.library(batch.counts, learning(keys[2]))
        second = [seen]
        own = jax.tree.map(lambda x: x[:, 0], own)
        log_library = own.draw(keys[3]) if draw else own.mean
        of_library = own.divergence(*model.prior_of_library(batch.groups))
    f, bound, third = model.decode(z, log_library, batch, learning(keys[4]))
    terms = Terms(
        jnp.sum(bound.log_prob(batch.counts, f), axis=1),
        jnp.sum(q.divergence(0.0, 1.0), axis=1),
        of_library,
    )
    return terms, (first, *second, third)
