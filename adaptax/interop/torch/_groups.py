"""The groups of torch's optimizers: which parameters, of which optimizer, with which numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..._core import _checks
from ._names import Names
from ._tensors import flag, number

# By what a group is known, and what else is read of it.
MARKS = {
    "adam": {"betas", "amsgrad"},
    "rmsprop": {"alpha", "centered"},
    "sgd": {"momentum", "dampening"},
}
NUMBERS = {
    "adam": ("lr", "eps", "weight_decay"),
    "rmsprop": ("lr", "alpha", "eps", "weight_decay", "momentum"),
    "sgd": ("lr", "momentum", "dampening", "weight_decay"),
}
FLAGS = ("amsgrad", "centered", "maximize", "nesterov", "decoupled_weight_decay")
TITLES = {"adam": "Adam", "rmsprop": "RMSprop", "sgd": "SGD"}


class Member(NamedTuple):
    """A parameter in a group.

    Attributes:
        key: What its state stands under.
        name: Torch's name.
        leaf: The leaf's name, or None.
    """

    key: Any
    name: str
    leaf: str | None


class Group(NamedTuple):
    """A group of parameters with its kind of optimizer and its numbers."""

    number: int
    kind: str
    options: Mapping[str, Any]
    members: tuple[Member, ...]

    def option(self, name: str) -> float:
        """A number, whether it is a tensor or not."""
        value = number(self.options[name])
        assert value is not None  # `groups_of` has looked
        return value

    def flag(self, name: str) -> bool:
        """Whether an option is on; those that older versions of PyTorch lack are off."""
        return bool(flag(self.options.get(name, False)))

    def decoupled(self, where: str, given: bool | None) -> bool:
        """Whether the weight decay of an Adam stays out of the moments, as in AdamW.

        Raises:
            ValueError: Neither the group nor `given` says it.
        """
        said = self.options.get("decoupled_weight_decay", given)
        if said is None:
            raise ValueError(
                f"{where}: param group {self.number}, of an older PyTorch, does not say whether it "
                "is of Adam or of AdamW; give decoupled_weight_decay: True for AdamW."
            )
        return bool(flag(said))


def groups_of(where: str, argument: str, state_dict: Any, names: Any) -> list[Group]:
    """The groups of an optimizer's state.

    Raises:
        TypeError: It is not one.
        ValueError: It is of another optimizer, or damaged; or which parameters it has can't be
            known.
    """
    if names is not None and not isinstance(names, Names):
        raise _checks.wrong_kind(where, "names", "what match(params, tensors) returns", names)
    fits = isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict)
    if not fits:
        got = f"a mapping of {list(state_dict)}" if isinstance(state_dict, Mapping) else None
        wanted = "an optimizer's state_dict(), with 'state' and 'param_groups'"
        raise TypeError(f"{where}: {argument} must be {wanted}, got {got or type(state_dict)}.")
    groups = state_dict["param_groups"]
    _check_kinds(where, argument, state_dict["state"], groups)
    kinds = [_kind(where, i, group) for i, group in enumerate(groups)]
    problems = [
        *(text for i, group in enumerate(groups) for text in _problems(i, kinds[i], group)),
        *_repeated(groups),
    ]
    if problems:
        raise damaged(where, argument, problems)
    theirs = iter(_in_order(where, argument, groups, names))
    leaves = {} if names is None else {n: row.leaf for row in names.matched for n in row.names}
    found = []
    for i, (kind, group) in enumerate(zip(kinds, groups, strict=True)):
        members = [(key, next(theirs)) for key in group["params"]]
        members = [Member(key, name, leaves.get(name)) for key, name in members]
        found.append(Group(i, kind, group, tuple(members)))
    return found


def damaged(where: str, argument: str, problems: Sequence[str]) -> ValueError:
    """Something is missing in a state, or is what it can't be."""
    return ValueError(f"{where}: {argument} is damaged: {_checks.listed(problems)}.")


def _check_kinds(where: str, argument: str, state: Any, groups: Any) -> None:
    if not isinstance(state, Mapping):
        wanted = "a mapping from parameters to their states"
        raise _checks.wrong_kind(where, f"{argument}['state']", wanted, state)
    name = f"{argument}['param_groups']"
    if not isinstance(groups, list | tuple) or not groups:
        raise _checks.wrong_kind(where, name, "a list of at least one group", groups)
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise _checks.wrong_kind(where, f"{name}[{i}]", "a mapping of options", group)


