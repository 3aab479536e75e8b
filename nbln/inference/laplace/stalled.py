"""A fit that goes round in circles is told so at once, not after all its iterations."""

from collections.abc import Sequence

import numpy as np

from nbln.inference.laplace.update import Change, Info

# The changes of so many iterations are compared with those of as many before, by their medians: a
# fit whose changes fall by less than 5 % in ten iterations would need hundreds.
WINDOW, SMALLEST_FALL = 10, 0.95

REMEDIES = {
    "loadings": "programs that exchange their places; offer fewer (latent_dim), or other loadings",
    "mu": "genes that hardly any cell shows; leave them out (gene_coverage)",
    "log_d": "genes whose own variation the counts do not show; set a tighter prior on d",
    "channel": "genes whose dispersion the counts do not show; set a tighter prior on r",
}


def stalled(history: Sequence[Info], tol: float) -> str | None:
    """What moves and no longer settles, in words; None where the fit comes closer, or has come.

    Iterations in which a column of the loadings shrinks, or before columns have settled, start
    the comparison anew: they move for a reason.
    """
    recent = history[-2 * WINDOW :]
    calm = [not np.any(one.shrank) and bool(one.phase.since_settled > 0) for one in recent]
    if len(recent) < 2 * WINDOW or not all(calm):
        return None
    changes = np.array([one.change for one in recent])
    before, now = np.median(changes[:WINDOW], axis=0), np.median(changes[WINDOW:], axis=0)
    # The least of the last ones, since a fit that has come close may be a step from its end.
    moving = (now > SMALLEST_FALL * before) & (changes[WINDOW:].min(axis=0) > tol)
    if not moving.any():
        return None
    worst = Change._fields[int(np.argmax(np.where(moving, now, 0)))]
    return (
        f"{worst} still changes by {now[Change._fields.index(worst)]:.1e} an iteration, no less "
        f"than {WINDOW} iterations before: {REMEDIES[worst]}. Otherwise accept the change: "
        "LaplaceConfig(tol=...)"
    )
