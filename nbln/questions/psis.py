"""Pareto k̂ of importance ratios, by the installed ArviZ, before its version 1 or since."""

import warnings

import numpy as np
from jaxtyping import Float

LOWEST = 100.0  # nats below the largest, where e^-100 is nothing and yet finite
TAIL = 0.2  # share of the ratios, at most, to which the tail is fitted
EQUAL = 1e-3  # nats: ratios that are this close are equal
ROUNDING = 1e-6  # of sums in float32, relative


def pareto_k(log_ratios: Float[np.ndarray, "cell draw"]) -> Float[np.ndarray, " cell"]:
    """Shape of the generalised Pareto tail of each row's ratios (Vehtari et al. 2024).

    Below 0.5 they have a variance; beyond 0.7 averages of them are not to be trusted. 0 where the
    largest ratios are all equal: nothing is wrong, and no tail can be fitted.
    """
    log_ratios = np.asarray(log_ratios, np.float64)
    largest = log_ratios.max(axis=1)
    log_ratios = np.maximum(log_ratios, largest[:, None] - LOWEST)
    shape = np.zeros(len(log_ratios))
    spread = largest - np.quantile(log_ratios, 1 - TAIL, axis=1)
    tailed = spread > EQUAL + ROUNDING * np.abs(largest)
    if tailed.any():
        shape[tailed] = _k_hat(log_ratios[tailed])
    return shape


def _k_hat(log_ratios):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:  # ArviZ 1, whose `psislw` takes log-likelihoods: the reverse
            from arviz_stats.base import array_stats  # pyright: ignore[reportMissingImports]
        except ImportError:
            import arviz

            return np.asarray(arviz.psislw(log_ratios)[1])
        ratios = np.exp(log_ratios - log_ratios.max(axis=1, keepdims=True))
        return np.asarray(
            array_stats.pareto_khat(ratios, chain_axis=None, draw_axis=-1, r_eff=1, tail="right")
        )
