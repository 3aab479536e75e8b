"""Denoised expression has the moments of draws from the cells' posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nbln.posterior import draws, mode
from nbln.posterior.cells import blocks

KINDS = ("nbln-frozen", "nbln-latent-coverage", "pln")


@pytest.mark.parametrize("kind", KINDS)
def test_log_rates_are_those_of_draws(results, kind):
    result = results[kind]
    added, parameters = result.augmentation, result.parameters
    (_, cells), *_ = blocks(result.fitted.counts, added)
    z = jnp.asarray(result.cells.z.T)
    f = mode.conditional_rates(parameters, cells, added.columns, z, 4)
    drawn = draws.draw_rates(jax.random.key(0), parameters, cells, added.columns, f, 4000)
    ours = result.get_denoised("log_rate")
    if not added.columns.value:  # the draws are f = x + o; a latent η is not in them
        x = np.asarray(drawn) - added.offset[:, None]
        scaled = (x.mean(axis=0) - ours["mean"].values) / ours["sd"].values
        # The mean is corrected for skewness, the draws are around the mode: half an sd at most.
        assert np.abs(scaled).max() < 0.6
        np.testing.assert_allclose(x.std(axis=0), ours["sd"], rtol=0.1)
    else:
        assert np.all(ours["sd"].values ** 2 > 0)
        assert np.all(ours["sd"].values ** 2 < parameters.d + 2)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_agree(results, kind):
    result = results[kind]
    log_rate, rate = result.get_denoised("log_rate"), result.get_denoised("rate")
    expected = np.exp(log_rate["mean"] + log_rate["sd"] ** 2 / 2)
    np.testing.assert_allclose(rate["mean"], expected, rtol=1e-4)
    shares = result.get_denoised("composition")
    np.testing.assert_allclose(shares["mean"].sum("gene"), 1, rtol=1e-4)
    name = str(result.fitted.gene_names[3])
    one = result.get_denoised("rate", genes=[name])
    np.testing.assert_array_equal(one["mean"][:, 0], rate["mean"].sel(gene=name))


def test_layers(nbln_fit, adata):
    target = adata.copy()
    nbln_fit.write_to(target, layers=True)
    layer = target.layers["nbln_rate"]
    assert layer.shape == target.shape
    assert np.isnan(layer[:, -1]).all()  # the gene never seen
    np.testing.assert_allclose(layer[:, :-1], nbln_fit.get_denoised()["mean"])


def test_errors(nbln_fit):
    with pytest.raises(ValueError, match="rate, log_rate, composition"):
        nbln_fit.get_denoised("counts")
    with pytest.raises(KeyError, match="nonsense"):
        nbln_fit.get_denoised(genes=["nonsense"])
