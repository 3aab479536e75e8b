"""The distribution of cells' totals, fitted on its own: two numbers, of one number a cell."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy import optimize

from nbln import vocabulary as names
from nbln.models.log_normal import LogNormalModel
from nbln.posterior.cells import CellPosterior
from nbln.posterior.totals import Totals, log_shares_constant
from nbln.priors.capture import Capture
from nbln.priors.univariate import LogNormal, Prior

SITES = names.TOTAL_MEAN, names.TOTAL_DISPERSION
# Of more cells every n-th in the order of their totals stands for its neighbours: the error of the
# two numbers is then far below their posterior standard deviations, which are of order 1/√cells.
MOST_CELLS = 4096
# Bounds of the natural logs: beyond the upper one totals are Poisson to float64's last digits.
BOUNDS = ((-3.0, 25.0), (-7.0, 16.0))
STEP = 1e-2  # of central differences; the objective is smooth on the scale of 1


def beside(
    model: LogNormalModel, library_size: Float[np.ndarray, " cell"], cells: CellPosterior
) -> tuple[Totals | None, CellPosterior]:
    """The totals of a model that has them, and its cells with what the totals say of them."""
    if not model.depth.has_totals:
        return None, cells
    capture = model.depth.of_totals(model.capture)
    totals = fit_totals(library_size, capture, model.priors)
    of_counts = log_shares_constant(library_size) + totals.log_prob(library_size, capture)
    cells = cells._replace(log_evidence=np.float32(cells.log_evidence + of_counts))
    if model.depth.has_capture:
        losses = totals.capture_losses(library_size, capture)
        found = {"eta": losses.mean, "eta_loc": losses.loc, "eta_sd": losses.sd}
        cells = cells._replace(**{name: x.astype(np.float32) for name, x in found.items()})
    return totals, cells


def fit_totals(
    library_size: Float[np.ndarray, " cell"], capture: Capture, priors: Mapping[str, Prior]
) -> Totals:
    """The most probable mean and dispersion of totals, with standard deviations of their logs.

    Parameters
    ----------
    capture
        The capture losses in the means of the totals; latent ones are integrated out.
    priors
        Of `total_mean` and `total_r`, in their natural logs.
    """
    totals = np.asarray(library_size, np.float64)
    order = np.argsort(totals, kind="stable")
    some = order[np.linspace(0, len(order) - 1, min(len(order), MOST_CELLS)).astype(int)]
    taken, weight = capture.take(some), len(order) / len(some)
    loc, scale = np.array([_gaussian(priors[name]) for name in SITES]).T

    def loss(logs):
        at = Totals(*np.exp(logs))
        likelihood = weight * at.log_prob(totals[some], taken).sum()
        return 0.5 * np.sum(((logs - loc) / scale) ** 2) - likelihood

    eta = np.asarray(capture.expected(), np.float64)
    start = np.array([math.log(np.sum(totals) / np.sum(np.exp(-eta))), 1.0])
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=BOUNDS).x
    sd = np.sqrt(np.diag(np.linalg.pinv(_curvature(loss, found), hermitian=True)))
    return Totals(*map(float, np.exp(found)), *map(float, sd))


def _gaussian(prior: Prior) -> tuple[float, float]:
    """Mean and standard deviation of the natural log."""
    assert isinstance(prior, LogNormal), "what a user may give of a positive number"
    return float(prior.loc), float(prior.scale)


def _curvature(function, at: np.ndarray) -> np.ndarray:
    """Second derivatives by central differences."""
    steps = STEP * np.eye(len(at))

    def second(a, b):
        rise = function(at + a + b) - function(at + a - b) - function(at - a + b)
        return (rise + function(at - a - b)) / (4 * STEP**2)

    return np.array([[second(a, b) for b in steps] for a in steps])
