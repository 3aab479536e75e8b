"""Pareto k̂ of importance ratios, by whichever ArviZ is installed."""

import warnings

import numpy as np
from jaxtyping import Float

LOWEST = 100.0  # nats below the largest: nothing, and finite


def pareto_k(log_ratios: Float[np.ndarray, "cell draw"]) -> Float[np.ndarray, " cell"]:
    """Shape of the generalised Pareto tail of each row's ratios (Vehtari et al. 2024).

    Below 0.5 they have a variance; beyond 0.7 averages of them are not to be trusted.
    """
    log_ratios = np.asarray(log_ratios, np.float64)
    log_ratios = np.maximum(log_ratios, log_ratios.max(axis=1, keepdims=True) - LOWEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:  # ArviZ 1
            from arviz_stats.base import array_stats  # pyright: ignore[reportMissingImports]

            return np.asarray(array_stats.psislw(log_ratios, axis=-1)[1])
        except ImportError:
            import arviz

            return np.asarray(arviz.psislw(log_ratios)[1])
