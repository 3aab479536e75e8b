"""The posterior of a cell with three genes against NUTS on the NumPyro program itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

from nbln.models.lnm import LNM
from nbln.models.nbln import NBLN
from nbln.posterior import evidence, mode
from nbln.posterior.mode import Cells, Parameters
from nbln.priors.capture import KnownCapture, LatentCapture
from nbln.priors.columnwise import Flat
from nbln.priors.univariate import InverseGamma, LogNormal, Normal
from nbln.questions.denoised import latent_moments

# Deep counts with a large dispersion, so that Laplace's own error is below the Monte Carlo error.
MU = np.log([900.0, 2_500.0, 6_000.0])
W = np.array([[0.5], [-0.4], [0.3]])
D = np.array([0.15, 0.1, 0.2])
R = np.array([1_000.0, 2_000.0, 3_000.0])
N_CHAINS, N_DRAWS = 4, 12_000
COUNTS = np.array([[700.0, 1_600.0, 2_500.0]])
CAPTURE = {
    "known": KnownCapture(jnp.array([0.5])),
    "latent": LatentCapture(jnp.array([0.5]), jnp.array([0.15])),
}


def model_of(capture):
    priors = {
        "mu": Normal(jnp.asarray(0.0), jnp.asarray(10.0)),
        "d": InverseGamma(jnp.asarray(2.0), jnp.asarray(0.3)),
        "r": LogNormal(jnp.asarray(0.0), jnp.asarray(10.0)),
    }
    return NBLN(priors, Flat(), CAPTURE[capture], 1)


def nuts(capture):
    """Draws of f and η of the cell, (chain, draw, ...), the parameters held."""
    given = {"mu": MU, "W": W, "d": D, "r": R}
    program = handlers.condition(model_of(capture), {n: jnp.asarray(x) for n, x in given.items()})
    kernel = NUTS(program, dense_mass=True, target_accept_prob=0.9)
    chains = {"num_chains": N_CHAINS, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=1_000, num_samples=N_DRAWS, **chains)
    mcmc.run(jax.random.key(0), jnp.asarray(COUNTS, jnp.float32))
    samples = {n: np.asarray(x, np.float64) for n, x in mcmc.get_samples(True).items()}
    eta = samples.get("eta", np.full((N_CHAINS, N_DRAWS, 1), 0.5))
    return samples["x"][:, :, 0] - eta, eta


def close(draws, mean, sd):
    """Moments within 3 Monte Carlo standard errors."""
    n = np.minimum(effective_sample_size(draws), effective_sample_size((draws - mean) ** 2))
    assert np.all(n > 2_000), n
    flat = draws.reshape(-1, *draws.shape[2:])
    spread = flat.std(axis=0)
    assert np.all(np.abs(flat.mean(axis=0) - mean) < 3 * spread / np.sqrt(n))
    assert np.all(np.abs(spread / sd - 1) < 3 / np.sqrt(2 * n))


@pytest.mark.parametrize("capture", [pytest.param("known", marks=pytest.mark.slow), "latent"])
def test_posterior_of_a_cell(capture):
    model = model_of(capture)
    mu, loadings, d, r = (jnp.asarray(x, jnp.float32) for x in (MU, W, D, R))
    parameters = Parameters(mu, loadings, d, model.channel.of({"r": r}))
    offset, scale, columns, *_ = model.augmentation
    counts = jnp.asarray(COUNTS, jnp.float32)
    cells = Cells(counts, jnp.ones(1), offset, scale, jnp.zeros((1, 0)))
    at = mode.find(parameters, cells, columns, jnp.log(counts + 0.5))
    step = mode.newton_step(parameters, cells, columns, at.f)
    moved, leverage, variance = mode.corrected(step, parameters, cells, columns)
    by_formula = parameters.d * step.t + step.t**2 * leverage
    np.testing.assert_allclose(variance, by_formula, rtol=1e-5)
    f, eta = nuts(capture)
    close(f, np.asarray(moved.f[0]), np.sqrt(np.asarray(variance[0])))
    if capture == "latent":
        mean, _, sd = evidence.capture_loss(cells, columns, moved.z, step.covariance)
        close(eta[..., 0], float(mean[0]), float(sd[0]))


@pytest.mark.slow
def test_posterior_of_shares():
    """Log-rates given shares of a total: the flat column integrates the cell's level out."""
    mu, loadings = MU - MU.mean(), W - W.mean()
    capture = KnownCapture(jnp.zeros(1))
    priors = {name: LogNormal(0.0, 10.0) for name in ("total_mean", "total_r")}
    model = LNM(model_of("known").priors | priors, Flat(), capture, 1)
    given = {"mu": mu, "W": loadings, "d": D, "total_mean": 4_800.0, "total_r": 10.0}
    program = handlers.condition(model, {n: jnp.asarray(x) for n, x in given.items()})
    kernel = NUTS(program, dense_mass=True, target_accept_prob=0.9)
    chains = {"num_chains": N_CHAINS, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=1_000, num_samples=N_DRAWS, **chains)
    mcmc.run(jax.random.key(0), jnp.asarray(COUNTS, jnp.float32))
    x = np.asarray(mcmc.get_samples(True)["x"], np.float64)[:, :, 0]
    parts = (jnp.asarray(value, jnp.float32) for value in (mu, loadings, D))
    parameters = Parameters(*parts, model.channel.of({}))
    offset, scale, columns, *_ = model.augmentation
    counts = jnp.asarray(COUNTS, jnp.float32)
    cells = Cells(counts, jnp.ones(1), offset, scale, jnp.zeros((1, 0)))
    at = mode.find(parameters, cells, columns, jnp.log(counts + 0.5))
    mean, variance = latent_moments(parameters, cells, columns, at.f)
    close(x, np.asarray(mean[0]), np.sqrt(np.asarray(variance[0])))
