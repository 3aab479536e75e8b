"""The program of a model with its residuals non-centred, for a sampler that moves by gradients.

Where counts say little of a log-rate, its distance from the mean shrinks with d, and where they say
little of a column of the loadings, its entries shrink with its scale: a sampler of x and W
themselves would need tiny steps there. Standardised numbers have one scale whatever the parameters
are (Papaspiliopoulos, Roberts & Sköld 2007).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer.reparam import Reparam
from numpyro.primitives import Messenger

from nbln import vocabulary as names
from nbln.models.base import Model
from nbln.models.depth import Depth
from nbln.priors.loadings import LoadingsPrior

FACTORS, OWN = "z", "own"  # factors of the cells, and standardised residuals of their genes


def noncentred(model: Model) -> Callable[..., Any]:
    """The same program, in which log-rates and loadings follow from standardised numbers."""
    loadings = getattr(model, "loadings", None)
    if loadings is None:
        return model
    seen = Seen(model)
    sites = {
        names.LOG_RATE: Standardised(),
        names.LOADINGS: Scaled(seen, loadings, model.depth),
    }
    if loadings.centre is not None:
        sites[loadings.centre] = Scaled(seen, loadings)
    return handlers.reparam(seen, config=sites)


def standardised(model: Model, start: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Array]:
    """Values of the model's sites as values of the sites of `noncentred`; residuals are 0.

    `shape` is that of the counts.
    """
    values = {name: jnp.asarray(x, float) for name, x in start.items()}
    loadings = getattr(model, "loadings", None)
    if loadings is None:
        return values
    sd = _column_sd(loadings, values, start[names.LOADINGS].shape[1])
    scaled = [name for name in (names.LOADINGS, loadings.centre) if name is not None]
    # Whoever samples takes every name here for a number of its own.
    free = {f"{name}_free": values.pop(name) / sd for name in scaled}
    return values | free | {OWN: jnp.zeros(shape)}


def _column_sd(loadings: LoadingsPrior, scales: dict[str, Array], n_factors: int) -> Array:
    """Units of the columns; 1 where there is no shrinkage."""
    sd = loadings.column_sd(scales, n_factors)
    return jnp.where(jnp.isfinite(sd), sd, 1.0)


class Seen(Messenger):
    """A program that remembers the values of its sites, for sites that come later."""

    values: dict[str, Array]

    def __enter__(self):
        self.values = {}
        return super().__enter__()

    def postprocess_message(self, msg):
        self.values[msg["name"]] = msg["value"]


class Standardised(Reparam):
    """x = mean + W z + √d ε, with z and ε standard normal."""

    def __call__(self, name, fn, obs):
        given, cells, _ = self._unwrap(fn)
        assert isinstance(given, dist.LowRankMultivariateNormal)
        W, d = jnp.asarray(given.cov_factor), jnp.asarray(given.cov_diag)
        n_genes, n_factors = W.shape[-2:]
        z = numpyro.sample(FACTORS, dist.Normal().expand((*cells, n_factors)).to_event(1))
        own = numpyro.sample(OWN, dist.Normal().expand((*cells, n_genes)).to_event(1))
        common = jnp.einsum("...gk,...k->...g", W, z)
        return None, given.loc + common + jnp.sqrt(d) * own


class Scaled(Reparam):
    """Numbers (..., factor) in units of the standard deviation of their column.

    What the depth of the cells takes away of them is N(0, 1): nothing else depends on that part,
    whose prior is flat, and without an anchor it would drift.
    """

    def __init__(self, seen: Seen, loadings: LoadingsPrior, depth: Depth | None = None):
        self.seen, self.loadings, self.depth = seen, loadings, depth

    def __call__(self, name, fn, obs):
        shape = fn.shape()
        flat = dist.ImproperUniform(dist.constraints.real, (), event_shape=shape)
        sd = _column_sd(self.loadings, self.seen.values, shape[-1])
        value = sd * numpyro.sample(f"{name}_free", flat)
        log_density = jnp.sum(fn.log_prob(value)) + (value.size // shape[-1]) * jnp.sum(jnp.log(sd))
        if self.depth is not None:
            *_, level = self.depth.fix(jnp.zeros(shape[0]), value)
            log_density -= 0.5 * jnp.sum(level**2)
        numpyro.factor(f"{name}_scaled", log_density)
        return None, value
