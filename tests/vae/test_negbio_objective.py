"""The bound of auto-encoders with a code: against NumPyro, the published objective, gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from negbio_data import EVERY_CODE, FEATURES, LIKELIHOODS, batch, small
from numpyro import handlers
from numpyro.infer.util import log_density
from vae_cells import double

import nbln
from nbln.vae.negbio import answers
from nbln.vae.negbio.objective import CodedBound, PublishedObjective
from nbln.vae.negbio.words import Relaxing
from nbln.vae.network import Now

RELAXING = Relaxing("gumbel", 16, False, 1.0, 0.05)
BEFORE = Now(jnp.asarray(1.0), jnp.asarray(0.0))
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@pytest.mark.parametrize(
    ("code", "likelihood"),
    [*((code, "gaussian") for code in EVERY_CODE), *(("nb", word) for word in LIKELIHOODS[1:])],
)
def test_the_program_has_the_parts_of_the_bound(code, likelihood):
    """At a draw z of the code: log p(x, z) is what the decoder says, and the prior's density."""
    model, given = small(code, likelihood), batch(likelihood)
    given = given._replace(x=jnp.round(given.x)) if likelihood == "bernoulli" else given
    z = model.posterior(given.x).draw(jax.random.key(0), None)
    joint = log_density(model, (given,), {}, {"z": z})[0]
    own = jnp.sum(model.observed.log_prob(given.x, model.decode(z)[0]))
    prior = jnp.sum(model.code.prior().log_prob(z))
    assert float(joint) == pytest.approx(float(own + prior), rel=1e-5)


def test_the_bound_is_the_log_joint_less_the_guide():
    """On average over draws, whose divergence the bound has in closed form."""
    model, given = small(), batch("gaussian")
    q, prior = model.posterior(given.x), model.code.prior()

    @eqx.filter_jit
    @jax.vmap
    def ratio(key):
        z = q.draw(key, None)
        own = model.observed.log_prob(given.x, model.decode(z)[0])
        return jnp.sum(own) + jnp.sum(prior.log_prob(z) - q.log_prob(z))

    theirs = np.asarray(ratio(jax.random.split(jax.random.key(1), 2_000)))
    ours = answers._terms(model, given, jax.random.key(2), 2_000).elbo
    error = 2 * theirs.std() / np.sqrt(len(theirs))
    assert abs(float(jnp.sum(ours)) - theirs.mean()) < 4 * error


def test_sites_are_those_of_the_program():
    model, given = small(), batch("gaussian")
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(given)
    hidden = {n: np.ndim(s["value"]) for n, s in trace.items() if not s["is_observed"]}
    assert hidden == {site.name: len(site.dims) for site in model.sites}
    assert "| z |" in type(model).__doc__


@every_likelihood
def test_likelihoods_are_normalised(likelihood):
    observed = small(likelihood=likelihood).observed
    f = jnp.full(FEATURES, 0.3)
    steps = {"gaussian": np.linspace(-20, 20, 4_001), "bernoulli": np.array([0.0, 1.0])}
    x = steps.get(likelihood, np.arange(400.0))
    width = x[1] - x[0]
    density = np.exp(observed.log_prob(jnp.asarray(x)[:, None], f[None]))
    np.testing.assert_allclose(width * density.sum(axis=0), 1, rtol=1e-4)
    mean = width * (density * x[:, None]).sum(axis=0)
    variance = width * (density * x[:, None] ** 2).sum(axis=0) - mean**2
    np.testing.assert_allclose(observed.mean(f), mean, rtol=1e-4)
    np.testing.assert_allclose(observed.variance(f), variance, rtol=2e-3)


