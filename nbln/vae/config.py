"""Settings of amortised models and their training."""

import abc
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from nbln.arguments import Rule, check_settings, number, optional, whole
from nbln.vae.cycle import Cycle, OneCycle

RULES: dict[str, Rule] = {
    "n_hidden": whole(1),
    "n_layers": whole(1),
    "dropout": number(most=0.95),
    "n_epochs": optional(whole(1)),
    "batch_size": whole(3),  # of 2, an odd cell would be a batch of its own
    "learning_rate": optional(number(open_=True)),
    "weight_decay": optional(number()),
    "warmup_epochs": whole(0),
    "validation_share": optional(number(most=0.5)),
    "patience": whole(1),
    "resident_bytes": whole(0),
}
OWN_RULES: dict[str, Rule] = {**RULES, "n_importance": whole(1)}


@dataclass(frozen=True)
class TrainingConfig(abc.ABC):
    """What all trainings have in common; each kind says its own defaults, and how its rate goes."""

    n_hidden: int = 128
    n_layers: int = 1
    dropout: float = 0.1
    n_epochs: int | None = None
    batch_size: int = 128
    learning_rate: float | None = None
    weight_decay: float | None = None
    warmup_epochs: int = 20
    validation_share: float | None = None
    patience: int = 30
    resident_bytes: int = 2**31

    def __post_init__(self):
        check_settings(self, RULES)

    def of(self, n_cells: int, **own: Any) -> Self:
        """The same with what so many cells decide, unless `own` defaults do."""
        by_default = {
            "learning_rate": LEARNING_RATE,
            "n_epochs": int(np.clip(round(EPOCH_CELLS / n_cells), *EPOCHS)),
            "weight_decay": DECAY_CELLS / n_cells,
            "validation_share": 0.1 if n_cells >= MANY_CELLS else 0.0,
        }
        by_default |= own
        left = {name: x for name, x in by_default.items() if getattr(self, name) is None}
        return replace(self, **left)

    @abc.abstractmethod
    def cycle(self, steps_an_epoch: int) -> Cycle:
        """How rate and weight of the divergence go, once `of` has decided all."""

    def _steps(self, steps_an_epoch: int) -> tuple[int, int, float, float]:
        """Steps of all epochs and of the warm-up, the rate, the decay."""
        n_epochs, rate = self.n_epochs, self.learning_rate
        assert n_epochs is not None, "by default the number of cells decides"
        assert rate is not None, "a default"
        warm = steps_an_epoch * self.warmup_epochs
        return steps_an_epoch * n_epochs, warm, float(rate), float(self.weight_decay or 0)


@dataclass(frozen=True)
class VAEConfig(TrainingConfig):
    """Settings of amortised models and their training.

    Attributes
    ----------
    n_hidden, n_layers
        Units of a hidden layer; hidden layers of encoder and decoder.
    dropout
        Share of the encoder's hidden units that a step leaves out.
    n_epochs
        Passes over the cells, at most where cells are held out. By default 120, and from 5,000
        cells on 600,000 by their number, at least 10.
    batch_size
        Cells in a step.
    learning_rate
        Of Adam, at the top of its cycle; by default 0.003, and 0.001 where the decoder starts from
        a fit, which a larger one would leave.
    weight_decay
        Decoupled (Loshchilov & Hutter 2019), of weights; biases and dispersions have none. By
        default 2,000 by the number of cells: what a prior on weights would do.
    warmup_epochs
        Epochs until the divergence from the prior has its full weight; at most a third of all.
    validation_share
        Share of the cells that are held out, at most 5,000, to stop when they no longer improve
        and to keep the best epoch; 0 trains on all cells, to the end. By default a tenth from 5,000
        cells on, and 0 of fewer, where every cell counts and weight decay alone holds back.
    patience
        Epochs without improvement of held-out cells before a fit stops.
    n_importance
        Draws of z a cell and step. More than one train on the importance-weighted bound (Burda et
        al. 2016), which is nearer to the evidence, at as many times the cost of the decoder. On
        PBMC it was of no use.
    resident_bytes
        Largest dense float32 matrix of counts kept in memory. Larger ones, and files opened with
        ``backed="r"``, are read in each epoch, in parts of at most an eighth of this size.

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    n_importance: int = 1

    def __post_init__(self):
        check_settings(self, OWN_RULES)

    def of(self, n_cells: int, from_fit: bool = False) -> "VAEConfig":  # type: ignore[override]
        """The same with what so many cells decide, and whether the decoder starts from a fit."""
        return super().of(n_cells, learning_rate=LEARNING_RATE / 3 if from_fit else LEARNING_RATE)

    def cycle(self, steps_an_epoch):
        return OneCycle.of(*self._steps(steps_an_epoch))

    @property
    def approach(self) -> "VAEConfig":
        """Of the epochs in which an encoder learns to know a decoder that is held."""
        return replace(self, n_epochs=APPROACH_EPOCHS, weight_decay=0.0, validation_share=0.0)


LEARNING_RATE, APPROACH_EPOCHS = 3e-3, 20
# Chosen by the evidence of held-out cells of four data sets of 219 to 8,000 cells: twice or half as
# many epochs, or as much decay, cost at most a nat a cell, but in the smallest.
EPOCH_CELLS, EPOCHS = 600_000, (10, 120)
DECAY_CELLS, MANY_CELLS = 2_000, 5_000
