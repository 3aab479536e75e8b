"""Results as ArviZ reads them: draws in named groups."""

import equinox as eqx
import jax
import numpy as np
import xarray as xr

from nbln import vocabulary as names
from nbln.distributions.negative_binomial import nb_log_prob
from nbln.posterior import evidence, mode
from nbln.posterior.mode import Parameters
from nbln.results import predictive
from nbln.results.base import check_whole
from nbln.results.cells import blocks_at_mode

LOG_LIKELIHOOD = names.COUNTS  # one observation is a cell


def datatree(result, n_samples: int, n_predictive: int, seed: int, counts) -> xr.DataTree:
    """See `Result.to_datatree`."""
    check_whole("n_samples", n_samples)
    data = result.fitted.data(counts)
    posterior = result.draw_parameters(n_samples, seed)
    likelihood = result.cell_log_likelihood(posterior, data)
    drawn = predictive.all_counts(result, "per_cell", n_predictive, seed, data)
    observed = result.fitted.label(
        data.rows(slice(None)).astype(np.int32), (names.CELL, names.GENE), names.COUNTS
    )
    dims = names.CHAIN, names.DRAW, names.CELL
    per_cell = result.fitted.label(likelihood[None], dims, LOG_LIKELIHOOD)
    return xr.DataTree.from_dict(
        {
            "posterior": _numbered(posterior),
            "posterior_predictive": _numbered(drawn.to_dataset()),
            "observed_data": observed.to_dataset(),
            "log_likelihood": _numbered(per_cell.to_dataset()),
            "sample_stats": _numbered(per_cell.sum(names.CELL).to_dataset(name="lp")),
        }
    )


def to_arviz(tree: xr.DataTree):
    """What the installed ArviZ works on: InferenceData before 1.0, the DataTree itself since."""
    import arviz

    data = getattr(arviz, "InferenceData", None)
    return tree if data is None or data is xr.DataTree else data.from_datatree(tree)


def laplace_draws(result, n_samples: int, seed: int) -> xr.Dataset:
    """Draws of every parameter and of η from `get_distributions`; frozen sites from the source."""
    dims = {
        names.MU: (names.GENE,),
        names.LOADINGS: (names.GENE, names.FACTOR),
        names.RESIDUAL: (names.GENE,),
        names.DISPERSION: (names.GENE,),
        names.ETA: (names.CELL,),
    }
    found = {}
    for i, (site, distribution) in enumerate(result.get_distributions().items()):
        key = jax.random.fold_in(jax.random.key(seed), i)
        values = np.asarray(distribution.sample(key, (n_samples,)))
        found[site] = result.fitted.label(values[None], (names.CHAIN, names.DRAW, *dims[site]))
    return xr.Dataset(found)


def laplace_log_likelihood(result, posterior: xr.Dataset, data) -> np.ndarray:
    """Laplace evidence of every cell at each draw of the parameters, (draw, cell)."""
    draws = [_parameters(result, posterior, i) for i in range(posterior.sizes[names.DRAW])]
    values = np.empty((len(draws), data.n_cells), np.float32)
    for block, cells, z in blocks_at_mode(result, data):
        for i, parameters in enumerate(draws):
            found = _evidence(parameters, cells, result.columns, z)
            values[i, block] = np.asarray(found)[: block.stop - block.start]
    return values


def svi_log_likelihood(result, posterior: xr.Dataset, data) -> np.ndarray:
    """Log-probability of every cell's counts at each draw of genes and η, (draw, cell)."""
    draws = posterior.isel(chain=0)
    mean, r, eta = (draws[n].values for n in (names.MEAN, names.DISPERSION, names.ETA))
    values = np.empty((len(mean), data.n_cells), np.float32)
    size = predictive.block_cells(1, data.n_cells, data.n_genes)
    for start in range(0, data.n_cells, size):
        block = slice(start, min(start + size, data.n_cells))
        rows = data.rows(block)
        for i in range(len(mean)):
            f = np.log(mean[i]) - eta[i, block][:, None]
            values[i, block] = np.asarray(_log_prob(rows, f, r[i]))
    return values


def _parameters(result, posterior, draw) -> Parameters:
    def value(site):
        return posterior[site].values[0, draw].astype(np.float32)

    fitted: Parameters = result.parameters
    channel = fitted.channel
    if names.DISPERSION in posterior:
        channel = eqx.tree_at(lambda c: c.log_r, channel, np.log(value(names.DISPERSION)))
    return Parameters(value(names.MU), value(names.LOADINGS), value(names.RESIDUAL), channel)


@eqx.filter_jit
def _evidence(parameters, cells, columns, z):
    f = mode.conditional_rates(parameters, cells, columns, z)
    return evidence.evidence(parameters, cells, columns, f)


@jax.jit
def _log_prob(rows, f, r):
    return nb_log_prob(rows, f, r).sum(axis=1)


def _numbered(dataset: xr.Dataset) -> xr.Dataset:
    """With numbers for chains and draws, which ArviZ wants."""
    numbers = {dim: np.arange(dataset.sizes[dim]) for dim in (names.CHAIN, names.DRAW)}
    return dataset.assign_coords(numbers)
