"""Priors on a log-normal model's r and μ that follow the moments of an independent-genes fit.

A gene-by-gene negative binomial puts all overdispersion in its r̄; a log-normal model explains part
of it by Σ_gg. Equal mean and variance need μ = log μ̄ - Σ_gg/2 and
1 + 1/r = (1 + 1/r̄) exp(-Σ_gg).
"""

import equinox as eqx
import jax.numpy as jnp

from nbln.priors.univariate import Frozen, LogNormal, Normal, Prior, Value

# Beyond it the variance m + m²/r of a count below 1,000 is that of a Poisson to a tenth.
R_MAX = 1e4


def conditional_log_r(log_r: Value, variance: Value) -> Value:
    """log r given the marginal log r̄ and the gene's log-rate variance, at most log `R_MAX`."""
    excess = jnp.expm1(jnp.log1p(jnp.exp(-log_r)) - variance)
    return -jnp.log(jnp.maximum(excess, 1 / R_MAX))


class Marginal(Prior):
    """A prior that follows the moments of counts; without Σ_gg, it is the marginal one."""

    marginal: eqx.AbstractVar[Prior]

    @property
    def frozen(self):
        return self.marginal.frozen

    def distribution(self, shape):
        return self.marginal.distribution(shape)

    def mode(self):
        return self.marginal.mode()


class MarginalDispersion(Marginal):
    """r̄ of a gene-by-gene fit, soft (`LogNormal`) or `Frozen`; r follows it."""

    marginal: LogNormal | Frozen

    def at(self, variance):
        """The prior of r at the current log-rate variance Σ_gg."""
        if isinstance(self.marginal, Frozen):
            return Frozen(jnp.exp(conditional_log_r(jnp.log(self.marginal.value), variance)))
        return LogNormal(conditional_log_r(self.marginal.loc, variance), self.marginal.scale)


class MarginalMean(Marginal):
    """log μ̄ of a gene-by-gene fit, soft (`Normal`) or `Frozen`; μ follows it.

    It follows Σ_gg as far as r̄ admits any, log(1 + 1/r̄): beyond, moments cannot match, and a mean
    that fell with a growing variance would feed that growth.
    """

    marginal: Normal | Frozen
    log_r: Value  # log r̄

    def at(self, variance):
        """The prior of μ at the current log-rate variance Σ_gg."""
        variance = jnp.minimum(variance, jnp.log1p(jnp.exp(-self.log_r)))
        if isinstance(self.marginal, Frozen):
            return Frozen(self.marginal.value - variance / 2)
        return Normal(self.marginal.loc - variance / 2, self.marginal.scale)
