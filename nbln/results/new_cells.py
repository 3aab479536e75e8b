"""Factors and capture losses of cells that a log-normal model was not fitted to."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nbln.data.counts import Counts
from nbln.priors.capture import KnownCapture
from nbln.questions import scoring


def latent(
    result, counts: Counts
) -> tuple[Float[np.ndarray, "cell factor"], Float[np.ndarray, " cell"]]:
    """z and η of any cells with the genes of the fit; see `Result.transform`."""
    capture, source = result.capture_rule.of(counts.library_size), result.cascade_source
    if source is not None and source.has_capture and not np.any(result.cells.eta_sd):
        # Capture losses are frozen: new cells have what the source says of them.
        capture = KnownCapture(jnp.asarray(source.capture_losses(counts)))
    added = result._augment(counts, "transform", capture)
    added = scoring.with_own_cells(result.fitted, result.augmentation, counts, added)
    z, eta = scoring.modes(result.parameters, counts, added, result.search)
    if result.totals is not None and result.has_capture:
        eta = result.totals.capture_losses(counts.library_size, capture).mean
        place, same = scoring.places(result.fitted, counts)
        eta[same] = result.cells.eta[place[same]]
    return z[:, : result.latent_dim], eta
