"""Total counts of cells as negative binomials, and what they say of the cells' capture losses.

L_c ~ NB(mean M exp(-η_c), dispersion r), the variance of a total of mean m being m + m²/r. On the
host, in float64: there is one number a cell.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln, log_ndtr

from nbln.distributions.truncated import truncated_at_zero
from nbln.priors.capture import Capture, LatentCapture

CellNumbers = Float[np.ndarray, " cell"]

# Gauss–Legendre nodes over what is within so many standard deviations of the most probable loss:
# of a Gaussian they find all but 1e-9, also of one that is cut off at 0.
NODES, REACH = 48, 8.0
# Newton steps to the most probable loss, each at most so long (natural log). The objective is
# concave, and of any start the steps beyond those of the greatest length converge quadratically.
STEPS, LONGEST_STEP = 60, 1.0


class Losses(NamedTuple):
    """Capture losses given the totals: mean, and location and scale before truncation at 0."""

    mean: CellNumbers
    loc: CellNumbers
    sd: CellNumbers


class Totals(NamedTuple):
    """The distribution of totals."""

    mean: float  # M, of a total at full capture (counts)
    r: float
    mean_sd: float = 0.0  # posterior standard deviations of the natural logs
    r_sd: float = 0.0

    def log_prob(self, library_size: CellNumbers, capture: Capture) -> CellNumbers:
        """log p(L) of each cell, its capture loss integrated out where it is latent (nats)."""
        if not isinstance(capture, LatentCapture):
            return self._given(library_size, _host(capture.expected()))
        prior_loc, prior_sd = _host(capture.loc), _host(capture.scale)
        _, loc, sd = self.capture_losses(library_size, capture)
        low = np.maximum(loc - REACH * sd, 0.0)
        width = np.maximum(loc + REACH * sd, low + REACH * sd) - low
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        values = []
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            eta = low + width * node
            prior = -0.5 * ((eta - prior_loc) / prior_sd) ** 2
            values.append(self._given(library_size, eta) + prior + np.log(weight * width))
        constant = np.log(prior_sd) + 0.5 * np.log(2 * np.pi) + log_ndtr(prior_loc / prior_sd)
        return np.logaddexp.reduce(values, axis=0) - constant

    def capture_losses(self, library_size: CellNumbers, capture: Capture) -> Losses:
        """η of each cell given its total, by the Laplace approximation; a known one as it is."""
        if not isinstance(capture, LatentCapture):
            eta = _host(capture.expected())
            return Losses(eta, eta, np.zeros_like(eta))
        prior_loc, prior_sd = _host(capture.loc), _host(capture.scale)
        eta = prior_loc
        for _ in range(STEPS):
            slope, curvature = self._slopes(library_size, eta)
            slope = slope - (eta - prior_loc) / prior_sd**2
            eta = eta + np.clip(slope / (curvature + prior_sd**-2), -LONGEST_STEP, LONGEST_STEP)
        sd = 1 / np.sqrt(self._slopes(library_size, eta)[1] + prior_sd**-2)
        mean = truncated_at_zero(*(jnp.asarray(x, jnp.float32) for x in (eta, sd))).mean
        return Losses(np.asarray(mean, np.float64), eta, sd)

    def draw(
        self, rng: np.random.Generator, losses: CellNumbers | float, n_cells: int
    ) -> Int[np.ndarray, " cell"]:
        """Totals of cells with these losses."""
        mean = self.mean * np.exp(-np.broadcast_to(losses, n_cells))
        return rng.poisson(rng.gamma(self.r, mean / self.r))

    def moments(self, losses: CellNumbers) -> tuple[float, float]:
        """Mean of a total and of its square, over cells with these losses."""
        mean = self.mean * np.exp(-losses)
        return float(mean.mean()), float((mean + mean**2 * (1 + 1 / self.r)).mean())

    def _given(self, library_size: CellNumbers, eta) -> CellNumbers:
        r, log_mean = self.r, np.log(self.mean) - eta
        away = log_mean - np.log(r)
        return (
            gammaln(library_size + r)
            - gammaln(r)
            - gammaln(library_size + 1)
            - r * np.logaddexp(0, away)
            - library_size * np.logaddexp(0, -away)
        )

    def _slopes(self, library_size: CellNumbers, eta) -> tuple[CellNumbers, CellNumbers]:
        """First derivative of log p(L | η) in η, and the second with the other sign."""
        share = 1 / (1 + np.exp(eta - np.log(self.mean) + np.log(self.r)))  # m / (m + r)
        slope = share * self.r - library_size * (1 - share)
        return slope, (library_size + self.r) * share * (1 - share)


def log_shares_constant(library_size: CellNumbers) -> CellNumbers:
    """What turns the Laplace evidence of x and κ into that of multinomial shares (nats).

    log L + S(L). ∫ Π_g Poisson(u_g | exp(x_g + κ)) dκ is the multinomial probability over L, and
    Laplace's approximation of this integral over κ lacks the remainder S of Stirling's formula for
    log Γ(L), whatever x is.
    """
    L = np.asarray(library_size, np.float64)
    stirling = gammaln(L) - ((L - 0.5) * np.log(L) - L + 0.5 * np.log(2 * np.pi))
    return np.log(L) + stirling


def _host(values) -> CellNumbers:
    return np.asarray(values, np.float64)
