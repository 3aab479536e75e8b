"""Priors on the gauge-invariant loadings W_⊥ = W - 1 w̄ᵀ, which choose the number of programs.

Column j of W_⊥ has standard deviation λ_j: equivalently w_gj ~ N(b_j, λ_j²) with a flat b_j. Its
log-density is -‖w_⊥j‖²/(2 λ_j²) - (G - 1) log λ_j + const. A scale never falls below
`Shrinkage.smallest_scale`: the joint density is unbounded where columns collapse, so what is
wanted, and what coordinate updates from large columns reach, is the local mode with the columns
that the data support.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nbln import vocabulary as names
from nbln.linalg import gauge
from nbln.priors.shrinkage import Phase, Shrinkage

FACTORS = (names.FACTOR,)

Loadings = Float[Array, "gene factor"]
Norms = Float[Array, " factor"]  # squared Euclidean norms ‖w_⊥j‖²
Scales = dict[str, jax.Array]  # the prior's own unknowns, by site name


class Entries(NamedTuple):
    """Gaussian posterior of each loading by itself, and the prior that it has come from."""

    mean: Loadings
    variance: Loadings
    centre: Float[Array, " factor"]  # b, of the prior
    precision: Loadings  # of the prior

    def likelihood(self) -> tuple[Loadings, Loadings]:
        """Mean, relative to the centre, and precision that the counts alone give each entry."""
        precision = jnp.maximum(1 / self.variance - self.precision, 1e-6)
        mean = (self.mean / self.variance - self.precision * self.centre) / precision
        return mean - self.centre, precision

    def strength(self) -> Norms:
        """Mean squared ratio of a column's entries to their standard errors: signal and noise.

        The expected square of an entry never falls below its posterior variance, so by that alone
        a column of noise would stay.
        """
        mean, precision = self.likelihood()
        return jnp.mean(precision * mean**2, axis=0)


class Rows(NamedTuple):
    """Joint Gaussian posterior of each gene's loadings, and the prior that it has come from."""

    mean: Loadings
    covariance: Float[Array, "factor factor gene"]
    centre: Float[Array, " factor"]  # b, of the prior
    precision: Loadings  # of the prior

    def entries(self) -> Entries:
        """Each loading by itself."""
        variance = jnp.einsum("jjg->gj", self.covariance)
        return Entries(self.mean, variance, self.centre, self.precision)


class ScaleSite(NamedTuple):
    """A scale of the loadings as a random variable: name, dims, distribution given earlier ones."""

    name: str
    dims: tuple[str, ...]
    distribution: Callable[[Scales], Any]


class Turn(NamedTuple):
    """How an update turns the columns of the loadings."""

    axes: Float[Array, "factor new"]  # the rotation
    order: Int[Array, " new"]  # which old column each new one continues
    # What each old column lends to the expected size and strength of each new one; sums to 1.
    shares: Float[Array, "factor new"]


