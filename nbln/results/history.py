"""What each iteration of a Laplace fit did, so that a reader can replay it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nbln.questions.convergence import Convergence, Curve

ROUNDING = 1e-6  # of a logarithm in float32, averaged over genes


class History(NamedTuple):
    """By iteration; all but the changes are None in files of format version 2."""

    # Change of W_⊥W_⊥ᵀ, mu, log d, and the channel's log parameters.
    changes: Float[np.ndarray, "iteration 4"]
    column_sd: Float[np.ndarray, "iteration factor"] | None = None  # of the loadings prior
    shrank: Bool[np.ndarray, "iteration factor"] | None = None  # columns whose scale fell
    further_steps: Int[np.ndarray, "iteration factor"] | None = None  # of falling columns, at once
    damped: Bool[np.ndarray, "iteration gene"] | None = None  # genes that took part of a step

    @property
    def last_change(self) -> float:
        """The largest change of the last iteration; NaN where there was none."""
        return float(np.max(self.changes[-1])) if len(self.changes) else np.nan

    def convergence(self, sites: Sequence[str]) -> Convergence:
        """The changes as curves; `sites` are the channel's parameters."""
        channel = " and ".join(f"log {site}" for site in sites)
        labels = "loadings (relative)", "mu", "log d", channel
        pairs = zip(labels, self.changes.T, strict=True)
        # What is held moves by rounding alone, which would set the scale of a logarithmic axis.
        shown = [(label, np.where(x > ROUNDING, x, np.nan)) for label, x in pairs]
        curves = tuple(Curve(label, x) for label, x in shown if np.any(x > 0))
        steps = np.arange(1, len(self.changes) + 1)
        return Convergence(
            "Laplace", "iteration", "change in one iteration", steps, curves, logarithmic=True
        )
