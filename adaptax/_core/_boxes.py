"""States in boxes: `flax.nnx.Optimizer` keeps each array as the value of a variable."""

import sys
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def unboxed(tree: T) -> T:
    """The tree with the values of Flax NNX's variables where it has variables.

    Any other tree is returned as it is. Flax is not imported: without it there are no variables.
    """
    variable = getattr(sys.modules.get("flax.nnx"), "Variable", None)
    if variable is None:
        return tree

    def is_box(x: Any) -> bool:
        return isinstance(x, variable)

    def value(x: Any) -> Any:
        # As a node of a tree a variable has its value as the one child, in every release of Flax.
        return unboxed(_children(x)[0]) if is_box(x) else x

    return jax.tree.map(value, tree, is_leaf=is_box)


def boxed_like(boxed: Any, tree: T) -> T:
    """A tree in the boxes of another; as it is if it has another structure than what is in them."""
    if jax.tree.structure(unboxed(boxed)) != jax.tree.structure(tree):
        return tree
    return jax.tree.structure(boxed).unflatten(jax.tree.leaves(tree))


def _children(x: Any) -> list[Any]:
    return jax.tree.leaves(x, is_leaf=lambda y: y is not x)
