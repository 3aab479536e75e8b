"""Matrix products in full float32 precision."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def dot(a: Array, b: Array) -> Array:
    """Matrix product in full precision: TensorFloat-32 would cost 0.1 nats a cell."""
    return jnp.dot(a, b, precision="highest")


def host_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two small matrices on the host, by this thread alone.

    OpenBLAS would share it out, and its threads then wait for more in a loop that takes a core from
    whoever computes next, for tens of milliseconds.
    """
    return np.einsum("ij,jk->ik", np.ascontiguousarray(a), np.ascontiguousarray(b))
