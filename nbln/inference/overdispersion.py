"""How overdispersed each gene is, in coordinates that counts know and coordinates they hardly know.

The total φ_g = d_g + ω_g, ω_g the channel's own, is well determined gene by gene; the share s_g =
d_g/φ_g is not. So the total is pooled over genes, log φ_g ~ N(m, σ²), and the share is one number
of the data set with small deviations, logit s_g ~ N(m_s, τ²).
"""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.linalg.products import dot
from nbln.posterior.quadrature import Integral
from nbln.priors.univariate import Prior

LEAST_CURVATURE = 0.05  # stands for a prior that is not concave, in natural logs to the -2

Coordinates = Float[Array, "coordinate gene"]  # log φ, and logit s where there is a share


class Pool(NamedTuple):
    """What genes have in common: mean and sd of log φ; mean of logit s, 0 where there is none."""

    mean: Float[Array, ""]
    sd: Float[Array, ""]
    share: Float[Array, ""]


class OverdispersionPrior(eqx.Module):
    """What is believed of the coordinates of all genes, and of what they have in common."""

    def start(self, psi: Coordinates) -> Pool:
        """The pool of these genes."""
        share = jnp.mean(psi[1]) if len(psi) > 1 else jnp.zeros(())
        return Pool(jnp.mean(psi[0]), jnp.std(psi[0]), share)

    @abc.abstractmethod
    def penalty(self, psi: Coordinates, pool: Pool) -> tuple[Coordinates, Coordinates]:
        """Gradient and positive curvature of the log-density of every gene's coordinates."""

    @abc.abstractmethod
    def log_density(self, psi: Coordinates, pool: Pool) -> Float[Array, " gene"]:
        """Of every gene's coordinates given the pool, without constants."""

    def log_shifted(self, psi: Coordinates, pool: Pool) -> Float[Array, ""]:
        """Log-density of all coordinates and m_s, as far as a shift of all logit s changes it."""
        return jnp.sum(self.log_density(psi, pool))

    def draw(self, key: Array, psi: Coordinates, pool: Pool) -> Pool:
        """The pool given the genes."""
        del key, pool
        return self.start(psi)


