"""Transformations for a part of the parameters: `masked`, `partition`."""

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, cast

import jax
import numpy as np
from jax.core import Tracer

from . import _checks, _paths, _tree
from ._chain import Transform, set_to_zero
from ._leafwise import SKIP, Leafwise
from ._node import Node, Pair
from ._tree import MaskedNode, is_hole, is_none
from ._types import ArrayTree, MaskLike
from ._value import (
    GradientTransformation,
    TransformationKind,
    node_of,
    transformation,
)


class MaskedState(NamedTuple):
    """The state of a masked transformation: the inner one's, for the leaves that it sees."""

    inner_state: Any


class PartitionState(NamedTuple):
    """A `MaskedState` for each label."""

    inner_states: Any


_MASK = "a mask is a path pattern, or a tree of bools"


def _bools(where: str, mask: MaskLike, tree: Any) -> list[bool]:
    """The mask as one bool for each leaf of the tree."""
    if not jax.tree.leaves(tree, is_leaf=is_none):
        return []  # also for the placeholder of `tree.map_params`, which fits no mask
    if isinstance(mask, str | re.Pattern):
        return _paths.selected(where, mask, tree, is_hole)
    given = mask(tree) if callable(mask) else mask
    bools = _tree.broadcast(where, _MASK, given, tree)
    for value, leaf in zip(bools, jax.tree.leaves(tree, is_leaf=is_none), strict=True):
        if value is None and leaf is None:  # a function that maps over a tree keeps its Nones
            continue
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        boolean = isinstance(value, bool) or (dtype == np.bool_ and shape == ())
        if isinstance(value, Tracer) or not boolean:
            raise _checks.bad_prefix(where, _MASK, f"got {value!r}")
    return [bool(b) for b in bools]


class Labels(NamedTuple):
    """A function of a tree: one label for the leaves that a mask selects, another for the rest."""

    mask: MaskLike
    chosen: str
    others: str

    def __call__(self, tree: Any) -> Any:
        bools = _bools("selective_transform", self.mask, tree)
        structure = jax.tree.structure(tree, is_leaf=is_none)
        return structure.unflatten(self.chosen if b else self.others for b in bools)


def _keep(tree: Any, chosen: list[bool]) -> Any:
    """The tree with `MaskedNode` in the place of leaves that are not chosen."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_none)
    return treedef.unflatten(x if c else MaskedNode() for x, c in zip(leaves, chosen, strict=True))


def _merge(chosen: Any, tree: Any) -> Any:
    """The leaves of `chosen` laid over those of `tree` where it has a `MaskedNode`."""
    return jax.tree.map(
        lambda new, old: old if isinstance(new, MaskedNode) else new, chosen, tree, is_leaf=is_hole
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
        mask: A path pattern, for the leaves whose names match it (see `by_path`): a glob such as
            "*/kernel" or "!*/bias|*/scale", or a compiled regular expression. Or a tree of bools
            with the structure of the parameters or a prefix of it, or a function that makes one
            from the parameters (or the updates, where `update` is called without parameters).
        mask_compatible_extra_args: Mask those extra arguments, too, that have the structure of
            the updates.

    The state is a `MaskedState`; leaves that are masked out have no state.

    Raises:
        TypeError: At `init` or `update`, if the mask does not fit or has leaves other than bools.
        ValueError: At `init` or `update`, if a pattern matches no leaf.
    """
    node = node_of(inner)

    def parts(state: Any) -> Any:
        return {"": (inner, None if state is None else state.inner_state)}

    def chosen(tree: Any) -> Any:
        return {"": _bools("masked", mask, tree)}

    if isinstance(node, Leafwise) and not node.slots and not node.shared and not node.per_leaf:
        # Nothing is stored by leaf, so the engine can skip leaves and keep the chain one kernel.
        def per_leaf(tree: Any) -> list[Any]:
            return [None if here else SKIP for here in _bools(node.name, mask, tree)]

        return replace(node, per_leaf=per_leaf, wrap=MaskedState, parts=parts, chosen=chosen)

    def init(params: Any) -> MaskedState:
        return MaskedState(node.init(_keep(params, _bools("masked", mask, params))))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MaskedState]:
        if not isinstance(state, MaskedState):
            raise _checks.wrong_state("masked", "MaskedState", state)
        here = _bools("masked", mask, updates if params is None else params)
        trees = (updates, state, params)
        new, state = _update_part(node, here, trees, extra_args, mask_compatible_extra_args)
        return _merge(new, updates), state

    return Pair(init, update, parts, chosen)


