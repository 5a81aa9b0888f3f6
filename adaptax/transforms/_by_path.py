"""Step sizes by the names of the leaves: per group, and decaying with depth."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from .._core import (
    EmptyState,
    Leafwise,
    Number,
    PathPattern,
    Positive,
    _checks,
    _paths,
    _tree,
    leafwise,
    transformation,
)
from .._core._kinds import Kind
from ._scaling import ScaleByScheduleState


class _Factors(Number):
    """A number or a schedule for each path pattern, in order."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        pairs = _paths.pairs_of(function, name, value)
        one = super().canonical
        return OrderedDict((k, one(function, f"{name}[{k!r}]", v)) for k, v in pairs)


@transformation
def scale_by_path(
    factors: Annotated[Mapping[PathPattern, Any], _Factors("(-inf, inf)")],
) -> Leafwise:
    """Multiply each leaf's update by the factor of the first pattern that matches its name.

    After an optimizer this is a learning rate per group, without a state or a kernel of its own:
    `chain(adamw(1e-3), scale_by_path({"embed/*": 0.1, "*": 1.0}))`. It scales the whole step,
    weight decay included.

    Args:
        factors: A number or a schedule for each path pattern (see `by_path`), in order; a mapping
            or pairs.

    State: a `ScaleByScheduleState` if there is a schedule, else an `EmptyState`.

    Raises:
        ValueError: At `update`, if a leaf matches no pattern or a pattern gets no leaf.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.scale_by_path({"bias": 2.0, "*": 1.0})
    >>> grads = {"bias": jnp.ones(()), "kernel": jnp.ones(())}
    >>> {k: float(u) for k, u in tx.update(grads, tx.init(grads))[0].items()}
    {'bias': 2.0, 'kernel': 1.0}
    """
    values = list(factors.values())
    scheduled = any(callable(value) for value in values)

    def per_leaf(tree: Any) -> list[Any]:
        return _paths.first_match("scale_by_path", list(factors), tree, _tree.is_hole)

    return leafwise(
        lambda t, g, p, *, spec: values[spec] * g,
        ScaleByScheduleState if scheduled else EmptyState,
        per_leaf=per_leaf,
    )


class Stacked(NamedTuple):
    """Layers whose parameters are stacked along a leading axis, as `jax.lax.scan` takes them.

    Attributes:
        pattern: A path pattern of the stacked leaves; they have the same leading size.
    """

    pattern: PathPattern


class _Layers(Kind):
    """Path patterns and `Stacked`, in order."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        wanted = "a sequence of path patterns and Stacked"
        if not isinstance(value, list | tuple) or not value:
            raise _checks.wrong_kind(function, name, wanted, value)
        for entry in value:
            pattern = entry.pattern if isinstance(entry, Stacked) else entry
            if not _paths.is_pattern(pattern):
                raise _checks.wrong_kind(function, name, wanted, entry)
        return tuple(value)


@transformation
def scale_by_layer_decay(
    decay: Positive, layers: Annotated[Sequence[PathPattern | Stacked], _Layers()]
) -> Leafwise:
    r"""Smaller steps for lower layers: layer-wise learning rate decay.

    .. math::

        u = d^{\,n - 1 - l}\, g

    for a leaf in layer :math:`l` of :math:`n`, counted from the bottom, so that the last layer
    keeps its step.

    Args:
        decay: d, usually in (0, 1].
        layers: The layers from the bottom up. Each entry is a path pattern (see `by_path`), and
            is one layer; or a glob in which `{}` stands for the number of a layer, such as
            ``"blocks/{}/*"``, and is as many layers; or `Stacked(pattern)`, whose leaves hold as
            many layers as their leading axis is long. The first entry that matches a leaf wins.

    State: `EmptyState`.

    Raises:
        ValueError: At `update`, if a leaf matches no entry, an entry gets no leaf, or stacked
            leaves differ in their leading axis.

    References:
        Howard & Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018,
        arXiv:1801.06146, section 3.2; Clark et al., "ELECTRA", 2020, arXiv:2003.10555, appendix A.
    """

    def per_leaf(tree: Any) -> list[Any]:
        return _above(layers, tree)

    def rule(t, g, p, *, spec):
        first, last = spec  # layers above the leaf's first and last
        real = jnp.real(g).dtype
        if first == last:
            return decay ** jnp.asarray(first, real) * g
        above = jnp.arange(first, last - 1, -1).astype(real)
        return (decay**above).reshape(-1, *[1] * (g.ndim - 1)) * g

    return leafwise(rule, EmptyState, per_leaf=per_leaf)


def _above(layers: Sequence[Any], tree: Any) -> list[Any]:
    """For each leaf, the number of layers above its first and above its last."""
    patterns = [entry.pattern if isinstance(entry, Stacked) else entry for entry in layers]
    every = _paths.assigned("scale_by_layer_decay", patterns, tree, _tree.is_hole)
    inside = [_layers_of(entry, i, every) for i, entry in enumerate(layers)]
    sizes = [max((last for _, last in one.values()), default=-1) + 1 for one in inside]
    top = sum(sizes) - 1
    spans = {}
    for i, one in enumerate(inside):
        below = sum(sizes[:i])
        spans |= {name: (top - below - a, top - below - b) for name, (a, b) in one.items()}
    return [
        spans.get(one.name, (0, 0))
        for one in every
        if one.leaf is None or not _tree.is_hole(one.leaf)
    ]


def _layers_of(entry: Any, i: int, every: list[_paths.Assigned]) -> dict[str, tuple[int, int]]:
    """The first and the last layer, within an entry, of each of its leaves."""
    mine = [one for one in every if one.index == i]
    if isinstance(entry, Stacked):
        sizes = {one.name: jnp.shape(one.leaf)[:1] for one in mine if not _tree.is_hole(one.leaf)}
        if len(set(sizes.values())) > 1 or () in sizes.values():
            raise _checks.uneven_stack("scale_by_layer_decay", _paths.spelled(entry.pattern), sizes)
        return {name: (0, size - 1) for name, (size,) in sizes.items()}
    if isinstance(entry, str) and "{}" in entry:
        numbers = {one.name: _paths.number_in(entry, one.name) for one in mine}
        return {name: (number, number) for name, number in numbers.items()}
    return {one.name: (0, 0) for one in mine}
