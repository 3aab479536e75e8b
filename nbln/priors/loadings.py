"""Priors on the gauge-invariant loadings W_⊥ = W - 1 w̄ᵀ, which choose the number of programs.

Column j of W_⊥ has standard deviation λ_j: equivalently w_gj ~ N(b_j, λ_j²) with a flat b_j. Its
log-density is -‖w_⊥j‖²/(2 λ_j²) - (G - 1) log λ_j + const. A scale never falls below `FLOOR`: the
joint density is unbounded where columns collapse, so what is wanted, and what coordinate updates
from large columns reach, is the local mode with the columns that the data support.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float

FLOOR = 1e-3

Norms = Float[Array, " factor"]  # squared Euclidean norms ‖w_⊥j‖²
Scales = dict[str, jax.Array]  # the prior's own unknowns, by site name


class LoadingsPrior(eqx.Module):
    """Prior on the columns of W_⊥; its scales are learned with the loadings."""

    @abc.abstractmethod
    def start(self, norms: Norms, n_genes: int) -> Scales:
        """First scales, from the squared norms of the first loadings."""

    @abc.abstractmethod
    def update(self, scales: Scales, norms: Norms, n_genes: int) -> Scales:
        """Most probable scales given the squared norms of the columns."""

    @abc.abstractmethod
    def column_sd(self, scales: Scales, n_factors: int) -> Norms:
        """λ_j; infinite where there is no shrinkage."""

    def sites(self, n_factors: int) -> tuple[tuple[str, Callable[[Scales], Any]], ...]:
        """(name, function of the earlier scales -> distribution) of each scale, in order."""
        del n_factors
        return ()

    def log_density(self, norms: Norms, scales: Scales, n_genes: int) -> Float[Array, ""]:
        """Log-density of W_⊥ given the scales, without constants."""
        sd = self.column_sd(scales, norms.shape[0])
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
    "neg_columnwise": NegColumnwise,
}
