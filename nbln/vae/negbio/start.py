"""Where training of a model with a code starts: the output's bias and the likelihood at moments."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nbln.vae.cells import Cells
from nbln.vae.negbio.model import CodedArchitecture, NegBio
from nbln.vae.negbio.observed import OBSERVED


class Moments(NamedTuple):
    """Mean and variance of each feature over samples."""

    mean: Float[np.ndarray, " feature"]
    variance: Float[np.ndarray, " feature"]

    @classmethod
    def of(cls, cells: Cells) -> "Moments":
        """In two passes, since squares of large numbers leave no digits to their spread."""
        n = cells.counts.n_cells
        mean, variance = np.zeros((2, cells.counts.n_genes))
        for block, batch in cells.blocks():
            mean += _rows(block, batch).sum(axis=0) / n
        for block, batch in cells.blocks():
            variance += ((_rows(block, batch) - mean) ** 2).sum(axis=0) / n
        return cls(mean, variance)


def _rows(block: slice, batch) -> np.ndarray:
    return np.asarray(batch.x[: block.stop - block.start], np.float64)


def network(of: CodedArchitecture, moments: Moments, seed: int) -> NegBio:
    """A network with random weights, whose output is at the means of the features."""
    observed = OBSERVED[of.likelihood].start(*moments)
    model = NegBio.start(jax.random.key(seed), of, observed)
    bias = jnp.asarray(observed.link(moments.mean), jnp.float32)
    return eqx.tree_at(lambda m: m.output.bias, model, bias)
