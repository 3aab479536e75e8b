"""A fitted model for cells of new categories: weights of these alone are learned, all else is held.

As in Lotfollahi et al. (2022), Nature Biotechnology 40, 121 (architecture surgery), for batches,
and in the same way for labels and for covariates that are categories.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from nbln.data.design import Design
from nbln.vae.objective import Objective
from nbln.vae.scvi import SCVI, Architecture, Gaussian


class NewCategories(Objective):
    """An objective that only what is marked as new can raise."""

    new: tuple[Bool[Array, "..."], ...]  # of each of `_places`
    whole: Objective
    of: Architecture = eqx.field(static=True)

    def terms(self, model, batch, key, now):
        del now  # normalisation is that of the reference: running moments, no dropout
        held = jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x, model)
        pairs = zip(self.new, _places(model, self.of), _places(held, self.of), strict=True)
        free = [jnp.where(new, own, still) for new, own, still in pairs]
        model = eqx.tree_at(lambda m: _places(m, self.of), held, free)
        return self.whole.terms(model, batch, key, None)

    def value(self, terms, now):
        return self.whole.value(terms, now)


class Block(NamedTuple):
    """Entries of one column of `obs` along an axis of weights."""

    n_old: int
    n_new: int


class Growth(NamedTuple):
    """How many categories there are, and how many come."""

    columns: tuple[Block, ...]  # of the design, in its order
    groups: dict[str, Block]  # by field of `Groups`

    @classmethod
    def of(cls, old: Design, new: Design) -> "Growth":
        """From one design to another that extends it."""
        widths = zip(old.widths, new.widths, strict=True)
        groups = {
            "batch": Block(old.n_batches, new.n_batches - old.n_batches),
            "label": Block(old.n_labels, new.n_labels - old.n_labels),
        }
        return cls(tuple(Block(n, m - n) for n, m in widths), groups)

    @property
    def is_any(self) -> bool:
        """Whether any category comes."""
        return any(block.n_new for block in (*self.columns, *self.groups.values()))

    def architecture(self, of: Architecture) -> Architecture:
        """Of the model with them."""
        return replace(
            of,
            n_columns=of.n_columns + sum(block.n_new for block in self.columns),
            n_batches=of.n_batches + self.groups["batch"].n_new,
            n_labels=of.n_labels + self.groups["label"].n_new,
        )


def extended(
    model: SCVI, of: Architecture, growth: Growth, library_prior: Gaussian
) -> tuple[SCVI, tuple[Array, ...]]:
    """The model with weights of new categories, and which entries of `_places` these are.

    A new category starts at the mean of those of its column.

    Parameters
    ----------
    of
        The architecture as it was.
    library_prior
        Of the new batches.
    """
    grown = [_grown(table, 0, [growth.groups[group]]) for group, table in _tables(model).items()]
    grown += [_grown(weight, 1, growth.columns) for weight in _weights(model, of)]
    values, new = zip(*grown, strict=True)
    model = eqx.tree_at(lambda m: _places(m, of), model, values)
    priors = zip(model.library_prior, library_prior, strict=True)
    prior = Gaussian(*(jnp.concatenate(pair) for pair in priors))
    return eqx.tree_at(lambda m: m.library_prior, model, prior), new


def _grown(x: Array, axis: int, blocks: Sequence[Block]) -> tuple[Array, Array]:
    """Weights with new entries in the blocks that are last on the axis, and a mark of these."""
    start = x.shape[axis] - sum(block.n_old for block in blocks)
    parts = [lax.slice_in_dim(x, 0, start, axis=axis)]
    marks = [jnp.zeros(parts[0].shape, bool)]
    for block in blocks:
        own = lax.slice_in_dim(x, start, start + block.n_old, axis=axis)
        mean = jnp.repeat(jnp.mean(own, axis=axis, keepdims=True), block.n_new, axis=axis)
        parts += [own, mean]
        marks += [jnp.zeros(own.shape, bool), jnp.ones(mean.shape, bool)]
        start += block.n_old
    return jnp.concatenate(parts, axis=axis), jnp.concatenate(marks, axis=axis)


def _tables(model: SCVI) -> dict[str, Array]:
    """The leaves with a row for each group, by what the groups are."""
    theta = model.likelihood.dispersion
    return {} if theta is None or theta.by is None else {theta.by: theta.level}


def _weights(model: SCVI, of: Architecture) -> list[Array]:
    """The leaves whose last columns are of the design."""
    if of.linear:  # its heads see the design themselves
        return [head.weight for head in (model.decoder.share, *model.likelihood.heads)]
    return [layer.weight for layer in model.decoder.stack.linear]


def _places(model: SCVI, of: Architecture) -> list[Array]:
    """The leaves with entries of categories."""
    return [*_tables(model).values(), *_weights(model, of)]
