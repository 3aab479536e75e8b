"""Priors on the gauge-invariant loadings W_⊥ = W - 1 w̄ᵀ, which choose the number of programs.

Column j of W_⊥ has standard deviation λ_j: equivalently w_gj ~ N(b_j, λ_j²) with a flat b_j. Its
log-density is -‖w_⊥j‖²/(2 λ_j²) - (G - 1) log λ_j + const. A scale never falls below `FLOOR`: the
joint density is unbounded where columns collapse, so what is wanted, and what coordinate updates
from large columns reach, is the local mode with the columns that the data support.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float

from nbln.linalg import gauge

FLOOR = 1e-3
SMALLEST_SD = 10 * FLOOR  # of a column that carries signal
NOISE = 4.0  # mean squared ratio of an entry to its standard error up to which a column is noise
SHARES = 0.05, 0.5  # least and largest share of genes in a program
SMALLEST_SPIKE = 0.02  # of the variance of a column

Entries = Float[Array, "gene factor"]
Norms = Float[Array, " factor"]  # squared Euclidean norms ‖w_⊥j‖²
Scales = dict[str, jax.Array]  # the prior's own unknowns, by site name


class Rows(NamedTuple):
    """Gaussian posterior of the loadings, entry by entry, and the prior that it was found under."""

    mean: Entries
    variance: Entries
    centre: Float[Array, " factor"]  # b, of the prior
    precision: Entries  # of the prior

    def likelihood(self) -> tuple[Entries, Entries]:
        """Mean, relative to the centre, and precision that the counts alone give each entry."""
        known = jnp.maximum(1 / self.variance - self.precision, 1e-6)
        seen = (self.mean / self.variance - self.precision * self.centre) / known
        return seen - self.centre, known

    def strength(self) -> Norms:
        """Mean squared ratio of a column's entries to their standard errors: signal and noise.

        The expected square of an entry never falls below its posterior variance, so by that alone
        a column of noise would stay.
        """
        seen, known = self.likelihood()
        return jnp.mean(known * seen**2, axis=0)


class LoadingsPrior(eqx.Module):
    """Prior on the columns of W_⊥; its scales are learned with the loadings."""

    sparse: ClassVar[bool] = False  # whether entries of a column differ in scale

    @abc.abstractmethod
    def start(self, norms: Norms, n_genes: int) -> Scales:
        """First scales, from the squared norms of the first loadings."""

    @abc.abstractmethod
    def update(self, scales: Scales, norms: Norms, n_genes: int) -> Scales:
        """Most probable scales given the squared norms of the columns."""

    @abc.abstractmethod
    def column_sd(self, scales: Scales, n_factors: int) -> Norms:
        """λ_j; infinite where there is no shrinkage."""

    def column_precision(self, scales: Scales, shape: tuple[int, int]) -> Entries:
        """λ_j⁻² for every gene; `shape` is (gene, factor)."""
        return jnp.broadcast_to(1 / self.column_sd(scales, shape[1]) ** 2, shape)

    def sites(self, n_factors: int) -> tuple[tuple[str, Callable[[Scales], Any]], ...]:
        """(name, function of the earlier scales -> distribution) of each scale, in order."""
        del n_factors
        return ()

    def log_density(self, W: Entries, scales: Scales) -> Float[Array, ""]:
        """Log-density of W_⊥ given the scales, without constants."""
        n_genes, n_factors = W.shape
        norms = gauge.squared_norms(W)
        sd = self.column_sd(scales, n_factors)
        finite = jnp.isfinite(sd)
        sd = jnp.where(finite, sd, 1.0)
        return jnp.sum(jnp.where(finite, -norms / (2 * sd**2) - (n_genes - 1) * jnp.log(sd), 0.0))


class Flat(LoadingsPrior):
    """No shrinkage."""

    def start(self, norms, n_genes):
        return {}

    def update(self, scales, norms, n_genes):
        return scales

    def column_sd(self, scales, n_factors):
        return jnp.full(n_factors, jnp.inf)


class Gaussian(LoadingsPrior):
    """Every column has the same known standard deviation `scale`."""

    scale: float = 1.0

    def start(self, norms, n_genes):
        return {}

    def update(self, scales, norms, n_genes):
        return scales

    def column_sd(self, scales, n_factors):
        return jnp.full(n_factors, self.scale)


class HorseshoeColumnwise(LoadingsPrior):
    """λ_j ~ HalfCauchy(τ), τ ~ HalfCauchy(τ₀); λ is a standard deviation."""

    tau_scale: float = 1.0

    def start(self, norms, n_genes):
        lam = jnp.maximum(jnp.sqrt(norms / n_genes), 0.1)
        return {"lambda": lam, "tau": self._tau(lam)}

    def update(self, scales, norms, n_genes):
        # Conditional mode: (G+1) y² + ((G-1) τ² - n) y - n τ² = 0 in y = λ², one positive root.
        tau2 = scales["tau"] ** 2
        b = (n_genes - 1) * tau2 - norms
        root = jnp.sqrt(b**2 + 4 * (n_genes + 1) * norms * tau2)
        y = jnp.where(
            b > 0,
            2 * norms * tau2 / (b + root),  # the same root without the cancellation
            (root - b) / (2 * (n_genes + 1)),
        )
        lam = jnp.sqrt(jnp.maximum(y, FLOOR**2))
        return {"lambda": lam, "tau": self._tau(lam)}

    def _tau(self, lam):
        """Most probable τ: the one root of a decreasing function, by bisection in log τ."""

        def narrow(_, interval):
            low, high = interval
            middle = (low + high) / 2
            tau2 = jnp.exp(2 * middle)
            gradient = jnp.sum(1 - 2 * tau2 / (tau2 + lam**2)) - 2 * tau2 / (
                self.tau_scale**2 + tau2
            )
            up = gradient > 0
            return jnp.where(up, middle, low), jnp.where(up, high, middle)

        bounds = jnp.full((), jnp.log(FLOOR)), jnp.full((), jnp.log(100.0))
        return jnp.exp(lax.fori_loop(0, 40, narrow, bounds)[0])

    def column_sd(self, scales, n_factors):
        return scales["lambda"]

    def sites(self, n_factors):
        return (
            ("tau", lambda scales: dist.HalfCauchy(self.tau_scale)),
            ("lambda", lambda scales: dist.HalfCauchy(scales["tau"]).expand((n_factors,))),
        )


class HorseshoeSparse(HorseshoeColumnwise):
    """Columns as under `HorseshoeColumnwise`, whose entries are spike and slab.

    An entry of W_⊥ is π_j N(b_j, s_j²) + (1 - π_j) N(b_j, ρ_j λ_j²) around a free ``centre`` b_j:
    the share π_j (``inclusion``) of genes belongs to program j, and the others differ by the share
    ρ_j (``spike``) of the column's variance λ_j², so that s_j² = λ_j² (1 - (1 - π_j) ρ_j)/π_j.
    Unlike a prior on columns alone it is not the same in every rotation: the programs are
    identified up to order and sign.

    Where the counts leave entries as Gaussian as they were, π_j and ρ_j grow until spike and slab
    are alike.
    """

    sparse: ClassVar[bool] = True

    def start(self, norms, n_genes):
        shape = {"inclusion": jnp.full_like(norms, 0.3), "spike": jnp.full_like(norms, 0.1)}
        return super().start(norms, n_genes) | shape | {"centre": jnp.zeros_like(norms)}

    def update(self, scales, norms, n_genes):
        return scales | super().update(scales, norms, n_genes)

    def variances(self, scales: Scales) -> tuple[Norms, Norms]:
        """Of slab and spike, by column."""
        share, spike = scales["inclusion"], scales["spike"]
        square = scales["lambda"] ** 2
        return square * (1 - (1 - share) * spike) / share, square * spike

    def sharpen(self, scales: Scales, rows: Rows) -> tuple[Scales, Entries, Norms]:
        """One step of expectation propagation (Minka 2001) for the entries, of EM for the shape.

        Returns
        -------
        shape
            ``inclusion``, ``spike`` and ``centre``.
        precision
            Of the Gaussian prior under which each entry has the posterior mean that spike and
            slab give it.
        norms
            Expected squared norms of the columns; 0 of those that are to vanish.
        """
        seen, known, member, kept = self._entries(scales, rows)
        shares = jnp.stack([member, 1 - member])
        size = jnp.sum(shares, axis=1)
        squares = jnp.sum(shares * ((kept * seen) ** 2 + kept / known), axis=1)
        norms = jnp.sum(squares, axis=0)
        n_genes = seen.shape[0]
        spike = squares[1] / jnp.maximum(size[1], 1e-6) / (norms / n_genes)
        shape = {
            "inclusion": jnp.clip(size[0] / n_genes, *SHARES),
            "spike": jnp.clip(spike, SMALLEST_SPIKE, 1.0),
            "centre": rows.centre - jnp.mean(rows.mean, axis=0),
        }
        stays = (rows.strength() > NOISE) & (scales["lambda"] > SMALLEST_SD)
        precision = known * (1 / jnp.sum(shares * kept, axis=0) - 1)
        return shape, precision, jnp.where(stays, norms, 0.0)

    def membership(self, scales: Scales, rows: Rows) -> Entries:
        """Posterior probability that each gene belongs to each program: that of the slab."""
        return self._entries(scales, rows)[2]

    def _entries(self, scales, rows):
        """What the counts alone say of each entry, as mean and precision; slab or spike.

        The last are the probability of the slab, and the share of the mean that slab and spike
        keep.
        """
        seen, known = rows.likelihood()
        slab, spike = self.variances(scales)
        log_odds = _log_normal(seen, slab + 1 / known) - _log_normal(seen, spike + 1 / known)
        member = jax.nn.sigmoid(jax.scipy.special.logit(scales["inclusion"]) + log_odds)
        kept = jnp.stack([known / (known + 1 / slab), known / (known + 1 / spike)])
        return seen, known, member, kept

    def sites(self, n_factors):
        return (
            *super().sites(n_factors),
            ("inclusion", lambda scales: dist.Uniform(*SHARES).expand((n_factors,))),
            ("spike", lambda scales: dist.Uniform(SMALLEST_SPIKE, 1.0).expand((n_factors,))),
            ("centre", lambda scales: dist.Normal(0.0, 10.0).expand((n_factors,))),
        )

    def log_density(self, W, scales):
        W = gauge.compositional(W) - scales["centre"]
        slab, spike = self.variances(scales)
        share = scales["inclusion"]
        entries = jnp.logaddexp(
            jnp.log(share) + _log_normal(W, slab), jnp.log1p(-share) + _log_normal(W, spike)
        )
        return jnp.sum(entries)


def _log_normal(x, variance):
    """Log-density of N(0, variance), without the constant."""
    return -0.5 * (x**2 / variance + jnp.log(variance))


class NegColumnwise(LoadingsPrior):
    """Variance ψ_j ~ Exponential(rate γ), γ ~ Gamma(α, rate β): normal-exponential-gamma."""

    alpha: float = 1.0
    beta: float = 1.0

    def start(self, norms, n_genes):
        psi = jnp.maximum(norms / n_genes, 0.01)
        return {"psi": psi, "gamma": self._gamma(psi)}

    def update(self, scales, norms, n_genes):
        # Conditional mode: 2 γ ψ² + (G-1) ψ - n = 0, the positive root without cancellation.
        gamma, g = scales["gamma"], n_genes - 1
        psi = 2 * norms / (g + jnp.sqrt(g**2 + 8 * gamma * norms))
        psi = jnp.maximum(psi, FLOOR**2)
        return {"psi": psi, "gamma": self._gamma(psi)}

    def _gamma(self, psi):
        return (self.alpha + psi.shape[0] - 1) / (self.beta + jnp.sum(psi))

    def column_sd(self, scales, n_factors):
        return jnp.sqrt(scales["psi"])

    def sites(self, n_factors):
        return (
            ("gamma", lambda scales: dist.Gamma(self.alpha, self.beta)),
            ("psi", lambda scales: dist.Exponential(scales["gamma"]).expand((n_factors,))),
        )


LOADINGS_PRIORS: dict[str, type[LoadingsPrior]] = {
    "none": Flat,
    "gaussian": Gaussian,
    "horseshoe_columnwise": HorseshoeColumnwise,
    "horseshoe_sparse": HorseshoeSparse,
    "neg_columnwise": NegColumnwise,
}
