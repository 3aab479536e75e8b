"""Which genes need a gate: whether zeros are more than a negative binomial has."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from nbln.channels.negative_binomial import TYPICAL_R
from nbln.channels.zero_inflated import ZeroInflated
from nbln.data.counts import Counts
from nbln.inference import inflation
from nbln.inference.inflation import Belief, Genes
from nbln.inference.stream import CellStream
from nbln.posterior.mode import Augmentation, Parameters

RESIDENT_BYTES = 2**31  # as in the engines: a larger matrix is read again in each visit
# As informative about log r as one count: where nothing is known, r stays where it is.
FLAT = Belief(float(np.log(TYPICAL_R)), 0.05)
NODES = 32  # of the mean of a gate whose logit is Gaussian


def test(
    parameters: Parameters, counts: Counts, eta: Float[np.ndarray, " cell"], fdr: float
) -> dict[str, np.ndarray]:
    """Likelihood ratios of genes with and without a gate; see `SVIResult.get_gate`.

    Parameters
    ----------
    parameters
        Log means and a channel with gates, to start from.
    eta
        Capture losses, held.
    """
    offset = jnp.asarray(-eta, jnp.float32)
    stream = CellStream(counts, Augmentation.of_offset(offset), RESIDENT_BYTES)
    nothing = np.zeros(counts.n_cells)
    channel = parameters.channel
    assert isinstance(channel, ZeroInflated), "only channels with a gate are asked"
    own = Genes(parameters.mu, channel.log_r, channel.logits)
    log_mean, without = channel.matched(parameters.mu)
    no_gate = jnp.full_like(log_mean, inflation.NO_GATE)
    ungated = inflation.maximise(
        stream, nothing, Genes(log_mean, without.log_r, no_gate), FLAT, gated=False
    ).genes
    # From the fit, whose gates a prior holds back, and from where zeros are left to the gate.
    starts = own, inflation.excess_zeros(ungated, stream.tails(), counts.n_cells, eta)
    gated = [inflation.maximise(stream, nothing, start, FLAT).genes for start in starts]
    ratios = [inflation.log_ratio(stream, nothing, genes, ungated) for genes in gated]
    log_ratio = np.maximum(np.max(ratios, axis=0), 0)
    p_value = np.where(log_ratio > 0, 0.5 * stats.chi2.sf(2 * log_ratio, 1), 1.0)
    q_value = stats.false_discovery_control(p_value)
    found = {"log_ratio": log_ratio, "p_value": p_value, "q_value": q_value}
    return {name: np.asarray(x, np.float32) for name, x in found.items()} | {
        "needed": q_value <= fdr
    }


def moments(logit: tuple[Array, Array]) -> dict[str, np.ndarray]:
    """Mean and standard deviation of gates whose logits are Gaussian, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    loc, sd = (np.asarray(x)[..., None] for x in logit)
    gate = np.asarray(jax.nn.sigmoid(loc + sd * nodes))
    weights = weights / weights.sum()
    mean = gate @ weights
    return {"mean": mean, "sd": np.sqrt((gate - mean[:, None]) ** 2 @ weights)}
