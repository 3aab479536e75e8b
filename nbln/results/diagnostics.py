"""Whether to believe a fit: one table, with a remedy where something is wrong."""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln import vocabulary as names
from nbln.posterior import importance, mode
from nbln.results import psis
from nbln.results.cells import at_mode
from nbln.results.checks import extreme, misfits

K_HAT_LIMIT = 0.7  # beyond it importance sampling cannot correct the Laplace posterior
FAR = 3.0  # ratio of predicted and observed mean counts
TINY_MEAN = 1e-6  # counts a cell
N_NAMED = 5
MISFIT_SHARE = 0.15  # of genes that may be misfits beyond those that are by chance
RESIDUAL_SHARE = 0.05  # by residuals, which a fit to the same counts makes more uniform
N_CELLS, N_DRAWS = 40, 200  # for Pareto k̂
OK, WARNING = "ok", "warning"


class Row(NamedTuple):
    """One line of the summary."""

    quantity: str
    value: float | int | str
    status: str = OK
    note: str = ""


def table(rows: list[Row]) -> pd.DataFrame:
    """The summary: quantity (index), value, status, note; for people and for code."""
    return pd.DataFrame(rows, columns=Row._fields).set_index("quantity")


def of_laplace(result, checks: xr.Dataset | None, counts, seed: int) -> pd.DataFrame:
    """See `Result.summary`."""
    rows = [*_convergence(result), *_programs(result), *_variance(result)]
    if counts is not None:
        rows.append(_k_hat(result, counts, seed))
    if checks is not None:
        rows += _misfits(checks, result.model)
    return table(rows)


def of_svi(result, checks: xr.Dataset | None) -> pd.DataFrame:
    """See `Result.summary`."""
    rows = [
        Row("cells", result.fitted.n_cells),
        Row("genes", int(result.fitted.real_genes.sum())),
        Row("steps", result.n_steps),
        _settled(result.converged, "raise n_steps: the locations still moved"),
        Row("final_loss", float(result.losses[-1])),
    ]
    if checks is not None:
        rows += _misfits(checks, "nbvcp")
    return table(rows)


def _settled(converged, remedy):
    return Row("converged", bool(converged), *((OK, "") if converged else (WARNING, remedy)))


def _convergence(result):
    yield Row("cells", result.fitted.n_cells)
    yield Row("genes", int(result.fitted.real_genes.sum()))
    source = result.cascade_source
    if source is not None and not source.converged:
        yield Row("source_converged", False, WARNING, "fit the NBVCP source with more n_steps")
    yield Row("iterations", len(result.trace))
    last = float(np.max(result.trace[-1])) if len(result.trace) else np.nan
    remedy = f"raise n_steps: the last iteration changed the parameters by {last:.1e}"
    yield _settled(result.converged, remedy)
    yield Row("last_change", last)
    n, share = result.n_unconverged, result.n_unconverged / result.fitted.n_cells
    remedy = "look at these cells (result.cell_converged): extreme totals, or a single gene"
    yield Row("unconverged_cells", n, *((OK, "") if share == 0 else (WARNING, remedy)))
    yield Row("largest_gradient_norm", float(result.gradient_norm.max()))


def _programs(result):
    found = result.w_prior_diagnostics
    rank = found["effective_rank"]
    note: tuple = ()
    if rank == 0:
        note = WARNING, "no gene program found: every correlation is zero; more cells may show some"
    elif rank == result.latent_dim and result.scales:  # learned scales could have removed one
        note = WARNING, "every program offered is used: fit again with a larger latent_dim"
    yield Row("latent_dim", result.latent_dim)
    yield Row("effective_rank", rank, *note)
    yield Row("scale_effective_rank", found["scale_effective_rank"])
    gauge = result.get_gauge_diagnostics()
    yield Row("W_compositional_norm", gauge["W_compositional_norm"])
    yield Row("W_all_ones_component_norm", gauge["W_all_ones_component_norm"])
    ratio = gauge["gauge_contamination_ratio"]
    high = rank > 0 and ratio > 1
    remedy = "most shared variation is a cell's depth; read the compositional correlations only"
    yield Row("gauge_contamination_ratio", ratio, *((WARNING, remedy) if high else ()))
    # Those that carry signal and the first that does not.
    for k, sigma in enumerate(np.asarray(found["sigma_k"])[: rank + 1]):
        yield Row(f"sigma_{k}", float(sigma))


def _variance(result):
    shares = variance_shares(result).mean(names.GENE)
    for part in ("programs", "own", "counting"):
        yield Row(f"variance_{part}", float(shares[part]))


