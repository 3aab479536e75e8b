"""What a file holds of any training: the arrays of a network by name, its course; and back."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nbln import vocabulary as names
from nbln.results import io
from nbln.vae.engine import Epoch


def group(network: Any) -> Any:
    """The group of a file that holds a network."""
    return io.group(
        {name: (tuple(f"{name}_{i}" for i in range(x.ndim)), x) for name, x in _named(network)}
    )


def of_training(result, plain: dict[str, Any]) -> io.Groups:
    """The groups that all trained results have, with further plain values."""
    own = {"model": result.model, "best": result.best, "stopped": bool(result.stopped)}
    held_out = mask(result.held_out, result.fitted.n_cells)
    return {
        "data": io.of_fitted(result.fitted),
        "fit": io.group({"held_out": ((names.CELL,), held_out)}, own | plain),
        "network": group(result.network),
        "history": io.group({n: (("epoch",), x) for n, x in result.epochs._asdict().items()}),
    }


def to_training(groups: io.Groups, skeleton: Any) -> dict[str, Any]:
    """The fields that all trained results have, of a network of the shapes of `skeleton`."""
    plain = io.values(groups["fit"])
    return {
        "fitted": io.to_fitted(groups["data"]),
        "model": plain["model"],
        "network": restored(skeleton, io.arrays(groups["network"])),
        "epochs": Epoch(**io.arrays(groups["history"])),
        "best": plain["best"],
        "held_out": np.flatnonzero(io.arrays(groups["fit"])["held_out"]),
        "stopped": plain["stopped"],
    }


def mask(held_out: np.ndarray, n_cells: int) -> np.ndarray:
    """1 for cells that training did not see: an array without any entry would not be saved."""
    marked = np.zeros(n_cells, np.int8)
    marked[held_out] = 1
    return marked


def restored(skeleton: Any, saved: dict[str, np.ndarray]) -> Any:
    """A network of the shapes of `skeleton`, with saved numbers.

    Raises
    ------
    ValueError
        An array of another shape, or one that the skeleton does not have.
    KeyError
        An array is missing.
    """

    def place(path, like):
        if not isinstance(like, jax.ShapeDtypeStruct):
            return like
        x = saved.pop(_name(path))
        if x.shape != like.shape:
            raise ValueError(f"network/{_name(path)} has shape {x.shape}, not {like.shape}")
        return jnp.asarray(x)

    saved = dict(saved)
    network = jax.tree_util.tree_map_with_path(place, skeleton)
    if saved:
        raise ValueError(f"network/{next(iter(saved))} is no part of this architecture")
    return network


def _named(network: Any) -> list[tuple[str, np.ndarray]]:
    """The arrays of a network by their paths in it."""
    paths, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(network, eqx.is_array))
    return [(_name(path), np.asarray(x)) for path, x in paths]


def _name(path) -> str:
    """A path in a tree as a name that a file may have: encoder.stack.linear.0.weight."""
    return ".".join(str(getattr(step, "name", getattr(step, "idx", step))) for step in path)