def test_the_published_objective_is_the_bound_of_one_variance():
    """Up to a constant and a factor: σ² = β / (2 K), when σ is no parameter."""
    model, given, beta = small("nb"), batch("gaussian"), 0.7
    k = model.code.latent_dim
    published = PublishedObjective(RELAXING, beta, k)
    terms, _ = published.terms(model, given, jax.random.key(0), BEFORE)
    sd = float(np.sqrt(beta / (2 * k)))
    fixed = eqx.tree_at(lambda m: m.observed.log_sd, model, jnp.log(sd))
    bound = CodedBound(RELAXING, 1.0)
    own, _ = bound.terms(fixed, given, jax.random.key(0), BEFORE)
    constant = -0.5 * FEATURES * np.log(2 * np.pi * sd**2)
    expected = 2 * sd**2 * (bound.value(own, BEFORE) - constant)
    np.testing.assert_allclose(published.value(terms, BEFORE), expected, rtol=1e-4)


def test_under_the_published_objective_sigma_follows_the_errors():
    """Its gradient is that of the likelihood, and the decoder's that of the squared error."""
    observed = small().observed
    x, f = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[0.5, 3.0]])

    def published(observed, f):
        return jnp.sum(observed.fidelity(x, f))

    own, by_f = jax.grad(published, (0, 1))(observed, f)
    theirs = jax.grad(lambda observed: jnp.sum(observed.log_prob(x, f)))(observed)
    assert float(own.log_sd) == pytest.approx(float(theirs.log_sd), rel=1e-6)
    np.testing.assert_allclose(by_f, 2 * (x - f), rtol=1e-6)


def test_judged_models_have_exact_draws_and_divergence():
    model, given = small("nb", elbo="monte_carlo"), batch("gaussian")
    terms, _ = CodedBound(RELAXING, 0.3).terms(model, given, jax.random.key(0), None)
    q = model.posterior(given.x)
    exact = jnp.sum(q.divergence(model.code.prior()), axis=1)
    np.testing.assert_allclose(terms.divergence, exact, rtol=1e-6)
    np.testing.assert_allclose(terms.elbo, terms.reconstruction - exact, rtol=1e-6)


def test_beta_and_warming_weigh_the_divergence():
    model, given = small(), batch("gaussian")
    terms, _ = CodedBound(RELAXING, 1.0).terms(model, given, jax.random.key(0), BEFORE)
    half = Now(jnp.asarray(0.5), jnp.asarray(0.0))
    value = CodedBound(RELAXING, 0.4).value(terms, half)
    np.testing.assert_allclose(value, terms.reconstruction - 0.2 * terms.divergence, rtol=1e-5)


def test_temperatures_fall_in_a_line():
    found = [float(RELAXING.at(jnp.asarray(x)).temperature) for x in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(found, [1.0, 0.525, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("code", "elbo", "word"),
    [
        ("nb", "exact", "gumbel"),
        ("nb", "monte_carlo", "continuous_time"),
        ("nb", "dispersion_sharing", "continuous_time"),
    ],
)
def test_gradients_are_those_of_finite_differences(code, elbo, word):
    """Of the relaxed objective with the same noise, along a random direction, in 64 bits."""
    with jax.enable_x64(True):
        model, given = double(small(code, "nb", elbo)), double(batch("nb"))
        objective = CodedBound(Relaxing(word, 8, False, 0.5, 0.5), 1.0)
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(arrays)

        def value(leaves):
            whole = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
            terms, _ = objective.terms(whole, given, jax.random.key(3), BEFORE)
            return jnp.sum(objective.value(terms, BEFORE))

        rng = np.random.default_rng(0)
        along = [jnp.asarray(rng.normal(size=x.shape)) for x in leaves]

        @jax.jit
        def both(h):
            at = [x + h * d for x, d in zip(leaves, along, strict=True)]
            return jax.jvp(value, (at,), (along,))

        ends = [float(both(h)[0]) for h in (1e-5, -1e-5)]
        ours = float(both(0.0)[1])
    assert ours == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-4)


def test_words_of_settings():
    with pytest.raises(ValueError, match=r"NegBioConfig\(objective='mse'\).*elbo, published"):
        nbln.NegBioConfig(objective="mse")
    with pytest.raises(ValueError, match=r"NegBioConfig\(last_temperature=0"):
        nbln.NegBioConfig(last_temperature=0)
    with pytest.raises(TypeError, match=r"NegBioConfig\(straight_through=1"):
        nbln.NegBioConfig(straight_through=1)
