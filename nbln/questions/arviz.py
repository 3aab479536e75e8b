"""Results as ArviZ reads them: draws in named groups."""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.data.counts import Counts
from nbln.data.fitted import Fitted
from nbln.data.slices import slices
from nbln.posterior import evidence, mode
from nbln.posterior.cells import CellsAtMode
from nbln.posterior.mode import Parameters
from nbln.questions.predictive import block_cells

LOG_LIKELIHOOD = names.COUNTS  # one observation is a cell


def datatree(
    fitted: Fitted,
    data: Counts,
    posterior: xr.Dataset,
    log_likelihood: Float[np.ndarray, "draw cell"],
    predictive: xr.DataArray,
) -> xr.DataTree:
    """See `Result.to_datatree`."""
    observed = fitted.label(
        data.rows(slice(None)).astype(np.int32), (names.CELL, names.GENE), names.COUNTS
    )
    dims = names.CHAIN, names.DRAW, names.CELL
    per_cell = fitted.label(log_likelihood[None], dims, LOG_LIKELIHOOD)
    return xr.DataTree.from_dict(
        {
            "posterior": _numbered(posterior),
            "posterior_predictive": _numbered(predictive.to_dataset()),
            "observed_data": observed.to_dataset(),
            "log_likelihood": _numbered(per_cell.to_dataset()),
            "sample_stats": _numbered(per_cell.sum(names.CELL).to_dataset(name="lp")),
        }
    )


def described(tree: xr.DataTree, fitted: Fitted, model: str) -> xr.DataTree:
    """The tree with what ArviZ tells where draws come from, and the data that are given."""
    attrs = {"inference_library": "nbln", "modeling_interface": "nbln", "model": model}
    for name in ("posterior", "posterior_predictive", "sample_stats"):
        if name in tree.children:
            tree[name].attrs.update(attrs)
    tree.attrs.update(attrs)
    if fitted.counted:
        given = fitted.label(fitted.library_size, (names.CELL,), "library_size")
        tree["constant_data"] = xr.DataTree(given.to_dataset())
    return tree


def to_arviz(tree: xr.DataTree):
    """What the installed ArviZ works on: InferenceData before 1.0, the DataTree itself since."""
    import arviz

    data = getattr(arviz, "InferenceData", None)
    return tree if data is None or data is xr.DataTree else data.from_datatree(tree)


def evidence_of_draws(
    at_mode: CellsAtMode, drawn: Sequence[Parameters]
) -> Float[np.ndarray, "draw cell"]:
    """Laplace evidence of each cell at each draw of the parameters (nats)."""
    values = np.empty((len(drawn), at_mode.counts.n_cells), np.float32)
    for block, cells, z in at_mode.blocks():
        for i, parameters in enumerate(drawn):
            nats = _evidence(parameters, cells, at_mode.augmentation.columns, z)
            values[i, block] = np.asarray(nats)[: block.stop - block.start]
    return values


def parameters_of_draws(fitted: Parameters, posterior: xr.Dataset) -> list[Parameters]:
    """The parameters of each draw of the sites."""
    channel_sites = [site.name for site in fitted.channel.sites]

    def of_draw(i):
        values = {str(n): x.values[0, i].astype(np.float32) for n, x in posterior.items()}
        channel = fitted.channel.of({site: values[site] for site in channel_sites})
        rows = (values[names.MU], values[names.LOADINGS], values[names.RESIDUAL])
        return Parameters(*rows, channel, values.get(names.EFFECTS), fitted.log_activity)

    return [of_draw(i) for i in range(posterior.sizes[names.DRAW])]


def log_prob_of_draws(
    data: Counts,
    mean: Float[np.ndarray, "draw gene"],
    channels: Sequence[Channel],
    eta: Float[np.ndarray, "draw cell"],
    covariates: Float[np.ndarray, "cell covariate"],
    effects: Float[np.ndarray, "gene covariate"],
) -> Float[np.ndarray, "draw cell"]:
    """Log-probability of each cell's counts at each draw of independent genes and η (nats)."""
    values = np.empty((len(mean), data.n_cells), np.float32)
    for block in slices(data.n_cells, block_cells(1, data.n_cells, data.n_genes)):
        rows, explained = data.rows(block), covariates[block] @ effects.T
        for i, channel in enumerate(channels):
            f = np.log(mean[i]) + explained - eta[i, block][:, None]
            values[i, block] = np.asarray(_log_prob(channel, rows, f))
    return values


@eqx.filter_jit
def _evidence(parameters, cells, columns, z):
    f = mode.conditional_rates(parameters, cells, columns, z)
    return evidence.evidence(parameters, cells, columns, f)


@jax.jit
def _log_prob(channel, rows, f):
    return channel.log_prob(rows, f).sum(axis=1)


def _numbered(dataset: xr.Dataset) -> xr.Dataset:
    """With numbers for chains and draws, which ArviZ wants."""
    numbers = {dim: np.arange(dataset.sizes[dim]) for dim in (names.CHAIN, names.DRAW)}
    return dataset.assign_coords(numbers)
