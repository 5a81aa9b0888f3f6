"""Transformations for a part of the parameters: `masked`, `partition`."""

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, cast

import jax
import numpy as np
from jax.core import Tracer

from . import _checks, _paths, _tree
from ._chain import Transform, set_to_zero
from ._leafwise import SKIP, Leafwise
from ._node import Node, Pair
from ._tree import Laid, MaskedNode, is_hole, is_none
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


def _bare(tree: Any, values: Sequence[Any]) -> Laid:
    """One value for each leaf of the tree, None leaves included."""
    return Laid(list(values), jax.tree.structure(tree, is_leaf=is_none), [1] * len(values))


def _given(where: str, what: str, given: Any, tree: Any) -> Laid:
    """A tree of values, or what a function makes of the tree, laid over it."""
    return _tree.lay(where, what, _tree.resolved(given, tree), tree)


def _mask(where: str, mask: MaskLike, tree: Any) -> Laid:
    """The mask, laid over the tree: bools, or None over None."""
    if not jax.tree.leaves(tree, is_leaf=is_none):
        return _bare(tree, [])  # also for the placeholder of `tree.map_params`, which fits no mask
    if isinstance(mask, str | re.Pattern):
        return _bare(tree, _paths.selected(where, mask, tree, is_hole))
    laid = _given(where, _MASK, mask, tree)
    pieces = laid.structure.flatten_up_to(tree)
    for i, (value, piece) in enumerate(zip(laid.values, pieces, strict=True)):
        if value is None and not jax.tree.leaves(piece):
            continue  # a function that maps over a tree keeps its Nones
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        boolean = isinstance(value, bool) or (dtype == np.bool_ and shape == ())
        if isinstance(value, Tracer) or not boolean:
            at = laid.paths()[i] or "the root"
            raise _checks.bad_prefix(where, _MASK, f"got {value!r} at {at}", [at])
    return laid._replace(values=[v if v is None else bool(v) for v in laid.values])


def _bools(where: str, mask: MaskLike, tree: Any) -> list[bool]:
    """The mask as one bool for each leaf of the tree."""
    return [bool(b) for b in _mask(where, mask, tree).by_leaf()]


@dataclass(frozen=True)
class Labels:
    """A function of a tree: one label for the leaves that a mask selects, another for the rest."""

    mask: MaskLike
    chosen: str
    others: str

    def __call__(self, tree: Any) -> Any:
        laid = _mask("selective_transform", self.mask, tree)
        names = {True: self.chosen, False: self.others, None: None}
        return laid.structure.unflatten(names[b] for b in laid.values)


def _keep(tree: Any, mask: Laid) -> Any:
    """The tree with one `MaskedNode` for each part of it over which the mask is False."""
    pieces = mask.structure.flatten_up_to(tree)
    pairs = zip(pieces, mask.values, strict=True)
    return mask.structure.unflatten(MaskedNode() if c is False else x for x, c in pairs)


def _merge(new: Any, old: Any, mask: Laid) -> Any:
    """The new tree where the mask is not False, else the old one."""
    pieces = (mask.structure.flatten_up_to(tree) for tree in (new, old))
    triples = zip(*pieces, mask.values, strict=True)
    return mask.structure.unflatten(y if c is False else x for x, y, c in triples)


def _hidden(tree: Any, mask: Laid) -> list[str]:
    """The names of the leaves that lie under a hole with others."""
    if mask.structure == jax.tree.structure(tree, is_leaf=is_none):
        return []
    pairs = zip(_paths.path_names(tree), mask.by_leaf(), strict=True)
    return [name for name, chosen in pairs if chosen is False]


def _init_part(node: Node, mask: Laid, params: Any) -> MaskedState:
    """The node's state for a part of the leaves."""
    with _paths.hiding(_hidden(params, mask)):
        return MaskedState(node.init(_keep(params, mask)))


def _update_part(
    node: Node,
    mask: Laid,
    trees: tuple[Any, Any, Any],
    extra_args: dict[str, Any],
    mask_extra_args: bool,
) -> tuple[Any, MaskedState]:
    """The node's update of a part of the leaves, and the others as they are.

    `trees` are updates, its state and params.
    """
    updates, state, params = trees
    if mask_extra_args:
        structure = jax.tree.structure(updates)
        alike = {k for k, v in extra_args.items() if jax.tree.structure(v) == structure}
        extra_args = {k: _keep(v, mask) if k in alike else v for k, v in extra_args.items()}
    some = None if params is None else _keep(params, mask)
    with _paths.hiding(_hidden(updates, mask)):
        new, inner = node.update(_keep(updates, mask), state.inner_state, some, **extra_args)
    return _merge(new, updates, mask), MaskedState(inner)


@transformation
def masked(inner: Transform, mask: MaskLike, *, mask_compatible_extra_args: bool = False) -> Node:
    """Apply a transformation to the leaves that a mask selects; pass the others on unchanged.

    Args:
        inner: The transformation.
        mask: A path pattern, for the leaves whose names match it (see `by_path`): a glob such as
            `"*/kernel"` or `"!*/bias|*/scale"`, or a compiled regular expression. Or a tree of
            bools with the structure of the parameters or a prefix of it, or a function that makes
            one from the parameters (or the updates, where `update` is called without them).
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
        return _init_part(node, _mask("masked", mask, params), params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MaskedState]:
        if not isinstance(state, MaskedState):
            raise _checks.wrong_state("masked", "MaskedState", state)
        here = _mask("masked", mask, updates if params is None else params)
        trees = (updates, state, params)
        return _update_part(node, here, trees, extra_args, mask_compatible_extra_args)

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

    def labelled(tree: Any) -> Laid:
        if not jax.tree.leaves(tree, is_leaf=is_none):
            return _bare(tree, [])  # as in `_mask`
        if by_pattern:
            found = _paths.first_match("partition", patterns, tree, is_hole)
            return _bare(tree, [None if i is None else labels[i] for i in found])
        every = _given("partition", "the labels are a tree", param_labels, tree)
        pieces = every.structure.flatten_up_to(tree)
        for i, (label, piece) in enumerate(zip(every.values, pieces, strict=True)):
            if label is None and not jax.tree.leaves(piece):
                continue
            if not isinstance(label, Hashable) or label not in nodes:
                raise _checks.unknown_label("partition", every.paths()[i], label, list(nodes))
        return every

    def of_group(every: Laid, label: Any) -> Laid:
        return every._replace(
            values=[None if v is None else bool(v == label) for v in every.values]
        )

    def init(params: Any) -> PartitionState:
        every = labelled(params)
        return PartitionState(
            {k: _init_part(node, of_group(every, k), params) for k, node in nodes.items()}
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PartitionState]:
        if not isinstance(state, PartitionState) or set(state.inner_states) != set(nodes):
            raise _checks.wrong_state("partition", f"PartitionState of {list(nodes)}", state)
        every = labelled(updates if params is None else params)
        states = {}
        for label, node in nodes.items():
            trees = (updates, state.inner_states[label], params)
            updates, states[label] = _update_part(
                node, of_group(every, label), trees, extra_args, mask_compatible_extra_args
            )
        return updates, PartitionState(states)

    def parts(state: Any) -> Any:
        inside = {k: None if state is None else state.inner_states[k].inner_state for k in nodes}
        return {str(_text(k)): (tx, inside[_text(k)]) for k, tx in groups.items()}

    def chosen(tree: Any) -> Any:
        every = labelled(tree).by_leaf()
        return {str(label): [one == label for one in every] for label in nodes}

    return Pair(init, update, parts, chosen)


multi_transform = partition  # its older name
