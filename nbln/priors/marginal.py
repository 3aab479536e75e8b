"""Priors on a log-normal model's r and μ that follow the moments of an independent-genes fit.

A gene-by-gene negative binomial puts all overdispersion in its r̄; a log-normal model explains part
of it by Σ_gg. Equal mean and variance need μ = log μ̄ - Σ_gg/2 and
1 + 1/r = (1 + 1/r̄) exp(-Σ_gg).
"""

import equinox as eqx
import jax.numpy as jnp

from nbln.priors.univariate import Frozen, LogNormal, Normal, Prior, Value

R_MAX = 1e4  # beyond it a negative binomial is a Poisson to float32


def conditional_log_r(log_r: Value, variance: Value) -> Value:
    """log r given the marginal log r̄ and the gene's log-rate variance, at most log `R_MAX`."""
    excess = jnp.expm1(jnp.log1p(jnp.exp(-log_r)) - variance)
    return -jnp.log(jnp.maximum(excess, 1 / R_MAX))


class Marginal(Prior):
    """A prior that follows the moments of a source; without Σ_gg, it is the source's own."""

    source: eqx.AbstractVar[Prior]

    @property
    def frozen(self):
        return self.source.frozen

    def distribution(self, shape):
        return self.source.distribution(shape)

    def mode(self):
        return self.source.mode()


class MarginalDispersion(Marginal):
    """r̄ of a gene-by-gene fit, soft (`LogNormal`) or `Frozen`; r follows it."""

    source: LogNormal | Frozen

    def at(self, variance):
        """The prior of r at the current log-rate variance Σ_gg."""
        if isinstance(self.source, Frozen):
            return Frozen(jnp.exp(conditional_log_r(jnp.log(self.source.value), variance)))
        return LogNormal(conditional_log_r(self.source.loc, variance), self.source.scale)


class MarginalMean(Marginal):
    """log μ̄ of a gene-by-gene fit, soft (`Normal`) or `Frozen`; μ follows it.

    It follows Σ_gg as far as r̄ admits any, log(1 + 1/r̄): beyond, moments cannot match, and a mean
    that fell with a growing variance would feed that growth.
    """

    source: Normal | Frozen
    log_r: Value  # log r̄

    def at(self, variance):
        """The prior of μ at the current log-rate variance Σ_gg."""
        variance = jnp.minimum(variance, jnp.log1p(jnp.exp(-self.log_r)))
        if isinstance(self.source, Frozen):
            return Frozen(self.source.value - variance / 2)
        return Normal(self.source.loc - variance / 2, self.source.scale)