class LoadingsPrior(eqx.Module):
    """Prior on the columns of W_⊥; its scales are learned with the loadings.

    By default its entries differ by column alone, and it is the same in each rotation of the
    columns, which then stand in their principal axes.
    """

    centre: ClassVar[str | None] = None  # the site of the centres b - w̄, if there is one
    # The argument that is its name for `Shrinkage.smallest_scale`, and the power of it that it is.
    floor: ClassVar[tuple[str, int] | None] = None
    shrinkage: Shrinkage = eqx.field(default=Shrinkage(), static=True, kw_only=True)

    @abc.abstractmethod
    def start(self, norms: Norms, n_genes: int) -> Scales:
        """First scales, from the squared norms of the first loadings."""

    @abc.abstractmethod
    def update(self, scales: Scales, norms: Norms, n_genes: int) -> Scales:
        """Most probable scales given the squared norms of the columns."""

    @abc.abstractmethod
    def column_sd(self, scales: Scales, n_factors: int) -> Norms:
        """λ_j; infinite where there is no shrinkage."""

    def named(self, scales: Scales) -> dict[str, Any]:
        """Scales that `LogNormalResult.w_prior_diagnostics` adds, by the names of the field."""
        del scales
        return {}

    def take(self, scales: Scales, columns: Int[np.ndarray, " kept"]) -> Scales:
        """The scales of some columns: what is not one number is by column."""
        return {name: x[columns] if x.ndim else x for name, x in scales.items()}

    def joined(self, scales: Scales, others: Scales) -> Scales:
        """The scales of these columns and of others."""
        return {
            name: jnp.concatenate([x, others[name]]) if x.ndim else x for name, x in scales.items()
        }

    def empty(self, n_factors: int, n_genes: int) -> Scales:
        """The scales of columns without loadings."""
        nothing = jnp.zeros(n_factors)
        return self.update(self.start(nothing, n_genes), nothing, n_genes)

    def column_precision(self, scales: Scales, shape: tuple[int, int]) -> Loadings:
        """λ_j⁻² for all genes; `shape` is (gene, factor)."""
        return jnp.broadcast_to(1 / self.column_sd(scales, shape[1]) ** 2, shape)

    def turn(self, W: Loadings, phase: Phase) -> Turn:
        """How to turn the columns: here to principal axes of W_⊥."""
        del phase
        return principal_turn(W)

    def reweigh(
        self,
        scales: Scales,
        rows: Entries,
        norms: Norms,
        order: Int[Array, " factor"],
        phase: Phase,
    ) -> tuple[Scales, Loadings]:
        """Scales, and precision of each entry, for the next iteration.

        Parameters
        ----------
        scales, rows
            Of the iteration, in the order of its columns.
        norms
            Expected squared norms of the new columns.
        order
            Which of the iteration's columns each new one continues.
        """
        del order, phase
        scales = self.update(scales, norms, len(rows.mean))
        return scales, self.column_precision(scales, rows.mean.shape)

    def may_stop(self, phase: Phase) -> Bool[Array, ""]:
        """Whether loadings that stand still have converged."""
        del phase
        return jnp.asarray(True)

    def membership(self, scales: Scales, rows: Entries) -> Loadings | None:
        """Probability that each gene belongs to each program; None where all genes do."""
        del scales, rows

    def column_log_density(self, away: Loadings, scales: Scales) -> Norms:
        """Log-density of each column given its centre b, without constants; `away` is W - b."""
        sd = self.column_sd(scales, away.shape[1])
        finite = jnp.isfinite(sd)
        sd = jnp.where(finite, sd, 1.0)
        density = -jnp.sum(away**2, axis=0) / (2 * sd**2) - len(away) * jnp.log(sd)
        return jnp.where(finite, density, 0.0)

    def draw_precision(self, key: jax.Array, away: Loadings, scales: Scales) -> Loadings:
        """Of the Gaussian that each entry comes from, drawn where the prior is a mixture."""
        del key
        return self.column_precision(scales, away.shape)

    def switched(self, scales: Scales, precision: Loadings) -> Loadings:
        """Precisions of the entries had each the other membership; as they are without any."""
        del scales
        return precision

    def log_choice(self, scales: Scales, precision: Loadings) -> Loadings:
        """Log-probability of each membership, and of the width of its Gaussian's density.

        As far as `switched` changes them: 0 where there are no memberships.
        """
        del scales
        return jnp.zeros_like(precision)

    def member_probability(self, away: Loadings, scales: Scales) -> Loadings | None:
        """Probability that each known loading comes from the slab; None where all genes do."""
        del away, scales

    def sites(self, n_factors: int) -> tuple[ScaleSite, ...]:
        """The scales, in an order in which each depends on earlier ones only."""
        del n_factors
        return ()

    def log_density(self, W: Loadings, scales: Scales) -> Float[Array, ""]:
        """Log-density of W_⊥ given the scales, without constants."""
        n_genes, n_factors = W.shape
        norms = gauge.squared_norms(W)
        sd = self.column_sd(scales, n_factors)
        finite = jnp.isfinite(sd)
        sd = jnp.where(finite, sd, 1.0)
        return jnp.sum(jnp.where(finite, -norms / (2 * sd**2) - (n_genes - 1) * jnp.log(sd), 0.0))


class FittedLoadings(NamedTuple):
    """The loadings prior of a fit: what it is, and what it has learned."""

    prior: LoadingsPrior
    scales: Scales
    precision: Loadings  # of the Gaussian that stands for the prior, entry by entry

    @property
    def learned(self) -> bool:
        """Whether the prior has scales, so that it can remove columns."""
        return bool(self.scales)


def principal_turn(W: Loadings) -> Turn:
    """To the principal axes of W_⊥, largest first.

    Columns are compared rank by rank with those before: among columns of noise the axes themselves
    turn freely, and only the spectrum says whether they fall.
    """
    k = W.shape[1]
    return Turn(gauge.principal_axes(W), jnp.arange(k), jnp.eye(k, dtype=W.dtype))


def sorted_turn(W: Loadings) -> Turn:
    """No turn: the same columns, largest first."""
    order = jnp.argsort(-gauge.squared_norms(W))
    axes = jnp.eye(W.shape[1], dtype=W.dtype)[:, order]
    return Turn(axes, order, axes)
