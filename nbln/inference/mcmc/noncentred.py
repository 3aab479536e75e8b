"""The program of a model with its residuals non-centred, for a sampler that moves by gradients.

Where counts say little of a log-rate, its distance from the mean shrinks with d: at small d a
sampler of x itself would need tiny steps. Standardised factors and residuals have one scale
whatever W and d are (Papaspiliopoulos, Roberts & Sköld 2007).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import Reparam

from nbln import vocabulary as names
from nbln.models.base import Model
from nbln.models.depth import Depth

FACTORS, OWN = "z", "own"  # factors of the cells, and standardised residuals of their genes


def noncentred(model: Model) -> Callable[..., None]:
    """The same program, in which log-rates follow from standardised numbers."""
    sites = {names.LOG_RATE: Standardised(), names.LOADINGS: Anchored(model.depth)}
    return handlers.reparam(model, config=sites)


class Standardised(Reparam):
    """x = mean + W z + √d ε, with z and ε standard normal."""

    def __call__(self, name, fn, obs):
        given, cells, _ = self._unwrap(fn)
        n_genes, n_factors = given.cov_factor.shape[-2:]
        z = numpyro.sample(FACTORS, dist.Normal().expand((*cells, n_factors)).to_event(1))
        own = numpyro.sample(OWN, dist.Normal().expand((*cells, n_genes)).to_event(1))
        common = jnp.einsum("...gk,...k->...g", given.cov_factor, z)
        return None, given.loc + common + jnp.sqrt(given.cov_diag) * own


class Anchored(Reparam):
    """Loadings as they are; what the depth of the cells takes away of them is N(0, 1).

    Nothing else depends on that part, whose prior is flat: without an anchor it would drift.
    """

    def __init__(self, depth: Depth):
        self.depth = depth

    def __call__(self, name, fn, obs):
        W = numpyro.sample(f"{name}_free", fn)
        *_, level = self.depth.fix(jnp.zeros(W.shape[0]), W)
        numpyro.factor(f"{name}_anchor", -0.5 * jnp.sum(level**2))
        return None, W
