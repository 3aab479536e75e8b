"""A fit that goes round in circles is told so at once, not after all its iterations."""

from collections.abc import Sequence

import numpy as np

from nbln.inference.laplace.update import Change, Info

# Two windows of iterations are compared by their medians. Changes of a fit that converges fall, or
# rise and fall a few times while columns of the loadings shrink; those of a circle of up to six
# iterations have five local maxima or more. Chosen on fits of simulated and real counts: one turn
# fewer would tell fits that then converge.
WINDOW, FEWEST_TURNS, SMALLEST_FALL = 15, 5, 0.9
# The local maxima of a circle are alike; those of a fit that loses a column rise all at once.
MOST_UNLIKE = 5.0
# Changes that turn within this multiple of the tolerance are about to end.
CLOSE = 3.0

REMEDIES = {
    "loadings": "programs that exchange their places; offer fewer (latent_dim), or other loadings",
    "mu": "genes that hardly any cell shows; leave them out (gene_coverage)",
    "log_d": "genes whose own variation the counts do not show; set a tighter prior on d",
    "channel": "genes whose dispersion the counts do not show; set a tighter prior on r",
}


def stalled(history: Sequence[Info], tol: float) -> str | None:
    """What goes to and fro and comes no closer, in words; None where nothing does."""
    changes = np.array([one.change for one in history[-2 * WINDOW :]])
    if len(changes) < 2 * WINDOW:
        return None
    before, now = np.median(changes[:WINDOW], axis=0), np.median(changes[WINDOW:], axis=0)
    middle = changes[1:-1]
    turns = (middle > changes[:-2]) & (middle >= changes[2:])
    highest = np.max(middle, axis=0, where=turns, initial=0)
    lowest = np.min(middle, axis=0, where=turns, initial=np.inf)
    circling = (turns.sum(axis=0) >= FEWEST_TURNS) & (highest < MOST_UNLIKE * lowest)
    circling &= (now > SMALLEST_FALL * before) & (now > CLOSE * tol)
    if not circling.any():
        return None
    worst = int(np.argmax(np.where(circling, now, 0)))
    name = Change._fields[worst]
    return (
        f"{name} still changes by {now[worst]:.1e} an iteration, up and down and no less than "
        f"{WINDOW} iterations before: {REMEDIES[name]}. Otherwise accept the change: "
        "LaplaceConfig(tol=...)"
    )
