"""How a training goes over its steps: the rate, the weight of the divergence, the optimiser."""

import abc
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nbln.vae.layers import Moments
from nbln.vae.network import Network, Now
from nbln.vae.scvi import Gaussian

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
    def of(cls, n_steps: int, warm_steps: int, learning_rate: float, weight_decay: float) -> Self:
        """Of a fit of so many steps."""
        # A weight that never reaches 1 would train another model.
        return cls(n_steps, min(warm_steps, n_steps // 3), learning_rate, weight_decay)

    def now(self, step: Array) -> Now:
        """Where the training stands at a step."""
        warmth = jnp.minimum(1.0, (step + 1) / max(self.warm_steps, 1))
        return Now(warmth, step / self.n_steps)

    @abc.abstractmethod
    def rate(self) -> optax.ScalarOrSchedule:
        """The rate at each step."""

    def clipped(self) -> tuple[optax.GradientTransformation, ...]:
        """What is done to a gradient before AdamW sees it."""
        return ()

    def optimiser(self, parameters: Network) -> optax.GradientTransformation:
        """What makes a move of a gradient: AdamW, levels faster."""
        return optax.chain(
            *self.clipped(),
            optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, _weights(parameters)),
            optax.scale_by_learning_rate(self.rate()),
            optax.masked(optax.scale(FASTER), _levels(parameters)),
        )


class OneCycle(Cycle):
    """One cycle of the rate (Smith 2018)."""

    def rate(self):
        return optax.cosine_onecycle_schedule(self.n_steps, self.learning_rate)


class Steady(Cycle):
    """One rate, of gradients no longer than 1.

    Relaxed draws of counts have rare gradients of any length; the bound of 1 and the steady rate
    are those of the published code.
    """

    def rate(self):
        return self.learning_rate

    def clipped(self):
        return (optax.clip_by_global_norm(1.0),)


def trainable(model: Network) -> tuple[Network, Network]:
    """What is learned, and the rest: running moments and what is known of libraries."""

    def learned(node):
        return not isinstance(node, Moments | Gaussian) and eqx.is_inexact_array(node)

    known = jax.tree.map(learned, model, is_leaf=lambda x: isinstance(x, Moments | Gaussian))
    return eqx.partition(model, known)


def _levels(parameters: Network) -> Network:
    """True for what learns faster."""
    none = jax.tree.map(lambda _: False, parameters)
    return eqx.tree_at(lambda m: m.levels(), none, [True] * len(parameters.levels()))


def _weights(parameters: Network) -> Network:
    """True for weights of linear layers."""

    def is_weight(path, _):
        return getattr(path[-1], "name", "") == "weight"

    return jax.tree_util.tree_map_with_path(is_weight, parameters)
