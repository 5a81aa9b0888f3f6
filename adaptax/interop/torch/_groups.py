"""The groups of torch's optimizers: which parameters, of which optimizer, with which numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..._core import _checks
from ._names import Names

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
        return float(self.options[name])

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
        return bool(said)


def groups_of(where: str, argument: str, state_dict: Any, names: Names | None) -> list[Group]:
    """The groups of an optimizer's state.

    Raises:
        TypeError: It is not one.
        ValueError: It is of another optimizer; or which parameters it has can't be known.
    """
    fits = isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict)
    if not fits:
        got = f"a mapping of {list(state_dict)}" if isinstance(state_dict, Mapping) else None
        wanted = "an optimizer's state_dict(), with 'state' and 'param_groups'"
        raise TypeError(f"{where}: {argument} must be {wanted}, got {got or type(state_dict)}.")
    groups = state_dict["param_groups"]
    kinds = [_kind(where, i, group) for i, group in enumerate(groups)]
    theirs = iter(_in_order(where, argument, groups, names))
    leaves = {} if names is None else {n: row.leaf for row in names.matched for n in row.names}
    found = []
    for i, (kind, group) in enumerate(zip(kinds, groups, strict=True)):
        members = [(key, next(theirs)) for key in group["params"]]
        members = [Member(key, name, leaves.get(name)) for key, name in members]
        found.append(Group(i, kind, group, tuple(members)))
    return found


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


def entries_of(state_dict: Any, groups: list[Group]) -> dict[Any, dict[str, Any]]:
    """What the state has of each parameter, by its key; nothing where there is nothing."""
    state = state_dict["state"]
    return {
        m.key: {k: x for k, x in state.get(m.key, {}).items() if x is not None}
        for group in groups
        for m in group.members
    }


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


def _kind(where: str, number: int, group: Mapping[str, Any]) -> str:
    keys = set(group)
    for kind, its in (
        ("adam", {"betas", "amsgrad"}),
        ("rmsprop", {"alpha", "centered"}),
        ("sgd", {"momentum", "dampening"}),
    ):
        if its <= keys:
            return kind
    raise ValueError(
        f"{where}: param group {number} is not of Adam, AdamW, RMSprop or SGD of torch.optim; it "
        f"has {_checks.listed(sorted(keys - {'params', 'param_names'}))}."
    )
