"""One function over the leaves of several trees: None, float0, and trees that don't fit."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._core import _checks
from .._core._tree import is_float0, is_none


def walk(
    where: str, f: Callable[..., Any], trees: Mapping[str, Any], stays: str | None = None
) -> Any:
    """The tree of f(x, ...) for the leaves x, ... of trees with the structure of the first.

    Where the first has None, or any of them jax's float0, the leaf of the first is kept.

    Args:
        where: The function's name, for errors.
        f: Of one leaf of each tree.
        trees: The trees by their names, for errors.
        stays: The name of a tree whose leaf is kept instead.

    Raises:
        TreeMismatchError: A tree has another structure than the first.
    """
    (name, first), *others = trees.items()
    leaves, treedef = jax.tree.flatten(first, is_leaf=is_none)
    columns = {name: leaves}
    for other_name, other in others:
        columns[other_name] = _column(leaves, treedef, other)
        if columns[other_name] is None:
            raise _checks.mismatch(where, name, first, other_name, other)
    kept = columns[stays or name]
    return treedef.unflatten(
        k if xs[0] is None or any(map(is_float0, xs)) else f(*xs)
        for k, *xs in zip(kept, *columns.values(), strict=True)
    )


def _column(leaves: list[Any], treedef: Any, other: Any) -> Any:
    """What the other tree has at each leaf; None if it does not fit."""
    try:
        pieces = treedef.flatten_up_to(other)
    except ValueError:
        return None
    fits = (x is None or jax.tree_util.all_leaves([p]) for x, p in zip(leaves, pieces, strict=True))
    return pieces if all(fits) else None
