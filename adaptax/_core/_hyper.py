"""The numbers of a transformation by name: "learning_rate", "1/learning_rate/peak_value"."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from . import _checks
from ._kinds import Kind, Number, Numbers, Optional
from ._paths import matches
from ._value import Call, ScheduleValue, TransformationKind, call_of, is_ours


class Numeric(NamedTuple):
    """One number, or a schedule of one, among the arguments of a transformation."""

    name: str
    value: Any
    function: str  # whose argument it is
    argument: str
    kind: Number


def arguments(tx: Any) -> Iterator[Numeric]:
    """The numbers and the schedules of a transformation or a schedule.

    The name of a number is that of the argument. Before it stands what leads to the
    transformation: in a chain the number of the link, in a `named_chain` or a `partition` its
    name; nothing for a wrapper's only one.
    """
    call = _call(tx)
    if call is None:
        return
    for name, argument in call.given.items():
        kind = call.factory.kinds[name]
        if isinstance(kind, TransformationKind):
            for part, inner in kind.named(argument).items():
                yield from _below(part, arguments(inner))
        else:
            yield from _of_argument(call, name, argument)


def own_arguments(tx: Any) -> Iterator[Numeric]:
    """Those of `arguments` that are not a transformation's inside."""
    call = _call(tx)
    if call is None:
        return
    for name, argument in call.given.items():
        if not isinstance(call.factory.kinds[name], TransformationKind):
            yield from _of_argument(call, name, argument)


def _call(value: Any) -> Call | None:
    return value.call if isinstance(value, ScheduleValue) else call_of(value)


def _of_argument(call: Call, name: str, argument: Any) -> Iterator[Numeric]:
    kind = call.factory.kinds[name]
    if kind.numeric and argument is not None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument, is_leaf=callable):
            full = "/".join((name, *_keys(path)))
            yield Numeric(full, leaf, call.name, full, _number(kind))


def numerics(tx: Any) -> Iterator[Numeric]:
    """The numbers alone, in the order of the leaves of the pytree; a schedule's below its name."""
    for one in arguments(tx):
        if isinstance(one.value, ScheduleValue):
            yield from _below(one.name, numerics(one.value))
        elif not callable(one.value):
            yield one


def _below(prefix: str, found: Iterator[Numeric]) -> Iterator[Numeric]:
    for one in found:
        yield one._replace(name=f"{prefix}/{one.name}" if prefix else one.name)


def replaced(tx: Any, f: Callable[[Numeric], Any], prefix: str = "") -> Any:
    """The transformation with f of each of its `arguments` in their places."""
    call = call_of(tx)
    if call is None:
        return tx
    new = {}
    for name, argument in call.given.items():
        kind = call.factory.kinds[name]
        if isinstance(kind, TransformationKind):
            inner = [
                replaced(one, f, f"{prefix}{part}/" if part else prefix)
                for part, one in kind.named(argument).items()
            ]
            structure = jax.tree.structure(argument, is_leaf=is_ours)
            new[name] = structure.unflatten(inner)
        elif kind.numeric and argument is not None:
            number = _number(kind)

            def at(path: Any, leaf: Any, name: str = name, number: Number = number) -> Any:
                full = "/".join((name, *_keys(path)))
                return f(Numeric(prefix + full, leaf, call.name, full, number))

            new[name] = jax.tree_util.tree_map_with_path(at, argument, is_leaf=callable)
        else:
            new[name] = argument
    return type(tx).of(call.with_arguments(new))


def _keys(path: Any) -> Iterator[str]:
    return (jax.tree_util.keystr((key,), simple=True) for key in path)


def _number(kind: Kind) -> Number:
    if isinstance(kind, Optional):
        return _number(kind.kind)
    if isinstance(kind, Numbers):
        return kind.each
    return kind if isinstance(kind, Number) else Number("[-inf, inf]")


def number_names(tx: Any) -> list[str]:
    """The names of a transformation's (or a schedule's) numbers, in the order of its leaves.

    >>> import adaptax
    >>> number_names(adaptax.chain(adaptax.clip(1.0), adaptax.sgd(0.1, momentum=0.9)))
    ['0/max_delta', '1/learning_rate', '1/momentum']
    """
    return [one.name for one in numerics(tx)]


def find(where: str, name: str, names: Sequence[str], absent: bool = False) -> list[int]:
    """Which of the names is meant: the whole name, a trailing part of one, or a glob of many.

    Raises:
        ValueError: None, or more than one for a name that is not a glob.
    """
    if name in names:
        return [names.index(name)]
    if any(c in name for c in "*?[|!"):
        found = [i for i, full in enumerate(names) if matches(name, full)]
    else:
        found = [i for i, full in enumerate(names) if full.endswith("/" + name)]
        if len(found) > 1:
            raise _checks.ambiguous(where, name, [names[i] for i in found])
    if not found:
        raise _checks.no_number(where, name, names, absent)
    return found


def set_numbers(tx: Any, values: Mapping[str, Any], where: str = "set_numbers") -> Any:
    """The transformation with other numbers.

    Args:
        tx: A transformation.
        values: New numbers by name: the whole name as `number_names` lists it, a trailing part
            that only one of them has, or a glob for all that match. A number may be an array,
            stacked along a leading axis for `jax.vmap`.
        where: Who asks, for errors.

    Raises:
        ValueError: A name is unknown or ambiguous, or a number is outside its range.
        TypeError: A value is not a number.
    """
    every = list(numerics(tx))
    names = [one.name for one in every]
    leaves, structure = jax.tree.flatten(tx)
    for name, value in values.items():
        for i in find(where, name, names, name.rsplit("/", 1)[-1] in _other_arguments(tx)):
            if callable(value):
                raise _checks.wrong_kind(where, name, "a number or an array of numbers", value)
            leaves[i] = every[i].kind.canonical(every[i].function, every[i].argument, value)
    return structure.unflatten(leaves)


def _other_arguments(tx: Any) -> set[str]:
    """The names of arguments that are None or structure."""
    call = call_of(tx)
    if call is None:
        return set()
    names = set(call.structure)
    for name, argument in call.given.items():
        kind = call.factory.kinds[name]
        if isinstance(kind, TransformationKind):
            names |= set().union(*map(_other_arguments, kind.named(argument).values()))
    return names
