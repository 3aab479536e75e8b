"""What an amortised fit says of itself."""

from collections.abc import Iterator

import numpy as np

from nbln.questions import diagnostics
from nbln.questions.diagnostics import Row
from nbln.results.story import Line
from nbln.vae import decoded, marginal
from nbln.vae.cells import Cells

N_CELLS = 200  # of the fit, whose encoder is compared with their own posteriors
LARGEST_GAP = 0.02  # of the evidence, by which an encoder may miss it: 20 nats in 1,000
COLLAPSED = 0.05  # nats a cell: a factor that says less of a cell is not used


def line(result) -> str:
    """A result in one line."""
    return (
        f"VAEResult({result.model}, {result.fitted.n_cells} cells x {result.fitted.n_genes} genes, "
        f"{_factors(result)} used, {course(result)})"
    )


def course(result) -> str:
    """How many epochs a training took, in a few words."""
    n = len(result.epochs.elbo_train)
    kept = f"best of {n} epochs {result.best + 1}" if len(result.held_out) else f"{n} epochs"
    return kept + (", held-out cells stopped improving" if result.stopped else "")


def epochs(result, what: str, settings: str) -> Iterator[Row]:
    """Rows of the epochs; `what` cells are called, and the name of the settings."""
    n = len(result.epochs.elbo_train)
    yield Row("epochs", n)
    if len(result.held_out):
        yield Row("best_epoch", result.best + 1)
        late = not result.stopped and result.best > 0.95 * n
        note = f"held-out {what} still improved at the end: raise {settings}(n_epochs=...)"
        yield Row.judged("best_epoch_at_the_end", late, late, note)


def bounds(result) -> Iterator[Row]:
    """Rows of the evidence bounds at the epoch that is kept."""
    yield Row("elbo_train", round(float(result.epochs.elbo_train[result.best]), 2))
    if len(result.held_out):
        yield Row("elbo_held_out", round(float(result.epochs.elbo_validation[result.best]), 2))


def training(result, what: str, each: str) -> Iterator[Line]:
    """Sentences of the training; `what` cells are called, and of `each` of them."""
    n = len(result.epochs.elbo_train)
    if not len(result.held_out):
        yield "Training", f"{n} epochs with all {what}; the last is kept"
        return
    yield "Training", f"{n} epochs; number {result.best + 1} is kept"
    value = float(result.epochs.elbo_validation[result.best])
    held = len(result.held_out)
    end = "; they had stopped improving" if result.stopped else ""
    yield "", f"evidence bound of {held:,} {what} held out: {value:,.1f} nats {each}{end}"


def _factors(result) -> str:
    """How many factors are used, in words."""
    offered = result.architecture.latent_dim
    return f"{used_factors(result) if result.has_prior else offered} of {offered} factors"


def used_factors(result) -> int:
    """Factors of which the encoder says more than their prior."""
    mean, variance = result.latents.z_mean, result.latents.z_variance
    divergence = 0.5 * (variance - 1 - np.log(variance) + mean**2)
    return int((divergence.mean(axis=0) > COLLAPSED).sum())


def summary(result, cells: Cells | None, seed: int) -> Iterator[Row]:
    """Rows of the summary, predictive checks aside; without cells what needs no counts."""
    yield from diagnostics.data(result.fitted)
    yield from epochs(result, "cells", "VAEConfig")
    yield Row("latent_dim", result.architecture.latent_dim)
    if result.has_prior:
        used = used_factors(result)
        note = "all factors offered are used: the cells may hold more (latent_dim)"
        yield Row.judged("factors_used", used, used == result.architecture.latent_dim, note)
    yield from bounds(result)
    if cells is not None and result.has_prior:
        yield _gap(result, cells, seed)


def _gap(result, cells: Cells, seed: int) -> Row:
    """How far the encoder's bound is below the evidence, in some cells."""
    n = cells.counts.n_cells
    some = np.sort(np.random.default_rng(seed).choice(n, min(n, N_CELLS), replace=False))
    batch = cells.batch(some)
    evidence = np.asarray(marginal.log_evidence_of(result.network, batch))
    bound = np.asarray(decoded.terms_of(result.network, batch, seed).elbo)
    gap = float(np.mean(evidence - bound))
    bad = gap > LARGEST_GAP * abs(float(np.mean(evidence)))
    note = "the encoder places cells badly: take get_latent(refined=True), and train for longer"
    return Row.judged("encoder_gap", round(gap, 2), bad, note)


def of(result) -> Iterator[Line]:
    """Training, factors and dispersion."""
    yield from training(result, "cells", "a cell")
    yield "Factors", f"{_factors(result)} offered are used"
    if result.network.likelihood.dispersion is not None:
        values = np.quantile(result.get_map()["r"].values, [0.05, 0.5, 0.95])
        low, middle, high = (f"{float(f'{x:.2g}'):,g}" for x in values)
        yield "Dispersion r", f"median {middle}; {low} to {high} in 90 % of genes"
    if result.design.batch is not None:
        yield "Batches", f"{result.design.n_batches}, column {result.design.batch.column}"
