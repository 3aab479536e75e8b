"""The evidence bound against NumPyro: divergences, terms, and the table of sites."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from vae_cells import annotated, cells, fit, network

import nbln
from nbln.vae import decoded
from nbln.vae.layers import BatchNorm, Training
from nbln.vae.network import Now
from nbln.vae.objective import EvidenceBound, ImportanceBound, Reconstruction
from nbln.vae.scvi import Gaussian

KINDS = {
    "nb": {},
    "zinb": {"gene_likelihood": "zinb"},
    "poisson": {"gene_likelihood": "poisson"},
    "latent library": {"latent_library": True},
    "linear": {"linear": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
N_DRAWS = 2_000


def test_divergence_is_that_of_numpyro():
    rng = np.random.default_rng(0)
    mean, other = rng.normal(size=(2, 5, 3))
    variance, wide = rng.gamma(2.0, size=(2, 5, 3))
    ours = Gaussian(jnp.asarray(mean), jnp.asarray(variance)).divergence(other, wide)
    theirs = dist.kl_divergence(
        dist.Normal(mean, np.sqrt(variance)), dist.Normal(other, np.sqrt(wide))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@each_kind
def test_sites_are_those_of_the_program(kind):
    model, batch = network(**KINDS[kind]), cells()
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(batch)
    told = {site.name: len(site.dims) for site in model.sites}
    sampled = {n: s for n, s in trace.items() if s["type"] == "sample"}
    assert told == {n: jnp.ndim(s["value"]) for n, s in sampled.items() if not s["is_observed"]}
    assert [n for n, s in sampled.items() if s["is_observed"]] == ["counts"]
    for name in sampled:
        assert f"| {name} |" in type(model).__doc__


@each_kind
def test_bound_is_the_log_joint_less_the_guide(kind):
    model, batch = network(**KINDS[kind]), cells()
    z, library = decoded.drawn_from(model, batch)

    @jax.jit
    @jax.vmap
    def ratio(key):
        first, second = jax.random.split(key)
        values = {"z": z.draw(first)}
        guide = jnp.sum(dist.Normal(z.mean, jnp.sqrt(z.variance)).log_prob(values["z"]))
        if model.library is not None:
            values["log_library"] = library.draw(second)
            own = dist.Normal(library.mean, jnp.sqrt(library.variance))
            guide = guide + jnp.sum(own.log_prob(values["log_library"]))
        return log_density(model, (batch,), {}, values)[0] - guide

    @jax.jit
    @jax.vmap
    def bound(key):
        return jnp.sum(EvidenceBound().terms(model, batch, key, None)[0].elbo)

    theirs = np.asarray(ratio(jax.random.split(jax.random.key(1), N_DRAWS)))
    ours = np.asarray(bound(jax.random.split(jax.random.key(2), N_DRAWS)))
    error = np.hypot(theirs.std(), ours.std()) / np.sqrt(N_DRAWS)
    assert error < 0.01 * abs(theirs.mean())
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    mean = decoded.terms_of(model, batch, 3, N_DRAWS)
    assert abs(float(jnp.sum(mean.elbo)) - theirs.mean()) < 4 * error


def now(warmth):
    """A training that weighs the divergence like this."""
    return Now(jnp.asarray(warmth), jnp.asarray(0.0))


def test_divergence_of_an_observed_library_is_none():
    terms = decoded.terms_of(network(), cells(), 0, 1)
    np.testing.assert_array_equal(terms.library_divergence, 0)


def test_warming_weighs_the_divergence_of_factors_alone():
    terms = decoded.terms_of(network(latent_library=True), cells(), 0, 1)
    whole, none = (EvidenceBound().value(terms, now(x)) for x in (1.0, 0.0))
    np.testing.assert_allclose(whole, terms.elbo, rtol=1e-6)
    np.testing.assert_allclose(none - whole, terms.divergence, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["nb", "latent library"])
def test_weighing_one_draw_is_the_evidence_bound(kind):
    assert EvidenceBound.of_draws(1) == EvidenceBound()
    model, batch = network(**KINDS[kind]), cells()
    keys = jax.random.split(jax.random.key(0), N_DRAWS)

    def of(objective):
        drawn = jax.jit(jax.vmap(lambda key: objective.terms(model, batch, key, False)[0].elbo))
        return np.asarray(drawn(keys), np.float64)

    one, other, more = (of(x) for x in (EvidenceBound(), ImportanceBound(1), ImportanceBound(8)))
    error = np.hypot(one.std(axis=0), other.std(axis=0)) / np.sqrt(N_DRAWS)
    assert np.all(np.abs(one.mean(axis=0) - other.mean(axis=0)) < 4 * error)
    assert np.all(more.mean(axis=0) > one.mean(axis=0))


def test_weighing_many_draws_is_the_evidence():
    model, batch = network(latent_dim=1, linear=True, gene_likelihood="poisson"), cells(mean=1.0)
    heads = (model.encoder.mean, model.encoder.log_variance)
    model = eqx.tree_at(  # the prior is the guide: its draws reach all of the posterior
        lambda m: (m.encoder.mean, m.encoder.log_variance),
        model,
        jax.tree.map(jnp.zeros_like, heads),
    )
    grid = np.linspace(-8, 8, 801)

    @jax.jit
    @jax.vmap
    def joint(z):
        f, bound = decoded.decoded(model, jnp.full((6, 1), z), batch.log_library, batch)
        return jnp.sum(bound.log_prob(batch.counts, f), axis=1) + dist.Normal().log_prob(z)

    evidence = jax.nn.logsumexp(joint(jnp.asarray(grid, jnp.float32)), axis=0) + np.log(0.02)
    bounds = [
        eqx.filter_jit(ImportanceBound(k).terms)(model, batch, jax.random.key(1), False)[0].elbo
        for k in (1, 20_000)
    ]
    np.testing.assert_allclose(bounds[1], evidence, atol=0.1)
    assert np.mean(bounds[0]) < np.mean(evidence) - 1


def test_draws_are_weighed_where_they_are_asked_for():
    config = nbln.VAEConfig(n_epochs=2, n_hidden=4, n_importance=3)
    assert np.isfinite(fit(annotated(60, 12), vae=config).history).all(axis=None)
    with pytest.raises(ValueError, match=r"VAEConfig\(n_importance=3\): only a fit with a prior"):
        fit(annotated(60, 12), vae=config, inference_method="ae")


def test_an_auto_encoder_draws_nothing():
    model, batch = network(latent_library=True), cells()
    terms = eqx.filter_jit(Reconstruction().terms)
    one, two = (terms(model, batch, jax.random.key(seed), None)[0] for seed in (0, 1))
    np.testing.assert_array_equal(one.reconstruction, two.reconstruction)
    value = Reconstruction().value(one, now(0.3))
    np.testing.assert_array_equal(value, one.reconstruction)


def test_padding_changes_nothing():
    """Neither the terms of the cells beside it nor the moments of the layers, while learning."""
    model, batch = network(dropout=0.0), cells()
    padded = batch._replace(
        counts=jnp.concatenate([batch.counts, jnp.full((2, 8), 1e3)]),
        log_library=jnp.concatenate([batch.log_library, jnp.full(2, 9.0)]),
        design=jnp.concatenate([batch.design, batch.design[:2]]),
        groups=jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch.groups),
        weight=jnp.concatenate([batch.weight, jnp.zeros(2)]),
    )
    learn = eqx.filter_jit(Reconstruction().terms)
    (own, seen), (other, also) = (learn(model, x, jax.random.key(0), True) for x in (batch, padded))
    np.testing.assert_allclose(other.reconstruction[:6], own.reconstruction, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(seen), jax.tree.leaves(also), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_is_that_of_numpy():
    x = np.random.default_rng(0).normal(3, 2, (50, 8)).astype(np.float32)
    y, seen = BatchNorm.start(8)(x, Training(jax.random.key(0), jnp.ones(50)))
    np.testing.assert_allclose(seen.mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(seen.variance, x.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), rtol=1e-4, atol=1e-5)
