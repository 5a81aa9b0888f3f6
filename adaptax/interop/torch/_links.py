"""A transformation laid open: for each parameter the links that it goes through, in order."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path

from ..._core import Decay, MaskedNode, _checks, _hyper, _tree, node_of
from ..._core._chain import Chain
from ..._core._leafwise import Leafwise
from ..._core._value import TransformationKind, call_of


@dataclass(frozen=True, eq=False)
class Cell:
    """An array of a state, by its number among the leaves."""

    index: int
    value: Any


@dataclass(frozen=True, eq=False)
class Link:
    """A transformation that is not taken further apart, or a wrapper around what follows.

    Attributes:
        factory: Whose call it is.
        arguments: The arguments of the call, as they are now.
        state: Its state, with a `Cell` for each array.
        wraps: Whether it is a wrapper.
        holds: Whether it keeps the numbers of what it wraps in its state, and does no more.
        scheduled: Whether it stands in a wrapper that sets numbers by a schedule.
    """

    factory: Any
    arguments: Mapping[str, Any]
    state: Any
    wraps: bool = False
    holds: bool = False
    scheduled: bool = False

    @property
    def name(self) -> str:
        """The factory's name."""
        return self.factory.__name__

    @property
    def count(self) -> Cell | None:
        """The steps done, if its state has them."""
        return self.state.count if "count" in getattr(self.state, "_fields", ()) else None

    def follows_schedule(self, argument: str) -> bool:
        """Whether a number changes with the steps."""
        return self.scheduled or callable(self.arguments[argument])

    def number(self, argument: str) -> float:
        """A number, as the next update will use it."""
        value: Any = self.arguments[argument]
        value = value.value if isinstance(value, Decay) else value
        if callable(value):
            assert self.count is not None
            value = value(jnp.asarray(self.count.value))
        if jnp.ndim(value) != 0:
            raise _checks.not_scalar(self.name, argument, value)
        return float(value)

    @functools.cached_property
    def arrays(self) -> dict[str, dict[Any, Cell]]:
        """For each field of its state the arrays, by the key path of their parameter."""
        fields = getattr(self.state, "_fields", ())
        return {f: dict(tree_leaves_with_path(getattr(self.state, f))) for f in fields}


def with_cells(where: str, state: Any) -> Any:
    """The state with a `Cell` around each of its arrays.

    Raises:
        TypeError: Some of them are codes of `adaptax.lowbit`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    if any(path and getattr(path[-1], "name", "") == "codes" for path, _ in leaves):
        raise TypeError(
            f"{where}: the state is kept in few bits. Take the transformation that is stored so; "
            "lowbit.encode_state makes the small state from its state, lowbit.decode_state the "
            "other from the small one."
        )
    return structure.unflatten(Cell(i, x) for i, (_, x) in enumerate(leaves))


def links_of(where: str, tx: Any, state: Any, params: Any) -> list[tuple[Link, ...]]:
    """For each leaf of the parameters, None leaves included, its links.

    The state has cells.

    Raises:
        TypeError: A part is not adaptax's.
    """
    leaves = jax.tree.leaves(params, is_leaf=_tree.is_none)
    found: list[list[Link]] = [[] for _ in leaves]
    for link, at in _walk(where, tx, state, params, list(range(len(leaves))), False):
        for i in at:
            found[i].append(link)
    return [tuple(links) for links in found]


def _walk(
    where: str, tx: Any, state: Any, params: Any, at: list[int], scheduled: bool
) -> Iterator[tuple[Link, list[int]]]:
    """The links in order, each with the numbers of the leaves that it sees.

    `at` are the numbers of the leaves of `params`, among all.
    """
    call = call_of(TransformationKind().canonical(where, "tx", tx))
    if call is None:
        raise TypeError(
            f"{where}: tx must be made of adaptax's transformations, got {tx!r}. For one of optax, "
            "take adaptax's of the same name and arguments: interop.convert_state makes a state of "
            "the one from a state of the other."
        )
    node = node_of(tx)
    parts = getattr(node, "parts", None)
    inside = {} if parts is None else dict(parts(state))
    chosen = getattr(node, "chosen", None)
    if isinstance(node, Chain):
        for inner, inner_state in inside.values():
            yield from _walk(where, inner, inner_state, params, at, scheduled)
    elif chosen is not None:
        for name, bools in chosen(params).items():
            some, here = _part(params, at, bools)
            inner, inner_state = inside[name]
            yield from _walk(where, inner, inner_state, some, here, scheduled)
    elif list(inside) == [""]:
        ((inner, inner_state),) = inside.values()
        holds = isinstance(getattr(state, "hyperparams", None), Mapping)
        yield Link(call.factory, call.given, state, True, holds, scheduled), at
        if holds:
            inner = _hyper.replaced(inner, lambda one: _now(one, state))
            scheduled = scheduled or bool(state.hyperparams_states)
        yield from _walk(where, inner, inner_state, params, at, scheduled)
    elif isinstance(node, Leafwise) and node.factory is not call.factory:
        yield Link(node.factory, node.arguments, state, scheduled=scheduled), at
    else:
        yield Link(call.factory, call.given, state, scheduled=scheduled), at


def _part(params: Any, at: list[int], bools: list[bool]) -> tuple[Any, list[int]]:
    """The tree with `MaskedNode` where a leaf is not chosen; the numbers of those that are."""
    leaves, structure = jax.tree.flatten(params, is_leaf=_tree.is_none)
    some = [x if b else MaskedNode() for x, b in zip(leaves, bools, strict=True)]
    return structure.unflatten(some), [i for i, b in zip(at, bools, strict=True) if b]


def _now(one: _hyper.Numeric, state: Any) -> Any:
    """A number that a state holds; its digits are those of the double, if it is still the same."""
    if one.name not in state.hyperparams:
        return one.value
    if callable(one.value):
        its = state.hyperparams_states[one.name]
        its = its if hasattr(one.value, "update") else its.count
        value: Any = one.value(jax.tree.map(lambda cell: jnp.asarray(cell.value), its))
        return float(value)
    held = np.asarray(state.hyperparams[one.name].value)
    same = isinstance(one.value, float) and held == held.dtype.type(one.value)
    return one.value if same else float(held)
