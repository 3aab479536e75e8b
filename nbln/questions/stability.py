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


def found_again(
    reference: Float[np.ndarray, "gene program"], others: Float[np.ndarray, "gene other"]
) -> tuple[Float[np.ndarray, " program"], Float[np.ndarray, " program"]]:
    """How well each program of a fit is found again among those of another fit.

    Returns
    -------
    The absolute cosine of its column of W_⊥ with the column matched to it, for the largest sum of
    cosines, 0 without one; and with the nearest direction in the span of all others, which a
    rotation of these does not change (the cosine of the angle with their space).
    """
    ours, theirs = (_unit(W - W.mean(axis=0)) for W in (reference, others))
    cosine, span = np.zeros((2, ours.shape[1]))
    if not theirs.shape[1]:
        return cosine, span
    between = np.abs(ours.T @ theirs)
    rows, columns = linear_sum_assignment(-between)
    cosine[rows] = between[rows, columns]
    span[:] = np.linalg.norm(np.linalg.qr(theirs)[0].T @ ours, axis=0)
    return np.minimum(cosine, 1.0), np.minimum(span, 1.0)


def _unit(W):
    return W / np.maximum(np.linalg.norm(W, axis=0), 1e-12)
