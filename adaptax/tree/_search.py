"""Parts of a tree by name: a field, a key of a dict, or the name of a class."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
from jax.tree_util import DictKey, GetAttrKey

from .._core import _checks, boxed_like, unboxed

SHOWN = 20  # names listed in an error

KeyPath: TypeAlias = tuple[Any, ...]
"""The way from the root of a tree, in jax's key entries and `NamedTupleKey`."""
Filter: TypeAlias = Callable[[KeyPath, Any], bool]
"""Of the path to a value and the value: whether it is meant."""


@dataclasses.dataclass(frozen=True)
class NamedTupleKey:
    """A field of a named tuple in a path, with the name of the tuple's class.

    Attributes:
        tuple_name: The name of the class.
        name: The name of the field.
    """

    tuple_name: str
    name: str

    def __str__(self) -> str:
        return f"{self.tuple_name}.{self.name}"


def get_all_with_path(
    tree: Any, key: Any, filtering: Filter | None = None
) -> list[tuple[KeyPath, Any]]:
    """All values of a name, each with the path to it, from the root to the leaves.

    Args:
        tree: A tree: a state, parameters, or a transformation with its numbers.
        key: A field of a named tuple or dataclass, a key of a dict, or the name of a named
            tuple's or dataclass's class.
        filtering: `filtering(path, value)` says whether a value is meant. The path is a tuple
            of `NamedTupleKey`, `jax.tree_util.DictKey`, `GetAttrKey`, ...

    >>> import adaptax, jax
    >>> state = adaptax.adam(0.1).init({"w": 1.0})
    >>> for path, value in adaptax.tree.get_all_with_path(state, "w"):
    ...     print(jax.tree_util.keystr(path), value)
    [0]ScaleByAdamState.mu['w'] 0.0
    [0]ScaleByAdamState.nu['w'] 0.0
    """
    return [
        (path, value)
        for path, value in _nodes((), unboxed(tree))
        if key in _names(path, value) and (filtering is None or filtering(path, value))
    ]


def get(tree: Any, key: Any, default: Any = None, filtering: Filter | None = None) -> Any:
    """The one value of a name.

    Args:
        tree: A tree: a state, parameters, or a transformation with its numbers.
        key: A field, a key or a class; see `get_all_with_path`.
        default: What is returned if there is none.
        filtering: `filtering(path, value)` says whether a value is meant.

    Raises:
        KeyError: There are several; the message lists their paths.

    >>> import adaptax
    >>> state = adaptax.adam(0.1).init({"w": 1.0})
    >>> int(adaptax.tree.get(state, "count"))
    0
    >>> adaptax.tree.get(adaptax.adam(0.1), "learning_rate")
    0.1
    """
    found = get_all_with_path(tree, key, filtering)
    if len(found) > 1:
        raise _ambiguous(key, found)
    return found[0][1] if found else default


def set(tree: Any, filtering: Filter | None = None, /, **kwargs: Any) -> Any:
    """The tree with all values of some names replaced.

    A value that is replaced is not searched further, and what replaces it is not checked. The
    state of a `flax.nnx.Optimizer` keeps its boxes, as long as its structure stays.

    Args:
        tree: A tree: a state, parameters, or a transformation with its numbers.
        filtering: `filtering(path, value)` says whether a value is meant.
        **kwargs: New values by name: a field, a key or a class; see `get_all_with_path`. The second
            and later places of an array get copies, so that the tree can be donated.

    Raises:
        KeyError: The tree has no value of a name (or none that is meant); the message lists the
            names that it has.

    >>> import adaptax
    >>> adaptax.tree.set(adaptax.adam(0.1), learning_rate=0.2)
    adam(learning_rate=0.2)
    """
    for name in kwargs:
        if not get_all_with_path(tree, name, filtering):
            raise _missing(name, tree, filtered=bool(get_all_with_path(tree, name)))

    unused = dict(kwargs)

    def replaced(path: KeyPath, node: Any) -> Any:
        for name in _names(path, node):
            if name in kwargs and (filtering is None or filtering(path, node)):
                return unused.pop(name) if name in unused else jax.tree.map(_copy, kwargs[name])
        children, treedef = _children(path, node)
        return treedef.unflatten(replaced(*child) for child in children) if children else node

    return boxed_like(tree, replaced((), unboxed(tree)))


def _copy(x: Any) -> Any:
    return x.copy() if isinstance(x, jax.Array) else x


def _nodes(path: KeyPath, node: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The node and all that is below it, with paths."""
    yield path, node
    for child in _children(path, node)[0]:
        yield from _nodes(*child)


def _children(path: KeyPath, node: Any) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """What is right below a node, None included; nothing below a leaf."""
    below, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if jax.tree_util.treedef_is_leaf(treedef):
        return [], treedef

    def entry(key: Any) -> Any:
        if _is_named_tuple(node) and isinstance(key, GetAttrKey):
            return NamedTupleKey(type(node).__name__, key.name)
        return key

    return [((*path, entry(key)), child) for (key,), child in below], treedef


def _names(path: KeyPath, node: Any) -> list[Any]:
    """What a node is called: by its parent, and by its class."""
    names = []
    if path and isinstance(path[-1], DictKey):
        names.append(path[-1].key)
    elif path and isinstance(path[-1], GetAttrKey | NamedTupleKey):
        names.append(path[-1].name)
    if _is_named_tuple(node) or (dataclasses.is_dataclass(node) and not isinstance(node, type)):
        names.append(type(node).__name__)
    return names


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _ambiguous(key: Any, found: list[tuple[KeyPath, Any]]) -> KeyError:
    paths = _checks.listed(jax.tree_util.keystr(path) or "the root" for path, _ in found)
    return KeyError(
        f"tree.get: {key!r} is the name of {len(found)} values: {paths}. Choose with "
        "filtering=lambda path, value: ..., or take all with tree.get_all_with_path."
    )


def _missing(name: Any, tree: Any, filtered: bool) -> KeyError:
    if filtered:
        return KeyError(f"tree.set: filtering leaves no value of the name {name!r}.")
    names = dict.fromkeys(repr(n) for path, node in _nodes((), tree) for n in _names(path, node))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    listed = ", ".join([*names][:SHOWN]) or "none"
    return KeyError(f"tree.set: there is no {name!r}; the names are {listed}{more}.")
