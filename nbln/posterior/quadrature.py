"""The probability of a count whose log-rate is Gaussian, and its derivatives, by quadrature.

    L(m, d) = log ∫ p(u | f) N(f; m, d) df

Nodes are equally spaced about the mode of the integrand, a little more than its standard deviation
apart. For an analytic integrand the trapezoidal rule converges exponentially (Trefethen & Weideman
2014); that its nodes are equally spaced leaves one exponential function for the growth of the rate
between them. Expectations under the integrand give the derivatives: E[f] and Var f those in m,
E[(f - m)²] that in d.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from nbln.channels.base import Channel
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns, Parameters

Matrix = Float[Array, "cell gene"]

# Nodes to either side of the mode. The largest error of L was 5e-4 for variances d up to 0.6,
# dispersions 0.5 to 50 and counts up to thousands.
REACH = 4
# Between nodes, in standard deviations: what is cut off and what falls between are alike small.
# Of a Gaussian's fourth moment, which tells the mean of a skewed integrand, the rule finds all but
# 1e-4; at a spacing of 1 all but 2e-3, and slopes in the channel's own overdispersion, which are
# about skewness alone, were off by 4 where their sum over 1,000 cells is 12.
SPACING = 1.12
# What the rule makes of the mass and the variance of a Gaussian, 1 + 2e-7 and 1 - 1e-5: sums over
# millions of counts would show it where d is small, and counts hardly tell the integrand from one.
_PLACES = SPACING * np.arange(-REACH, REACH + 1)
_MASS = SPACING * np.exp(-0.5 * _PLACES**2) / np.sqrt(2 * np.pi)
RULE_MASS = float(_MASS.sum())
RULE_VARIANCE = float((_MASS * _PLACES**2).sum() / _MASS.sum())
# Scalar Newton steps to the mode; the rule needs it roughly only.
CENTRE_ITERATIONS = 2
# Natural log of the largest weight of a node over that of the centre. Where two steps have not led
# near the mode, as for a count ten thousand times what m expects, sums stay finite.
LARGEST_WEIGHT = 60.0


class Integral(NamedTuple):
    """L without what depends on the counts and the channel alone, and expectations given u."""

    log: Matrix
    slope: Matrix  # ∂L/∂m
    information: Matrix  # -∂²L/∂m²
    residual_slope: Matrix  # ∂L/∂d
    own_slope: Matrix | None  # ∂L/∂ω, ω the channel's own overdispersion; None where it has none


class _Nodes(NamedTuple):
    """Where an integrand is evaluated, and what it is there, relative to its centre."""

    centre: Matrix
    spacing: Matrix
    variance: Matrix
    log_weight: list[tuple[int, Matrix, Matrix]]  # node, log integrand, change of the log-kernel


def integrate(channel: Channel, u: Matrix, m: Matrix, d: Float[Array, " gene"]) -> Integral:
    """L and its derivatives."""
    nodes = _evaluate(channel, u, m, d)
    # XLA would compute every node again for each sum that follows.
    mass = lax.optimization_barrier([jnp.exp(weight) for _, weight, _ in nodes.log_weight])
    places = [node for node, _, _ in nodes.log_weight]
    total = 1 + sum(mass)
    first = sum(node * p for node, p in zip(places, mass, strict=True))
    second = sum(node**2 * p for node, p in zip(places, mass, strict=True))
    risen = sum(p * change for p, (_, _, change) in zip(mass, nodes.log_weight, strict=True))
    total, first, second, risen = lax.optimization_barrier((total, first, second, risen))
    move = nodes.spacing * first / total
    spread = (nodes.spacing**2 * second / total - move**2) / RULE_VARIANCE
    away = nodes.centre - m + move
    slope = away / d
    return Integral(
        _log(channel, u, m, d, nodes, total),
        slope,
        (d - spread) / d**2,
        0.5 * (away**2 + spread - d) / d**2,
        channel.own_slope(u, nodes.centre, slope, move, risen / total),
    )


def at_factors(
    parameters: Parameters, cells: Cells, columns: Columns, z: Float[Array, "coordinate cell"]
) -> Integral:
    """L of cells at these coordinates, each gene's own residual integrated out."""
    m = mode.rates_without_residual(parameters, cells, columns, z)
    return integrate(parameters.channel, cells.counts, m, parameters.d)


def _evaluate(channel: Channel, u: Matrix, m: Matrix, d: Float[Array, " gene"]) -> _Nodes:
    f = lax.optimization_barrier(mode.rates_given_mean(channel, u, m, d, CENTRE_ITERATIONS))
    variance = d / (1 + d * channel.derivatives(u, f)[1])
    spacing = SPACING * jnp.sqrt(variance)
    growth = jnp.expm1(spacing)
    up, moved = [], jnp.zeros_like(growth)
    for _ in range(REACH):
        moved = moved + growth + moved * growth  # e^{k spacing} - 1, without cancellation
        up.append(moved)
    log_weight = []
    for k, e in enumerate(up, start=1):
        for node, grown in ((k, e), (-k, -e / (1 + e))):
            step = node * spacing
            change = channel.change(u, f, step, grown)
            weight = change - step * ((f - m) / d + 0.5 * step / d)
            log_weight.append((node, jnp.minimum(weight, LARGEST_WEIGHT), change))
    return _Nodes(f, spacing, variance, log_weight)


def _log(channel: Channel, u: Matrix, m: Matrix, d, nodes: _Nodes, total: Matrix) -> Matrix:
    constant = 0.5 * (jnp.log(nodes.variance / d) - np.log(2 * np.pi)) + np.log(SPACING / RULE_MASS)
    f = nodes.centre
    return channel.log_kernel(u, f) - 0.5 * (f - m) ** 2 / d + jnp.log(total) + constant
