"""A state of adaptax as torch's."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..._core import Transform, TreeMismatchError, _checks, unboxed
from ._groups import TITLES, Group, damaged, entries_of, groups_of
from ._leaves import Leaf, leaves_of
from ._links import with_cells
from ._names import Names
from ._numbers import options_of
from ._reading import KNOWN, Unreadable
from ._tensors import as_tensor, count, torch_for

WHERE = "dump_state"


def dump_state(
    tx: Transform,
    params: Any,
    state: Any,
    names: Names,
    like: Mapping[str, Any],
    *,
    outside: Collection[str] = (),
    decoupled_weight_decay: bool | None = None,
) -> dict[str, Any]:
    """The state of torch's optimizer from that of a transformation, to go on in torch.

    For `optimizer.load_state_dict`. The learning rate and all other numbers are those of `tx`,
    schedules evaluated at the step; what else there is in the groups is that of `like`. A leaf
    that `tx` freezes gets no state: freeze it in torch too, with `requires_grad_(False)`.

    Args:
        tx: The transformation. Its links are to be what torch's optimizer does: what `optimizer`
            returns, an optimizer of adaptax of the same kind, or the links of one in a chain.
        params: The parameters, or their shapes.
        state: The state of `tx`.
        names: What `match` returned.
        like: The `state_dict()` of the optimizer that goes on, perhaps a new one. It is not
            changed.
        outside: Names of what torch does not have in its optimizer and the training loop there
            does around it, such as ``["clip_by_global_norm", "guard"]``: they are left out.
        decoupled_weight_decay: As in `optimizer`.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
        TreeMismatchError: The two have not the same parameters; the message lists all.
        ValueError: `tx` does something that torch's optimizer can't do; or it gives different
            numbers to the parameters of one group; or `like` is damaged.
        TypeError: `tx` has parts that are not adaptax's, or keeps its state in few bits.

    >>> import adaptax, jax.numpy as jnp, torch
    >>> from adaptax import interop
    >>> params, w = {"w": jnp.ones(3)}, torch.nn.Parameter(torch.ones(3))
    >>> tx = adaptax.sgd(0.1, momentum=0.9)
    >>> _, state = tx.update({"w": jnp.arange(3.0)}, tx.init(params))
    >>> theirs = torch.optim.SGD([w], momentum=0.5)
    >>> names = interop.torch.match(params, {"w": w})
    >>> saved = interop.torch.dump_state(tx, params, state, names, like=theirs.state_dict())
    >>> theirs.load_state_dict(saved)
    >>> theirs.state[w]["momentum_buffer"], theirs.param_groups[0]["momentum"]
    (tensor([0., 1., 2.]), 0.9)
    """
    params, state = unboxed((params, state))
    leaves = leaves_of(WHERE, tx, with_cells(WHERE, state), params, names)
    groups = groups_of(WHERE, "like", like, names)
    by_name = {leaf.row.leaf: leaf for leaf in leaves}
    members = [m for group in groups for m in group.members]
    have = {m.leaf for m in members}
    problems = {m.name: f"torch's {m.name} has no leaf" for m in members if m.leaf is None}
    problems |= {
        leaf.name: f"{leaf.name} is not in like"
        for leaf in leaves
        if leaf.row.leaf not in have and not leaf.reading.frozen
    }
    if problems:
        raise TreeMismatchError(
            f"{WHERE}: params and like differ at {len(problems)} of {len(leaves)} parameters: "
            f"{_checks.listed(problems.values())}.",
            list(problems),
        )
    _check_outside(outside, leaves)
    old, entries, new_groups = entries_of(WHERE, "like", like, groups), {}, []
    for group in groups:
        here = [(m.key, by_name[m.leaf]) for m in group.members if m.leaf is not None]
        trained = [(key, leaf) for key, leaf in here if not leaf.reading.frozen]
        ways: dict[Any, Leaf] = {}  # a leaf for all that go the same way
        for _, leaf in trained:
            ways.setdefault(leaf.links, leaf)
        numbers = [_options(leaf, group, outside, decoupled_weight_decay) for leaf in ways.values()]
        new_groups.append({**group.options, **_common(group, list(ways.values()), numbers)})
        entries |= {key: _entry(leaf, old[key]) for key, leaf in trained}
    state_of = {key: entry for key, entry in entries.items() if entry}
    return {**like, "state": state_of, "param_groups": new_groups}


def _check_outside(outside: Collection[str], leaves: Sequence[Leaf]) -> None:
    there = {link.name: None for leaf in leaves for link in leaf.links}
    for name in outside:
        if name not in there:
            raise ValueError(
                f"{WHERE}: outside has {name!r}, and tx has no such part; it has "
                f"{_checks.listed(there)}."
            )


def _options(
    leaf: Leaf, group: Group, outside: Collection[str], decoupled: bool | None
) -> dict[str, Any]:
    """The options of a leaf's group.

    Raises:
        ValueError: Torch's optimizer does not do what `tx` does.
    """
    for link in leaf.links:
        known = link.holds if link.wraps else link.factory in KNOWN
        if not known and link.name not in outside:
            raise ValueError(
                f"{WHERE}: torch has no {link.name} in its optimizers, which {leaf.name} goes "
                f"through. If the training loop there does that, give outside=[{link.name!r}]."
            )
    try:
        options = options_of(leaf.reading)
    except Unreadable as why:
        raise leaf.unreadable(WHERE, why) from None
    if leaf.reading.kind != group.kind:
        raise ValueError(
            f"{WHERE}: tx does what {TITLES[leaf.reading.kind]} does, and like is of "
            f"{TITLES[group.kind]}."
        )
    apart = options.pop("decoupled_weight_decay", None)
    if apart is None or options["weight_decay"] == 0:
        return options
    if group.decoupled(WHERE, decoupled) != apart:
        own, other = ("AdamW", "Adam") if apart else ("Adam", "AdamW")
        raise ValueError(
            f"{WHERE}: in tx the weight decay of {leaf.name} is that of {own}, and like is of "
            f"{other}; make like with torch.optim.{own}."
        )
    return options


def _common(group: Group, leaves: Sequence[Leaf], numbers: Sequence[dict[str, Any]]) -> Any:
    """The numbers that all leaves of a group have."""
    for leaf, its in zip(leaves, numbers, strict=True):
        for name, value in its.items():
            if value != numbers[0][name]:
                raise ValueError(
                    f"{WHERE}: tx has {name}={numbers[0][name]} for {leaves[0].name} and {value} "
                    f"for {leaf.name}, which are in one param group of like, number "
                    f"{group.number}; make like with a group for each."
                )
    first = numbers[0] if numbers else {}
    return {name: _as(group.options.get(name), value) for name, value in first.items()}


def _as(old: Any, value: Any) -> Any:
    """A number as a tensor, where there was a tensor."""
    if isinstance(value, tuple) and isinstance(old, tuple | list):
        return type(old)(map(_as, old, value))
    return old.new_tensor(value) if hasattr(old, "new_tensor") else value


def _entry(leaf: Leaf, old: Mapping[str, Any]) -> dict[str, Any]:
    """What torch keeps for a parameter."""
    entry: dict[str, Any] = {}
    if leaf.reading.kind != "sgd":
        entry["step"] = torch_for(WHERE).tensor(_steps(leaf, old))
    for name, slot in leaf.reading.slots.items():
        cell = slot.link.arrays[slot.field].get(leaf.path)
        if cell is None or np.shape(cell.value) != leaf.row.shape:
            raise ValueError(f"{WHERE}: {slot.link.name} keeps no {slot.field} like {leaf.name}.")
        x = np.asarray(cell.value)
        entry[name] = as_tensor(WHERE, leaf.row.to_torch(x if slot.times == 1 else x / slot.times))
    return entry


def _steps(leaf: Leaf, old: Mapping[str, Any]) -> float:
    """The steps done. Torch's RMSprop counts them for nothing, ours may have no count."""
    counts = [link.count for link in leaf.links if not link.wraps and link.count is not None]
    if leaf.reading.core is not None and leaf.reading.core.count is not None:
        counts.insert(0, leaf.reading.core.count)
    steps = count(counts[0].value if counts else old.get("step", 0))
    if steps is None:
        wrong = f"the step of {leaf.name} must be a whole number >= 0"
        raise damaged(WHERE, "like", [f"{wrong}, got {_checks._show(old['step'])}"])
    return float(steps)