class Pooling(OverdispersionPrior):
    """Genes are alike; the hyperprior is proper, since with a vague one the pool collapses.

    Where most genes look Poisson given the programs, their φ would drift to 0 and take the others
    along. So m is at least log `least`, of N(`middle`, `width`²), and σ² is scaled inverse
    chi-squared but at most `largest_sd`². Expression of all genes varies by more than a squared
    coefficient of variation of about 0.1 between cells (Taniguchi et al. 2010, in bacteria).
    """

    least: float = eqx.field(static=True, default=0.08)
    middle: float = eqx.field(static=True, default=math.log(0.3))
    width: float = eqx.field(static=True, default=1.0)
    largest_sd: float = eqx.field(static=True, default=0.9)
    freedom: float = eqx.field(static=True, default=10.0)  # of σ²: so many genes' worth
    sd_squared: float = eqx.field(static=True, default=0.25)  # about which it is centred
    # τ: shares of genes differ by a factor of 2 in odds, as simulated ones do. Narrower, intervals
    # of strong pairs are too short; wider, shares are left to each gene's counts.
    deviation: float = eqx.field(static=True, default=0.75)
    share_width: float = eqx.field(static=True, default=2.0)  # of m_s ~ N(0, this²)

    def start(self, psi: Coordinates) -> Pool:
        """The pool of these genes."""
        mean = jnp.maximum(jnp.mean(psi[0]), math.log(self.least))
        sd = jnp.clip(jnp.std(psi[0]), 0.1, self.largest_sd)
        share = jnp.mean(psi[1]) if len(psi) > 1 else jnp.zeros(())
        return Pool(mean, sd, share)

    def estimate(
        self, log_phi: Float[Array, " gene"], variance: Float[Array, " gene"], share: Array
    ) -> Pool:
        """The most probable pool, of log φ with these posterior variances; `share` as given."""
        mean = jnp.maximum(jnp.mean(log_phi), math.log(self.least))
        square = self.freedom * self.sd_squared + jnp.sum((log_phi - mean) ** 2 + variance)
        sd = jnp.sqrt(square / (self.freedom + len(log_phi)))
        return Pool(mean, jnp.minimum(sd, self.largest_sd), share)

    def penalty(self, psi, pool):
        loc = jnp.stack([pool.mean, pool.share])[: len(psi), None]
        precision = jnp.stack([1 / pool.sd**2, jnp.asarray(1 / self.deviation**2)])
        precision = jnp.broadcast_to(precision[: len(psi), None], psi.shape)
        return precision * (loc - psi), precision

    def log_density(self, psi, pool):
        gradient, precision = self.penalty(psi, pool)
        return -0.5 * jnp.sum(gradient**2 / precision, axis=0)

    def draw(self, key, psi, pool):
        """Conjugate draws, within the bounds."""
        n, keys = psi.shape[1], jax.random.split(key, 3)
        square = self.freedom * self.sd_squared + jnp.sum((psi[0] - pool.mean) ** 2)
        gamma = jax.random.gamma(keys[0], 0.5 * (self.freedom + n), (8,))
        sds = jnp.sqrt(0.5 * square / gamma)
        # Draws beyond the bound are drawn again, eight times at most; then the pool keeps its sd.
        inside = sds <= self.largest_sd
        sd = jnp.where(jnp.any(inside), sds[jnp.argmax(inside)], pool.sd)
        mean = _draw_mean(keys[1], psi[0], sd, self.middle, self.width, math.log(self.least))
        if len(psi) == 1:
            return Pool(mean, sd, pool.share)
        share = _draw_mean(keys[2], psi[1], self.deviation, 0.0, self.share_width, -jnp.inf)
        return Pool(mean, sd, share)

    def log_shifted(self, psi, pool):
        # Deviations from m_s stay as they are.
        del psi
        return -0.5 * (pool.share / self.share_width) ** 2


class Given(OverdispersionPrior):
    """The priors of d and of the channel's own parameters as the fit had them, gene by gene."""

    overdispersion: "Overdispersion"
    priors: dict[str, Prior]

    def penalty(self, psi, pool):
        def total(psi):
            return jnp.sum(self.log_density(psi, pool))

        gradient = jax.grad(total)
        curvature = []
        for i in range(len(psi)):
            along = jnp.zeros_like(psi).at[i].set(1.0)
            # Genes are independent, so one product with the Hessian has all their curvatures.
            curvature.append(-jax.jvp(gradient, (psi,), (along,))[1][i])
        return gradient(psi), jnp.maximum(jnp.stack(curvature), LEAST_CURVATURE)

    def log_density(self, psi, pool):
        del pool
        values, log_volume = self.overdispersion.named(psi)
        log_density = [self.priors[n].distribution(x.shape).log_prob(x) for n, x in values.items()]
        return sum(log_density, log_volume)


def _draw_mean(key, x, sd, loc, scale, low):
    """From the posterior of a mean given `x` ~ N(mean, sd²), mean ~ N(loc, scale²) above `low`."""
    precision = len(x[None].T) / sd**2 + 1 / scale**2
    mean = (jnp.sum(x) / sd**2 + loc / scale**2) / precision
    width = 1 / jnp.sqrt(precision)
    least = jax.scipy.stats.norm.cdf((low - mean) / width)
    u = least + (1 - least) * jax.random.uniform(key, minval=1e-6)
    return jnp.maximum(mean + width * ndtri(jnp.minimum(u, 1 - 1e-6)), low)


