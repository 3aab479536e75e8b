"""Types of arrays, which decide whether compiled code fits them."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def strong(tree: Tree) -> Tree:
    """The same arrays without weak types, so that a loop's first and later inputs are alike."""

    def convert(leaf):
        return jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype)

    return jax.tree.map(convert, tree)
