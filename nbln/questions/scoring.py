"""Cells that a model was not fitted to: their factors, capture losses and evidence.

Parameters stay as they were fitted. Where a fit had its capture losses from a source of independent
genes, so have new cells; their evidence always integrates over the capture prior, so that models
are compared on the same terms.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.linalg.products import dot
from nbln.posterior import evidence, importance, losses, mode
from nbln.posterior.cells import blocks, over_blocks
from nbln.posterior.mode import Augmentation, Cells, Columns, Parameters, Search


def modes(
    parameters: Parameters, counts: Counts, added: Augmentation, search: Search
) -> tuple[Float[np.ndarray, "cell all_columns"], Float[np.ndarray, " cell"]]:
    """Coordinates at the mode of each cell, and the posterior mean of its capture loss."""

    def visit(key, cells):
        del key
        return _modes(parameters, cells, added.columns, search)

    z, eta = over_blocks(visit, blocks(counts, added))
    return z, eta


def log_evidence(
    parameters: Parameters,
    counts: Counts,
    added: Augmentation,
    search: Search,
    n_samples: int,
    seed: int,
) -> Float[np.ndarray, " cell"]:
    """Log-evidence of each cell: Laplace's, or with more samples by importance sampling.

    Of a cell so deep that no draw of its capture loss is positive, Laplace's all the same.
    """

    def visit(key, cells):
        return _evidence(key, parameters, cells, added.columns, search, n_samples)

    (values,) = over_blocks(visit, blocks(counts, added), seed)
    return values


def independent(
    parameters: Parameters, counts: Counts, added: Augmentation
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Log-evidence and posterior mean of the capture loss of cells of independent genes, exact."""

    def visit(key, cells):
        del key
        return _independent(parameters, cells, added.columns)

    values, eta = over_blocks(visit, blocks(counts, added))
    return values, eta


def with_own_cells(
    fitted: Fitted, own: Augmentation, counts: Counts, added: Augmentation
) -> Augmentation:
    """What is added to cells, with what the fit had where they are its own.

    Parameters
    ----------
    own
        Of the cells of the fit.
    added
        Of `counts`, as if all of them were new.
    """
    offset, scale = (np.array(x, np.float32) for x in added[:2])
    place, same = places(fitted, counts)
    offset[same], scale[same] = own.offset[place[same]], own.scale[place[same]]
    return added._replace(offset=offset, scale=scale)


def places(
    fitted: Fitted, counts: Counts
) -> tuple[Int[np.ndarray, " cell"], Bool[np.ndarray, " cell"]]:
    """Where a fit has each cell, and whether it is one of its cells at all."""
    place = pd.Index(fitted.cell_names).get_indexer(pd.Index(counts.cell_names))
    return place, (place >= 0) & (fitted.library_size[place] == counts.library_size)


@eqx.filter_jit
def _modes(parameters: Parameters, cells: Cells, columns: Columns, search: Search):
    reached = _search(parameters, cells, columns, search)
    covariance = mode.newton_step(parameters, cells, columns, reached.f).covariance
    return reached.z.T, evidence.capture_loss(cells, columns, reached.z, covariance)[0]


@eqx.filter_jit
def _evidence(
    key: Array,
    parameters: Parameters,
    cells: Cells,
    columns: Columns,
    search: Search,
    n_samples: int,
) -> tuple[Float[Array, " cell"]]:
    f = _search(parameters, cells, columns, search).f
    laplace = evidence.evidence(parameters, cells, columns, f)
    if n_samples == 1:
        return (laplace,)
    ratios = importance.log_ratios(key, parameters, cells, columns, f, n_samples)
    sampled = jax.scipy.special.logsumexp(ratios, axis=0) - np.log(n_samples)
    # Draws come from the Gaussian before truncation, whose mass at positive losses may be less
    # than any number of draws would find; Laplace's evidence knows it in closed form.
    return (jnp.where(jnp.isfinite(sampled), sampled, laplace),)


@eqx.filter_jit
def _independent(parameters: Parameters, cells: Cells, columns: Columns):
    log_mean = parameters.mu
    if cells.covariates.shape[1]:
        log_mean = log_mean + dot(cells.covariates, parameters.effects.T)
    found = losses.integrate(log_mean, parameters.channel, cells, columns)
    return found.log, found.mean


def _search(parameters, cells, columns, search):
    """The mode of new cells, from the counts themselves."""
    return mode.find(parameters, cells, columns, jnp.log(cells.counts + 0.5), search)