class Overdispersion(eqx.Module):
    """The coordinates of d and of the channel's own overdispersion, and what they stand for."""

    def pooling(self) -> Pooling:
        """The hyperprior of their pool."""
        return Pooling()

    @abc.abstractmethod
    def of(self, d: Float[Array, " gene"], channel: Channel) -> Coordinates:
        """The coordinates of these parameters."""

    @abc.abstractmethod
    def parameters(self, psi: Coordinates) -> tuple[Float[Array, " gene"], Channel]:
        """d, and the channel."""

    @abc.abstractmethod
    def named(self, psi: Coordinates) -> tuple[dict[str, Array], Float[Array, " gene"]]:
        """The parameters that move, by site, and log |∂ parameters/∂ coordinates|."""

    @abc.abstractmethod
    def slopes(self, psi: Coordinates, by_d: Array, by_own: Array | None) -> list[Array]:
        """By coordinate, the derivative of what has these derivatives in d and in ω."""


class ResidualAlone(Overdispersion):
    """φ = d: the channel has no overdispersion of its own, or one that is held."""

    channel: Channel

    def pooling(self):
        # Counts determine d where rates are Poisson's, so that the bound is there for safety alone.
        return Pooling(least=0.01)

    def of(self, d, channel):
        del channel
        return jnp.log(d)[None]

    def parameters(self, psi):
        return jnp.exp(psi[0]), self.channel

    def named(self, psi):
        return {names.RESIDUAL: jnp.exp(psi[0])}, psi[0]

    def slopes(self, psi, by_d, by_own):
        del by_own
        return [jnp.exp(psi[0]) * by_d]


class Split(Overdispersion):
    """d = s φ and ω = (1 - s) φ."""

    channel: Channel  # of the kind that is meant; its values are not used

    def of(self, d, channel):
        own = channel.own_overdispersion()
        assert own is not None, "the channel has an overdispersion of its own"
        return jnp.stack([jnp.log(d + own), jnp.log(d) - jnp.log(own)])

    def parameters(self, psi):
        phi = jnp.exp(psi[0])
        own = phi * jax.nn.sigmoid(-psi[1])
        return phi * jax.nn.sigmoid(psi[1]), self.channel.with_own(own)

    def named(self, psi):
        d, channel = self.parameters(psi)
        own = jnp.exp(psi[0]) * jax.nn.sigmoid(-psi[1])
        # (log φ, logit s) -> (log d, ω) has the determinant ω.
        volume = jnp.log(d) + jnp.log(own) + channel.own_log_volume()
        return {names.RESIDUAL: d} | channel.values(), volume

    def slopes(self, psi, by_d, by_own):
        assert by_own is not None, "the channel has an overdispersion of its own"
        phi, share, rest = jnp.exp(psi[0]), jax.nn.sigmoid(psi[1]), jax.nn.sigmoid(-psi[1])
        return [phi * (share * by_d + rest * by_own), phi * share * rest * (by_d - by_own)]


def of_channel(channel: Channel, held: bool) -> Overdispersion:
    """The coordinates for a channel; `held` where its parameters are frozen."""
    alone = held or channel.own_overdispersion() is None
    return ResidualAlone(channel) if alone else Split(channel)


class Slopes(NamedTuple):
    """Sums over cells of the derivatives of the log-likelihood in the coordinates."""

    gradient: Coordinates  # at fixed μ + d/2
    products: Float[Array, "moments gene"]  # of the cells' slopes, packed: their information


def slopes_of(
    overdispersion: Overdispersion, psi: Coordinates, given: Integral, mask: Float[Array, " cell"]
) -> Slopes:
    """The slopes of a chunk of cells from integrals over the genes' own residuals.

    At fixed μ + d/2 a gene's mean stays where it is when its overdispersion moves. The information
    is that of Berndt, Hall, Hall & Hausman (1974): the cells' slopes, squared.
    """
    by_d = given.residual_slope - 0.5 * given.slope
    slopes = overdispersion.slopes(psi, by_d, given.own_slope)
    pairs = [slopes[i] * slopes[j] for i in range(len(slopes)) for j in range(i + 1)]
    return Slopes(
        jnp.stack([dot(mask, slope) for slope in slopes]),
        jnp.stack([dot(mask, pair) for pair in pairs]),
    )
