"""Arrays split over one more axis of a mesh, each where it divides best."""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .._core import Params, _checks, _tree
from .._core._kinds import Kind
from .._core._paths import path_names
from . import _errors
from ._shardings import Entry, is_explicit, names_in, pieces, resolved, used


class AxisKind(Kind):
    """The name of a mesh axis, or several."""

    def canonical(self, function: str, name: str, value: Any) -> tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        fits = isinstance(names, tuple | list) and names and all(isinstance(n, str) for n in names)
        if not fits:
            raise _checks.wrong_kind(function, name, "the name of a mesh axis, or several", value)
        return tuple(names)


MeshAxis = Annotated[Any, AxisKind()]


class Split(NamedTuple):
    """How an array lies.

    Attributes:
        sharding: Its sharding.
        own: Its shape.
        shape: The shape that it is stored in: longer than its own where it is padded.
    """

    sharding: NamedSharding
    own: tuple[int, ...]
    shape: tuple[int, ...]


def split(
    params: Params,
    param_shardings: Any = None,
    mesh: Any = None,
    *,
    axis: str | tuple[str, ...] = "data",
    min_size: int = 4096,
) -> Any:
    """The shardings of arrays split over one more axis of the mesh: fully sharded parameters.

    Each array is split along the largest of its axes that divides and is not split yet; if there
    is none, along one that is split already and divides further. What is small, what divides
    nowhere and what the mesh axis splits already stays as it is; `placement` shows which.

    Args:
        params: The arrays, or their shapes.
        param_shardings: How they lie so far: as in `state_sharding`.
        mesh: The mesh of the specs; None takes that of `jax.set_mesh`.
        axis: The mesh axis to split over, or several.
        min_size: Arrays with fewer entries stay as they are.

    Returns:
        A tree like the arrays, of `NamedSharding`.

    Raises:
        ValueError: The mesh has no such axis; and what `state_sharding` raises.
    """
    axis = AxisKind().canonical("split", "axis", axis)
    shardings = resolved("split", params, param_shardings, mesh)
    out = iter(splits("split", params, shardings, axis, min_size))
    return jax.tree.map(lambda p: next(out).sharding, params)


def splits(
    where: str,
    params: Any,
    shardings: list[NamedSharding],
    axis: tuple[str, ...],
    min_size: int,
    pad: bool = False,
) -> list[Split]:
    """The same, of the arrays of a tree in order, perhaps padded."""
    names = path_names(params)
    leaves = jax.tree.leaves(params, is_leaf=_tree.is_none)
    there = [(name, jnp.shape(p)) for name, p in zip(names, leaves, strict=True) if p is not None]
    meshes = dict.fromkeys(s.mesh for s in shardings)
    if len(meshes) > 1:
        raise _errors.several_meshes(where, list(meshes))
    for mesh in meshes:
        for name in axis:
            if name not in mesh.shape:
                raise _errors.no_mesh_axis(where, name, dict(mesh.shape))
    return [
        _split(where, name, shape, s, axis, min_size, pad)
        for (name, shape), s in zip(there, shardings, strict=True)
    ]


def _split(
    where: str,
    name: str,
    shape: tuple[int, ...],
    sharding: NamedSharding,
    axis: tuple[str, ...],
    min_size: int,
    pad: bool,
) -> Split:
    mesh, spec = sharding.mesh, list(sharding.spec)
    n = pieces(mesh, axis)
    if math.prod(shape) < max(min_size, 1) or n == 1 or used(spec) & set(axis):
        return Split(sharding, shape, shape)
    free = [a for a in range(len(shape)) if spec[a] is None]
    taken = [a for a in range(len(shape)) if spec[a] is not None]
    even = [a for a in free if shape[a] % n == 0]
    further = [a for a in taken if shape[a] % (n * pieces(mesh, spec[a])) == 0]
    stored = list(shape)
    if even or further:
        chosen = max(even or further, key=shape.__getitem__)
    elif pad and free and max(shape[a] for a in free) >= n:
        if is_explicit(sharding):
            raise _errors.no_padding(where, name, shape, n)
        chosen = max(free, key=shape.__getitem__)
        stored[chosen] += -shape[chosen] % n
    else:
        return Split(sharding, shape, shape)
    spec[chosen] = _joined(spec[chosen], axis)
    made = NamedSharding(mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)
    return Split(made, shape, tuple(stored))


def _joined(entry: Entry, axis: tuple[str, ...]) -> Entry:
    names = (*names_in(entry), *axis)
    return names[0] if len(names) == 1 else names
