"""Transformations one after the other."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _checks, _leafwise, _tree
from ._leafwise import Leafwise, leafwise
from ._node import Node, Pair
from ._types import EmptyState
from ._value import (
    Foreign,
    GradientTransformation,
    TransformationKind,
    node_of,
    transformation,
)

Transform = Annotated[Any, TransformationKind()]  # ours, optax's or a pair of functions


@dataclass(frozen=True, eq=False)
class Chain:
    """Links in order; `names` makes the state an OrderedDict instead of a tuple."""

    links: tuple[Node, ...]
    names: tuple[str, ...] | None = None
    name: str = "chain"
    values: tuple[GradientTransformation, ...] = ()

    def bind(self, factory: Any, arguments: dict[str, Any]) -> "Chain":
        """Take the name of the alias that returns this chain."""
        return replace(self, name=factory.__name__)

    def parts(self, state: Any) -> dict[str, tuple[GradientTransformation, Any]]:
        """The links and their states, by number or name."""
        names = self.names or [str(i) for i in range(len(self.links))]
        states = [None] * len(names) if state is None else self._states(state)
        return {n: (tx, s) for n, tx, s in zip(names, self.values, states, strict=True)}

    def init(self, params: Any) -> Any:
        """The states of the links."""
        return self._pack([link.init(params) for link in self.links])

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """Run the links in order; the result is rounded once, to the dtypes of the updates."""
        dtypes = _tree.dtypes(updates)
        new_states: list[Any] = []
        groups = list(_groups(self._flat(state)))
        foreign = [has_foreign(group[0].link) for group in groups]
        for i, group in enumerate(groups):
            if isinstance(group[0].link, Leafwise):
                rounds = i + 1 == len(groups) or foreign[i + 1]
                updates, states = _leafwise.run(
                    [item.link for item in group],
                    [item.state for item in group],
                    updates,
                    params,
                    where=[item.where for item in group],
                    dtypes=dtypes if rounds else None,
                )
                new_states += states
            else:
                (alone,) = group
                if foreign[i]:
                    updates = _tree.round_to(updates, dtypes)
                updates, new = alone.link.update(updates, alone.state, params, **extra_args)
                new_states.append(new)
        updates = updates if self.lands else _tree.round_to(updates, dtypes)
        return updates, self._nested(iter(new_states))

    @functools.cached_property
    def lands(self) -> bool:
        """See the function `lands`."""
        return lands(self)

    def _states(self, state: Any) -> list[Any]:
        fits = isinstance(state, OrderedDict if self.names else tuple)
        if not fits or hasattr(state, "_fields") or len(state) != len(self.links):
            raise _checks.wrong_links(self.name, [_name(link) for link in self.links], state)
        if self.names and tuple(state) != self.names:
            raise _checks.wrong_names(self.name, self.names, list(state))
        return list(state.values() if isinstance(state, OrderedDict) else state)

    def _flat(self, state: Any) -> "Iterator[_Item]":
        """The links with their states, chains inside this one laid open."""
        for i, (link, inner) in enumerate(zip(self.links, self._states(state), strict=True)):
            if isinstance(link, Chain):
                yield from link._flat(inner)
            else:
                yield _Item(link, inner, f"{_name(link)} (link {i + 1} of {self.name})")

    def _nested(self, states: Iterator[Any]) -> Any:
        return self._pack(
            [k._nested(states) if isinstance(k, Chain) else next(states) for k in self.links]
        )

    def _pack(self, states: list[Any]) -> Any:
        return OrderedDict(zip(self.names, states, strict=True)) if self.names else tuple(states)


class _Item(NamedTuple):
    link: Any
    state: Any
    where: str  # for errors


def _groups(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Runs of links that share a kernel; one that looks at the whole tree begins a new run."""
    group: list[_Item] = []
    for item in items:
        joins = isinstance(item.link, Leafwise) and item.link.shared is None
        if group and not (joins and isinstance(group[-1].link, Leafwise)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _inside(node: Any) -> list[Node]:
    """What a wrapper or a chain holds."""
    parts = getattr(node, "parts", None)
    return [] if parts is None else [node_of(tx) for tx, _ in parts(None).values()]


def lands(node: Any, last: bool = True) -> bool:
    """Whether nothing may round the updates: they are float32 so that parameters land on a number.

    A link from elsewhere may hold such a transformation where nobody sees it. So what it returns
    is left as it is, where it is the last one, as in optax's chain.
    """
    if isinstance(node, Foreign):
        return last
    if isinstance(node, Chain):
        return any(lands(link, last and link is node.links[-1]) for link in node.links)
    return getattr(node, "lands", False) or any(lands(one, last) for one in _inside(node))


def has_foreign(node: Any) -> bool:
    """Whether a pair of functions from elsewhere would see the updates that a node is given.

    It expects the dtypes of the gradients, which the dtypes of its state follow. A wrapper that
    lands keeps float32 copies of the parameters, and what is in it sees those.
    """
    if isinstance(node, Pair) and node.lands:
        return False
    return isinstance(node, Foreign) or any(map(has_foreign, _inside(node)))


def _name(link: Any) -> str:
    return getattr(link, "name", type(link).__name__)


@transformation
def chain(*transforms: Transform) -> Chain:
    """Apply transformations in order, each to the result of the one before.

    Neighbouring transformations that see one leaf at a time run as one kernel per leaf.
    Between links, updates are float32 or wider; they are rounded once, at the end. The state is
    the tuple of the links' states. Extra arguments of `update` reach every link that takes
    them. An empty chain is the identity.

    Transformations from optax are welcome. They see updates in the gradients' dtypes, as in
    optax's chain, because the dtypes of their states follow those.

    Args:
        *transforms: The transformations.

    Raises:
        TypeError: An argument is not a transformation, such as a factory that was not called.

    >>> import adaptax
    >>> adaptax.chain(adaptax.clip(1.0), adaptax.scale(-0.1))
    chain(clip(max_delta=1.0), scale(step_size=-0.1))
    """
    return Chain(tuple(node_of(tx) for tx in transforms), values=transforms)


class _NamedLink(NamedTuple):
    name: str
    tx: GradientTransformation

    def __repr__(self) -> str:
        return f"({self.name!r}, {self.tx!r})"


jax.tree_util.register_pytree_node(
    _NamedLink, lambda link: ((link.tx,), link.name), lambda name, tx: _NamedLink(name, *tx)
)


class _NamedLinkKind(TransformationKind):
    def canonical(self, function: str, name: str, value: Any) -> _NamedLink:  # type: ignore[override]
        if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str):
            raise _checks.wrong_kind(function, name, "a pair of a name and a transformation", value)
        return _NamedLink(value[0], super().canonical(function, value[0], value[1]))

    def named(self, value: Any) -> Any:
        return {link.name: link.tx for link in value}


