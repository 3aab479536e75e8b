"""How a training goes over its steps: the rate, the weight of the divergence, the optimiser."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nbln.vae.config import VAEConfig
from nbln.vae.layers import Moments
from nbln.vae.scvi import SCVI, Gaussian

# Dispersions and the output's bias start near their places, and have one number a gene: they bear
# ten times the rate of weights, and must not wait for them. Measured on PBMC: 16 nats a cell.
FASTER = 10.0


class Cycle(eqx.Module):
    """How the rate and the weight of the divergence go over the steps of a fit."""

    n_steps: int = eqx.field(static=True)
    warm_steps: int = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)

    @classmethod
    def of(cls, steps_an_epoch: int, n_epochs: int, config: VAEConfig) -> "Cycle":
        """Of a fit of so many epochs."""
        n_steps = steps_an_epoch * n_epochs
        # A weight that never reaches 1 would train another model.
        warm = min(steps_an_epoch * config.warmup_epochs, n_steps // 3)
        decay = float(config.weight_decay or 0)
        return cls(n_steps, warm, float(config.learning_rate), decay)

    def warmth(self, step: Array) -> Array:
        """Weight of the divergence."""
        return jnp.minimum(1.0, (step + 1) / max(self.warm_steps, 1))

    def optimiser(self, parameters: SCVI) -> optax.GradientTransformation:
        """AdamW on one cycle (Smith 2018), levels faster."""
        level, weight = _levels(parameters), _weights(parameters)
        schedule = optax.cosine_onecycle_schedule(self.n_steps, self.learning_rate)
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, weight),
            optax.scale_by_learning_rate(schedule),
            optax.masked(optax.scale(FASTER), level),
        )


def trainable(model: SCVI) -> tuple[SCVI, SCVI]:
    """What is learned, and the rest: running moments and what is known of libraries."""

    def learned(node):
        return not isinstance(node, Moments | Gaussian) and eqx.is_inexact_array(node)

    known = jax.tree.map(learned, model, is_leaf=lambda x: isinstance(x, Moments | Gaussian))
    return eqx.partition(model, known)


def _levels(parameters: SCVI) -> SCVI:
    """True for dispersions and the output's bias."""
    none = jax.tree.map(lambda _: False, parameters)
    marked = eqx.tree_at(lambda m: m.decoder.share.bias, none, True)
    if parameters.likelihood.dispersion is None:
        return marked
    return eqx.tree_at(lambda m: m.likelihood.dispersion.level, marked, True)


def _weights(parameters: SCVI) -> SCVI:
    """True for weights of linear layers."""

    def is_weight(path, _):
        return getattr(path[-1], "name", "") == "weight"

    return jax.tree_util.tree_map_with_path(is_weight, parameters)
