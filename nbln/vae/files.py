"""A fitted amortised model as groups of named arrays and plain values, and back."""

import math
import numbers
from dataclasses import asdict

import equinox as eqx
import jax
import jax.numpy as jnp

from nbln import vocabulary as names
from nbln.arguments import shown
from nbln.data.design import Design
from nbln.results import io
from nbln.vae import weights
from nbln.vae.cells import Known
from nbln.vae.decoded import RATE, SHARE, Latents
from nbln.vae.likelihoods import Groups
from nbln.vae.scvi import SCVI, Architecture, Gaussian

CELL = (names.CELL,)
LATENT = "latent"


def groups(result) -> io.Groups:
    """What a file of a `VAEResult` holds."""
    known, latents = result.known, result.latents
    per_factor = (*CELL, names.FACTOR)
    plain = {
        "inference_method": result.inference_method,
        "architecture": asdict(result.architecture),
        "design": result.design.plain(),
    }
    return {
        **weights.of_training(result, plain),
        "known": io.group(
            {
                "log_library": (CELL, known.log_library),
                "design": ((*CELL, "design_column"), known.design),
                "batch": (CELL, known.groups.batch),
                "label": (CELL, known.groups.label),
            }
        ),
        "latents": io.group(
            {
                "z_mean": (per_factor, latents.z_mean),
                "z_variance": (per_factor, latents.z_variance),
                "library_mean": (CELL, latents.library_mean),
                "library_variance": (CELL, latents.library_variance),
            }
        ),
    }


def parts(groups: io.Groups) -> dict:
    """The fields of a `VAEResult`."""
    plain = io.values(groups["fit"])
    architecture = Architecture(**plain["architecture"])
    known = io.arrays(groups["known"])
    batch, label = (known.pop(name) for name in ("batch", "label"))
    trained = weights.to_training(groups, skeleton(architecture))
    if architecture.n_genes != trained["fitted"].n_genes:
        raise ValueError(
            f"the network is of {architecture.n_genes} genes, the data of "
            f"{trained['fitted'].n_genes}"
        )
    return {
        **trained,
        "architecture": architecture,
        "design": Design.restore(plain["design"]),
        "known": Known(**known, groups=Groups(batch, label)),
        "latents": Latents(**io.arrays(groups["latents"])),
        "inference_method": plain["inference_method"],
    }


def skeleton(architecture: Architecture) -> SCVI:
    """The shapes of a network, without numbers."""
    prior = Gaussian(jnp.zeros(architecture.n_batches), jnp.ones(architecture.n_batches))
    return eqx.filter_eval_shape(SCVI.start, jax.random.key(0), architecture, prior)


def library_scale(argument: str, value) -> tuple[str, float]:
    """On which scale expression is decoded for a library size, and what it is multiplied by.

    Raises
    ------
    ValueError
        Neither a positive number nor ``"latent"``.
    """
    if isinstance(value, str) and value == LATENT:
        return RATE, 1.0
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 < float(value) < math.inf:
        raise ValueError(f"{shown(argument, value)}: must be a positive number, or 'latent'")
    return SHARE, float(value)
