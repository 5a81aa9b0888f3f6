"""Which arrays of a state are kept in which format."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from .._core import _checks, _tree, by_path
from .._core._kinds import Kind
from .._core._paths import ByPath
from ._codec import Codec

SECOND_MOMENTS = frozenset({"nu", "nu_max", "sum_of_squares", "v"})
SIGNED = frozenset({"mu", "trace", "ema", "m", "momentum", "mu_slow"})


class SlotsKind(Kind):
    """Which slots are kept in which format."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        wanted = 'a mapping such as {"mu": int8(), "nu": uint8()}'
        if not isinstance(value, Mapping) or not value:
            raise _checks.wrong_kind(function, name, wanted, value)
        slots = {}
        for slot, codec in value.items():
            if not isinstance(slot, str):
                raise _checks.wrong_kind(function, name, wanted, value)
            if isinstance(codec, Mapping):
                codec = by_path(codec)
            formats = [v for _, v in codec.rules] if isinstance(codec, ByPath) else [codec]
            for each in formats:
                if isinstance(each, type) and issubclass(each, Codec):
                    raise _checks.wrong_kind(
                        function, f"{name}[{slot!r}]", f"a format: {each.__name__}()", each
                    )
                if not isinstance(each, Codec | None):
                    what = "a format of adaptax.lowbit, None, or formats by path pattern"
                    raise _checks.wrong_kind(function, f"{name}[{slot!r}]", what, each)
                _check_fits(function, slot, each)
            slots[slot] = codec
        return slots


def _check_fits(function: str, slot: str, codec: Codec | None) -> None:
    if codec is None:
        return
    if slot in SECOND_MOMENTS and codec.refusal is not None:
        raise ValueError(f"{function}: {codec!r} can't hold {slot!r}: {codec.refusal}")
    if slot in SIGNED and not codec.signed:
        raise ValueError(
            f"{function}: {slot!r} has both signs, and {codec!r} holds numbers >= 0 only; "
            "take a format with a sign, such as int8()."
        )


Slots = Annotated[Mapping[str, Any], SlotsKind()]


def formats_of(state: Any, params: Any, slots: Any, min_size: int) -> list[Codec | None]:
    """The format of each leaf of a state; None for those that stay as they are."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_tree.is_hole)
    named = {path: (i, jnp.shape(p)) for i, (path, p) in enumerate(leaves) if not _tree.is_hole(p)}
    formats = {slot: _by_leaf(codec, params) for slot, codec in slots.items()}
    found, fields, out = set(), set(), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        slot, index = _slot(path, leaf, named)
        fields.add(slot)
        found.update({slot} & set(slots))
        codec = formats[slot][index] if slot in formats else None
        out.append(codec if _may_encode(leaf, min_size) else None)
    missing = sorted(set(slots) - found)
    if missing and named:
        have = _checks.listed(sorted(f for f in fields if f)) or "none"
        raise ValueError(
            f"store: the state has no slot {missing[0]!r} in the shape of a parameter; it has "
            f"{have}. Name only slots that it has."
        )
    return out


def _by_leaf(codec: Any, params: Any) -> list[Any]:
    leaves = jax.tree.leaves(params, is_leaf=_tree.is_hole)
    if not isinstance(codec, ByPath):
        return [codec] * len(leaves)
    given = iter(jax.tree.leaves(codec(params), is_leaf=_tree.is_none))
    return [None if isinstance(p, _tree.MaskedNode) else next(given) for p in leaves]


def _slot(path: Any, leaf: Any, named: Mapping[Any, Any]) -> tuple[str, int]:
    """The field that holds an array like a parameter, and the number of the parameter."""
    for cut in range(1, len(path) + 1):
        i, shape = named.get(path[cut:], (-1, None))
        if i >= 0 and shape == jnp.shape(leaf) and hasattr(path[cut - 1], "name"):
            return path[cut - 1].name, i
    return "", -1


def _may_encode(leaf: Any, min_size: int) -> bool:
    real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return real and leaf.size >= max(min_size, 1)
