"""The errors of shardings: what was got, what is wanted, what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._core import _checks


def no_mesh(where: str, name: str) -> ValueError:
    """A sharding without a mesh."""
    of = f" of {name}" if name else ""
    return ValueError(
        f"{where}: the sharding{of} has no mesh: give mesh=, give NamedSharding(mesh, spec) in the "
        "place of a spec, or call inside jax.set_mesh(mesh)."
    )


def spec_too_long(where: str, name: str, shape: Any, spec: Any) -> ValueError:
    """More entries in a spec than the array has axes."""
    return ValueError(
        f"{where}: the spec of {_of(name)} has {len(spec)} entries, {spec}, and the array of "
        f"shape {shape} has {len(shape)} axes."
    )


def not_divisible(where: str, name: str, shape: Any, spec: Any, mesh: Any) -> ValueError:
    """An axis that does not divide into as many pieces as its spec says."""
    return ValueError(
        f"{where}: {_of(name)} of shape {shape} does not divide as {spec} says on the mesh "
        f"{mesh}; leave that axis out of the spec."
    )


def no_mesh_axis(where: str, axis: str, mesh: Any) -> ValueError:
    """An axis that the mesh does not have."""
    return ValueError(f"{where}: axis must be one of {sorted(mesh)} (the mesh's), got {axis!r}.")


def several_meshes(where: str, meshes: Sequence[Any]) -> ValueError:
    """Parameters on different meshes."""
    return ValueError(
        f"{where}: the parameters must lie on one mesh, got {_checks.listed(map(str, meshes))}."
    )


def misplaced(problems: Mapping[str, tuple[Any, Any]], total: int) -> ValueError:
    """Arrays that do not lie where they should: {name: (wanted, got)}."""
    pairs = problems.items()
    every = (f"{_of(name)} should lie as {want}, and lies as {got}" for name, (want, got) in pairs)
    return ValueError(
        f"check_placement: {len(problems)} of {total} arrays are elsewhere: "
        f"{_checks.listed(every)}. Give the shardings to jax.jit as out_shardings, or to "
        "jax.device_put."
    )


def no_padding(where: str, name: str, shape: Any, pieces: int) -> ValueError:
    """Padding where shardings are types, which must divide."""
    return ValueError(
        f"{where}: pad is not possible on a mesh with explicit axes, where shapes must divide: "
        f"{_of(name)} of shape {shape} has no axis that divides by {pieces}. Leave pad=False, "
        "which keeps its state whole."
    )


def unknown_sharding(name: str, spec: Any) -> ValueError:
    """Sharded parameters, where only their shapes will be known inside jit."""
    return ValueError(
        f"zero: {_of(name)} lies as {spec}, which is not known inside jax.jit: give "
        "param_shardings."
    )


def wrong_stored_shape(own: Any, stored: Any, got: Any) -> ValueError:
    """An array of a padded state in a third shape."""
    return ValueError(
        f"zero: an array of the state must have the shape {own}, or padded {stored}, got {got}."
    )


def no_sharding(where: str, name: str) -> ValueError:
    """An array that does not say where it lies."""
    return ValueError(f"{where}: {_of(name)} has no sharding: give shardings.")


def no_host_memory(device: Any, kinds: Sequence[str]) -> ValueError:
    """A backend that can't address the host's memory."""
    return ValueError(
        f"offload: {device} has no memory of the kind 'pinned_host', only {list(kinds)}; leave "
        "offload out on this backend."
    )


def _of(name: str) -> str:
    return name or "the root"
