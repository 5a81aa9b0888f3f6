"""States in boxes: `flax.nnx.Optimizer` keeps each array as the value of a variable."""

import sys
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def is_box(x: Any) -> bool:
    """Whether x is a variable of Flax NNX. Flax is not imported: without it there are none."""
    variable = getattr(sys.modules.get("flax.nnx"), "Variable", None)
    return variable is not None and isinstance(x, variable)


def unboxed(tree: T) -> T:
    """The tree with the values that its boxes hold; any other tree as it is."""
    if "flax.nnx" not in sys.modules:
        return tree
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_box)
    if not any(map(is_box, leaves)):
        return tree

    def value(x: Any) -> Any:
        if not is_box(x):
            return x
        # As a node of a tree a variable has its value as the one child, in every release of Flax.
        (inside,) = jax.tree.leaves(x, is_leaf=lambda y: y is not x)
        return unboxed(inside)

    return structure.unflatten(map(value, leaves))


def boxed_like(boxed: Any, tree: T) -> T:
    """A tree in the boxes of another; as it is if it has another structure than what is in them."""
    if jax.tree.structure(unboxed(boxed)) != jax.tree.structure(tree):
        return tree
    return jax.tree.structure(boxed).unflatten(jax.tree.leaves(tree))
