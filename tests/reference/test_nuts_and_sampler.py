"""Draws by NUTS beside those of the sampler that starts at a fit: other steps, the same posterior.

Priors of d and of the channel are given, since the sampler pools them over genes otherwise.
"""

import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size

import nbln

CASES = {
    "nbln": (6, {"d": (4.0, 0.5), "r": (1.6, 0.5), "loadings": "gaussian"}),
    "lnm": (3, {"d": (4.0, 0.5), "loadings": "gaussian"}),
}


def moments(result):
    """Mean, sd and Monte Carlo standard errors of both, of all pairs' correlations."""
    n_genes = result.fitted.n_genes
    draws = result.correlation_draws("compositional").of_pairs(*np.triu_indices(n_genes, 1))
    chains = draws.reshape(result.n_chains, result.n_draws, -1).astype(float)
    sd, ess = draws.std(axis=0), effective_sample_size(chains)
    assert (ess > 100).all(), ess
    spread = effective_sample_size((chains - draws.mean(axis=0)) ** 2)
    return draws.mean(axis=0), sd, sd / np.sqrt(ess), np.sqrt(0.5 / spread)


@pytest.mark.slow
@pytest.mark.parametrize("model", CASES)
def test_they_agree(model):
    n_genes, priors = CASES[model]
    adata = nbln.datasets.simulate(150, n_genes, 1, seed=2)
    adata.X = adata.X.toarray() + 1
    common = dict(model=model, latent_dim=1, priors=priors, progress=False)
    config = nbln.MCMCConfig(n_warmup=500, n_draws=1000, n_chains=2)
    nuts = nbln.fit(adata, inference_method="mcmc", mcmc=config, **common)
    alone = {} if model == "lnm" else {"informative_priors_from": False}
    post = nbln.fit(adata, **alone, **common).sample_posterior(2000, 2, progress=False)
    (mean, sd, error, spread), (their, their_sd, their_error, their_spread) = map(
        moments, (nuts, post)
    )
    assert nuts.n_divergences <= 5
    assert (np.abs(mean - their) < 5 * np.hypot(error, their_error)).all()
    assert (np.abs(np.log(sd / their_sd)) < 5 * np.hypot(spread, their_spread)).all()
