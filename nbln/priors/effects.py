"""Priors of the effects β of covariates on genes, and what they are learned and drawn from.

Effects of a fixed covariate are N(0, s²), with a standard deviation over genes. Effects of the
levels of a random intercept, donors say, are N(0, ω_g²), with a variance of each gene. These
variances are moderated, since each is known from a few levels alone:
ω_g² ~ InverseGamma(ν/2, ν τ²/2), of which τ² is learned (Smyth 2004, with log-rates in place of
measurements).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Effects = Float[Array, "gene covariate"]

# Of effects before any is known (natural log): large, so that the counts decide.
FIRST_SD = 2.0
# Far below what any counts could show, and not 0, where an effect that has become none would stay.
SMALLEST_SD = 1e-2
# ν, prior degrees of freedom of a gene's variance between levels: then the sd of log ω² is 0.8.
# Linear models of expression measured in replicates find 3 to 10 (Smyth 2004).
DEGREES = 4.0


class EffectScales(NamedTuple):
    """How large effects are."""

    sd: Float[Array, " fixed"]  # s
    variance: Float[Array, "gene random"]  # ω²
    typical: Float[Array, " random"]  # τ²


class EffectsPrior(eqx.Module):
    """Which effects there are: the fixed ones first, then the levels of each random intercept."""

    n_fixed: int = eqx.field(static=True, default=0)
    n_levels: tuple[int, ...] = eqx.field(static=True, default=())

    @property
    def n_covariates(self) -> int:
        """Number of effects of a gene."""
        return self.n_fixed + sum(self.n_levels)

    def start(self, n_genes: int) -> EffectScales:
        """Wide ones."""
        n = len(self.n_levels)
        return EffectScales(
            jnp.full(self.n_fixed, FIRST_SD),
            jnp.full((n_genes, n), FIRST_SD**2),
            jnp.full(n, FIRST_SD**2),
        )

    def precision(self, scales: EffectScales) -> Effects:
        """Prior precision of every effect."""
        n_genes = scales.variance.shape[0]
        fixed = jnp.broadcast_to(scales.sd**-2, (n_genes, self.n_fixed))
        random = [
            jnp.broadcast_to(1 / scales.variance[:, [i]], (n_genes, n))
            for i, n in enumerate(self.n_levels)
        ]
        return jnp.concatenate([fixed, *random], axis=1)

    def learned(self, scales: EffectScales, effects: Effects, variance: Effects) -> EffectScales:
        """Those that the effects, with their posterior variances, make most likely.

        A variance of a gene is 1 over its expected precision.
        """
        expected = effects**2 + variance
        sd = jnp.sqrt(jnp.mean(expected[:, : self.n_fixed], axis=0))
        shape, rate = self._variances(scales, expected)
        typical = 1 / jnp.mean(shape / rate, axis=0)
        return EffectScales(
            jnp.maximum(sd, SMALLEST_SD), rate / shape, jnp.maximum(typical, SMALLEST_SD**2)
        )

    def draw(self, key: Array, scales: EffectScales, effects: Effects) -> EffectScales:
        """Scales given the effects, flat priors of s and τ² from `SMALLEST_SD` up."""
        for_sd, for_variance, for_typical = jax.random.split(key, 3)
        squares = jnp.sum(effects[:, : self.n_fixed] ** 2, axis=0)
        n_genes = len(effects)
        sd = jnp.sqrt(0.5 * squares / jax.random.gamma(for_sd, 0.5 * (n_genes - 1), squares.shape))
        shape, rate = self._variances(scales, effects**2)
        variance = rate / jax.random.gamma(for_variance, shape, rate.shape)
        rest = 0.5 * DEGREES * jnp.sum(1 / variance, axis=0)
        typical = jax.random.gamma(for_typical, 0.5 * DEGREES * n_genes + 1, rest.shape) / rest
        return EffectScales(
            jnp.maximum(sd, SMALLEST_SD), variance, jnp.maximum(typical, SMALLEST_SD**2)
        )

    def _variances(self, scales: EffectScales, squares: Effects):
        """Shape (random,) and rate (gene, random) of the variances given squares of effects."""
        level = np.repeat(np.arange(len(self.n_levels)), self.n_levels)
        sums = squares[:, self.n_fixed :] @ jnp.asarray(np.eye(len(self.n_levels))[level])
        shape = 0.5 * (DEGREES + jnp.asarray(self.n_levels, squares.dtype))
        return shape, 0.5 * (DEGREES * scales.typical + sums)


class FittedEffects(NamedTuple):
    """A prior of effects with the scales that were learned."""

    prior: EffectsPrior
    scales: EffectScales

    @property
    def precision(self) -> Effects:
        """Of every effect."""
        return self.prior.precision(self.scales)

    @classmethod
    def none(cls, n_genes: int) -> "FittedEffects":
        """That of a model without covariates."""
        return cls(EffectsPrior(), EffectsPrior().start(n_genes))
