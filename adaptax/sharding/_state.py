"""The sharding of a state, from that of the parameters."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .._core import Params, Transform
from .._core._value import TransformationKind
from . import _errors
from ._owners import Owner, owners
from ._shardings import Entry, mesh_or_ambient, pieces, resolved


def state_sharding(
    tx: Transform, params: Params, param_shardings: Any = None, mesh: Any = None
) -> Any:
    """The sharding of every array of a transformation's state.

    Moments lie as their parameters do; sums over an axis as what is left of them; the scales of
    encoded arrays as their codes, where no block crosses a shard; numbers of the whole, and all
    else, on every device. What the transformation pins itself, as `zero` and `offload` do, stays
    so. Found by key path and shape, for any transformation, optax's too; nothing is computed.

    To make a state where it belongs, and to restore one there:

    .. code-block:: python

        where = sharding.state_sharding(tx, params, {"w": P("data", "model"), "b": P()}, mesh)
        state = jax.jit(tx.init, out_shardings=where)(params)

    Args:
        tx: The transformation.
        params: The parameters, or their shapes.
        param_shardings: A sharding or `PartitionSpec` for each: a tree like the parameters, a
            prefix of it, or one for all. None takes the shardings that the parameters have.
        mesh: The mesh of the specs; None takes that of `jax.set_mesh`.

    Returns:
        A tree like the state, of `NamedSharding`.

    Raises:
        ValueError: There is no mesh; a spec has more entries than a parameter has axes, or does not
            divide them.
        TypeError: An argument is of another kind.
    """
    where = "state_sharding"
    tx = TransformationKind().canonical(where, "tx", tx)
    shardings = resolved(where, params, param_shardings, mesh)
    if shardings:
        mesh = shardings[0].mesh
    mesh = mesh_or_ambient(mesh)
    if mesh is None:
        raise _errors.no_mesh(where, "")
    made, shapes = jax.make_jaxpr(tx.init, return_shape=True)(params)
    leaves, structure = jax.tree.flatten(shapes)
    out = []
    for leaf, owner, pin, aval in zip(
        leaves, owners(tx, params, shapes), _pinned(made.jaxpr), made.out_avals, strict=True
    ):
        of = None if owner.index is None else shardings[owner.index]
        spec = pin or PartitionSpec(*([] if of is None else entries(owner, leaf.shape, of)))
        kind = aval.memory_space.name.lower()  # pyright: ignore[reportAttributeAccessIssue]
        out.append(NamedSharding(mesh, spec, memory_kind=_KINDS.get(kind)))
    return structure.unflatten(out)


_KINDS = {"host": "pinned_host"}  # None for a device's own memory


def entries(owner: Owner, shape: tuple[int, ...], of: NamedSharding) -> list[Entry]:
    """The entries of an array's spec, from its parameter's; None where it does not divide."""
    every = [None if axis is None else of.spec[axis] for axis in owner.axes]
    return [e if n % pieces(of.mesh, e) == 0 else None for n, e in zip(shape, every, strict=True)]


def _pinned(jaxpr: Any) -> list[PartitionSpec | None]:
    """For each result the spec that the program itself gives to it last, if it does."""
    makers = {id(var): (eqn, i) for eqn in jaxpr.eqns for i, var in enumerate(eqn.outvars)}

    def pin(var: Any) -> PartitionSpec | None:
        eqn, i = makers.get(id(var), (None, 0))
        if eqn is None:
            return None
        name, params = eqn.primitive.name, eqn.params
        if name == "sharding_constraint":
            return params["sharding"].spec
        if name == "reshard":
            return params["dst_sharding"].spec
        if name == "device_put":
            return pin(eqn.invars[i])
        if name in ("jit", "pjit"):
            return _pinned(params["jaxpr"].jaxpr)[i]
        return None

    return [pin(var) for var in jaxpr.outvars]
