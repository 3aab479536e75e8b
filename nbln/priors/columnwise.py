"""Loadings priors under which the entries of a column are alike."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax

from nbln.priors.loadings import FACTORS, LoadingsPrior, ScaleSite

SMALLEST_START = 0.1  # scale of a first column, natural log: a tenth of a rate in each gene
LARGEST_TAU = 100.0  # upper end of the bisection for τ; scales of log-rates are of order 1
HALVINGS = 40  # of its interval: to float32


class Flat(LoadingsPrior):
    """No shrinkage."""

    def start(self, norms, n_genes):
        return {}

    def update(self, scales, norms, n_genes):
        return scales

    def column_sd(self, scales, n_factors):
        return jnp.full(n_factors, jnp.inf)


class Gaussian(LoadingsPrior):
    """All columns have the same given standard deviation `scale`."""

    scale: float = 1.0

    def start(self, norms, n_genes):
        return {}

    def update(self, scales, norms, n_genes):
        return scales

    def column_sd(self, scales, n_factors):
        return jnp.full(n_factors, self.scale)

    def named(self, scales):
        return {"scale": float(self.scale)}


class HorseshoeColumnwise(LoadingsPrior):
    """λ_j ~ HalfCauchy(τ), τ ~ HalfCauchy(τ₀); λ is a standard deviation.

    Attributes
    ----------
    tau_scale
        τ₀.
    tau_min
        Least τ of a fit.
    init_scale
        Factor on the first λ, which are those of the longest column of the first loadings: columns
        that start too small fall before the factors have taken shape.
    """

    floor: ClassVar = ("lambda_min", 1)
    tau_scale: float = 1.0
    tau_min: float = 0.0
    init_scale: float = 1.0

    def start(self, norms, n_genes):
        lam = self.init_scale * jnp.maximum(jnp.sqrt(norms / n_genes), SMALLEST_START)
        lam = jnp.maximum(lam, self.shrinkage.smallest_scale)
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
        lam = jnp.sqrt(jnp.maximum(y, self.shrinkage.smallest_scale**2))
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

        bounds = (
            jnp.full((), jnp.log(self.shrinkage.smallest_scale)),
            jnp.full((), jnp.log(LARGEST_TAU)),
        )
        return jnp.maximum(jnp.exp(lax.fori_loop(0, HALVINGS, narrow, bounds)[0]), self.tau_min)

    def column_sd(self, scales, n_factors):
        return scales["lambda"]

    def named(self, scales):
        return {"tau": float(scales["tau"])}

    def sites(self, n_factors):
        columns = (n_factors,)
        return (
            ScaleSite("tau", (), lambda scales: dist.HalfCauchy(self.tau_scale)),
            ScaleSite(
                "lambda", FACTORS, lambda scales: dist.HalfCauchy(scales["tau"]).expand(columns)
            ),
        )


class NegColumnwise(LoadingsPrior):
    """Variance ψ_j ~ Exponential(rate γ), γ ~ Gamma(α, rate β): normal-exponential-gamma.

    Attributes
    ----------
    alpha, beta
        Shape and rate of γ.
    gamma_min
        Least γ of a fit.
    init_scale
        Factor on the first standard deviations √ψ, as in `HorseshoeColumnwise`.
    """

    floor: ClassVar = ("psi_min", 2)
    alpha: float = 1.0
    beta: float = 1.0
    gamma_min: float = 0.0
    init_scale: float = 1.0

    def start(self, norms, n_genes):
        psi = self.init_scale**2 * jnp.maximum(norms / n_genes, SMALLEST_START**2)
        psi = jnp.maximum(psi, self.shrinkage.smallest_scale**2)
        return {"psi": psi, "gamma": self._gamma(psi)}

    def update(self, scales, norms, n_genes):
        # Conditional mode: 2 γ ψ² + (G-1) ψ - n = 0, the positive root without cancellation.
        gamma, g = scales["gamma"], n_genes - 1
        psi = 2 * norms / (g + jnp.sqrt(g**2 + 8 * gamma * norms))
        psi = jnp.maximum(psi, self.shrinkage.smallest_scale**2)
        return {"psi": psi, "gamma": self._gamma(psi)}

    def _gamma(self, psi):
        gamma = (self.alpha + psi.shape[0] - 1) / (self.beta + jnp.sum(psi))
        return jnp.maximum(gamma, self.gamma_min)

    def column_sd(self, scales, n_factors):
        return jnp.sqrt(scales["psi"])

    def named(self, scales):
        return {"psi_k": np.asarray(scales["psi"]), "gamma": float(scales["gamma"])}

    def sites(self, n_factors):
        return (
            ScaleSite("gamma", (), lambda scales: dist.Gamma(self.alpha, self.beta)),
            ScaleSite(
                "psi",
                FACTORS,
                lambda scales: dist.Exponential(scales["gamma"]).expand((n_factors,)),
            ),
        )
