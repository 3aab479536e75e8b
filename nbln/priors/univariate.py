"""Priors of a number per gene, or of one number: what is believed of it, or its frozen value."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

Value = Float[Array, "..."] | float


class Prior(eqx.Module):
    """A prior on the natural scale of its site."""

    form: ClassVar[str] = ""  # how a user writes it, two numbers; empty where that is not possible
    positive: ClassVar[bool] = False  # whether the first number has to be, as the second does

    @abc.abstractmethod
    def distribution(self, shape: tuple[int, ...]) -> dist.Distribution:
        """As a NumPyro distribution with batch shape `shape`."""

    @abc.abstractmethod
    def mode(self) -> Value:
        """Most probable value in the coordinate the engine moves, on the natural scale."""

    def at(self, variance: Value) -> "Prior":
        """The prior of a gene whose log-rates have this variance Σ_gg: here, the same."""
        del variance
        return self

    @property
    def frozen(self) -> bool:
        """Whether the site has a known value."""
        return False


class SmoothPrior(Prior):
    """A prior whose site moves by Newton steps.

    The coordinate that moves is the identity for `Normal`, the logit for `Beta`, the natural
    logarithm for `LogNormal`.
    """

    @abc.abstractmethod
    def penalty(self, value: Value) -> tuple[Value, Value]:
        """Gradient and positive curvature of the log-density in the coordinate that moves."""


class Normal(SmoothPrior):
    """Gaussian with mean `loc` and standard deviation `scale`; infinite `scale` is flat."""

    form: ClassVar[str] = "(loc, scale): mean and standard deviation"

    loc: Value
    scale: Value

    def distribution(self, shape):
        return dist.Normal(self.loc, self.scale).expand(shape)

    def mode(self):
        return self.loc

    def penalty(self, value):
        return (self.loc - value) / self.scale**2, 1 / self.scale**2 * jnp.ones_like(value)


class LogNormal(SmoothPrior):
    """The natural logarithm has mean `loc` and standard deviation `scale`."""

    form: ClassVar[str] = "(loc, scale): mean and standard deviation of the natural log"

    loc: Value
    scale: Value

    def distribution(self, shape):
        return dist.LogNormal(self.loc, self.scale).expand(shape)

    def mode(self):
        return jnp.exp(self.loc)

    def penalty(self, log_value):
        return Normal(self.loc, self.scale).penalty(log_value)


class InverseGamma(Prior):
    """Density proportional to x^(-shape-1) exp(-rate/x); mode rate / (shape + 1)."""

    form: ClassVar[str] = "(shape, rate): mode rate / (shape + 1)"
    positive: ClassVar[bool] = True

    shape: Value
    rate: Value

    def distribution(self, shape):
        return dist.InverseGamma(self.shape, self.rate).expand(shape)

    def mode(self):
        return self.rate / (self.shape + 1)

    def posterior_mode(self, sum_of_squares: Value, n: Value) -> Value:
        """Mode of a variance after `n` deviations with this sum of squares."""
        return (0.5 * sum_of_squares + self.rate) / (0.5 * n + self.shape + 1)


class Beta(SmoothPrior):
    """Probability with density proportional to p^(a-1) (1-p)^(b-1)."""

    form: ClassVar[str] = "(a, b)"
    positive: ClassVar[bool] = True

    a: Value
    b: Value

    def distribution(self, shape):
        return dist.Beta(self.a, self.b).expand(shape)

    def mode(self):
        return self.a / (self.a + self.b)

    def penalty(self, logit):
        p = jax.nn.sigmoid(logit)
        total = self.a + self.b
        return self.a - total * p, total * p * (1 - p)


class Frozen(Prior):
    """A known value: no longer a parameter."""

    value: Value

    @property
    def frozen(self):
        return True

    def distribution(self, shape):
        return dist.Delta(jnp.broadcast_to(self.value, shape))

    def mode(self):
        return self.value
