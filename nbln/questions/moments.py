"""Mean and variance of the counts that a fitted model expects, gene by gene."""

import numpy as np
from jaxtyping import Float

from nbln.posterior.mode import Parameters

# Cells are pooled into at most so many groups alike in depth, whose width is a thousandth of it.
DEPTH_GROUPS = 512


def count_moments(
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    covariates: Float[np.ndarray, "cell covariate"],
) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """Mean and variance over cells with these capture losses and covariates, new log-rates each."""
    W, d, mu = (np.asarray(x, np.float64) for x in (parameters.W, parameters.d, parameters.mu))
    spread = np.sum(W**2, axis=1) + d
    # Alike in covariates first, then in depth.
    order = np.lexsort((eta, *covariates.T[::-1]))
    groups = np.array_split(order, min(len(eta), DEPTH_GROUPS))
    weight = np.array([len(group) for group in groups]) / len(eta)
    losses = np.asarray(eta, np.float64)
    loss = np.array([-np.log(np.exp(-losses[group]).mean()) for group in groups])
    shared = np.stack([covariates[group].mean(axis=0) for group in groups])
    located = mu + shared @ np.asarray(parameters.effects, np.float64).T
    mean, variance = parameters.channel.moments(located - loss[:, None], spread)
    overall = weight @ mean
    return overall, weight @ (variance + mean**2) - overall**2
