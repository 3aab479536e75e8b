"""Whether to believe a fit: one table, with a remedy where something is wrong."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int

from nbln import vocabulary as names
from nbln.arguments import check_whole
from nbln.compiled import quick_jit
from nbln.data.fitted import Fitted
from nbln.posterior import importance, mode
from nbln.posterior.cells import CellPosterior, CellsAtMode
from nbln.posterior.mode import Parameters
from nbln.posterior.totals import Totals
from nbln.questions import psis
from nbln.questions.checks import by_group, extreme, misfits
from nbln.questions.predictive import CellDesign
from nbln.text import visible

# Beyond 0.7 importance sampling cannot correct the Laplace posterior (Vehtari et al. 2024); one
# cell in twenty may be beyond, as the sample is small.
K_HAT_LIMIT, K_HAT_SHARE = 0.7, 0.05
N_CELLS, N_DRAWS = 40, 200  # for Pareto k̂: a second of work, and tails of 40 ratios
FAR = 3.0  # ratio of predicted and observed mean counts that is named as far off
TINY_MEAN = 1e-6  # counts a cell; in place of a mean of 0
N_NAMED = 5  # genes that a note names
MOST_KINDS = 500  # of cells by covariates, over which variances are averaged
# Share of genes that may be misfits beyond those that are by chance: on counts simulated from the
# model 8 % of means and 17 % of variances are, since draws hold the parameters fixed. Residuals
# have a lower one, since a fit to the same counts makes them more uniform.
MISFIT_SHARE, RESIDUAL_SHARE = 0.15, 0.05
OK, WARNING = "ok", "warning"


class Row(NamedTuple):
    """One line of the summary."""

    quantity: str
    value: float | int | str
    status: str = OK
    note: str = ""

    @classmethod
    def judged(cls, quantity: str, value, bad: bool, note: str) -> "Row":
        """A line that warns, with a note, where `bad`."""
        return cls(quantity, value, WARNING, note) if bad else cls(quantity, value)


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """The summary: quantity (index), value, status, note; for people and for code."""
    return pd.DataFrame(list(rows), columns=Row._fields).set_index("quantity")


def doubts(summary: pd.DataFrame) -> list[str]:
    """What a summary warns of, one sentence a quantity."""
    rows = summary[summary["status"] == WARNING]
    return [f"{quantity}: {note}" for quantity, note in zip(rows.index, rows["note"], strict=True)]


def convergence(
    steps: tuple[str, int], converged: bool, remedy: str, source_converged: bool = True
) -> Iterator[Row]:
    """Whether the parameters settled; `steps` is the word for them, and their number."""
    if not source_converged:
        yield Row("source_converged", False, WARNING, "fit the source with more n_steps")
    yield Row(*steps)
    yield Row.judged("converged", bool(converged), not converged, remedy)


def data(fitted: Fitted) -> Iterator[Row]:
    """What was fitted."""
    yield Row("cells", fitted.n_cells)
    yield Row("genes", int(fitted.real_genes.sum()))


def cells(posterior: CellPosterior) -> Iterator[Row]:
    """Whether each cell's mode was reached."""
    n = int((~posterior.converged).sum())
    remedy = "look at these cells (result.cell_converged): extreme totals, or a single gene"
    yield Row.judged("unconverged_cells", n, n > 0, remedy)
    yield Row("largest_gradient_norm", float(posterior.gradient_norm.max()))


def programs(columns: dict, gauge: dict[str, float], learned: bool) -> Iterator[Row]:
    """How many programs the fit kept.

    Parameters
    ----------
    columns, gauge
        As `nbln.questions.programs` gives them.
    learned
        Whether the loadings prior could have removed a program.
    """
    rank, latent_dim = columns["effective_rank"], len(columns["sigma_k"])
    note: tuple = ()
    if rank == 0:
        note = WARNING, "no gene program found: all correlations are zero; more cells may show some"
    elif rank == latent_dim and learned:
        note = WARNING, "all programs offered are used: fit again with a larger latent_dim"
    yield Row("latent_dim", latent_dim)
    yield Row("effective_rank", rank, *note)
    yield Row("scale_effective_rank", columns["scale_effective_rank"])
    yield Row("W_compositional_norm", gauge["W_compositional_norm"])
    yield Row("W_all_ones_component_norm", gauge["W_all_ones_component_norm"])
    ratio = gauge["gauge_contamination_ratio"]
    if rank == 0:
        # A ratio of two norms that are both nothing says nothing.
        yield Row("gauge_contamination_ratio", np.nan, OK, "no program to compare with")
    else:
        remedy = "most shared variation is a cell's depth; read the compositional correlations only"
        yield Row.judged("gauge_contamination_ratio", ratio, ratio > 1, remedy)
    # Those that carry signal and the first that does not.
    for k, sigma in enumerate(columns["sigma_k"][: rank + 1]):
        yield Row(f"sigma_{k}", float(sigma))


def variance(shares: xr.Dataset) -> Iterator[Row]:
    """Mean over genes of what `variance_shares` gives."""
    for part, mean in shares.mean(names.GENE).items():
        yield Row(f"variance_{part}", float(mean))


def totals(found: Totals | None) -> Iterator[Row]:
    """The distribution of totals, of a model that has one."""
    if found is not None:
        yield Row("total_mean", found.mean)
        yield Row("total_r", found.r)


