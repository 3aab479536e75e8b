"""What a fit with a code says of itself."""

from collections.abc import Iterator

import numpy as np

from nbln.questions import diagnostics
from nbln.questions.diagnostics import Row
from nbln.results.story import Line
from nbln.vae.negbio import answers
from nbln.vae.story import COLLAPSED


def line(result) -> str:
    """A result in one line."""
    n, of = len(result.epochs.elbo_train), result.architecture
    kept = f"best of {n} epochs {result.best + 1}" if len(result.held_out) else f"{n} epochs"
    stop = ", held-out cells stopped improving" if result.stopped else ""
    return (
        f"NegBioResult({result.model}, {of.kind.code} code, {of.likelihood} likelihood, "
        f"{result.fitted.n_cells} samples x {result.fitted.n_genes} features, "
        f"{used(result)} of {of.latent_dim} latents used, {kept}{stop})"
    )


def used(result) -> int:
    """Latents of which the encoder says more than their prior."""
    divergence = answers.divergences(result.network, result.said)
    return int((divergence.mean(axis=0) > COLLAPSED).sum())


def summary(result, data, seed: int) -> Iterator[Row]:
    """Rows of the summary, predictive checks aside; without data what needs none."""
    yield from diagnostics.data(result.fitted)
    n, best, of = len(result.epochs.elbo_train), result.best, result.architecture
    yield Row("epochs", n)
    if len(result.held_out):
        yield Row("best_epoch", best + 1)
        late = not result.stopped and best > 0.95 * n
        note = "held-out samples still improved at the end: raise NegBioConfig(n_epochs=...)"
        yield Row.judged("best_epoch_at_the_end", late, late, note)
    yield Row("latent_dim", of.latent_dim)
    yield Row("factors_used", used(result))
    divergence = float(answers.divergences(result.network, result.said).sum(axis=1).mean())
    yield Row.judged(
        "divergence",
        round(divergence, 2),
        divergence < COLLAPSED,
        "the code says nothing of samples (collapsed): lower NegBioConfig(beta=...)",
    )
    yield Row("elbo_train", round(float(result.epochs.elbo_train[best]), 2))
    if len(result.held_out):
        yield Row("elbo_held_out", round(float(result.epochs.elbo_validation[best]), 2))
    prior = result.network.code.prior()
    if prior.dispersion is not None:
        yield Row("prior_overdispersion", round(_index(prior), 3))
    if data is not None:
        terms = answers.terms(result.network, answers.cells_of(data), 1, seed)
        yield Row("elbo", round(float(terms.elbo.mean()), 2))


def _index(prior) -> float:
    """Median variance by mean of the prior's latents."""
    return float(np.median(np.asarray(prior.variance) / np.asarray(prior.mean)))


def of(result) -> Iterator[Line]:
    """Training, code and prior."""
    n, kind = len(result.epochs.elbo_train), result.architecture.kind
    if not len(result.held_out):
        yield "Training", f"{n} epochs with all samples; the last is kept"
    else:
        yield "Training", f"{n} epochs; number {result.best + 1} is kept"
        value = float(result.epochs.elbo_validation[result.best])
        end = "; they had stopped improving" if result.stopped else ""
        held = len(result.held_out)
        yield "", f"evidence bound of {held:,} samples held out: {value:,.1f} nats each{end}"
    offered = result.architecture.latent_dim
    yield "Code", f"{kind.code}; {used(result)} of {offered} latents offered are used"
    prior = result.network.code.prior()
    if prior.dispersion is not None:
        yield "Prior", f"variance by mean of its counts: median {_index(prior):.2f} (Poisson: 1)"
