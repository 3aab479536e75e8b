"""The zero-inflated negative binomial, exact in float32."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.nn import sigmoid, softplus
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from nbln.distributions.negative_binomial import (
    log_total_excess,
    nb_log_prob,
    nb_tails,
    score_concentration,
    score_log_mean,
)
from nbln.distributions.sampling import sample_negative_binomial
from nbln.distributions.special import LOG_MEAN_BOUND, as_float, as_parameters, bounded_exp


@jax.custom_jvp
def _log_zero(log_mean: Array, concentration: Array) -> Array:
    """log P(0) = −θ log(1 + μ/θ) of the counts before inflation, at a part of any count's cost."""
    ratio = bounded_exp(log_mean) / concentration
    # `ratio` stops growing where `bounded_exp` clips; log(1 + μ/θ) goes on as log μ.
    return -concentration * (jnp.log1p(ratio) + jnp.maximum(log_mean - LOG_MEAN_BOUND, 0))


@_log_zero.defjvp
def _log_zero_jvp(primals, tangents):
    dlog_mean, dconcentration = tangents
    none = jnp.zeros_like(primals[0])
    # ∂/∂θ as automatic differentiation has it is a difference of almost equal numbers.
    tangent = score_log_mean(none, *primals) * dlog_mean
    tangent = tangent + log_total_excess(none, *primals) * dconcentration
    return _log_zero(*primals), tangent


@jax.custom_jvp
def _log_prob(x: Array, log_mean: Array, concentration: Array, gate_logits: Array) -> Array:
    open_gate = -softplus(gate_logits)
    base = _log_zero(log_mean, concentration)
    positive = sigmoid(-gate_logits) * -jnp.expm1(base)
    # Where zero is likely, its log-probability is near 0 and the sum of the two ways to a zero
    # would lose its digits; so it is taken from P(X > 0).
    likely = jnp.log1p(-jnp.minimum(positive, 0.5))
    zero = jnp.where(positive < 0.5, likely, jnp.logaddexp(gate_logits, base) + open_gate)
    return jnp.where(x > 0, nb_log_prob(x, log_mean, concentration) + open_gate, zero)


@_log_prob.defjvp
def _log_prob_jvp(primals, tangents):
    x, log_mean, concentration, gate_logits = primals
    _, dlog_mean, dconcentration, dgate = tangents
    base = _log_zero(log_mean, concentration)
    from_counts = jnp.where(x > 0, 1, sigmoid(base - gate_logits))
    counted = score_log_mean(x, log_mean, concentration) * dlog_mean
    counted = counted + score_concentration(x, log_mean, concentration) * dconcentration
    positive = sigmoid(-gate_logits) * -jnp.expm1(base)
    from_gate = sigmoid(gate_logits - base) * positive
    gate = jnp.where(x > 0, -sigmoid(gate_logits), from_gate)
    return _log_prob(*primals), from_counts * counted + gate * dgate


def zinb_log_prob(
    x: ArrayLike, log_mean: ArrayLike, concentration: ArrayLike, gate_logits: ArrayLike
) -> Array:
    """Log-pmf of the zero-inflated negative binomial; counts ``x`` are data.

    The pmf is π + (1 − π) NB(0) at zero and (1 − π) NB(x) elsewhere, with
    π = sigmoid(``gate_logits``).
    """
    log_mean, concentration, gate_logits = as_float(log_mean, concentration, gate_logits)
    x = lax.stop_gradient(jnp.asarray(x, log_mean.dtype))
    return _log_prob(x, log_mean, concentration, gate_logits)


class ZeroInflatedNegativeBinomial(Distribution):
    """Negative binomial counts of which a fraction π is replaced by zero.

    Parameters
    ----------
    log_mean
        Natural log of the mean μ of the counts before inflation.
    concentration
        Their θ > 0; variance μ + μ² / θ.
    gate_logits
        Logit of the probability π of a structural zero.
    """

    arg_constraints: ClassVar = {
        "log_mean": constraints.real,
        "concentration": constraints.positive,
        "gate_logits": constraints.real,
    }
    support = constraints.nonnegative_integer  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        log_mean: ArrayLike,
        concentration: ArrayLike,
        gate_logits: ArrayLike,
        *,
        validate_args: bool | None = None,
    ):
        parameters = as_parameters(log_mean, concentration, gate_logits)
        self.log_mean, self.concentration, self.gate_logits = parameters
        shape = jnp.broadcast_shapes(*(p.shape for p in parameters))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Counts (int32)."""
        key_gate, key_count = random.split(key)
        shape = sample_shape + self.batch_shape
        kept = random.logistic(key_gate, shape, self.log_mean.dtype) > self.gate_logits
        mean = jnp.broadcast_to(jnp.exp(self.log_mean), shape)
        return jnp.where(kept, sample_negative_binomial(key_count, mean, self.concentration), 0)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Natural log probability."""
        return zinb_log_prob(value, self.log_mean, self.concentration, self.gate_logits)

    @property
    def mean(self) -> Array:
        """(1 − π) μ."""
        return jnp.exp(self.log_mean) * sigmoid(-self.gate_logits) * jnp.ones(self.batch_shape)

    @property
    def variance(self) -> Array:
        """(1 − π) μ (1 + μ / θ + π μ)."""
        mu = jnp.exp(self.log_mean)
        return self.mean * (1 + mu / self.concentration + mu * sigmoid(self.gate_logits))

    def cdf(self, value: ArrayLike) -> Array:
        """P(X ≤ value)."""
        above = nb_tails(value, self.log_mean, self.concentration)[1]
        return jnp.where(jnp.asarray(value) < 0, 0, 1 - sigmoid(-self.gate_logits) * above)
