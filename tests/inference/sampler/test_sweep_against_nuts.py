"""Whole sweeps beside NUTS, which knows nothing of their steps: two genes, one factor.

NUTS draws every log-rate too, where the sampler integrates the gene's own residual. The centre of
the loadings, whose prior is flat, is held at 0 in both, and with it the basis.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from problem import Problem

from nbln.inference.overdispersion import Pooling
from nbln.inference.sampler import columns, sweep

POOLING = Pooling()
N_WARMUP, N_KEPT = 200, 4000


def joint(counts):
    """The same model and the same priors, written out."""
    least = (np.log(POOLING.least) - POOLING.middle) / POOLING.width
    m = numpyro.sample("m", dist.TruncatedNormal(0.0, 1.0, low=least)) * POOLING.width
    sd = numpyro.sample("sd", dist.Uniform(0.0, POOLING.largest_sd))
    of_square = dist.InverseGamma(0.5 * POOLING.freedom, 0.5 * POOLING.freedom * POOLING.sd_squared)
    numpyro.factor("of sd", of_square.log_prob(sd**2) + jnp.log(sd))
    share = numpyro.sample("share", dist.Normal(0.0, POOLING.share_width))
    with numpyro.plate("genes", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        w = numpyro.sample("w", dist.Normal(0.0, 0.8))
        away, apart = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("away", "apart"))
    phi = jnp.exp(POOLING.middle + m + sd * away)
    split = jax.nn.sigmoid(share + POOLING.deviation * apart)
    d, r = phi * split, 1 / jnp.expm1(phi * (1 - split))
    with numpyro.plate("cells", len(counts)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        own = numpyro.sample("own", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        x = mu + w * z[:, None] + jnp.sqrt(d) * own
        channel = dist.NegativeBinomial2(jnp.exp(x), r).to_event(1)
        numpyro.sample("counts", channel, obs=counts)
    logit = jnp.log(split) - jnp.log1p(-split)
    for name, value in quantities(mu, w, jnp.log(phi), logit, z).items():
        numpyro.deterministic(name, value)


def quantities(mu, w, log_phi, logit, z):
    return {
        "μ + d/2, first gene": mu[0] + 0.5 * jnp.exp(log_phi[0]) * jax.nn.sigmoid(logit[0]),
        "w wᵀ": w[0] * w[1],
        "w²": w[0] ** 2,
        "log φ, second gene": log_phi[1],
        "logit of its share": logit[1],
        "z of a cell by w": z[3] * w[0],
    }


@pytest.mark.slow
def test_draws_are_those_of_nuts(monkeypatch):
    problem = Problem(n_cells=50, seed=1)
    numpyro.set_host_device_count(1)
    mcmc = MCMC(
        NUTS(joint, target_accept_prob=0.95),
        num_warmup=1500,
        num_samples=6000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), problem.counts)
    theirs = mcmc.get_samples(group_by_chain=True)
    monkeypatch.setattr(columns, "mix", lambda key, basis, *given: basis)
    monkeypatch.setattr(columns, "draw_centre", lambda key, W, precision: jnp.zeros(1))
    state, cells, kept = problem.state, problem.cells(), []
    for i in range(N_WARMUP + N_KEPT):
        warm = jnp.asarray(i < N_WARMUP)
        state, cells, _ = sweep.sweep(
            jax.random.key(i), problem.target, problem.stream, state, cells, warm, jnp.asarray(0.0)
        )
        if i >= N_WARMUP:
            genes = state.genes
            kept.append(quantities(genes.mu, genes.W[:, 0], *genes.psi, cells[0].z[0, 0]))
    for name in kept[0]:
        ours = np.array([float(draw[name]) for draw in kept])[None]
        their = np.asarray(theirs[name], float)
        of_ours, of_their = effective_sample_size(ours), effective_sample_size(their)
        assert of_ours > 300, (name, of_ours)
        assert of_their > 300, (name, of_their)
        sd = their.std()
        error = sd * np.sqrt(1 / of_ours + 1 / of_their)
        assert abs(ours.mean() - their.mean()) < 4 * error, (name, ours.mean(), their.mean(), error)
        relative = np.sqrt(0.5 / of_ours + 0.5 / of_their)
        assert abs(np.log(ours.std() / sd)) < 4 * relative, (name, ours.std(), sd)
