"""How active gene programs are in each of several data sets.

In data set h a factor has standard deviation s_h, the program's activity there: log-rates have
covariance W diag(s_h²) Wᵀ + diag(d). Over data sets log s is a sum of effects e of levels, of a
condition and of its donors say, less its mean, so that the typical activity is 1:

    log s_h = Σ_terms e_level(h) - mean over data sets,   e ~ N(0, τ²) by term.

τ² ~ InverseGamma(ν/2, ν τ₀²/2) is learned from all programs.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nbln.linalg import small
from nbln.linalg.products import dot

# ν and τ₀ (natural log): one program's worth of belief that activities differ by some 20 %. With
# the few differences of two data sets it keeps τ from 0; with ten programs it does not matter.
DEGREES, TYPICAL = 1.0, 0.2
NEWTON_STEPS = 3  # of the effects in one update, whose log-density is concave
LARGEST_STEP = 0.5  # of an effect in one of them, natural log

Effects = Float[Array, "level factor"]
LogActivity = Float[Array, "dataset factor"]


class Activity(NamedTuple):
    """Effects of levels on log-activities, and their variances."""

    effects: Effects
    variance: Float[Array, " term"]  # τ²


class Spreads(NamedTuple):
    """What the cells say: Σ z² of each data set, and its number of cells."""

    squares: Float[Array, "dataset factor"]
    n_cells: Float[Array, " dataset"]


class ActivityPrior(eqx.Module):
    """Which data sets there are and what they have in common.

    Attributes
    ----------
    levels
        (dataset, level), 1 where a data set has the level of a term; without data sets 0 x 0.
    sizes
        Levels of each term.
    """

    levels: Float[np.ndarray, "dataset level"] = eqx.field(
        default_factory=lambda: np.zeros((0, 0), np.float32)
    )
    sizes: tuple[int, ...] = eqx.field(static=True, default=())

    def __len__(self):
        return len(self.levels)

    @property
    def design(self) -> Float[Array, "dataset level"]:
        """log s = design · e."""
        levels = jnp.asarray(self.levels)
        return levels - jnp.mean(levels, axis=0) if len(self) else levels

    @property
    def _term(self) -> Float[np.ndarray, "level term"]:
        """1 where a level belongs to a term."""
        return np.repeat(np.eye(len(self.sizes), dtype=np.float32), self.sizes, axis=0)

    def start(self, n_factors: int) -> Activity:
        """Programs that are as active in one data set as in the other."""
        effects = jnp.zeros((sum(self.sizes), n_factors))
        return Activity(effects, jnp.full(len(self.sizes), TYPICAL**2))

    def log_activity(self, effects: Effects) -> LogActivity:
        """log s of every data set and program."""
        return dot(self.design, effects)

    def by_level(self, variance: Float[Array, " term"]) -> Float[Array, " level"]:
        """Variance of the effect of every level."""
        return dot(jnp.asarray(self._term), variance)

    def local(
        self, activity: Activity, spreads: Spreads
    ) -> tuple[Effects, Float[Array, "level level factor"]]:
        """Gradient in the effects, and precision, of their log-density given the factors."""
        precision = 1 / self.by_level(activity.variance)
        seen = spreads.squares * jnp.exp(-2 * self.log_activity(activity.effects))
        slope = dot(self.design.T, seen - spreads.n_cells[:, None])
        curvature = jnp.einsum("hl,hf,hm->lmf", self.design, 2 * seen, self.design)
        eye = jnp.eye(len(precision))
        gradient = slope - precision[:, None] * activity.effects
        return gradient, curvature + (eye * precision)[:, :, None]

    def log_density(self, activity: Activity, spreads: Spreads) -> Float[Array, " factor"]:
        """That log-density, without constants."""
        log_s = self.log_activity(activity.effects)
        seen = -0.5 * spreads.squares * jnp.exp(-2 * log_s) - spreads.n_cells[:, None] * log_s
        believed = dot(1 / activity.variance, dot(self._term.T, activity.effects**2))
        return jnp.sum(seen, axis=0) - 0.5 * believed

    def learned(
        self, activity: Activity, spreads: Spreads, signal: Bool[Array, " factor"]
    ) -> Activity:
        """Most probable effects given expected squares of factors; none of columns without signal.

        Variances are expected ones over the programs that carry `signal`.
        """
        if not len(self):
            return activity
        for _ in range(NEWTON_STEPS):
            gradient, precision = self.local(activity, spreads)
            covariance, _ = small.inverse_and_log_det(precision)
            step = small.multiply(covariance, gradient)
            step = jnp.clip(step, -LARGEST_STEP, LARGEST_STEP)
            activity = activity._replace(effects=activity.effects + step)
        covariance, _ = small.inverse_and_log_det(self.local(activity, spreads)[1])
        squares = activity.effects**2 + jnp.einsum("llf->lf", covariance)
        shape, rate = self._conditional(squares, signal)
        effects = jnp.where(signal, activity.effects, 0.0)
        return Activity(effects, rate / shape)

    def draw_variance(self, key: Array, effects: Effects) -> Float[Array, " term"]:
        """τ² given the effects."""
        every = jnp.ones(effects.shape[1], bool)
        shape, rate = self._conditional(effects**2, every)
        return rate / jax.random.gamma(key, shape, rate.shape)

    def _conditional(self, squares, signal):
        """Shape and rate of the variances given squares of effects."""
        n = jnp.asarray(np.float32(self.sizes)) * jnp.sum(signal)
        total = dot(jnp.asarray(self._term).T, dot(squares, signal.astype(squares.dtype)))
        return 0.5 * (DEGREES + n), 0.5 * (DEGREES * TYPICAL**2 + total)


class FittedActivity(NamedTuple):
    """A prior of activities with what was learned."""

    prior: ActivityPrior
    activity: Activity

    @property
    def log_activity(self) -> LogActivity:
        """log s of every data set and program."""
        return self.prior.log_activity(self.activity.effects)

    @classmethod
    def none(cls, n_factors: int) -> "FittedActivity":
        """That of a model of one data set."""
        return cls(ActivityPrior(), ActivityPrior().start(n_factors))
