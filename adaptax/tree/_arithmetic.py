"""Functions of each leaf: arithmetic in jax's own promotion of dtypes."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ._walk import walk


def add(tree_x: Any, tree_y: Any, *other_trees: Any) -> Any:
    """x + y + ..., leaf by leaf.

    Args:
        tree_x: A tree.
        tree_y: A tree of the same structure.
        *other_trees: More of them.

    Raises:
        TreeMismatchError: The structures differ.

    >>> import adaptax
    >>> adaptax.tree.add({"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0})
    {'a': 3.0, 'b': None}
    """
    trees = {"tree_x": tree_x, "tree_y": tree_y}
    trees |= {f"other_trees[{i}]": tree for i, tree in enumerate(other_trees)}
    return walk("tree.add", lambda *xs: functools.reduce(operator.add, xs), trees)


def sub(tree_x: Any, tree_y: Any) -> Any:
    """x - y, leaf by leaf.

    Args:
        tree_x: A tree.
        tree_y: A tree of the same structure.

    Raises:
        TreeMismatchError: The structures differ.
    """
    return walk("tree.sub", operator.sub, {"tree_x": tree_x, "tree_y": tree_y})


def mul(tree_x: Any, tree_y: Any) -> Any:
    """x · y, leaf by leaf and entry by entry.

    Args:
        tree_x: A tree.
        tree_y: A tree of the same structure.

    Raises:
        TreeMismatchError: The structures differ.
    """
    return walk("tree.mul", operator.mul, {"tree_x": tree_x, "tree_y": tree_y})


def div(tree_x: Any, tree_y: Any) -> Any:
    """x / y, leaf by leaf and entry by entry.

    Args:
        tree_x: A tree.
        tree_y: A tree of the same structure.

    Raises:
        TreeMismatchError: The structures differ.
    """
    return walk("tree.div", operator.truediv, {"tree_x": tree_x, "tree_y": tree_y})


def scale(scalar: Any, tree: Any) -> Any:
    """a · x for each leaf x.

    Args:
        scalar: a. A Python number keeps the dtypes of the tree.
        tree: A tree.
    """
    return walk("tree.scale", lambda x: scalar * x, {"tree": tree})


def add_scale(tree_x: Any, scalar: Any, tree_y: Any) -> Any:
    """x + a · y, leaf by leaf.

    Args:
        tree_x: A tree.
        scalar: a. A Python number keeps the dtypes of the trees.
        tree_y: A tree of the structure of `tree_x`.

    Raises:
        TreeMismatchError: The structures differ.
    """
    scalar = jnp.asarray(scalar)
    trees = {"tree_x": tree_x, "tree_y": tree_y}
    return walk("tree.add_scale", lambda x, y: x + scalar * y, trees)


def conj(tree: Any) -> Any:
    """The complex conjugate of each leaf.

    Args:
        tree: A tree.
    """
    return walk("tree.conj", jnp.conj, {"tree": tree})


def real(tree: Any) -> Any:
    """The real part of each leaf.

    Args:
        tree: A tree.
    """
    return walk("tree.real", jnp.real, {"tree": tree})


def clip(tree: Any, min_value: Any = None, max_value: Any = None) -> Any:
    """Each leaf, clipped to [min_value, max_value].

    Args:
        tree: A tree of real arrays.
        min_value: A number, or None for no bound.
        max_value: A number, or None for no bound.
    """
    return walk("tree.clip", lambda x: jnp.clip(x, min_value, max_value), {"tree": tree})


def where(condition: Any, tree_x: Any, tree_y: Any) -> Any:
    """x where the condition is true, else y, leaf by leaf.

    Args:
        condition: A bool, or an array of bools that broadcasts to every leaf.
        tree_x: A tree.
        tree_y: A tree of the same structure.

    Raises:
        TreeMismatchError: The structures differ.
    """
    trees = {"tree_x": tree_x, "tree_y": tree_y}
    return walk("tree.where", lambda x, y: jnp.where(condition, x, y), trees)


def batch_shape(tree: Any, shape: Sequence[int] = ()) -> Any:
    """Each leaf, repeated along new leading axes.

    Args:
        tree: A tree.
        shape: The sizes of the new axes: a leaf of shape s becomes one of shape `(*shape, *s)`.
    """

    def broadcast(x: Any) -> Any:
        return jnp.broadcast_to(x, (*shape, *jnp.shape(x)))

    return walk("tree.batch_shape", broadcast, {"tree": tree})
