"""Programs over posterior draws: matched to a reference, since sign and order are free."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from nbln.linalg import gauge

SAME = 0.9  # cosine of a draw's program with the reference from which it counts as the same


class Alignment(NamedTuple):
    """Which column of each draw is which program, and with which sign."""

    order: Int[np.ndarray, "draw factor"]
    sign: Float[np.ndarray, "draw factor"]
    cosine: Float[np.ndarray, "draw factor"]  # with the reference, absolute


def align(
    W: Float[np.ndarray, "draw gene factor"], reference: Float[np.ndarray, "gene factor"]
) -> Alignment:
    """Match the columns of W_⊥ of every draw to those of a reference, for the largest cosines."""
    reference = _unit(reference - reference.mean(axis=0))
    orders, signs, cosines = [], [], []
    for draw in W:
        cosine = reference.T @ _unit(draw - draw.mean(axis=0))
        rows, columns = linear_sum_assignment(-np.abs(cosine))
        matched = cosine[rows, columns]
        orders.append(columns)
        signs.append(np.where(matched < 0, -1.0, 1.0))
        cosines.append(np.abs(matched))
    return Alignment(np.stack(orders), np.stack(signs), np.stack(cosines))


def aligned(
    W: Float[np.ndarray, "draw gene factor"], alignment: Alignment
) -> Float[np.ndarray, "draw gene factor"]:
    """W_⊥ of every draw, in the order and with the signs of the reference."""
    centred = W - W.mean(axis=1, keepdims=True)
    taken = np.take_along_axis(centred, alignment.order[:, None], axis=2)
    return taken * alignment.sign[:, None].astype(W.dtype)


def n_programs(
    W: Float[np.ndarray, "draw gene factor"], share: float, least: float
) -> Int[np.ndarray, " draw"]:
    """How many columns of each draw carry signal, as in `gauge.effective_rank`."""
    centred = W - W.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred.astype(np.float64) ** 2).sum(axis=1))
    floor = least * np.sqrt(W.shape[1])
    return np.array([gauge.effective_rank(of_draw, share, floor) for of_draw in norms])


def _unit(W):
    return W / np.maximum(np.linalg.norm(W, axis=0), 1e-12)
