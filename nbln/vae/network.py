"""What the engine asks of a model that it trains."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
from jaxtyping import Array, Float

from nbln.models.depth import Depth, Uncaptured
from nbln.vae.layers import Moments, Training


class Now(NamedTuple):
    """Where a training stands: what objectives go by that change in its course."""

    warmth: Float[Array, ""]  # in [0, 1], the weight of the divergence
    share: Float[Array, ""]  # in [0, 1), of all steps, those that are done


def learner(now: Now | None, weight: Float[Array, " cell"]) -> Callable[[Array], Training | None]:
    """What layers are given with a key of theirs: nothing where a model is only judged."""
    return lambda key: None if now is None else Training(key, weight)


# Moments of the layers of each stack, in the order of `Network.stacks`.
Seen = tuple[tuple[Moments, ...], ...]


class Network(eqx.Module):
    """An encoder and a decoder whose parameters are learned by gradients."""

    name: ClassVar[str]  # as in ``fit(model=...)``
    depth: ClassVar[Depth] = Uncaptured()

    @abc.abstractmethod
    def levels(self) -> list[Array]:
        """Leaves that start at their places and learn ten times as fast."""

    @abc.abstractmethod
    def stacks(self) -> list[Any]:
        """Its stacks of layers, whose running moments follow those of batches."""

    def following(self, seen: Seen) -> Self:
        """The same with running moments a step nearer to those of a batch.

        Parameters
        ----------
        seen
            Of each stack that it has.
        """
        moved = [s.following(m) for s, m in zip(self.stacks(), seen, strict=True)]
        return eqx.tree_at(lambda network: network.stacks(), self, moved)
