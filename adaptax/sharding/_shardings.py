"""Shardings as arguments: one for each parameter, whatever the user gave."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .._core import _checks, _tree
from .._core._paths import path_names
from . import _errors

Entry = None | str | tuple[str, ...]
"""What one axis of an array is split over."""

_GIVEN = (
    "a sharding or PartitionSpec for each parameter: a tree like them, a prefix of it, or one for "
    "all"
)


def is_given(x: Any) -> bool:
    """Whether x is a leaf of a tree of shardings."""
    return x is None or isinstance(x, jax.sharding.Sharding | PartitionSpec)


def resolved(where: str, params: Any, given: Any, mesh: Any) -> list[NamedSharding]:
    """The sharding of each parameter that is an array, with one entry of its spec for each axis.

    Args:
        where: For errors.
        params: The parameters, or their shapes.
        given: Shardings or specs, perhaps a prefix of the tree; None takes those that the
            parameters have.
        mesh: Where specs are given, or None; None for the mesh of `jax.set_mesh`.
    """
    present = jax.tree.leaves(params, is_leaf=_tree.is_none)
    if given is None:
        every = [getattr(p, "sharding", None) for p in present]
    else:
        for leaf in jax.tree.leaves(given, is_leaf=is_given):
            if not is_given(leaf):
                raise _checks.wrong_kind(where, "param_shardings", _GIVEN, leaf)
        every = _tree.broadcast(where, f"param_shardings is {_GIVEN},", given, params, is_given)
    names = path_names(params)
    return [
        _named(where, name, p, one, mesh)
        for name, p, one in zip(names, present, every, strict=True)
        if p is not None
    ]


def _named(where: str, name: str, p: Any, given: Any, mesh: Any) -> NamedSharding:
    if isinstance(given, NamedSharding):
        sharding = _concrete(given, mesh)
    else:
        if given is None or isinstance(given, jax.sharding.SingleDeviceSharding):
            given = PartitionSpec()
        if not isinstance(given, PartitionSpec):
            raise _checks.wrong_kind(where, f"the sharding of {name or 'the root'}", _GIVEN, given)
        mesh = mesh_or_ambient(mesh)
        if mesh is None:
            raise _errors.no_mesh(where, name)
        sharding = NamedSharding(mesh, given)
    shape = jnp.shape(p)
    if len(sharding.spec) > len(shape):
        raise _errors.spec_too_long(where, name, shape, sharding.spec)
    entries = [*map(_entry, sharding.spec), *[None] * (len(shape) - len(sharding.spec))]
    spec = PartitionSpec(*entries)
    for n, entry in zip(shape, entries, strict=True):
        if n % pieces(sharding.mesh, entry):
            raise _errors.not_divisible(where, name, shape, spec, dict(sharding.mesh.shape))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _concrete(sharding: NamedSharding, mesh: Any) -> NamedSharding:
    """A sharding that is a type, on an abstract mesh, on the real one if that is known."""
    if isinstance(sharding.mesh, AbstractMesh):
        known = mesh_or_ambient(mesh)
        if known is not None:
            return NamedSharding(known, sharding.spec)
    return sharding


def mesh_or_ambient(mesh: Any) -> Any:
    """The mesh given, else that of `jax.set_mesh`; None if there is none."""
    if mesh is not None:
        return mesh
    try:
        ambient: Any = jax.sharding.get_mesh()
    except ValueError:  # inside jit only the abstract one is known
        ambient = jax.sharding.get_abstract_mesh()
    return None if ambient.empty else ambient


def _entry(entry: Any) -> Entry:
    if entry is PartitionSpec.UNCONSTRAINED or entry == ():
        return None
    return tuple(entry) if isinstance(entry, tuple | list) else entry


def names_in(entry: Entry) -> tuple[str, ...]:
    """The mesh axes of one entry."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def used(spec: Iterable[Any]) -> set[str]:
    """The mesh axes of a spec."""
    return {name for entry in spec for name in names_in(entry)}


def pieces(mesh: Mesh | AbstractMesh, entry: Entry) -> int:
    """Into how many pieces an axis is split."""
    return math.prod(mesh.shape[name] for name in names_in(entry))


def is_explicit(sharding: NamedSharding) -> bool:
    """Whether shardings are types on its mesh."""
    return any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)


def constrain(x: Any, sharding: NamedSharding | None) -> Any:
    """x, placed: a constraint for the compiler, or the type's change where shardings are types.

    What is not traced and does not divide stays where it is: only a compiler can split it.
    """
    if sharding is None or not hasattr(x, "shape"):
        return x
    if is_explicit(sharding):
        return jax.sharding.reshard(x, sharding)
    pairs = zip(x.shape, map(_entry, sharding.spec), strict=False)
    even = all(n % pieces(sharding.mesh, entry) == 0 for n, entry in pairs)
    if not even and not isinstance(x, Tracer):
        return x
    return jax.lax.with_sharding_constraint(x, sharding)
