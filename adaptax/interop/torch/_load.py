"""Torch's state as one of adaptax."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._core import Transform, TreeMismatchError, _checks
from ..._core._numerics import INT32_MAX
from ..._core._value import TransformationKind
from ._groups import Group, entries_of, groups_of
from ._leaves import Leaf, leaves_of
from ._links import Cell, Link, with_cells
from ._names import Names
from ._reading import KNOWN, SLOTS, SQUARES
from ._tensors import as_numpy, count, placed

WHERE = "load_state"


def load_state(
    tx: Transform,
    params: Any,
    state_dict: Mapping[str, Any],
    names: Names,
    *,
    zeros_for_missing: bool = False,
    step: int | None = None,
) -> Any:
    """The state of a transformation from that of torch's optimizer, to go on from there.

    The averages and sums of torch take the places of adaptax's, and its step those of all counts:
    of bias corrections and of schedules. What torch does not have, such as an average of the
    parameters, is as `tx.init` makes it.

    Args:
        tx: The transformation that goes on: what `optimizer(state_dict, names)` returns, or one
            of your own with the same moments; in a chain with more, in groups, or wrapped.
        params: The parameters.
        state_dict: The `state_dict()` of torch's optimizer.
        names: What `match` returned.
        zeros_for_missing: Torch has no state for parameters that never had a gradient. True begins
            theirs at zero, as if the gradient had been zero so far; else they are an error.
        step: The number of steps done, for schedules, where torch's state does not have it: that of
            `SGD`.

    Raises:
        TreeMismatchError: Torch's state lacks something, has something for which there is no place,
            has other shapes, or what can't be: a step that is negative or not whole, a negative
            second moment. The message lists all of it.
        ValueError: What `tx` keeps has another meaning; or no step is known for a schedule; or a
            group of `state_dict` is damaged, as in `optimizer`.
        TypeError: `tx` has parts that are not adaptax's, or keeps its state in few bits;
            `state_dict` is something else.

    >>> import jax.numpy as jnp, torch
    >>> from adaptax import interop
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> theirs = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    >>> w.grad = torch.arange(3.0)
    >>> theirs.step()
    >>> params = {"w": jnp.asarray(w.detach().numpy())}
    >>> names = interop.torch.match(params, {"w": w})
    >>> tx = interop.torch.optimizer(theirs.state_dict(), names)
    >>> interop.torch.load_state(tx, params, theirs.state_dict(), names)[0].trace
    {'w': Array([0., 1., 2.], dtype=float32)}
    """
    tx = TransformationKind().canonical(WHERE, "tx", tx)
    _check_step(step)
    groups = groups_of(WHERE, "state_dict", state_dict, names)
    entries = entries_of(WHERE, "state_dict", state_dict, groups)
    state = tx.init(params)
    leaves = leaves_of(WHERE, tx, with_cells(WHERE, state), params, names)
    places = {m.leaf: (m, group) for group in groups for m in group.members}
    problems = {
        m.name: f"torch's {m.name} has a state, and no leaf"
        for group in groups
        for m in group.members
        if m.leaf is None and entries[m.key]
    }
    new: dict[int, np.ndarray] = {}
    steps: dict[str, int] = {}
    for leaf in leaves:
        member, group = places.get(leaf.row.leaf, (None, None))
        entry = entries[member.key] if member else {}
        if group is not None and entry:
            done = _step(leaf, group, entry, problems)
            if done is not None and not leaf.reading.frozen:
                steps[leaf.name] = done
            if leaf.reading.slots or not leaf.reading.frozen:
                _check_sense(leaf, group)
                new |= dict(_arrays(leaf, entry, problems))
        elif leaf.reading.slots and not leaf.reading.frozen and not zeros_for_missing:
            problems[leaf.name] = f"{leaf.name} {_MISSING}"
    new |= _counts(leaves, steps, step, problems)
    if problems:
        every = _checks.listed(problems.values())
        raise TreeMismatchError(
            f"{WHERE}: state_dict does not fit tx at {len(problems)} of {len(leaves)} parameters: "
            f"{every}.{_hint(problems)}",
            list(problems),
        )
    old, structure = jax.tree.flatten(state)
    return structure.unflatten(placed(new[i], x) if i in new else x for i, x in enumerate(old))


def _hint(problems: Mapping[str, str]) -> str:
    if not any(text.endswith(_MISSING) for text in problems.values()):
        return ""
    return " What never had a gradient can begin at zero: zeros_for_missing=True."


_MISSING = "has no state in torch"


def _check_step(step: Any) -> None:
    if step is None:
        return
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise _checks.wrong_kind(WHERE, "step", "an integer, or None", step)
    if step < 0:
        raise _checks.out_of_range(WHERE, "step", "[0, inf)", step)


def _step(
    leaf: Leaf, group: Group, entry: Mapping[str, Any], problems: dict[str, str]
) -> int | None:
    """The steps that torch has done with a parameter; SGD doesn't count them."""
    if "step" not in entry:
        if group.kind != "sgd":
            problems[leaf.name] = f"the state of {leaf.name} lacks step"
        return None
    done = count(entry["step"])
    if done is None:
        got = _checks._show(entry["step"])
        problems[leaf.name] = f"the step of {leaf.name} must be a whole number >= 0, got {got}"
    return done


