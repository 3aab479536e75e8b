"""What is kept of a training, whichever network was trained, and what it says of its course."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd

from nbln.questions.convergence import Convergence, Curve
from nbln.results.result import Result
from nbln.vae.engine import Epoch


@dataclass(frozen=True, eq=False)
class TrainedResult(Result):
    """A network that was trained by gradients.

    Attributes
    ----------
    network
        As it was at the best epoch.
    epochs
        The course of the training (nats a cell).
    best
        The epoch that the network is of, from 0.
    held_out
        Numbers of the cells that training did not see.
    stopped
        Whether training stopped since held-out cells no longer improved.
    """

    network: Any
    epochs: Epoch
    best: int
    held_out: np.ndarray
    stopped: bool

    def _of_population(self):
        raise ValueError(
            f"score(depth='population'): model {self.model} takes or predicts totals in a way of "
            "its own; compare it by depth='own'"
        )

    @property
    def n_parameters(self) -> int:
        weights = jax.tree.leaves(eqx.filter(self.network, eqx.is_inexact_array_like))
        return sum(np.size(weight) for weight in weights)

    @property
    def history(self) -> pd.DataFrame:
        """The course of the training by epoch (nats a cell)."""
        table = pd.DataFrame(self.epochs._asdict())
        table.index.name = "epoch"
        return table

    @property
    def convergence(self) -> Convergence:
        steps = np.arange(1, len(self.epochs.elbo_train) + 1)
        curves = [Curve("one training batch", -self.epochs.elbo_train, joined=False)]
        if len(self.held_out):
            curves.append(Curve("held-out cells", -self.epochs.elbo_validation, marked=False))
        quantity = "negative evidence bound (nats a cell)"
        return Convergence("VAE", "epoch", quantity, steps, tuple(curves), logarithmic=False)

    @property
    def stages(self):
        return {"VAE": self.fitted.seconds}
