"""What training climbs: the bound at relaxed codes, or what the published code minimises."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from nbln.vae.negbio.words import Relaxing
from nbln.vae.network import Now, learner
from nbln.vae.objective import Objective, Terms


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
        relaxation = None if now is None else self.relaxing.at(now.share)
        f, second = model.decode(q.draw(keys[1], relaxation), learning(keys[2]))
        if now is None:
            divergence = q.divergence(model.code.prior())
        else:
            divergence = model.code.divergence(q, keys[3], relaxation)
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
