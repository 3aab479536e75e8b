"""The program that NUTS samples has the density of the model's own, and a run goes on where it was.

Densities are compared in float64: they are sums over hundreds of numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, log_density, potential_energy, unconstrain_fn

import nbln
from nbln import registry
from nbln.inference.mcmc import engine
from nbln.inference.mcmc.engine import MCMCConfig
from nbln.inference.mcmc.noncentred import noncentred, standardised
from nbln.options import Priors
from nbln.priors.capture import KnownCapture, LatentCapture
from nbln.priors.columnwise import Flat, Gaussian, HorseshoeColumnwise, NegColumnwise
from nbln.priors.sparse import HorseshoeSparse

N_CELLS, N_GENES, N_FACTORS = 4, 3, 2


def program(model, loadings, capture=None):
    row = registry.find(model)
    latent = LatentCapture(jnp.full(N_CELLS, 0.7), jnp.full(N_CELLS, 0.3))
    priors = Priors.of(row, None).sites(N_CELLS)
    return row.program(priors, loadings, latent if capture is None else capture, N_FACTORS)


def start(model):
    """Values of all sites but log-rates, drawn at random; and factors."""
    rng = np.random.default_rng(0)
    sizes = {"cell": N_CELLS, "gene": N_GENES, "factor": N_FACTORS}
    drawn = {}
    for site in model.sites:
        if site.name != "x":
            drawn[site.name] = rng.uniform(0.1, 0.4, [sizes[dim] for dim in site.dims])
    if isinstance(model.capture, KnownCapture):
        del drawn["eta"]
    return drawn | {"z": rng.normal(size=(N_CELLS, N_FACTORS))}


def written_out(model, natural, counts, position):
    """Log-density of the model's own program, factors and residuals made explicit."""
    x, z, W, d = (natural[name] for name in ("x", "z", "W", "d"))
    sites = {name: natural[name] for name in (site.name for site in model.sites)}
    whole, trace = log_density(model, (counts,), {}, sites)
    mean = trace["x"]["fn"].base_dist.loc
    whole -= (
        dist.LowRankMultivariateNormal(mean, model.depth.fix(sites["mu"], W)[1], d)
        .log_prob(x)
        .sum()
    )
    whole += dist.Normal().log_prob(z).sum() + dist.Normal().log_prob(position["own"]).sum()
    for name, site in trace.items():
        if name in position and site["type"] == "sample":
            change = biject_to(site["fn"].support)
            value = jnp.asarray(position[name])
            whole += jnp.sum(change.log_abs_det_jacobian(value, change(value)))
    return whole


@pytest.mark.parametrize(
    ("model", "loadings"),
    [
        ("nbln", HorseshoeSparse()),
        ("nbln", HorseshoeColumnwise()),
        ("pln", NegColumnwise()),
        ("lnm", Gaussian()),
        ("lnmvcp", HorseshoeSparse()),
        ("nbln", Flat()),
    ],
)
def test_density_is_that_of_the_model(model, loadings):
    with jax.enable_x64(True):
        made = program(model, loadings)
        counts = jnp.asarray(np.random.default_rng(1).poisson(5.0, (N_CELLS, N_GENES)), float)
        free = noncentred(made)

        @jax.jit
        def densities(position):
            natural = constrain_fn(free, (counts,), {}, position, return_deterministic=True)
            theirs = written_out(made, natural, counts, position)
            # In units of columns, W and centres have the volume of those units.
            units = jnp.log(jnp.abs(natural["W"] / position["W_free"]))[0]
            theirs += (N_GENES + (loadings.centre is not None)) * units.sum()
            if made.depth.has_totals:  # the anchor of what totals leave open
                theirs -= 0.5 * jnp.sum(natural["W"].mean(axis=0) ** 2)
            return -potential_energy(free, (counts,), {}, position), theirs

        position = unconstrain_fn(free, (counts,), {}, standardised(made, start(made), (4, 3)))
        for seed in range(3):
            rng = np.random.default_rng(seed)
            moved = {n: x + 0.3 * rng.normal(size=x.shape) for n, x in position.items()}
            np.testing.assert_allclose(*densities(moved), rtol=1e-9)


def test_known_losses_are_not_sampled():
    made = program("nbln", Gaussian(), KnownCapture(jnp.zeros(N_CELLS)))
    counts = jnp.ones((N_CELLS, N_GENES))
    values = jax.jit(lambda: standardised(made, start(made), counts.shape))()
    substituted = handlers.substitute(noncentred(made), values)
    kinds = {}

    @jax.jit
    def run():
        trace = handlers.trace(substituted).get_trace(counts)
        kinds.update({name: site["type"] for name, site in trace.items()})

    run()
    assert kinds["eta"] == kinds["x"] == kinds["W"] == "deterministic"
    assert kinds["z"] == kinds["own"] == kinds["W_free"] == "sample"


class Interrupted(KeyboardInterrupt):
    pass


def test_an_interrupted_run_ends_with_the_same_draws(tmp_path, monkeypatch):
    counts = nbln.datasets.simulate(20, 8, 0, seed=1)
    config = MCMCConfig(10, 6, 2)

    def fit(**more):
        chosen = dict(model="nbvcp", inference_method="mcmc", mcmc=config, progress=False)
        return nbln.fit(counts, **chosen, **more)

    whole = fit()
    path = tmp_path / "run.ckpt"
    calls, stacked = iter(range(1000)), engine.Progress.advance

    def stop(self, note=None, steps=1):
        if next(calls) == 20:
            raise Interrupted
        return stacked(self, note, steps)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Progress, "advance", stop)
        with pytest.raises(Interrupted):
            fit(checkpoint=path)
    assert path.exists()
    again = fit(checkpoint=path)
    assert not path.exists()
    for name, values in whole.chains.values().items():
        np.testing.assert_array_equal(values, again.chains.values()[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_draws": 0}, r"MCMCConfig\(n_draws=0\): must be a whole number"),
        ({"n_chains": 1.5}, r"MCMCConfig\(n_chains=1\.5\)"),
        ({"target_accept": 1.0}, r"MCMCConfig\(target_accept=1\.0\).*at most 0\.999"),
        ({"target_accept": "high"}, r"MCMCConfig\(target_accept='high'\)"),
        ({"max_tree_depth": 0}, r"MCMCConfig\(max_tree_depth=0\)"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        MCMCConfig(**settings)


def test_a_start_without_density_is_told(monkeypatch):
    monkeypatch.setattr(engine, "APART", np.inf)
    data = nbln.datasets.simulate(20, 8, 0, seed=1)
    with pytest.raises(FloatingPointError, match="chain 1 starts where"):
        nbln.fit(data, model="nbvcp", inference_method="mcmc", progress=False)