def _problems(i: int, kind: str, group: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a group."""
    at = f"param group {i}"
    yield from (f"{at} lacks {name}" for name in ("params", *NUMBERS[kind]) if name not in group)

    def wrong(name: str, wanted: str) -> str:
        return f"{name} of {at} must be {wanted}, got {_checks._show(group[name])}"

    for name in NUMBERS[kind]:
        if name in group and number(group[name]) is None:
            yield wrong(name, "a finite number")
    for name in FLAGS:
        if name in group and flag(group[name]) is None:
            yield wrong(name, "True or False")
    if kind == "adam" and not _is_list(group["betas"], 2, lambda x: number(x) is not None):
        yield wrong("betas", "two finite numbers")
    keys = group.get("params", [])
    if not _is_list(keys, None, lambda x: isinstance(x, int | str | np.integer)):
        yield wrong("params", "a list of numbers or names")
    elif "param_names" in group:
        named = _is_list(group["param_names"], len(keys), lambda x: isinstance(x, str))
        if not named:
            yield wrong("param_names", f"a list of {len(keys)} names")


def _is_list(value: Any, length: int | None, fits: Callable[[Any], bool]) -> bool:
    is_one = isinstance(value, list | tuple) and length in (None, len(value))
    return is_one and all(map(fits, value))


def _repeated(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen = set()
    for i, group in enumerate(groups):
        keys = group.get("params", [])
        for key in keys if isinstance(keys, list | tuple) else []:
            if isinstance(key, int | str | np.integer):
                if key in seen:
                    yield f"param group {i} has the parameter {key!r} again"
                seen.add(key)


def _check_unsorted(where: str, argument: str, order: list[str]) -> None:
    """Refuse names that were sorted on their way: a module of torch's has its weight first."""
    known, seen = set(order), set()
    for name in order:
        weight = name.removesuffix("bias") + "weight"
        if name.endswith("bias") and weight in known and weight not in seen:
            raise ValueError(
                f"{where}: {argument} has no names, so that the order of the tensors given to "
                f"match counts, and there {name} comes before {weight}: they are sorted. Give "
                "match model.state_dict() as it is, or order=."
            )
        seen.add(name)


def entries_of(
    where: str, argument: str, state_dict: Any, groups: list[Group]
) -> dict[Any, dict[str, Any]]:
    """What the state has of each parameter, by its key; nothing where there is nothing.

    Raises:
        ValueError: It has something of no parameter, or what is no state of one.
    """
    state = state_dict["state"]
    names = {m.key: m.name for group in groups for m in group.members}
    problems = [
        f"state has {key!r}, which is in no param group"
        if key not in names
        else f"the state of {names[key]} must be a mapping, got {_checks._show(entry)}"
        for key, entry in state.items()
        if key not in names or not isinstance(entry, Mapping)
    ]
    if problems:
        raise damaged(where, argument, problems)
    return {key: {k: x for k, x in state.get(key, {}).items() if x is not None} for key in names}


def _in_order(where: str, argument: str, groups: Any, names: Names | None) -> list[str]:
    """Torch's names of all parameters, group after group."""
    keys = [key for group in groups for key in group["params"]]
    if names is None:
        return list(map(str, keys))
    if names.order is not None:
        order = list(names.order)
    elif all("param_names" in group for group in groups):
        order = [name for group in groups for name in group["param_names"]]
    elif all(isinstance(key, str) for key in keys):
        order = keys
    elif len(groups) == 1:
        order = [row.names[0] for row in names.matched]
        _check_unsorted(where, argument, order)
    else:
        raise ValueError(
            f"{where}: {argument} has {len(groups)} param groups without the names of their "
            "parameters; give match(..., order=) torch's names, group after group."
        )
    if len(order) != len(keys):
        raise ValueError(
            f"{where}: {argument} has {len(keys)} parameters, and names {len(order)}; give "
            "match(..., order=) the names of all that torch's optimizer was given, in its order."
        )
    return order


def _kind(where: str, at: int, group: Mapping[str, Any]) -> str:
    keys = set(group)
    for kind, its in MARKS.items():
        if its <= keys:
            return kind
    raise ValueError(
        f"{where}: param group {at} is not of Adam, AdamW, RMSprop or SGD of torch.optim; it "
        f"has {_checks.listed(sorted(map(str, keys - {'params', 'param_names'})))}."
    )
