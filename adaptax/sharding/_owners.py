"""Which parameter an array of a state belongs to, and which of its axes are the parameter's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core._tree import is_hole

Shape = tuple[int, ...]


class Owner(NamedTuple):
    """Where an array of a state comes from.

    Attributes:
        index: The number of the parameter among the leaves that are arrays; None for none.
        axes: For each axis of the array, that of the parameter with which it is split; None for
            none.
    """

    index: int | None
    axes: tuple[int | None, ...]


def owners(tx: Any, params: Any, state: Any) -> list[Owner]:
    """The owner of each leaf of a state of `tx`.

    An array belongs to the parameter whose whole key path occurs in its own, the longest such. An
    axis is the parameter's if it has its size (a sum over rows keeps the columns), or one entry for
    each block of equal size (a scale for each 256). Sizes do not always tell: the axes of a square
    matrix, whether blocks end where the array does. So `tx` is also asked for the state of
    parameters of slightly other sizes. Nothing is computed.

    Args:
        tx: The transformation.
        params: The parameters, or their shapes.
        state: The shapes of the state: `jax.eval_shape(tx.init, params)`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hole)
    named = [(path, jnp.shape(p)) for path, p in leaves if not is_hole(p)]
    index = {path: i for i, (path, _) in enumerate(named)}
    longest = max((len(path) for path in index), default=0)
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found.append((_within(path, index, longest), leaf.shape))
    unclear = any(i is not None and shape != named[i][1] for i, shape in found)
    probe = _probe(tx, params) if unclear else None
    if probe is not None and len(probe.state) != len(found):
        probe = None  # the structure of the state depends on sizes
    out = []
    for k, (i, shape) in enumerate(found):
        if i is None:
            out.append(Owner(None, (None,) * len(shape)))
            continue
        other = None if probe is None else (probe.params[i], probe.state[k])
        out.append(Owner(i, _axes(named[i][1], shape, other)))
    return out


def _within(path: Any, index: dict[Any, int], longest: int) -> int | None:
    """The parameter whose key path is a part of this one: the longest, then the last."""
    for length in range(min(longest, len(path)), -1, -1):
        for start in range(len(path) - length, -1, -1):
            if path[start : start + length] in index:
                return index[path[start : start + length]]
    return None


class _Probe(NamedTuple):
    params: list[Shape]
    state: list[Shape]


def _probe(tx: Any, params: Any) -> _Probe | None:
    """Shapes with axes of different sizes, in the same order as before, and their state's."""
    leaves, structure = jax.tree.flatten(params)
    shapes = [_told_apart(jnp.shape(p)) for p in leaves]
    made = [
        jax.ShapeDtypeStruct(s, jnp.result_type(p)) for s, p in zip(shapes, leaves, strict=True)
    ]
    try:
        state = jax.eval_shape(tx.init, structure.unflatten(made))
    except Exception:  # a transformation that insists on the sizes it was made for
        return None
    return _Probe(shapes, [leaf.shape for leaf in jax.tree.leaves(state)])


def _told_apart(shape: Shape) -> Shape:
    """Other sizes, all different, in the same order, of equals the later larger; 0 and 1 stay."""
    out, last = list(shape), 1
    for axis in sorted(range(len(shape)), key=shape.__getitem__):
        if shape[axis] > 1:
            out[axis] = last = max(shape[axis], last) + 1
    return tuple(out)


def _axes(param: Shape, shape: Shape, probe: tuple[Shape, Shape] | None) -> tuple[int | None, ...]:
    if shape == param:
        return tuple(range(len(shape)))
    if probe is not None and tuple(map(len, probe)) != (len(param), len(shape)):
        probe = None
    if len(shape) == len(param):
        other = shape if probe is None else probe[1]
        return tuple(
            a if n > 1 and (n == whole or (whole % n == 0 and m == n + 1)) else None
            for a, (whole, n, m) in enumerate(zip(param, shape, other, strict=True))
        )
    param, shape = (param, shape) if probe is None else probe
    return tuple(_only(param, n) for n in shape)


def _only(param: Shape, n: int) -> int | None:
    """The one axis of this size."""
    axes = [a for a, size in enumerate(param) if size == n and n > 1]
    return axes[0] if len(axes) == 1 else None
