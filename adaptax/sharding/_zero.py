"""ZeRO: each device keeps a part of the optimizer's state, and computes that part of the step."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from .._core import Node, Pair, Transform, _checks, node_of, path_names, sharing, transformation
from .._core._kinds import Kind, StaticInt
from .._core._tree import is_float0, is_none
from . import _errors
from ._matrices import work_together
from ._owners import Owner, owners
from ._shardings import constrain, is_explicit, resolved, used
from ._split import MeshAxis, Split, splits
from ._state import entries

ShardingTree = Annotated[Any, Kind()]


@transformation
def zero(
    inner: Transform,
    param_shardings: ShardingTree = None,
    mesh: Annotated[Any, Kind()] = None,
    *,
    axis: MeshAxis = "data",
    gradients: bool = False,
    pad: bool = False,
    min_size: Annotated[int, StaticInt(0)] = 4096,
) -> Node:
    """Split a transformation's state over a mesh axis along which parameters are replicated.

    Data parallelism keeps a copy of everything on every device. Here each device of the axis keeps
    only its part of the state, computes the updates of that part, and the updates are gathered:
    the memory of the state falls by the size of the axis, the result stays the same. Under
    `jax.jit` gradients that are summed over the axis are then reduce-scattered, in the place of
    an all-reduce, so that the traffic stays what it was. Works on any transformation and beside
    other axes (tensor parallelism); where the axis splits a parameter already (fully sharded
    parameters), nothing is left to do.

    Each array is split along the largest axis that divides; see `split`. Methods that look at
    whole matrices share them out: each device of the axis computes those of its part.

    Args:
        inner: The transformation.
        param_shardings: Where the parameters lie: a sharding or `PartitionSpec` for each, as in
            `state_sharding`. None: whole on every device; on a mesh with explicit axes, as their
            types say.
        mesh: The mesh of the specs; None takes that of `jax.set_mesh`.
        axis: The mesh axis to split over, or several.
        gradients: Split the gradients first, too (ZeRO-2). It matters where they are kept:
            around `MultiSteps` the sums of micro-batches are state, and split anyway.
        pad: Split also arrays that divide nowhere: their state is stored with zeros at its end, up
            to the next multiple. Without it their state stays whole. Not on explicit axes.
        min_size: The state of parameters with fewer entries stays whole: splitting it saves little,
            and costs a message.

    State: the inner state; with `pad`, some of its arrays longer. `state_sharding` says where it
    lies, `placement` what a device holds. Make it by `jax.jit(tx.init)`, so that it is never whole.

    Raises:
        ValueError: The mesh has no such axis; and what `state_sharding` raises.

    References:
        Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
        Models", 2020, arXiv:1910.02054: stages 1 and 2. (Stage 3 is `split`, for the parameters.)
    """
    node = node_of(inner)

    def plan(params: Any) -> _Plan:
        shardings = resolved("zero", params, _given(params, param_shardings), mesh)
        return _Plan(
            inner, params, splits("zero", params, shardings, axis, min_size, pad), shardings
        )

    def init(params: Any) -> Any:
        return plan(params).stored(node.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        here = plan(updates if params is None else params)
        if here.explicit or gradients:
            updates = here.split(updates)
        if here.explicit and params is not None:
            params = here.split(params)
        with here.sharing_matrices(axis):
            updates, state = node.update(updates, here.opened(state), params, **extra_args)
        return here.gathered(updates), here.stored(state)

    return Pair(init, update, lambda state: {"": (inner, state)})


def _given(params: Any, shardings: Any) -> Any:
    """Shardings where none are given: the types, else whole on every device."""
    if shardings is not None:
        return shardings

    def of(name: str, p: Any) -> Any:
        sharding = getattr(jax.typeof(p), "sharding", None)
        if isinstance(sharding, NamedSharding) and is_explicit(sharding):
            return sharding
        own = None if isinstance(p, Tracer) else getattr(p, "sharding", None)
        if isinstance(own, NamedSharding) and used(own.spec):
            raise _errors.unknown_sharding(name, own.spec)
        return PartitionSpec()

    leaves, structure = jax.tree.flatten(params, is_leaf=is_none)
    pairs = zip(path_names(params), leaves, strict=True)
    return structure.unflatten(None if p is None else of(name, p) for name, p in pairs)


class _Plan:
    """Where gradients, parameters and state of one tree of parameters lie during a step."""

    def __init__(self, inner: Any, params: Any, parts: list[Split], whole: list[NamedSharding]):
        present = [p is not None for p in jax.tree.leaves(params, is_leaf=is_none)]
        self._parts = _where(present, [part.sharding for part in parts])
        self._whole = _where(present, whole)
        self._mesh = whole[0].mesh if whole else None
        self.explicit = any(map(is_explicit, whole))
        shapes = jax.eval_shape(inner.init, params)
        self._structure = jax.tree.structure(shapes)
        self._state = [
            _stored_as(owner, leaf.shape, parts)
            for owner, leaf in zip(
                owners(inner, params, shapes), jax.tree.leaves(shapes), strict=True
            )
        ]

    def sharing_matrices(self, axis: tuple[str, ...]) -> AbstractContextManager[None]:
        """Share out work on whole matrices among the devices of the axis."""
        if self._mesh is None:
            return nullcontext()
        return sharing(partial(work_together, self._mesh, axis))

    def split(self, tree: Any) -> Any:
        """Gradients or parameters, each device with its part."""
        return _placed(tree, self._parts)

    def gathered(self, updates: Any) -> Any:
        """Updates, computed in parts, where the parameters lie."""
        return _placed(self.split(updates), self._whole)

    def stored(self, state: Any) -> Any:
        """A state in parts, some of its arrays padded."""
        return self._each(lambda x, kept: constrain(_padded(x, kept.shape), kept.sharding), state)

    def opened(self, state: Any) -> Any:
        """A state in parts, in its own shapes."""

        def opened(x: Any, kept: _Kept) -> Any:
            if x.shape == kept.own:
                return x
            if x.shape != kept.shape:
                raise _errors.wrong_stored_shape(kept.own, kept.shape, x.shape)
            return constrain(x[tuple(map(slice, kept.own))], kept.sharding)

        return self._each(opened, state)

    def _each(self, f: Any, state: Any) -> Any:
        leaves, structure = jax.tree.flatten(state)
        if structure != self._structure:
            raise _checks.wrong_state("zero", "that of the transformation inside", state)
        return structure.unflatten(map(f, leaves, self._state))


class _Kept(NamedTuple):
    """An array of the state: where it lies, its own shape, and the one that it is stored in."""

    sharding: NamedSharding | None
    own: tuple[int, ...]
    shape: tuple[int, ...]


def _stored_as(owner: Owner, shape: tuple[int, ...], parts: list[Split]) -> _Kept:
    if owner.index is None:
        return _Kept(None, shape, shape)
    part = parts[owner.index]
    stored = tuple(
        n if axis is None or n != part.own[axis] else part.shape[axis]
        for axis, n in zip(owner.axes, shape, strict=True)
    )
    spec = PartitionSpec(*entries(owner, stored, part.sharding))
    return _Kept(NamedSharding(part.sharding.mesh, spec), shape, stored)


def _where(present: list[bool], values: list[NamedSharding]) -> list[NamedSharding | None]:
    """The values of the leaves that are there, None for the others."""
    rest = iter(values)
    return [next(rest) if here else None for here in present]


def _placed(tree: Any, shardings: list[NamedSharding | None]) -> Any:
    """Leaves where they belong; an update may be None where there is a parameter."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_none)
    if len(leaves) != len(shardings):
        return tree  # the transformation inside says what does not fit
    return structure.unflatten(
        x if x is None or is_float0(x) else constrain(x, s)
        for x, s in zip(leaves, shardings, strict=True)
    )


def _padded(x: Any, shape: tuple[int, ...]) -> Any:
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)])
