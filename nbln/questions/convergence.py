"""How a fit converged, as curves that a figure can draw whichever engine made them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Curve(NamedTuple):
    """One quantity over the course of a fit."""

    label: str
    values: Float[np.ndarray, " step"]
    joined: bool = True  # by a line
    marked: bool = True  # by points


class Convergence(NamedTuple):
    """The course of a fit."""

    title: str
    step: str  # what a step is called
    quantity: str  # what the curves show, with its unit
    steps: Float[np.ndarray, " step"]
    curves: tuple[Curve, ...]
    logarithmic: bool
