"""Mean and variance of the counts that a fitted model expects, gene by gene."""

import numpy as np
from jaxtyping import Float

from nbln.posterior.mode import Parameters
from nbln.posterior.totals import Totals
from nbln.questions.predictive import CellDesign, fresh_rates, relative

# Cells are pooled into at most so many groups alike in depth, whose width is a thousandth of it.
DEPTH_GROUPS = 512
# Compositions drawn for moments of shares, and at once: means of genes err by a fiftieth of their
# standard deviation over cells.
N_DRAWS, BLOCK = 2500, 250


def count_moments(
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    design: CellDesign,
) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """Mean and variance over cells of this design and these losses, new log-rates each."""
    d, mu = (np.asarray(x, np.float64) for x in (parameters.d, parameters.mu))
    covariates = design.covariates
    # Alike in covariates first, which tell data sets apart, then in depth.
    order = np.lexsort((eta, *covariates.T[::-1]))
    groups = np.array_split(order, min(len(eta), DEPTH_GROUPS))
    weight = np.array([len(group) for group in groups]) / len(eta)
    losses = np.asarray(eta, np.float64)
    loss = np.array([-np.log(np.exp(-losses[group]).mean()) for group in groups])
    shared = np.stack([covariates[group].mean(axis=0) for group in groups])
    programs = np.concatenate([_mean_variance(design.at(group), parameters.W) for group in groups])
    located = mu + shared @ np.asarray(parameters.effects, np.float64).T
    mean, variance = parameters.channel.moments(located - loss[:, None], programs + d)
    overall = weight @ mean
    return overall, weight @ (variance + mean**2) - overall**2


def share_moments(
    parameters: Parameters,
    totals: Totals,
    losses: Float[np.ndarray, " cell"],
    design: CellDesign,
) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """The same where counts are shares of totals that do not depend on them.

    With p a gene's share, u ~ Binomial(L, p): E u = E L · E p and
    Var u = E L · E p + (E L² - E L) E p² - (E u)² (law of total variance).
    """
    rng = np.random.default_rng(0)
    first, second = np.zeros((2, len(parameters.mu)))
    for _ in range(N_DRAWS // BLOCK):
        like = design.at(rng.integers(design.n_cells, size=BLOCK))
        shares = np.exp(relative(fresh_rates(parameters, None, like, rng)), dtype=np.float64)
        shares /= shares.sum(axis=1, keepdims=True)
        first += shares.sum(axis=0) / N_DRAWS
        second += (shares**2).sum(axis=0) / N_DRAWS
    total, square = totals.moments(losses)
    mean = total * first
    return mean, mean + (square - total) * second - mean**2


def _mean_variance(design: CellDesign, W) -> Float[np.ndarray, "1 gene"]:
    """Of log-rates by the programs, over some cells."""
    return design.variance(W).mean(axis=0, keepdims=True)
