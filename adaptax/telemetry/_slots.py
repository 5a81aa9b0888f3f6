"""The arrays of a state that belong to a parameter, and what an eps is to them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core import Decay, node_of, weight
from .._core._tree import is_hole
from .._core._value import call_of

FIRST_MOMENTS = ("mu", "trace")
NOT_A_SQUARE = ("scale_by_adamax",)  # nu is a maximum of |g| + ε, not a mean of |g|²
RESERVED = ("gradient", "update", "param")

Slots = dict[str, dict[int, Any]]
"""For each name the arrays, by the number of their leaf among all leaves, holes included."""


def slots_of(state: Any, params: Any) -> Slots:
    """The arrays of a state that have a parameter's key path below a field, and its shape.

    They have the field's name. Where several fields of one name hold an array for the same
    leaf, as in a chain of two averages, it is the way to the field: "0.ema", "1.ema".
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hole)
    index = {path: (i, jnp.shape(p)) for i, (path, p) in enumerate(leaves) if not is_hole(p)}
    found: dict[tuple[Any, ...], dict[int, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not jnp.issubdtype(getattr(leaf, "dtype", None) or bool, jnp.inexact):
            continue
        for cut in range(1, len(path) + 1):
            i, shape = index.get(path[cut:], (-1, None))
            if shape == leaf.shape and hasattr(path[cut - 1], "name"):
                found.setdefault(path[:cut], {})[i] = leaf
                break
    return _named(found)


def _named(found: Mapping[tuple[Any, ...], dict[int, Any]]) -> Slots:
    by_field: dict[str, list[tuple[Any, ...]]] = {}
    for path in found:
        by_field.setdefault(path[-1].name, []).append(path)
    slots: Slots = {}
    for field, paths in by_field.items():
        name = f"state.{field}" if field in RESERVED else field
        count = sum(len(found[path]) for path in paths)
        merged = {i: x for path in paths for i, x in found[path].items()}
        if len(merged) == count:
            slots[name] = merged
        else:
            slots |= {_dotted(path): found[path] for path in paths}
    return slots


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def first_moment(slots: Slots) -> dict[int, Any]:
    """The first moment of each leaf that has one."""
    chosen: dict[int, Any] = {}
    for name, arrays in slots.items():
        if name.rsplit(".", 1)[-1] in FIRST_MOMENTS:
            chosen = {**arrays, **chosen}
    return chosen


class Floor(NamedTuple):
    """What bounds the denominator of one second moment from below.

    Attributes:
        nu: The array.
        eps: The bound of √ν̂, ε + √ε̄ of those inside and outside the root.
        weight: 1 - β₂ᵗ; 1 where the average is not corrected or the decay is not known.
    """

    nu: Any
    eps: Any
    weight: Any


def floors(tx: Any, state: Any, eps: Any) -> dict[int, Floor]:
    """For each array in a field `nu` of a state, by its id, the bound of its denominator.

    eps is None where it is to be found: among the arguments of the transformation, or in the
    `hyperparams` of a state.
    """
    return dict(_floors(tx, state, {}, eps))


def _floors(tx: Any, state: Any, known: Mapping[str, Any], eps: Any) -> Iterator[Any]:
    held = getattr(state, "hyperparams", None)
    if isinstance(held, Mapping):
        known = {**known, **_unambiguous(held)}
    call = call_of(tx)
    parts = None if call is None else getattr(node_of(tx), "parts", None)
    if parts is not None:
        for inner, inner_state in parts(state).values():
            yield from _floors(inner, inner_state, known, eps)
        return
    if "nu" in getattr(state, "_fields", ()):
        yield from _of_state(call, state, known, eps)
    elif isinstance(state, tuple | list | Mapping):  # a state of another library
        for inner in state.values() if isinstance(state, Mapping) else state:
            yield from _floors(tx, inner, known, eps)


def _unambiguous(held: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by the last part of their names, those that only one number has."""
    short = [name.rsplit("/", 1)[-1] for name in held]
    return {s: held[n] for s, n in zip(short, held, strict=True) if short.count(s) == 1}


def _of_state(call: Any, state: Any, known: Mapping[str, Any], eps: Any) -> Iterator[Any]:
    if call is not None and call.name in NOT_A_SQUARE:
        return
    numbers = {} if call is None else {**call.arguments}
    numbers |= known
    if eps is None:
        eps, inside = numbers.get("eps"), numbers.get("eps_root")
        if callable(eps) or callable(inside) or (eps is None and inside is None):
            return
        eps = jnp.asarray(0.0 if eps is None else eps)
        eps = jnp.sqrt(eps) if numbers.get("eps_in_sqrt") else eps
        eps = eps if inside is None else eps + jnp.sqrt(jnp.asarray(inside, eps.dtype))
    decay = numbers.get("b2", numbers.get("decay"))
    seen: Any = 1.0
    if decay is not None and not callable(decay) and "count" in state._fields:
        decay = Decay.of(decay)
        seen = weight(decay, state.count.astype(jnp.result_type(float, decay.log)))
    for leaf in jax.tree.leaves(state.nu):
        yield id(leaf), Floor(leaf, eps, seen)
