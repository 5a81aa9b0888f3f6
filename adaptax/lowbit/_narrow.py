"""16-bit numbers inside float32: how they round, and what to add to one to land on another.

All of it is arithmetic that a compiler may not fold away: integers, or `lax.reduce_precision`. A
conversion to 16 bits and back is another matter: XLA drops it where it may keep excess precision.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import _checks, _tree


def is_narrow(x: Any) -> bool:
    """Whether x is an array of bfloat16 or float16."""
    return getattr(x, "dtype", None) in (jnp.bfloat16, jnp.float16)


def nearest(x: Any, dtype: Any) -> Any:
    """Float32 numbers rounded to the nearest of a 16-bit dtype, ties to even; still float32."""
    info = jnp.finfo(dtype)
    normal = jax.lax.reduce_precision(x, info.nexp, info.nmant)
    if not _has_subnormals(info):
        return normal
    scale = np.float32(1 / float(info.smallest_subnormal))  # reduce_precision makes them zeros
    near = jax.lax.round(x * scale, jax.lax.RoundingMethod.TO_NEAREST_EVEN) / scale
    return jnp.where(jnp.abs(x) < np.float32(info.tiny), near, normal)


def stochastic(x: Any, dtype: Any, random: Any) -> Any:
    """Float32 numbers rounded to one of their two neighbors of a 16-bit dtype, without bias.

    The one farther from zero is taken with a probability of x's distance from the other one, in
    units of theirs. What is larger than all finite numbers of the dtype is rounded to nearest.

    Args:
        x: Float32 numbers.
        dtype: bfloat16 or float16.
        random: uint32 of x's shape, uniform. The upper 16 bits decide (13 for float16).
    """
    inside = jnp.abs(x) <= np.float32(jnp.finfo(dtype).max)
    return jnp.where(inside, cut(x, dtype, random), nearest(x, dtype))


def cut(x: Any, dtype: Any, random: Any, more: int = 0, mark: bool = False) -> Any:
    """`stochastic`, to more bits than the dtype has, and with exponents beyond its largest.

    With `mark`, plus a quarter of a unit, away from zero: out of every middle.
    """
    info = jnp.finfo(dtype)
    drop = 23 - info.nmant - more
    lift = lift_of(x, jnp.abs(x) < np.float32(info.tiny), dtype)
    raised = bits_of(x + lift) + (random >> (32 - drop))
    quarter = np.uint32(2 ** (drop - 2) if mark else 0)
    return float_of((raised & np.uint32(2**32 - 2**drop)) | quarter) - lift


def lift_of(x: Any, low: Any, dtype: Any) -> Any:
    """What brings numbers below the normal ones to where numbers have the spacing of those."""
    if not _has_subnormals(jnp.finfo(dtype)):
        return np.float32(0)
    tiny = np.float32(jnp.finfo(dtype).tiny)
    return jnp.where(low, jnp.where(x < 0, -tiny, tiny), np.float32(0))


def bits_of(x: Any) -> Any:
    """The bits of float32 numbers, uint32."""
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def float_of(bits: Any) -> Any:
    """The float32 numbers that have these bits."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def landing(p: Any, q: Any) -> Any:
    """What to add to p, in float32, so that the sum rounds to q.

    The difference q - p is exact, except where one of the two is more than 2¹⁶ times the other:
    then the sum is off by 2⁻²⁴ of the larger one. A q that is infinite or NaN stays it. A
    difference beyond float32's largest number is infinite, one below its smallest normal number
    zero on most hardware.
    """
    p = p.astype(jnp.float32)
    return jnp.where(q == p, np.float32(0), q - p)


def each_narrow(
    where: str,
    leaf: Callable[..., tuple[Any, ...]],
    updates: Any,
    params: Any,
    state: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Replace the updates, and the state, of 16-bit parameters; leave the others as they are.

    Args:
        where: Whose, for errors.
        leaf: `leaf(i, u, p, *slots) -> (u, *slots)`, where i is the number of the leaf.
        updates: The updates.
        params: The parameters.
        state: Trees of slots by their names; None at each parameter that is wider.

    Returns:
        The new updates, and each of the new trees.
    """
    state = state or {}
    if params is None:
        raise _checks.needs_params(where)
    others = [_tree.Beside(where, "params", params)]
    others += [_tree.Beside(where, f"state.{n}", tree, holes=True) for n, tree in state.items()]
    trees = _tree.Aligned(where, updates, others)
    new: list[list[Any]] = [[] for _ in range(1 + len(state))]
    for i, (u, p, *slots) in enumerate(zip(trees.leaves, *trees.columns, strict=True)):
        after: tuple[Any, ...] = (u, *slots)
        if u is not None and not _tree.is_float0(u) and is_narrow(p):
            _check_leaf(where, trees, i, others, updates)
            after = leaf(np.uint32(i), jnp.asarray(u), p, *slots)
        for column, value in zip(new, after, strict=True):
            column.append(value)
    return [trees.rebuild(column) for column in new]


def _check_leaf(where: str, trees: Any, i: int, others: list[Any], updates: Any) -> None:
    """Refuse a leaf of another shape or kind than the parameter's."""
    u = trees.leaves[i]
    if not jnp.issubdtype(jnp.result_type(u), jnp.inexact):
        raise _checks.not_floating(where, "updates", updates)
    if jnp.iscomplexobj(u):
        name = f"updates{_tree.paths(updates)[i]}"
        raise _checks.wrong_kind(where, name, "real where the parameter is", u)
    for other, column in zip(others, trees.columns, strict=True):
        if column[i] is None:
            raise _checks.mismatch(where, "updates", updates, other.name, other.tree)
        if jnp.shape(column[i]) != jnp.shape(u):
            path = _tree.paths(updates)[i] or "the root"
            differing = {path: (jnp.shape(u), jnp.shape(column[i]))}
            raise _checks.shapes(where, other.name, differing, len(column))


def _has_subnormals(info: Any) -> bool:
    """Whether its numbers with fewer digits are ordinary ones in float32 (bfloat16's are not)."""
    return info.nexp < 8
