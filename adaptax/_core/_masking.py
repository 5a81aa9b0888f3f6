"""Transformations for a part of the parameters: `masked`, `partition`."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from . import _checks, _tree
from ._chain import Transform
from ._leafwise import SKIP, Leafwise
from ._types import ArrayTree, MaskLike
from ._value import (
    GradientTransformation,
    Node,
    Pair,
    TransformationKind,
    node_of,
    transformation,
)


class MaskedNode(NamedTuple):
    """Stands in a tree where a leaf is masked out; it holds nothing."""


class MaskedState(NamedTuple):
    """The state of a masked transformation: the inner one's, for the leaves that it sees."""

    inner_state: Any


class PartitionState(NamedTuple):
    """A `MaskedState` for each label."""

    inner_states: Any


_MASK = "a mask is a tree of bools"


def _is_none(x: Any) -> bool:
    return x is None


def _is_hole(x: Any) -> bool:
    return x is None or isinstance(x, MaskedNode)


def _bools(where: str, mask: MaskLike, tree: Any) -> list[bool]:
    """The mask as one bool for each leaf of the tree."""
    given = mask(tree) if callable(mask) else mask
    bools = _tree.broadcast(where, _MASK, given, tree)
    for value, leaf in zip(bools, jax.tree.leaves(tree, is_leaf=_is_none), strict=True):
        if value is None and leaf is None:  # a function that maps over a tree keeps its Nones
            continue
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        boolean = isinstance(value, bool) or (dtype == np.bool_ and shape == ())
        if isinstance(value, Tracer) or not boolean:
            raise _checks.bad_prefix(where, _MASK, f"got {value!r}")
    return [bool(b) for b in bools]


def _keep(tree: Any, chosen: list[bool]) -> Any:
    """The tree with `MaskedNode` in the place of leaves that are not chosen."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_none)
    return treedef.unflatten(x if c else MaskedNode() for x, c in zip(leaves, chosen, strict=True))


def _merge(chosen: Any, tree: Any) -> Any:
    """The leaves of `chosen` laid over those of `tree` where it has a `MaskedNode`."""
    return jax.tree.map(
        lambda new, old: old if isinstance(new, MaskedNode) else new, chosen, tree, is_leaf=_is_hole
    )


def _update_part(
    node: Node,
    chosen: list[bool],
    trees: tuple[Any, Any, Any],
    extra_args: dict[str, Any],
    mask_extra_args: bool,
) -> tuple[Any, MaskedState]:
    """The node's update of the chosen leaves; `trees` are updates, its state and params."""
    updates, state, params = trees
    if mask_extra_args:
        structure = jax.tree.structure(updates)
        alike = {k for k, v in extra_args.items() if jax.tree.structure(v) == structure}
        extra_args = {k: _keep(v, chosen) if k in alike else v for k, v in extra_args.items()}
    some = None if params is None else _keep(params, chosen)
    new, inner = node.update(_keep(updates, chosen), state.inner_state, some, **extra_args)
    return new, MaskedState(inner)


@transformation
def masked(inner: Transform, mask: MaskLike, *, mask_compatible_extra_args: bool = False) -> Node:
    """Apply a transformation to the leaves that a mask selects; pass the others on unchanged.

    Args:
        inner: The transformation.
        mask: A tree of bools with the structure of the parameters or a prefix of it, or a
            function that makes one from the parameters (or the updates, where `update` is called
            without parameters).
        mask_compatible_extra_args: Mask those extra arguments, too, that have the structure of
            the updates.

    The state is a `MaskedState`; leaves that are masked out have no state.

    Raises:
        TypeError: At `init` or `update`, if the mask does not fit or has leaves other than bools.
    """
    node = node_of(inner)
    if isinstance(node, Leafwise) and not node.slots and not node.shared and not node.per_leaf:
        # Nothing is stored by leaf, so the engine can skip leaves and keep the chain one kernel.
        def per_leaf(tree: Any) -> list[Any]:
            return [None if chosen else SKIP for chosen in _bools(node.name, mask, tree)]

        return replace(node, per_leaf=per_leaf, wrap=MaskedState)

    def init(params: Any) -> MaskedState:
        return MaskedState(node.init(_keep(params, _bools("masked", mask, params))))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MaskedState]:
        if not isinstance(state, MaskedState):
            raise _checks.wrong_state("masked", "MaskedState", state)
        chosen = _bools("masked", mask, updates if params is None else params)
        trees = (updates, state, params)
        new, state = _update_part(node, chosen, trees, extra_args, mask_compatible_extra_args)
        return _merge(new, updates), state

    return Pair(init, update)


class _TransformsByLabel(TransformationKind):
    def canonical(self, function: str, name: str, value: Any) -> dict[Any, Any]:  # type: ignore[override]
        if not isinstance(value, Mapping):
            wanted = "a mapping of labels to transformations"
            raise _checks.wrong_kind(function, name, wanted, value)
        try:
            sorted(value)
        except TypeError:  # jax sorts the keys of a dict
            wanted = "a mapping whose labels can be sorted together"
            raise _checks.wrong_kind(function, name, wanted, list(value)) from None
        return {
            k: super(_TransformsByLabel, self).canonical(function, f"{name}[{k!r}]", v)
            for k, v in value.items()
        }


@transformation
def partition(
    transforms: Annotated[Mapping[Any, GradientTransformation], _TransformsByLabel()],
    param_labels: ArrayTree | Callable[[Any], ArrayTree],
    *,
    mask_compatible_extra_args: bool = False,
) -> Node:
    """Apply a different transformation to each group of parameters.

    Args:
        transforms: A transformation for each label.
        param_labels: A tree of labels with the structure of the parameters or a prefix of it, or
            a function that makes one from the parameters (or the updates, where `update` is
            called without parameters).
        mask_compatible_extra_args: Give each group its part of those extra arguments that have
            the structure of the updates.

    Each group's transformation sees the other groups' leaves as `MaskedNode`. The state is a
    `PartitionState`.

    Raises:
        ValueError: At `init` or `update`, if a label has no transformation.
    """
    nodes = {label: node_of(tx) for label, tx in transforms.items()}

    def labelled(tree: Any) -> list[Any]:
        given = param_labels(tree) if callable(param_labels) else param_labels
        labels = _tree.broadcast("partition", "the labels are a tree", given, tree)
        leaves = jax.tree.leaves(tree, is_leaf=_is_none)
        for path, leaf, label in zip(_tree.paths(tree), leaves, labels, strict=True):
            if label is None and leaf is None:
                continue
            if not isinstance(label, Hashable) or label not in nodes:
                raise _checks.unknown_label("partition", path, label, list(nodes))
        return labels

    def init(params: Any) -> PartitionState:
        labels = labelled(params)
        return PartitionState(
            {
                label: MaskedState(node.init(_keep(params, [one == label for one in labels])))
                for label, node in nodes.items()
            }
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PartitionState]:
        if not isinstance(state, PartitionState) or set(state.inner_states) != set(nodes):
            raise _checks.wrong_state("partition", f"PartitionState of {list(nodes)}", state)
        labels = labelled(updates if params is None else params)
        result, states = updates, {}
        for label, node in nodes.items():
            chosen = [one == label for one in labels]
            trees = (updates, state.inner_states[label], params)
            new, states[label] = _update_part(
                node, chosen, trees, extra_args, mask_compatible_extra_args
            )
            result = _merge(new, result)
        return result, PartitionState(states)

    return Pair(init, update)
