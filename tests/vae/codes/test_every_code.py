"""The same promises of every family of codes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nbln.vae.codes import RELAXATIONS, ExactSum, NegativeBinomialCode
from nbln.vae.negbio.words import CODES, ELBOS, CodeKind

LATENTS, CELLS = 3, 5
KIND = CodeKind("nb", "exact", n_draws=1, n_terms=24, dispersion=1.0)


def codes():
    for word, start in CODES.items():
        yield pytest.param(start(LATENTS, KIND), id=word)
    for word, divergence in ELBOS.items():
        yield pytest.param(NegativeBinomialCode.start(LATENTS, divergence(KIND)), id=word)


each_code = pytest.mark.parametrize("code", list(codes()))


def heads(code, scale=1.0):
    shape = CELLS, code.n_heads, LATENTS
    return scale * jax.random.normal(jax.random.key(1), shape)


def relaxations():
    return [None, *(kind(jnp.float32(0.5)) for kind in RELAXATIONS.values())]


@each_code
def test_shapes(code):
    values = () if code.n_values == 1 else (code.n_values,)

    def everything(code, heads, key, relaxation):
        posterior, prior = code.posterior(heads), code.prior()
        draw = posterior.draw(key, relaxation)
        by_latent = code.divergence(posterior, key, relaxation), posterior.divergence(prior)
        log_prob = posterior.log_prob(posterior.draw(key, None))
        return (
            (draw, posterior.mean, posterior.variance),
            (*by_latent, log_prob),
            prior.draw(key, relaxation),
        )

    for relaxation in relaxations():
        of_values, of_latents, of_prior = eqx.filter_eval_shape(
            everything, code, heads(code), jax.random.key(0), relaxation
        )
        assert {v.shape for v in of_values} == {(CELLS, LATENTS, *values)}
        assert {v.shape for v in of_latents} == {(CELLS, LATENTS)}
        assert of_prior.shape == (LATENTS, *values)
    assert code.latent_dim == LATENTS


@each_code
def test_draws_agree_with_what_is_said_of_them(code):
    """Mean and variance, and the divergence as the expectation of a log ratio."""
    posterior, prior, n = code.posterior(heads(code, 0.5)), code.prior(), 10_000
    many = code.posterior(jnp.repeat(heads(code, 0.5), n, axis=0))

    @jax.jit
    def sample(key):
        z = many.draw(key, None)
        return z, many.log_prob(z) - prior.log_prob(z), posterior.divergence(prior)

    z, ratio, divergence = map(np.asarray, sample(jax.random.key(0)))
    ratio = ratio.reshape(CELLS, n, LATENTS)
    error = 5 * ratio.std(1) / np.sqrt(n) + 1e-5
    assert np.all(np.abs(ratio.mean(1) - divergence) < error)
    z = z.reshape(CELLS, n, *z.shape[1:])
    error = 5 * np.sqrt(posterior.variance / n)
    assert np.all(np.abs(z.mean(1) - posterior.mean) < error)
    np.testing.assert_allclose(z.var(1), posterior.variance, rtol=0.25)


@each_code
@pytest.mark.parametrize("kind", list(RELAXATIONS.values()))
def test_training_is_finite_and_without_loops(code, kind):
    """Value and derivatives, in prior and heads, whatever an encoder says."""
    key = jax.random.key(2)

    @eqx.filter_value_and_grad
    def loss(learned):
        code, heads = learned
        posterior, relaxation = code.posterior(heads), kind(jnp.float32(0.5))
        return jnp.sum(posterior.draw(key, relaxation)) + jnp.sum(
            code.divergence(posterior, key, relaxation)
        )

    step = eqx.filter_jit(loss)
    for scale in (0.0, 1.0, 100.0):
        for leaf in jax.tree.leaves(step((code, heads(code, scale)))):
            assert np.isfinite(leaf).all()
    assert "while" not in str(eqx.filter_make_jaxpr(loss)((code, heads(code)))[0])


def test_the_encoder_says_less_where_dispersion_is_shared():
    shared = NegativeBinomialCode.start(LATENTS, ELBOS["dispersion_sharing"](KIND))
    assert (shared.n_heads, NegativeBinomialCode.start(LATENTS).n_heads) == (1, 2)
    posterior = shared.posterior(heads(shared))
    assert posterior.log_r.shape == (LATENTS,)


def test_a_program_serves_all_temperatures():
    """A temperature is traced: another one compiles nothing."""
    code = NegativeBinomialCode.start(LATENTS, ExactSum())
    traced = []

    @eqx.filter_jit
    def draw(posterior, relaxation):
        traced.append(1)
        return posterior.draw(jax.random.key(0), relaxation)

    for temperature in (1.0, 0.3, 0.1):
        draw(code.posterior(heads(code)), RELAXATIONS["gumbel"](jnp.float32(temperature)))
    assert len(traced) == 1
