"""Mean and variance of the counts that a fitted model expects, gene by gene."""

import numpy as np
from jaxtyping import Float

from nbln.posterior.mode import Parameters

# Cells are pooled into at most so many groups alike in depth, whose width is a thousandth of it.
DEPTH_GROUPS = 512


def count_moments(
    parameters: Parameters, eta: Float[np.ndarray, " cell"]
) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """Mean and variance over cells with these capture losses, new log-rates in each."""
    W, d, mu = (np.asarray(x, np.float64) for x in (parameters.W, parameters.d, parameters.mu))
    spread = np.sum(W**2, axis=1) + d
    losses = np.sort(np.asarray(eta, np.float64))
    groups = np.array_split(losses, min(len(losses), DEPTH_GROUPS))
    weight = np.array([len(group) for group in groups]) / len(losses)
    loss = np.array([-np.log(np.exp(-group).mean()) for group in groups])
    mean, variance = parameters.channel.moments(mu - loss[:, None], spread)
    overall = weight @ mean
    return overall, weight @ (variance + mean**2) - overall**2