def variance_shares(result) -> xr.Dataset:
    """See `LaplaceResult.get_variance_shares`."""
    W, d = result.arrays[names.LOADINGS], result.arrays[names.RESIDUAL]
    w2 = np.sum((W - W.mean(axis=0)) ** 2, axis=1, dtype=np.float64)
    d = d.astype(np.float64)
    eta = float(np.median(result.arrays[names.ETA]))
    mean = np.exp(result.arrays[names.MU] - eta + 0.5 * (w2 + d))
    inverse_r = 1 / np.asarray(result.r.values, np.float64)
    # Law of total variance of a count given depth: over z, over the gene's own residual, over
    # the channel. E[e^{2f}] = mean² e^{w2 + d}.
    programs = mean**2 * np.expm1(w2)
    own = mean**2 * np.exp(w2) * np.expm1(d)
    counting = mean + mean**2 * np.exp(w2 + d) * inverse_r
    total = programs + own + counting
    parts = {"programs": programs, "own": own, "counting": counting}
    dims = (names.GENE,)
    return xr.Dataset({n: result.fitted.label(x / total, dims) for n, x in parts.items()})


def _misfits(checks: xr.Dataset, model: str):
    """Genes whose counts the model would not have produced."""
    remedies = {
        "mean": "means are off",
        "variance": "variances are off",
        "zero_fraction": "zeros are off",
        "quantile_99": "the largest counts are off",
    }
    better = {
        "pln": "; counts vary more than Poisson: try model='nbln'",
        "nbvcp": "; genes vary together or with heavy tails: try model='nbln'",
    }.get(model, "; look at them with check() and nbln.pl.plot_ppc")
    most = MISFIT_SHARE + 2 * extreme(checks)
    for name, what in remedies.items():
        share = float(misfits(checks, name).mean())
        yield _misfit(f"misfit_{name}", share, what + better, most)
    yield _far_genes(checks)
    share = float(misfits(checks, "residuals").mean())
    what = "the distribution of single counts is off"
    yield _misfit("misfit_residuals", share, what + better, RESIDUAL_SHARE)


def _far_genes(checks: xr.Dataset):
    """Genes that a fresh cell would have far more or far less of than the data have."""
    observed, predicted = (checks["mean"].sel(quantity=q).values for q in ("observed", "predicted"))
    distance = np.abs(np.log(np.maximum(predicted, TINY_MEAN) / np.maximum(observed, TINY_MEAN)))
    far = np.flatnonzero(misfits(checks, "mean") & (distance > np.log(FAR)))
    if not len(far):
        return Row("far_genes", 0)
    worst = far[np.argsort(-distance[far], kind="stable")][:N_NAMED]
    named = ", ".join(str(name) for name in checks[names.GENE].values[worst])
    note = (
        f"means off by a factor of {FAR:g} and more, most in {named}: distrust what involves them"
    )
    return Row("far_genes", len(far), WARNING, note)


def _misfit(quantity, share, note, most):
    bad = share > most
    return Row(quantity, share, *((WARNING, f"{share:.0%} of genes: {note}") if bad else ()))


def _k_hat(result, counts, seed):
    k_hat = pareto_k(result, counts, N_CELLS, seed)
    bad = float((k_hat > K_HAT_LIMIT).mean())
    note = f"beyond {K_HAT_LIMIT} in {bad:.0%} of {k_hat.size} cells: their z is approximate"
    return Row("pareto_k_95", float(k_hat.quantile(0.95)), *((WARNING, note) if bad > 0.05 else ()))


def pareto_k(result, counts, n_cells: int, seed: int) -> xr.DataArray:
    """See `LaplaceResult.get_pareto_k`."""
    if n_cells < 1:
        raise ValueError(f"get_pareto_k(n_cells={n_cells}): must be at least 1")
    fitted = result.fitted
    data = fitted.data(counts)
    rng = np.random.default_rng(seed)
    n_cells = min(n_cells, fitted.n_cells)
    chosen = np.sort(rng.choice(fitted.n_cells, n_cells, replace=False))
    cells, z = at_mode(result, data, chosen)
    key = jax.random.key(seed)
    ratios = np.asarray(_ratios(key, result.parameters, cells, result.columns, z))
    return xr.DataArray(
        psis.pareto_k(ratios.T),
        dims=(names.CELL,),
        coords={names.CELL: fitted.cell_names[chosen]},
        name="pareto_k",
    )


@eqx.filter_jit
def _ratios(key, parameters, cells, columns, z) -> Float[jax.Array, "draw cell"]:
    f = mode.conditional_rates(parameters, cells, columns, z, n_iterations=4)
    return importance.log_ratios(key, parameters, cells, columns, f, N_DRAWS)
