"""What the averages share: wide copies, a step toward, trees side by side."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import Decay, _checks, _tree, average, compute_dtype
from .._core._numerics import mixing


def scalar(function: str, name: str, value: Any) -> Any:
    """The number itself; refuse a stacked one outside vmap."""
    for leaf in jax.tree.leaves(value):
        if jnp.ndim(leaf) != 0:
            raise _checks.not_scalar(function, name, leaf)
    return value


def widened(x: Any, dtype: Any = None) -> Any:
    """An array of a new state from a parameter: float32 or wider, or in the dtype asked for."""
    if not _tree.is_inexact(x):
        return jnp.asarray(x)
    dtype = dtype or compute_dtype(jnp.result_type(x))
    return jnp.asarray(x, np.result_type(dtype, np.complex64) if jnp.iscomplexobj(x) else dtype)


def toward(x: Any, mean: Any, part: Any) -> Any:
    """Go a part of the way from mean to x; all of it or none is exact, whatever is not finite."""
    with mixing(x, mean):
        between = average(x, mean, Decay(part, None))  # it reads 1 - b alone
    return jnp.where(part == 1, x, jnp.where(part == 0, mean, between))


def side_by_side(where: str, trees: Mapping[str, Any]) -> tuple[list[list[Any]], Any]:
    """The leaves of each tree, None leaves included, and the structure that they share.

    Raises:
        TreeMismatchError: A tree has another structure than the first, or other shapes.
    """
    (name, first), *others = trees.items()
    leaves, structure = jax.tree.flatten(first, is_leaf=_tree.is_none)
    columns = [leaves]
    for other_name, other in others:
        column, other_structure = jax.tree.flatten(other, is_leaf=_tree.is_none)
        if other_structure != structure or not all(map(_fits, leaves, column)):
            raise _checks.mismatch(where, name, first, other_name, other)
        columns.append(column)
    return columns, structure


def _fits(a: Any, b: Any) -> bool:
    return a is None or b is None or jnp.shape(a) == jnp.shape(b)
