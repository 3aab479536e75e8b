"""What training climbs: the bound at relaxed codes, or what the published code minimises."""

from contextlib import AbstractContextManager

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from nbln.vae.negbio.words import Relaxing
from nbln.vae.network import Now, learner
from nbln.vae.objective import Objective, Terms


def _both_words() -> AbstractContextManager:
    """Random numbers for which both words of each block of the generator are taken.

    By default one is thrown away, so that devices that share an array need not talk. A relaxed
    count takes 16 to 21 numbers, and they were half of its time: it is .14 for .25 ms of 4,096
    counts.
    """
    return jax.threefry_partitionable(False)


class CodedBound(Objective):
    """E_q[log p(x | z)] - β KL(q ‖ prior), with one relaxed draw of the code of each cell.

    Where a model is judged, draws are exact, the divergence is too, and β is 1.
    """

    relaxing: Relaxing = eqx.field(static=True)
    beta: float = eqx.field(static=True)

    def terms(self, model, batch, key, now):
        keys, learning = jax.random.split(key, 4), learner(now, batch.weight)
        heads, first = model.encode(batch.x, learning(keys[0]))
        q = model.code.posterior(heads)
        if now is None:
            z, divergence = q.draw(keys[1], None), q.divergence(model.code.prior())
        else:
            relaxation = self.relaxing.at(now.share)
            with _both_words():
                z = q.draw(keys[1], relaxation)
                divergence = model.code.divergence(q, keys[3], relaxation)
        f, second = model.decode(z, learning(keys[2]))
        terms = Terms(
            jnp.sum(self._fit(model, batch.x, f, now), axis=1),
            jnp.sum(divergence, axis=1),
            jnp.zeros_like(batch.weight),
        )
        return terms, (first, second)

    def _fit(self, model, x: Array, f: Array, now: Now | None) -> Array:
        """What says of each number how well it is described."""
        del now
        return model.observed.log_prob(x, f)

    def value(self, terms, now):
        return terms.reconstruction - self.beta * now.warmth * terms.divergence


class PublishedObjective(CodedBound):
    """What the published code of NegBio-VAE minimises, with the sign turned.

    The squared error is summed over features, and the divergence is averaged over latents: of a
    Gaussian with variance β / (2 K) it is the bound, but for a constant. Where a model is judged,
    its terms are those of the bound.
    """

    n_latents: int = eqx.field(static=True)

    def _fit(self, model, x, f, now):
        return super()._fit(model, x, f, now) if now is None else model.observed.fidelity(x, f)

    def value(self, terms, now):
        mean = terms.divergence / self.n_latents
        return terms.reconstruction - self.beta * now.warmth * mean
