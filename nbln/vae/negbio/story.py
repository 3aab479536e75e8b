"""What a fit with a code says of itself."""

from collections.abc import Iterator

import numpy as np

from nbln.questions import diagnostics
from nbln.questions.diagnostics import Row
from nbln.results.story import Line
from nbln.vae.negbio import answers
from nbln.vae.story import COLLAPSED, bounds, course, epochs, training


def line(result) -> str:
    """A result in one line."""
    of = result.architecture
    return (
        f"NegBioResult({result.model}, {of.kind.code} code, {of.likelihood} likelihood, "
        f"{result.fitted.n_cells} samples x {result.fitted.n_genes} features, "
        f"{used(result)} of {of.latent_dim} latents used, {course(result)})"
    )


def used(result) -> int:
    """Latents of which the encoder says more than their prior."""
    divergence = answers.divergences(result.network, result.said)
    return int((divergence.mean(axis=0) > COLLAPSED).sum())


def summary(result, data, seed: int) -> Iterator[Row]:
    """Rows of the summary, predictive checks aside; without data what needs none."""
    yield from diagnostics.data(result.fitted)
    yield from epochs(result, "samples", "NegBioConfig")
    yield Row("latent_dim", result.architecture.latent_dim)
    yield Row("factors_used", used(result))
    divergence = float(answers.divergences(result.network, result.said).sum(axis=1).mean())
    yield Row.judged(
        "divergence",
        round(divergence, 2),
        divergence < COLLAPSED,
        "the code says nothing of samples (collapsed): lower NegBioConfig(beta=...)",
    )
    yield from bounds(result)
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
    yield from training(result, "samples", "each")
    kind, offered = result.architecture.kind, result.architecture.latent_dim
    yield "Code", f"{kind.code}; {used(result)} of {offered} latents offered are used"
    prior = result.network.code.prior()
    if prior.dispersion is not None:
        yield "Prior", f"variance by mean of its counts: median {_index(prior):.2f} (Poisson: 1)"
