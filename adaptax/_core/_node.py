"""What a factory's body returns: an object with an init and an update."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable


@runtime_checkable
class Node(Protocol):
    """What a factory's body returns: something with an init and an update."""

    def init(self, params: Any) -> Any: ...
    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]: ...


Parts: TypeAlias = Callable[[Any], Mapping[str, tuple[Any, Any]]]
"""Given a state (or None), each transformation inside and its part of the state (or None), by
name; the name of an only one is empty."""

Chosen: TypeAlias = Callable[[Any], Mapping[str, list[bool]]]
"""Given the parameters, which of the leaves (None leaves included) each of the parts sees."""


class Pair(NamedTuple):
    """The init and update of a transformation that is written with whole trees."""

    init: Callable[..., Any]
    update: Callable[..., Any]
    parts: Parts | None = None  # of a wrapper: what it wraps
    chosen: Chosen | None = None  # of a wrapper for parts of the parameters: which
    lands: bool = False  # its updates are float32 on purpose: 16-bit parameters land on a number


class Foreign:
    """A pair of functions from elsewhere, given those extra arguments that it can take."""

    def __init__(self, init: Any, update: Any):
        self.init = init
        self._update = update
        parameters = inspect.signature(update).parameters.values()
        self._all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """Call the function with what its signature allows."""
        if not self._all:
            extra_args = {k: v for k, v in extra_args.items() if k in self._names}
        return self._update(updates, state, params, **extra_args)
