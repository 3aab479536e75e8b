"""Counts given a cell's features: which distribution, and what its parameters depend on.

A likelihood holds what is learned; `of` binds it to cells and gives a *bound* distribution of
counts by log-rate, a channel of the house.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.channels.poisson import Poisson
from nbln.channels.zero_inflated import ZeroInflated
from nbln.vae.layers import apply

# exp(±this) bounds what a network may say of a dispersion: beyond, counts are Poisson or all 0.
LOG_THETA_BOUND = 12.0

# Structural zeros are rare until the counts show them: of a logit of 0 half of all counts would be.
FIRST_LOGIT = -3.0


class Groups(NamedTuple):
    """Which batch and which label each cell has."""

    batch: Int[Array, " cell"]
    label: Int[Array, " cell"]


class Dispersion(eqx.Module):
    """log θ of each count; variance mean + mean²/θ."""

    @abc.abstractmethod
    def log_theta(self, features: Float[Array, "cell unit"], groups: Groups) -> Array:
        """(gene,) or (cell, gene)."""

    @property
    @abc.abstractmethod
    def level(self) -> Array:
        """The leaf that says how large θ is for each gene, whatever the features: (..., gene)."""

    @property
    def by(self) -> str | None:
        """The field of `Groups` whose groups are the rows of `level`; None where there are none."""
        return None

    @property
    def heads(self) -> tuple[eqx.nn.Linear, ...]:
        """Linear layers on the features."""
        return ()


class PerGene(Dispersion):
    """One a gene."""

    value: Float[Array, " gene"]

    def log_theta(self, features, groups):
        del features, groups
        return self.value

    @property
    def level(self):
        return self.value


class PerGroup(Dispersion):
    """One a gene in each batch, or with each label."""

    value: Float[Array, "group gene"]
    group: str = eqx.field(static=True)  # a field of `Groups`

    def log_theta(self, features, groups):
        del features
        return self.value[getattr(groups, self.group)]

    @property
    def level(self):
        return self.value

    @property
    def by(self):
        return self.group


class PerCell(Dispersion):
    """θ = f(z, design): the decoder's own word on each count."""

    head: eqx.nn.Linear

    def log_theta(self, features, groups):
        del groups
        return jnp.clip(apply(self.head, features), -LOG_THETA_BOUND, LOG_THETA_BOUND)

    @property
    def level(self):
        return self.head.bias

    @property
    def heads(self):
        return (self.head,)


Bound = NegativeBinomial | Poisson | ZeroInflated


class Likelihood(eqx.Module):
    """Counts given a cell's features and its log-rates."""

    @abc.abstractmethod
    def of(self, features: Float[Array, "cell unit"], groups: Groups) -> Bound:
        """The distribution of these cells' counts."""

    @property
    def dispersion(self) -> Dispersion | None:
        """What it knows of θ."""
        return None

    @property
    def heads(self) -> tuple[eqx.nn.Linear, ...]:
        """Linear layers on the features."""
        return () if self.dispersion is None else self.dispersion.heads


class PoissonCounts(Likelihood):
    """Poisson."""

    def of(self, features, groups):
        del features, groups
        return Poisson()


class NegativeBinomialCounts(Likelihood):
    """Negative binomial."""

    theta: Dispersion

    def of(self, features, groups):
        return NegativeBinomial(self.theta.log_theta(features, groups))

    @property
    def dispersion(self):
        return self.theta


class ZeroInflatedCounts(Likelihood):
    """Negative binomial with structural zeros, whose logits the decoder says."""

    theta: Dispersion
    dropout: eqx.nn.Linear

    def of(self, features, groups):
        logits = apply(self.dropout, features)
        return ZeroInflated(self.theta.log_theta(features, groups), logits)

    @property
    def dispersion(self):
        return self.theta

    @property
    def heads(self):
        return (self.dropout, *self.theta.heads)


class Sizes(NamedTuple):
    """What a likelihood has to know to be made."""

    n_genes: int
    n_features: int
    n_batches: int
    n_labels: int


Maker = Callable[[Array, Sizes], Dispersion]
DISPERSIONS: dict[str, Maker] = {
    "gene": lambda key, n: PerGene(jnp.zeros(n.n_genes)),
    "gene-batch": lambda key, n: PerGroup(jnp.zeros((n.n_batches, n.n_genes)), "batch"),
    "gene-label": lambda key, n: PerGroup(jnp.zeros((n.n_labels, n.n_genes)), "label"),
    "gene-cell": lambda key, n: PerCell(eqx.nn.Linear(n.n_features, n.n_genes, key=key)),
}


def _zero_inflated(key: Array, theta: Dispersion, n: Sizes) -> Likelihood:
    dropout = eqx.nn.Linear(n.n_features, n.n_genes, key=key)
    rare = jnp.full(n.n_genes, FIRST_LOGIT)
    return ZeroInflatedCounts(theta, eqx.tree_at(lambda head: head.bias, dropout, rare))


LIKELIHOODS: dict[str, Callable[[Array, Dispersion, Sizes], Likelihood]] = {
    "nb": lambda key, theta, n: NegativeBinomialCounts(theta),
    "zinb": _zero_inflated,
    "poisson": lambda key, theta, n: PoissonCounts(),
}


def likelihood(key: Array, name: str, dispersion: str, sizes: Sizes) -> Likelihood:
    """A likelihood by the names that `fit` has for it and its dispersion."""
    own, other = jax.random.split(key)
    return LIKELIHOODS[name](own, DISPERSIONS[dispersion](other, sizes), sizes)
