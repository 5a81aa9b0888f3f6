"""Trees as leaves with names: the keys on the way, whatever containers they are keys of."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import jax

from .._core import unboxed
from ..lowbit._codec import Encoded
from ..lowbit._store import StoreState

Names: TypeAlias = tuple[str, ...]


class Leaf(NamedTuple):
    """A leaf of a tree.

    Attributes:
        names: Its path.
        value: An array or a number, a key, or an `Encoded` with all that it holds.
        owner: How many of the names lead to the state that it is a field of; None where there
            is no state, as for parameters.
        rounding: Whether it is the count that `lowbit.store` rounds by.
    """

    names: Names
    value: Any
    owner: int | None = None
    rounding: bool = False


def leaves_of(tree: Any) -> list[Leaf]:
    """The leaves of a tree, in the order of `jax.tree.leaves` with `Encoded` as leaves."""
    return list(_walk(tree, (), 0 if _is_state(tree) else None))


def _walk(node: Any, before: Names, owner: int | None) -> Iterator[Leaf]:
    def is_leaf(x: Any) -> bool:
        return isinstance(x, Encoded) or (x is not node and _is_state(x))

    for path, value in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
        names = (*before, *map(name, path))
        if _is_state(value):
            yield from _walk(value, names, len(names))
        else:
            counts = isinstance(node, StoreState) and bare(names[len(before) :]) == ("count",)
            # Flax keeps each array of an `Encoded` in a box.
            value = unboxed(value) if isinstance(value, Encoded) else value
            yield Leaf(names, value, owner, counts)


def _is_state(x: Any) -> bool:
    """Whether x is a state of a transformation, in adaptax's and optax's form."""
    return isinstance(x, tuple) and hasattr(x, "_fields") and type(x).__name__.endswith("State")


def name(key: Any) -> str:
    """A key of jax's paths as text."""
    for attribute in ("name", "idx", "key"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def bare(names: Names) -> Names:
    """The path of an array without the box that it is in, such as a `flax.nnx.Variable`.

    No two leaves of a tree get one path: what has a "value" is not a leaf.
    """
    return names[:-1] if len(names) > 1 and names[-1] == "value" else names


def boxed(names: Names) -> Names:
    """The path of an array that is in a box."""
    return (*names, "value")


def spelled(names: Names) -> str:
    """Names with slashes between them."""
    return "/".join(names) or "the root"


def in_order(names: Names) -> Any:
    """What to sort by: the links of a chain by number."""
    return [(0, int(n), "") if n.isdecimal() else (1, 0, n) for n in names]
