"""A fitted model for cells of new batches: weights of these batches are learned, all else is held.

As in Lotfollahi et al. (2022), Nature Biotechnology 40, 121 (architecture surgery).
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from nbln.data.design import Categories, Design
from nbln.vae.likelihoods import PerCell, PerGroup, ZeroInflatedCounts
from nbln.vae.objective import EvidenceBound, Reconstruction
from nbln.vae.scvi import SCVI, Architecture, Gaussian


class NewBatches(EvidenceBound):
    """The evidence bound, which only what is marked as new can raise."""

    new: tuple[Bool[Array, "..."], ...]  # of each of `_places`
    of: Architecture = eqx.field(static=True)
    drawn: bool = eqx.field(static=True)  # whether z is, as it is not in an auto-encoder

    def terms(self, model, batch, key, now):
        del now  # normalisation is that of the reference: running moments, no dropout
        held = jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x, model)
        pairs = zip(self.new, _places(model, self.of), _places(held, self.of), strict=True)
        free = [jnp.where(new, own, still) for new, own, still in pairs]
        model = eqx.tree_at(lambda m: _places(m, self.of), held, free)
        whole = EvidenceBound() if self.drawn else Reconstruction()
        return whole.terms(model, batch, key, None)


def extended_design(design: Design, batches: np.ndarray) -> Design:
    """The design with further batches after its own."""
    assert design.batch is not None, "checked by the caller"
    known = design.batch.levels
    further = tuple(sorted(set(map(str, batches)) - set(known)))
    return replace(design, batch=Categories(design.batch.column, known + further))


def extended_architecture(of: Architecture, n_new: int) -> Architecture:
    """Of the model with so many further batches."""
    return replace(of, n_columns=of.n_columns + n_new, n_batches=of.n_batches + n_new)


def extended(
    model: SCVI, of: Architecture, library_prior: Gaussian
) -> tuple[SCVI, tuple[Array, ...]]:
    """The model with weights of new batches, and which entries of `_places` these are.

    A new batch starts at the mean of those that are there.

    Parameters
    ----------
    of
        The architecture as it was.
    library_prior
        Of the new batches.
    """
    n_new = library_prior.mean.shape[0]
    by_group = _by_batch(model)
    grown, new = [], []
    for i, place in enumerate(_places(model, of)):
        # Columns of a weight, but rows of a table of batches.
        along = 0 if by_group and i == 0 else 1
        end = of.n_batches if along == 0 else place.shape[1] - of.n_columns + of.n_batches
        before, after = jnp.split(place, [end], axis=along)
        own = lax.slice_in_dim(before, end - of.n_batches, end, axis=along)
        mean = jnp.repeat(jnp.mean(own, axis=along, keepdims=True), n_new, axis=along)
        grown.append(jnp.concatenate([before, mean, after], axis=along))
        parts = [jnp.zeros(before.shape, bool), jnp.ones(mean.shape, bool)]
        new.append(jnp.concatenate([*parts, jnp.zeros(after.shape, bool)], axis=along))
    model = eqx.tree_at(lambda m: _places(m, of), model, grown)
    priors = zip(model.library_prior, library_prior, strict=True)
    prior = Gaussian(*(jnp.concatenate(pair) for pair in priors))
    return eqx.tree_at(lambda m: m.library_prior, model, prior), tuple(new)


def _by_batch(model: SCVI) -> bool:
    """Whether dispersions are by batch."""
    theta = model.likelihood.dispersion
    return isinstance(theta, PerGroup) and theta.group == "batch"


def _places(model: SCVI, of: Architecture) -> list[Array]:
    """The leaves with entries of batches: dispersions first, then weights that see the design."""
    likelihood = model.likelihood
    found = [likelihood.dispersion.level] if _by_batch(model) else []  # type: ignore[union-attr]
    n_layers = 0 if of.linear else of.n_layers
    found += [model.decoder.stack.linear[i].weight for i in range(n_layers)]
    if of.linear:
        found.append(model.decoder.share.weight)
        if isinstance(likelihood, ZeroInflatedCounts):
            found.append(likelihood.dropout.weight)
        if isinstance(likelihood.dispersion, PerCell):
            found.append(likelihood.dispersion.head.weight)
    return found
