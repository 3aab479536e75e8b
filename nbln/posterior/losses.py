"""The capture loss of cells whose genes are independent: its posterior by quadrature.

Genes that have nothing but the capture loss in common leave a single integral a cell,

    p(u) = ∫ Π_g p(u_g | log mean_g - η) TruncatedNormal(η; m, σ, low = 0) dη,

which nodes of Gauss and Legendre find to rounding, whatever the shape of the posterior: at its end
at 0, and where a gate makes it other than log-concave.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from nbln.channels.base import Channel
from nbln.distributions.special import HALF_LOG_TWO_PI
from nbln.posterior.evidence import log_prior_mass
from nbln.posterior.mode import Cells, Columns

# Of the range of a posterior: what is cut off is e^-18 of its height, and the nodes, 1.2 standard
# deviations apart at the middle, integrate a Gaussian to 1e-6.
N_NODES, DROP = 16, 18.0
# Newton steps to the mode from the best of the first places; with the steps bounded, eight reach
# it from three prior standard deviations away, and the nodes need it roughly only.
N_STEPS = 8
LARGEST_STEP = 1.0  # natural log
# First places, in prior standard deviations from the prior's mean. Where a gate explains zeros
# there may be two modes; then the higher one is found.
PLACES = (-4.0, -2.0, 0.0, 2.0, 4.0)


class Integral(NamedTuple):
    """Of every cell: log p(u) in nats, and posterior mean and standard deviation of η."""

    log: Float[Array, " cell"]
    mean: Float[Array, " cell"]
    sd: Float[Array, " cell"]


class _Posterior(NamedTuple):
    """The posterior of η up to a constant: log-density, and its slope and curvature."""

    log_mean: Float[Array, "*cell gene"]
    channel: Channel
    cells: Cells
    loc: Float[Array, " cell"]
    scale: Float[Array, " cell"]

    def rates(self, eta):
        return self.log_mean - eta[:, None]

    def log_density(self, eta):
        counted = self.channel.log_prob(self.cells.counts, self.rates(eta)).sum(axis=1)
        return counted - 0.5 * ((eta - self.loc) / self.scale) ** 2

    def slope(self, eta):
        s, a, _ = self.channel.derivatives(self.cells.counts, self.rates(eta))
        precision = 1 / self.scale**2
        return -s.sum(axis=1) - (eta - self.loc) * precision, a.sum(axis=1) + precision


def integrate(
    log_mean: Float[Array, "*cell gene"], channel: Channel, cells: Cells, columns: Columns
) -> Integral:
    """Evidence of cells, and what it says of their capture losses; known ones are as they are.

    Log means are those of all cells, or of each.
    """
    if not columns.value:
        f = cells.mean(log_mean)
        log = channel.log_prob(cells.counts, f).sum(axis=1) * cells.mask
        return Integral(log, -cells.offset, jnp.zeros_like(cells.offset))
    scale = jnp.where(cells.mask > 0, abs(columns.value[0]) * cells.scale[:, 0], 1.0)
    posterior = _Posterior(log_mean, channel, cells, -cells.offset, scale)
    low, high = _range(posterior, _mode(posterior))
    places, weights = np.polynomial.legendre.leggauss(N_NODES)
    half = 0.5 * (high - low)
    eta = low + half * (1 + jnp.asarray(places, low.dtype)[:, None])
    log_weight = lax.map(posterior.log_density, eta) + jnp.log(jnp.asarray(weights))[:, None]
    total = logsumexp(log_weight, axis=0)
    share = jnp.exp(log_weight - total)
    mean = jnp.sum(share * eta, axis=0)
    sd = jnp.sqrt(jnp.sum(share * (eta - mean) ** 2, axis=0))
    log = total + jnp.log(half) - jnp.log(scale) - HALF_LOG_TWO_PI
    return Integral((log - log_prior_mass(cells, columns)) * cells.mask, mean, sd)


def _mode(posterior: _Posterior):
    """The mode of η ≥ 0, by Newton steps that are halved where they lead down."""
    starts = jnp.stack([jnp.maximum(posterior.loc + z * posterior.scale, 0.0) for z in PLACES])
    values = lax.map(posterior.log_density, starts)
    best = jnp.argmax(values, axis=0)[None]
    eta, value = (jnp.take_along_axis(x, best, axis=0)[0] for x in (starts, values))

    def advance(_, carry):
        eta, value, length = carry
        slope, curvature = posterior.slope(eta)
        step = jnp.clip(length * slope / curvature, -LARGEST_STEP, LARGEST_STEP)
        new = jnp.maximum(eta + step, 0.0)
        reached = posterior.log_density(new)
        better = reached >= value
        return (
            jnp.where(better, new, eta),
            jnp.where(better, reached, value),
            jnp.where(better, jnp.minimum(2 * length, 1.0), length / 2),
        )

    return jax.lax.fori_loop(0, N_STEPS, advance, (eta, value, jnp.ones_like(eta)))[0]


def _range(posterior: _Posterior, mode):
    """Where the log-density has fallen by `DROP`, by its slope and curvature at the mode."""
    slope, curvature = posterior.slope(mode)
    down = jnp.minimum(slope, 0.0)  # at a mode of 0 the slope may be negative
    reach = (down + jnp.sqrt(down**2 + 2 * DROP * curvature)) / curvature
    spread = jnp.sqrt(2 * DROP / curvature)
    return jnp.maximum(mode - spread, 0.0), mode + reach
