"""The network against scvi-tools: its weights give its outputs.

`reference/make_scvi_weights.py` made them with scvi-tools 1.4.2.
"""

from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from vae_cells import network

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.vae import decoded
from nbln.vae.likelihoods import Groups
from nbln.vae.scvi import SCVI, Batch

FILE = Path(__file__).parents[1] / "reference" / "scvi_weights.npz"
LAYERS = ("encoder.0", "z_mean", "z_log_var", "decoder.0", "px_scale", "px_dropout")


@pytest.fixture(scope="module")
def theirs():
    with np.load(FILE) as file:
        return dict(file)


def places(model: SCVI) -> list:
    """The arrays of a network, as `weights` has them."""
    encoder, decoder = model.encoder, model.decoder
    layers = (encoder.stack.linear[0], encoder.mean, encoder.log_variance)
    layers += (decoder.stack.linear[0], decoder.share, model.likelihood.dropout)
    found = [x for layer in layers for x in (layer.weight, layer.bias)]
    for stack in (encoder.stack, decoder.stack):
        norm = stack.norm[0]
        found += [norm.scale, norm.shift, norm.running.mean, norm.running.variance]
    return [*found, model.likelihood.theta.value]


def weights(theirs) -> list:
    """The arrays of scvi-tools in that order."""
    names = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
    parts = ("weight", "bias", "mean", "var")
    names += [f"{network}.0.norm.{part}" for network in ("encoder", "decoder") for part in parts]
    return [jnp.asarray(theirs[name]) for name in (*names, "px_r")]


@pytest.fixture(scope="module")
def model(theirs) -> SCVI:
    ours = network(n_genes=12, latent_dim=5, n_hidden=16, gene_likelihood="zinb")
    given = weights(theirs)
    assert [x.shape for x in places(ours)] == [x.shape for x in given]
    return eqx.tree_at(places, ours, given)


@pytest.fixture(scope="module")
def batch(theirs) -> Batch:
    counts, code = theirs["counts"], theirs["batch"]
    design = np.eye(2, dtype=np.float32)[code]
    arrays = map(jnp.asarray, (counts, np.log(counts.sum(axis=1)), design))
    return Batch(*arrays, Groups(jnp.asarray(code), jnp.zeros(20, int)), jnp.ones(20))


def test_encoder(theirs, model, batch):
    z = model.encoder(batch.counts)[0]
    np.testing.assert_allclose(z.mean, theirs["cells.z_mean"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z.variance, theirs["cells.z_var"], rtol=1e-5, atol=1e-5)
    divergence = jnp.sum(z.divergence(0.0, 1.0), axis=1)
    np.testing.assert_allclose(divergence, theirs["cells.kl"], rtol=1e-5, atol=1e-5)


def test_decoder(theirs, model, batch):
    log_share, _, _ = model.decoder(jnp.asarray(theirs["cells.z_mean"]), batch.design)
    np.testing.assert_allclose(jnp.exp(log_share), theirs["cells.px_scale"], rtol=1e-5, atol=1e-6)
    mean, theta, logits = decoded._parameters(model, batch)
    np.testing.assert_allclose(mean, theirs["cells.px_rate"], rtol=5e-5)
    np.testing.assert_allclose(theta[0], theirs["cells.px_r"], rtol=1e-5)
    np.testing.assert_allclose(logits, theirs["cells.px_dropout"], rtol=1e-5, atol=1e-5)


def test_likelihoods(theirs, model, batch):
    """Theirs adds 1e-8 inside logarithms; ours is exact."""
    z = jnp.asarray(theirs["cells.z_mean"])
    f, bound = decoded.decoded(model, z, batch.log_library, batch)
    inflated = -jnp.sum(bound.log_prob(batch.counts, f), axis=1)
    np.testing.assert_allclose(inflated, theirs["cells.nll"], rtol=1e-4)
    counted = -jnp.sum(NegativeBinomial(bound.log_r).log_prob(batch.counts, f), axis=1)
    np.testing.assert_allclose(counted, theirs["cells.nll_nb"], rtol=1e-4)