def _check_sense(leaf: Leaf, group: Group) -> None:
    """Refuse a state of the opposite gradients, or of multiples of them."""
    reading = leaf.reading
    ascends = group.flag("maximize")
    if reading.slots and ascends != (reading.front < 0):
        do, what = ("begin with", "ascends") if ascends else ("leave out", "descends")
        raise ValueError(
            f"{WHERE}: torch's optimizer of {leaf.name} {what}, tx does not; {do} scale(-1.0), as "
            "optimizer(state_dict, names) does."
        )
    factor = 1.0 - group.option("dampening") if group.kind == "sgd" else 1.0
    dampened = factor == 1 or math.isclose(reading.between, factor, rel_tol=1e-6)
    if "momentum_buffer" in reading.slots and not dampened:
        raise ValueError(
            f"{WHERE}: torch's momentum of {leaf.name} has dampening {1.0 - factor}; put "
            f"scale({factor}) before the trace, as optimizer(state_dict, names) does."
        )


def _arrays(
    leaf: Leaf, entry: Mapping[str, Any], problems: dict[str, str]
) -> Iterator[tuple[int, np.ndarray]]:
    """The arrays of torch's entry, by the numbers of their cells."""
    slots = leaf.reading.slots
    lacks, extra = set(slots) - set(entry), set(entry) - set(slots) - {"step"}
    if lacks or extra:
        said = [f"lacks {', '.join(sorted(lacks))}"] * bool(lacks)
        said += [f"has {', '.join(sorted(extra))}, for which tx has no place"] * bool(extra)
        problems[leaf.name] = f"the state of {leaf.name} {' and '.join(said)}"
        return
    for name, slot in slots.items():
        x = as_numpy(WHERE, f"{name} of {leaf.name}", entry[name])
        cell = slot.link.arrays[slot.field].get(leaf.path)
        wanted = leaf.row.torch_shape
        if cell is None or jnp.shape(cell.value) != leaf.row.shape:
            problems[leaf.name] = f"{slot.link.name} keeps no {slot.field} like {leaf.name}"
        elif x.shape != wanted:
            problems[leaf.name] = f"{name} of {leaf.name} has shape {x.shape} against {wanted}"
        elif not jnp.issubdtype(x.dtype, np.inexact):
            problems[leaf.name] = f"{name} of {leaf.name} must be floating, got {x.dtype}"
        elif np.iscomplexobj(x) and not jnp.iscomplexobj(cell.value):
            problems[leaf.name] = f"{name} of {leaf.name} is complex"
        elif name in SQUARES and np.any(x < 0):
            problems[leaf.name] = f"{name} of {leaf.name} has negative entries"
        else:
            x = x if slot.times == 1 else x * slot.times
            yield cell.index, np.array(leaf.row.to_leaf(x), cell.value.dtype)


def _counts(
    leaves: Sequence[Leaf], steps: Mapping[str, int], step: int | None, problems: dict[str, str]
) -> dict[int, np.ndarray]:
    """The counts of all links, by the numbers of their cells."""
    beneath: dict[Link, dict[str, int]] = {}
    for leaf in leaves:
        for link in leaf.links:
            beneath.setdefault(link, {})
            if leaf.name in steps:
                beneath[link][leaf.name] = steps[leaf.name]
    if step is not None and steps:
        raise ValueError(f"{WHERE}: step is for a state without one, such as that of torch's SGD.")
    counts: dict[int, int] = {}
    latest = max(steps.values(), default=step)
    for link, done in beneath.items():
        if link.factory in SLOTS:
            usual = Counter(done.values()).most_common(1)
            for name, n in done.items():
                if n != usual[0][0] and link.count is not None:
                    problems[name] = f"{name} has done {n} steps, others {usual[0][0]}"
            counts |= {cell.index: usual[0][0] for cell in _clocks(link) if usual}
            continue
        now = max(done.values(), default=latest)
        for cell, needed in _clocks(link).items():
            if now is not None:
                counts[cell.index] = now
            elif needed:
                raise ValueError(
                    f"{WHERE}: {link.name} follows a schedule, and torch's state has no step; give "
                    "step, the number of steps done."
                )
    return {i: np.array(min(n, INT32_MAX), np.int32) for i, n in counts.items()}


def _clocks(link: Link) -> dict[Cell, bool]:
    """The counts of a link, and whether a schedule reads them."""
    if not link.wraps:
        return {link.count: True} if link.factory in KNOWN and link.count is not None else {}
    if link.holds:
        of_schedules = (getattr(s, "count", None) for s in link.state.hyperparams_states.values())
        return {link.state.count: False} | {c: True for c in of_schedules if isinstance(c, Cell)}
    windows = getattr(link.state, "gradient_step", None)
    return {windows: False} if isinstance(windows, Cell) else {}
