"""A fitted amortised model as groups of named arrays and plain values, and back."""

import math
import numbers
from dataclasses import asdict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nbln import vocabulary as names
from nbln.arguments import shown
from nbln.data.design import Design
from nbln.results import io
from nbln.vae.cells import Known
from nbln.vae.decoded import RATE, SHARE, Latents
from nbln.vae.engine import Epoch
from nbln.vae.likelihoods import Groups
from nbln.vae.scvi import SCVI, Architecture, Gaussian

CELL = (names.CELL,)
LATENT = "latent"


def groups(result) -> io.Groups:
    """What a file of a `VAEResult` holds."""
    known, latents = result.known, result.latents
    per_factor = (*CELL, names.FACTOR)
    plain = {
        "model": result.model,
        "inference_method": result.inference_method,
        "best": result.best,
        "stopped": bool(result.stopped),
        "architecture": asdict(result.architecture),
        "design": result.design.plain(),
    }
    return {
        "data": io.of_fitted(result.fitted),
        "fit": io.group({"held_out": (CELL, _mask(result))}, plain),
        "network": io.group(
            {name: (tuple(f"{name}_{i}" for i in range(x.ndim)), x) for name, x in _named(result)}
        ),
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
        "history": io.group({n: (("epoch",), x) for n, x in result.epochs._asdict().items()}),
    }


def parts(groups: io.Groups) -> dict:
    """The fields of a `VAEResult`."""
    plain = io.values(groups["fit"])
    architecture = Architecture(**plain["architecture"])
    known = io.arrays(groups["known"])
    batch, label = (known.pop(name) for name in ("batch", "label"))
    fitted = io.to_fitted(groups["data"])
    if architecture.n_genes != fitted.n_genes:
        raise ValueError(
            f"the network is of {architecture.n_genes} genes, the data of {fitted.n_genes}"
        )
    return {
        "fitted": fitted,
        "model": plain["model"],
        "network": _network(architecture, io.arrays(groups["network"])),
        "architecture": architecture,
        "design": Design.restore(plain["design"]),
        "known": Known(**known, groups=Groups(batch, label)),
        "latents": Latents(**io.arrays(groups["latents"])),
        "epochs": Epoch(**io.arrays(groups["history"])),
        "best": plain["best"],
        "held_out": np.flatnonzero(io.arrays(groups["fit"])["held_out"]),
        "stopped": plain["stopped"],
        "inference_method": plain["inference_method"],
    }


def _mask(result) -> np.ndarray:
    """1 for cells that training did not see: an array without any entry would not be saved."""
    mask = np.zeros(result.fitted.n_cells, np.int8)
    mask[result.held_out] = 1
    return mask


def _named(result) -> list[tuple[str, np.ndarray]]:
    """The arrays of a network by their paths in it."""
    paths, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(result.network, eqx.is_array))
    return [(_name(path), np.asarray(x)) for path, x in paths]


def _name(path) -> str:
    """A path in a tree as a name that a file may have: encoder.stack.linear.0.weight."""
    return ".".join(str(getattr(step, "name", getattr(step, "idx", step))) for step in path)


def skeleton(architecture: Architecture) -> SCVI:
    """The shapes of a network, without numbers."""
    prior = Gaussian(jnp.zeros(architecture.n_batches), jnp.ones(architecture.n_batches))
    return eqx.filter_eval_shape(SCVI.start, jax.random.key(0), architecture, prior)


def _network(architecture: Architecture, saved: dict[str, np.ndarray]) -> SCVI:
    def place(path, like):
        if not isinstance(like, jax.ShapeDtypeStruct):
            return like
        x = saved.pop(_name(path))
        if x.shape != like.shape:
            raise ValueError(f"network/{_name(path)} has shape {x.shape}, not {like.shape}")
        return jnp.asarray(x)

    saved = dict(saved)
    network = jax.tree_util.tree_map_with_path(place, skeleton(architecture))
    if saved:
        raise ValueError(f"network/{next(iter(saved))} is no part of this architecture")
    return network


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