NamedTransform = Annotated[tuple[str, GradientTransformation], _NamedLinkKind()]


@transformation
def named_chain(*transforms: NamedTransform) -> Chain:
    """A `chain` of `(name, transformation)` pairs; the state is an OrderedDict by name.

    Args:
        *transforms: Pairs of a unique name and a transformation.

    Raises:
        ValueError: Two names are equal.
        TypeError: An argument is not such a pair.
    """
    names = tuple(name for name, _ in transforms)
    if len(set(names)) < len(names):
        raise _checks.repeated_name("named_chain", names)
    return Chain(
        tuple(node_of(tx) for _, tx in transforms), names, values=tuple(tx for _, tx in transforms)
    )


@transformation
def identity() -> Leafwise:
    """Return the updates as they are. State: `EmptyState`."""
    return leafwise(lambda t, g, p: g, EmptyState)


@transformation
def set_to_zero() -> Leafwise:
    """Replace the updates by zeros. State: `EmptyState`."""
    return leafwise(lambda t, g, p: jnp.zeros_like(g), EmptyState)


@transformation
def stateless(f: Callable[[Any, Any], Any]) -> Any:
    """Make a transformation of a function `f(updates, params) -> updates` of whole trees.

    Args:
        f: A pure function. `params` is None where `update` was called without.
    """
    return Pair(
        lambda params: EmptyState(),
        lambda updates, state, params=None, **extra_args: (f(updates, params), state),
    )


@transformation
def with_extra_args_support(tx: Transform) -> Node:
    """A transformation whose `update` takes any extra arguments and passes on what tx can use.

    Adaptax's own transformations have this already, and `chain` does it for its links.

    Args:
        tx: A pair of functions, such as a transformation from optax.
    """
    return node_of(tx)