class _Groups(TransformationKind):
    """Transformations by label or by path pattern, in order; None freezes."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple) and not isinstance(value, GradientTransformation):
            value = OrderedDict(_paths.pairs_of(function, name, value))
        if not isinstance(value, Mapping):
            wanted = "a mapping of labels or path patterns to transformations"
            raise _checks.wrong_kind(function, name, wanted, value)
        try:
            sorted(map(_text, value))
        except TypeError:  # jax sorts the keys of a dict, such as the state has
            wanted = "a mapping whose labels can be sorted together"
            raise _checks.wrong_kind(function, name, wanted, list(value)) from None
        of_one = super().canonical
        return OrderedDict(
            (k, set_to_zero() if v is None else of_one(function, f"{name}[{k!r}]", v))
            for k, v in value.items()
        )

    def named(self, value: Any) -> Any:
        return {str(_text(label)): tx for label, tx in value.items()}


def _text(label: Any) -> Any:
    return label.pattern if isinstance(label, re.Pattern) else label


Group = GradientTransformation | None


@transformation
def partition(
    transforms: Annotated[
        Mapping[Any, Group] | Sequence[tuple[_paths.PathPattern, Group]], _Groups()
    ],
    param_labels: ArrayTree | Callable[[Any], ArrayTree] = None,
    *,
    mask_compatible_extra_args: bool = False,
) -> Node:
    """Apply a different transformation to each group of parameters.

    The groups are given by path patterns, of which the first that matches a leaf's name wins, or
    by labels.

    Args:
        transforms: Without labels, a transformation for each path pattern, in order: a mapping or
            pairs (see `by_path` for patterns). With labels, a mapping of a transformation for
            each label. None freezes its group: updates of zero, and no state.
        param_labels: None; or a tree of labels with the structure of the parameters or a prefix
            of it, or a function that makes one from the parameters (or the updates, where
            `update` is called without parameters).
        mask_compatible_extra_args: Give each group its part of those extra arguments that have
            the structure of the updates.

    Each group's transformation sees the other groups' leaves as `MaskedNode`. The state is a
    `PartitionState`, with the labels or the patterns (as text) as its keys.

    Raises:
        ValueError: At `init` or `update`, if a leaf matches no pattern or its label has no
            transformation, or if a pattern gets no leaf; the message lists the leaves.

    >>> import adaptax, jax.numpy as jnp
    >>> sgd, adam = adaptax.sgd(0.1), adaptax.adam(1e-3)
    >>> tx = adaptax.partition({"*/bias": sgd, "embed/*": None, "*": adam})
    >>> params = {"embed": {"table": jnp.ones(2)}, "out": {"bias": jnp.ones(2), "w": jnp.ones(2)}}
    >>> list(tx.init(params).inner_states)
    ['*/bias', 'embed/*', '*']
    """
    by_pattern = param_labels is None
    if by_pattern:
        _paths.pairs_of("partition", "transforms", transforms)
    patterns = tuple(transforms)
    labels = [_text(label) for label in transforms]
    groups = cast(Mapping[Any, GradientTransformation], transforms)
    nodes = {_text(label): node_of(tx) for label, tx in groups.items()}

    def labelled(tree: Any) -> list[Any]:
        if not jax.tree.leaves(tree, is_leaf=is_none):
            return []  # as in `_bools`
        if by_pattern:
            found = _paths.first_match("partition", patterns, tree, is_hole)
            return [None if i is None else labels[i] for i in found]
        given = param_labels(tree) if callable(param_labels) else param_labels
        every = _tree.broadcast("partition", "the labels are a tree", given, tree)
        leaves = jax.tree.leaves(tree, is_leaf=is_none)
        for path, leaf, label in zip(_tree.paths(tree), leaves, every, strict=True):
            if label is None and leaf is None:
                continue
            if not isinstance(label, Hashable) or label not in nodes:
                raise _checks.unknown_label("partition", path, label, list(nodes))
        return every

    def init(params: Any) -> PartitionState:
        every = labelled(params)
        return PartitionState(
            {
                label: MaskedState(node.init(_keep(params, [one == label for one in every])))
                for label, node in nodes.items()
            }
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PartitionState]:
        if not isinstance(state, PartitionState) or set(state.inner_states) != set(nodes):
            raise _checks.wrong_state("partition", f"PartitionState of {list(nodes)}", state)
        every = labelled(updates if params is None else params)
        result, states = updates, {}
        for label, node in nodes.items():
            chosen = [one == label for one in every]
            trees = (updates, state.inner_states[label], params)
            new, states[label] = _update_part(
                node, chosen, trees, extra_args, mask_compatible_extra_args
            )
            result = _merge(new, result)
        return result, PartitionState(states)

    def parts(state: Any) -> Any:
        inside = {k: None if state is None else state.inner_states[k].inner_state for k in nodes}
        return {str(_text(k)): (tx, inside[_text(k)]) for k, tx in groups.items()}

    def chosen(tree: Any) -> Any:
        every = labelled(tree)
        return {str(label): [one == label for one in every] for label in nodes}

    return Pair(init, update, parts, chosen)


multi_transform = partition  # its older name