def variance_shares(
    fitted: Fitted,
    parameters: Parameters,
    eta: Float[np.ndarray, " cell"],
    design: CellDesign,
) -> xr.Dataset:
    """See `LaplaceResult.get_variance_shares`."""
    W, d, mu = (np.asarray(x, np.float64) for x in (parameters.W, parameters.d, parameters.mu))
    kinds, n_cells = _kinds(design)
    w2 = kinds.variance(W - W.mean(axis=0))
    loc = mu - float(np.median(eta)) + kinds.covariates @ np.asarray(parameters.effects).T
    mean = np.exp(loc + 0.5 * (w2 + d))

    def over_cells(values):
        return np.average(values, axis=0, weights=n_cells)

    # Law of total variance of a count given depth: over covariates, over z, over the gene's own
    # residual, over the channel. E[e^{2f}] = mean² e^{w2 + d}.
    counting = parameters.channel.expected_variance(loc, w2 + d)
    parts = {
        "programs": over_cells(mean**2 * np.expm1(w2)),
        "own": over_cells(mean**2 * np.exp(w2) * np.expm1(d)),
        "counting": over_cells(np.broadcast_to(counting, mean.shape)),
    }
    if design.covariates.shape[1]:
        parts = {"covariates": over_cells(mean**2) - over_cells(mean) ** 2, **parts}
    total = sum(parts.values())
    dims = (names.GENE,)
    return xr.Dataset({n: fitted.label(x / total, dims) for n, x in parts.items()})


def _kinds(design: CellDesign) -> tuple[CellDesign, Int[np.ndarray, " kind"] | None]:
    """Cells of different design, and how many of each; where these are many, some of the cells."""
    every = np.concatenate(design, axis=1)
    kinds, first, n_cells = np.unique(every, axis=0, return_index=True, return_counts=True)
    if len(kinds) > MOST_KINDS:
        return design.at(slice(None, None, -(-design.n_cells // MOST_KINDS))), None
    return design.at(first), n_cells


def misfit(checks: xr.Dataset, remedy: str) -> Iterator[Row]:
    """Genes whose counts the model would not have produced; `remedy` is the model's own.

    Of checks by group there are rows for each, ``misfit_mean[vehicle]``.
    """
    for group, one in by_group(checks):
        rows = _misfit_of(one, remedy)
        suffix = "" if group is None else f"[{visible(group)}]"
        yield from (row._replace(quantity=row.quantity + suffix) for row in rows)


def _misfit_of(checks: xr.Dataset, remedy: str) -> Iterator[Row]:
    statistics = {
        "mean": "means are off",
        "variance": "variances are off",
        "zero_fraction": "zeros are off",
        "quantile_99": "the largest counts are off",
    }
    most = MISFIT_SHARE + 2 * extreme(checks)
    for name, what in statistics.items():
        share = float(misfits(checks, name).mean())
        yield _misfit(f"misfit_{name}", share, f"{what}; {remedy}", most)
    yield _far_genes(checks)
    share = float(misfits(checks, "residuals").mean())
    what = "the distribution of single counts is off"
    yield _misfit("misfit_residuals", share, f"{what}; {remedy}", RESIDUAL_SHARE)


def far_genes(checks: xr.Dataset) -> Bool[np.ndarray, " gene"]:
    """Genes that a fresh cell would have far more or far less of than the data have."""
    return misfits(checks, "mean") & (_distance(checks) > np.log(FAR))


def _distance(checks: xr.Dataset) -> Float[np.ndarray, " gene"]:
    """Of predicted from observed means (natural log)."""
    observed, predicted = (checks["mean"].sel(quantity=q).values for q in ("observed", "predicted"))
    return np.abs(np.log(np.maximum(predicted, TINY_MEAN) / np.maximum(observed, TINY_MEAN)))


def _far_genes(checks: xr.Dataset):
    """The row about `far_genes`."""
    distance, far = _distance(checks), np.flatnonzero(far_genes(checks))
    if not len(far):
        return Row("far_genes", 0)
    worst = far[np.argsort(-distance[far], kind="stable")][:N_NAMED]
    named = ", ".join(visible(name) for name in checks[names.GENE].values[worst])
    note = (
        f"means off by a factor of {FAR:g} and more, most in {named}: distrust what involves them"
    )
    return Row("far_genes", len(far), WARNING, note)


def _misfit(quantity, share, note, most):
    return Row.judged(quantity, share, share > most, f"{share:.0%} of genes: {note}")


def k_hat(shapes: xr.DataArray) -> Row:
    """The largest shapes that `pareto_k` gives."""
    bad = float((shapes > K_HAT_LIMIT).mean())
    note = f"beyond {K_HAT_LIMIT} in {bad:.0%} of {shapes.size} cells: their z is approximate"
    warning = (WARNING, note) if bad > K_HAT_SHARE else ()
    return Row("pareto_k_95", float(shapes.quantile(0.95)), *warning)


def pareto_k(
    fitted: Fitted, parameters: Parameters, at_mode: CellsAtMode, n_cells: int, seed: int
) -> xr.DataArray:
    """See `LaplaceResult.get_pareto_k`."""
    n_cells = min(check_whole("get_pareto_k(n_cells", n_cells), fitted.n_cells)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(fitted.n_cells, n_cells, replace=False))
    cells, z = at_mode.take(sample)
    key = jax.random.key(seed)
    ratios = np.asarray(_ratios(key, parameters, cells, at_mode.augmentation.columns, z))
    return xr.DataArray(
        psis.pareto_k(ratios.T),
        dims=(names.CELL,),
        coords={names.CELL: fitted.cell_names[sample]},
        name="pareto_k",
    )


@quick_jit
def _ratios(key, parameters, cells, columns, z) -> Float[jax.Array, "draw cell"]:
    f = mode.conditional_rates(parameters, cells, columns, z, mode.FULL_ITERATIONS)
    return importance.log_ratios(key, parameters, cells, columns, f, N_DRAWS)
