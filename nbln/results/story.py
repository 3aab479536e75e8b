"""What results say of themselves: summaries, and sentences for a report."""

from collections.abc import Iterator

import numpy as np

from nbln import vocabulary as names
from nbln.data.counts import Counts
from nbln.questions import diagnostics
from nbln.questions.diagnostics import Row
from nbln.text import visible

N_ACTIVITIES = 3  # programs whose activity differs most, that a report names
SEEN_GATE = 0.1  # share of structural zeros that a report counts
Line = tuple[str, str]  # label, sentence; an empty label continues the line above


def laplace_line(result) -> str:
    """A Laplace result in one line."""
    return (
        f"LaplaceResult({result.model}, {result.fitted.n_cells} cells x {result.fitted.n_genes} "
        f"genes, effective rank {result.w_prior_diagnostics['effective_rank']} of "
        f"{result.latent_dim}, {_state(result)} after {len(result.trace)} iterations)"
    )


def svi_line(result) -> str:
    """A fit of independent genes in one line."""
    return (
        f"SVIResult({result.model} {result.parameterization}, {result.fitted.n_cells} cells x "
        f"{result.fitted.n_genes} genes, {_ended(result)})"
    )


def _ended(result) -> str:
    """How a fit of independent genes has ended; as a rule, a first stage takes no step."""
    if not result.n_steps:
        return "at the mode of their regressions"
    return f"{_state(result)} after {result.n_steps:,} steps"


def _state(result) -> str:
    return "converged" if result.converged else "NOT converged"


def laplace_summary(result, counts: Counts | None, seed: int) -> Iterator[Row]:
    """Rows of a Laplace result, predictive checks aside; without counts what needs none."""
    source, last = result.cascade_source, result.history.last_change
    yield from diagnostics.data(result.fitted)
    yield from diagnostics.convergence(
        ("iterations", len(result.trace)),
        result.converged,
        f"raise n_steps: the last iteration changed the parameters by {last:.1e}",
        source is None or source.converged,
    )
    yield Row("last_change", last)
    yield from diagnostics.cells(result.cells)
    yield from diagnostics.programs(
        result.w_prior_diagnostics, result.get_gauge_diagnostics(), result.loadings.learned
    )
    yield from diagnostics.variance(result.get_variance_shares())
    yield from diagnostics.totals(result.totals)
    if counts is not None:
        yield diagnostics.k_hat(result.get_pareto_k(diagnostics.N_CELLS, seed, counts))


def svi_summary(result) -> Iterator[Row]:
    """Rows of a fit of independent genes, predictive checks aside."""
    yield from diagnostics.data(result.fitted)
    yield from diagnostics.convergence(
        ("steps", result.n_steps), result.converged, "raise n_steps: the locations still moved"
    )
    yield Row("final_loss", float(result.losses[-1]))


def of_svi(result) -> Iterator[Line]:
    """Convergence, capture and dispersion of a fit of independent genes."""
    yield "Convergence", _svi_state(result)
    if result.has_capture:
        low, middle, high = np.quantile(np.exp(-result.eta), [0.05, 0.5, 0.95])
        yield "Capture", f"median efficiency {middle:.2g}; {low:.2g} to {high:.2g} in 90 % of cells"
    if result.formula is not None:
        yield from _covariates(result)
    low, middle, high = np.quantile(result.r, [0.05, 0.5, 0.95])
    yield "Dispersion r", f"median {middle:.2g}; {low:.2g} to {high:.2g} in 90 % of genes"
    yield "", "variance of a count = mean + mean² / r"
    gate = result.get_map().get(names.GATE)
    if gate is not None:
        many = int((gate > SEEN_GATE).sum())
        yield "Gates", f"median {float(gate.median()):.2g}; above {SEEN_GATE:g} in {many:,} genes"
        yield "", "get_gate() says which of them the counts need"


def of_laplace(result) -> Iterator[Line]:
    """Convergence, cells and programs of a log-normal model."""
    n = len(result.trace)
    state = f"converged after {n}" if result.converged else f"NOT converged in {n}"
    remedy = "" if result.converged else "; its values are approximate, try more steps"
    source = result.cascade_source
    first = [] if source is None else [_svi_state(source)]
    for i, sentence in enumerate([*first, f"Laplace stage: {state} iterations{remedy}"]):
        yield "" if i else "Convergence", sentence
    bad = result.n_unconverged
    missed = f"{bad:,} of {result.fitted.n_cells:,} did not reach their posterior mode"
    yield "Cells", missed if bad else "all cells reached their posterior mode"
    if result.formula is not None:
        yield from _covariates(result)
    if result.datasets is not None:
        yield from _datasets(result)
    rank = result.w_prior_diagnostics["effective_rank"]
    yield "Effective rank", f"{rank} of {result.latent_dim} programs offered carry signal"
    if rank == result.latent_dim:
        yield "", "all of them: the data may hold more, offer more (latent_dim)"
    if result.totals is not None:
        mean, r = result.totals[:2]
        full = " at full capture" if result.has_capture else ""
        yield "Totals", f"mean {mean:,.0f} counts a cell{full}; dispersion {r:.2g}"
    if rank:
        ratio = result.get_gauge_diagnostics()["gauge_contamination_ratio"]
        yield "Gauge ratio", f"{ratio:.2f}: variation shared by all genes, relative to the rest;"
        yield "", "correlations leave the shared part out"
    else:
        yield "", "no program was kept, so all correlations are zero; more cells or"
        yield "", "more genes may show programs that these do not"
        yield "Gauge ratio", "not defined without a program"


def _covariates(result) -> Iterator[Line]:
    """The formula, and how large effects are."""
    formula = result.formula
    yield "Formula", formula.text
    effects = result.get_covariate_effects()["mean"].values.T if result.has_effects else ()
    for name, values in zip(formula.fixed, effects, strict=True):
        sd = float(np.std(values))
        yield "", f"{visible(name)}: effects on genes have a standard deviation of {sd:.2g} (log)"
    for part in formula.random:
        sd = float(np.median(result.get_random_effects(part.column)["between"]))
        yield "", f"{len(part.levels)} levels of {visible(part.column)} differ by {sd:.2g} (log)"


def _datasets(result) -> Iterator[Line]:
    """The data sets, and programs whose activity differs most."""
    datasets = result.datasets
    yield "Data sets", f"{len(datasets)}, by {', '.join(map(visible, datasets.columns))}"
    rank = result.w_prior_diagnostics["effective_rank"]
    s = result.get_program_activity().values[:, :rank]
    for i in np.argsort(-np.ptp(np.log(s), axis=0))[:N_ACTIVITIES]:
        low, high = (visible(datasets.names[at(s[:, i])]) for at in (np.argmin, np.argmax))
        ratio = s[:, i].max() / s[:, i].min()
        yield "", f"program {i + 1}: {ratio:.2f} x as active in {high} as in {low}"


def _svi_state(result) -> str:
    if result.converged:
        return f"first stage: independent genes, {_ended(result)}"
    return f"first stage: NOT converged in {result.n_steps:,} steps; its values are approximate"
