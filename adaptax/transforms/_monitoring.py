"""Measurements of the updates on their way through a chain, kept in the state."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import (
    ArrayTree,
    DecayLike,
    DTypeLike,
    EmptyState,
    Pair,
    Updates,
    _checks,
    node_of,
    stateless,
    transformation,
)
from .._core._called import called
from .._core._tree import dtypes, is_none
from .._core._value import GradientTransformation, TransformationKind
from ._averaging import EmaState, ema

Measure = Callable[[Updates], ArrayTree]


class SnapshotState(NamedTuple):
    """The state of `snapshot`.

    Attributes:
        measurement: The last measurement, under its name.
    """

    measurement: dict[str, ArrayTree]

    records = True  # no update comes from it, and NaN may be in it: guards don't look


class MonitorState(NamedTuple):
    """The state of `monitor`.

    Attributes:
        measurements: The last measurement of each name; zeros before the first update.
        measure_states: The states of the measures, in their order.
    """

    measurements: dict[str, ArrayTree]
    measure_states: tuple[Any, ...]

    records = True


def _seen(tree: Any) -> Any:
    """What a measure sees: None where a leaf is not trained, so always the same structure."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_none)
    trained = (d is not None and jnp.issubdtype(d, jnp.inexact) for d in dtypes(tree))
    return treedef.unflatten(x if t else None for x, t in zip(leaves, trained, strict=True))


def _wide(x: Any) -> Any:
    """An array of a measurement as it is stored: 16-bit floats as float32."""
    x = jnp.asarray(x)
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return jax.lax.convert_element_type(x, np.dtype(np.float32) if narrow else x.dtype)


def _zeros(f: Callable[..., Any], *args: Any) -> Any:
    """Zeros like what f returns."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, *args))


def _differ(x: Any, y: Any) -> bool:
    return jnp.shape(x) != jnp.shape(y)


def _stored(where: str, new: Any, old: Any) -> Any:
    """A measurement in the dtypes of the one before."""
    alike = jax.tree.structure(new) == jax.tree.structure(old)
    if not alike or any(map(_differ, jax.tree.leaves(new), jax.tree.leaves(old))):
        raise _checks.mismatch(where, "the measurements", new, "those in the state", old)
    return jax.tree.map(lambda x, before: x.astype(before.dtype), new, old)


@transformation
def snapshot(measure_name: str, measure: Measure) -> Pair:
    """Keep a measurement of the updates in the state; pass the updates on unchanged.

    In a chain these are the updates as the links before have made them. Read the measurement
    with `adaptax.tree.get(state, measure_name)`.

    Args:
        measure_name: What the measurement is called.
        measure: A pure function of the updates that returns an array or a tree of arrays of fixed
            shapes. Where a leaf is not trained (an integer), it sees None.

    State: a `SnapshotState`. Before the first update it holds the measure of the parameters, or
    zeros where they are abstract (`jax.ShapeDtypeStruct`). The dtypes are those of the measure of
    the parameters, at least float32.

    Raises:
        TreeMismatchError: At `update`, if a measurement has another structure or shape than that
            of the parameters.

    >>> import adaptax, jax.numpy as jnp
    >>> norm = adaptax.snapshot("norm_before_clip", adaptax.global_norm)
    >>> tx = adaptax.chain(norm, adaptax.clip_by_global_norm(1.0))
    >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))
    >>> float(adaptax.tree.get(state, "norm_before_clip"))
    5.0
    """

    def measured(tree: Any) -> dict[str, Any]:
        return {
            measure_name: jax.tree.map(_wide, called("snapshot", "measure", measure, _seen(tree)))
        }

    def init(params: Any) -> SnapshotState:
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
        return SnapshotState(_zeros(measured, params) if abstract else measured(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SnapshotState]:
        if not hasattr(state, "measurement"):
            raise _checks.wrong_state("snapshot", "SnapshotState", state)
        return updates, SnapshotState(_stored("snapshot", measured(updates), state.measurement))

    return Pair(init, update)


class _Measures(TransformationKind):
    """Measures by name: transformations, or functions of the updates."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            wanted = "a mapping of names to functions or transformations"
            raise _checks.wrong_kind(function, name, wanted, value)
        of_one = super().canonical
        return OrderedDict(
            (k, stateless(_OfUpdates(v)) if callable(v) else of_one(function, f"{name}[{k!r}]", v))
            for k, v in value.items()
        )

    def named(self, value: Any) -> Mapping[str, GradientTransformation]:
        return value


class _OfUpdates(NamedTuple):
    """A function of the updates as one of the updates and the parameters."""

    measure: Measure

    def __call__(self, updates: Any, params: Any) -> Any:
        return self.measure(updates)


@transformation
def monitor(measures: Annotated[Mapping[str, Any], _Measures()]) -> Pair:
    """Keep several measurements of the updates in the state, perhaps with a memory of their own.

    The updates pass unchanged. The state has one structure from `init` on, so that it can be
    carried by `jax.lax.scan`. Read a measurement with `adaptax.tree.get(state, name)`.

    Args:
        measures: By name, either a pure function of the updates, as in `snapshot`, or a
            transformation: its result is the measurement. `measure_with_ema` makes such ones.
            Where a leaf is not trained (an integer), both see None.

    State: a `MonitorState`. Its dtypes are those of the measures of the parameters, at least
    float32.

    Raises:
        TypeError: `measures` is not such a mapping.
        TreeMismatchError: At `update`, if a measurement has another structure or shape than that
            of the parameters.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.monitor({"norm": adaptax.global_norm})
    >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))
    >>> float(state.measurements["norm"])
    5.0
    """
    nodes = {name: node_of(tx) for name, tx in measures.items()}

    def measured(
        updates: Any, states: Any, params: Any, extra_args: dict[str, Any]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        seen, values, new = _seen(updates), {}, []
        for (name, node), state in zip(nodes.items(), states, strict=True):
            value, state = node.update(seen, state, params, **extra_args)
            values[name] = jax.tree.map(_wide, value)
            new.append(state)
        return values, tuple(new)

    def init(params: Any) -> MonitorState:
        states = tuple(node.init(params) for node in nodes.values())
        first = _zeros(lambda p, s: measured(p, s, p, {})[0], params, states)
        return MonitorState(first, states)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MonitorState]:
        if len(getattr(state, "measure_states", ())) != len(nodes):
            raise _checks.wrong_state("monitor", f"MonitorState of {list(nodes)}", state)
        new, states = measured(updates, state.measure_states, params, extra_args)
        return updates, MonitorState(_stored("monitor", new, state.measurements), states)

    def parts(state: Any) -> Any:
        states = [None] * len(nodes) if state is None else state.measure_states
        return {k: (tx, s) for (k, tx), s in zip(measures.items(), states, strict=True)}

    return Pair(init, update, parts)


@transformation
def measure_with_ema(
    measure: Measure,
    decay: DecayLike,
    debias: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> Pair:
    r"""A measure for `monitor`: the exponential average of a function of the updates.

    .. math::

        m_t = d\, m_{t-1} + (1 - d)\, f(g_t), \quad m_0 = 0; \qquad
        m_t / (1 - d^t) \;\text{ or, without debias, }\; m_t

    Args:
        measure: f, as in `snapshot`; bools and integers count as float32, so that the average of
            a condition is how often it holds.
        decay: d, in [0, 1), or a schedule.
        debias: Divide by the weight seen so far.
        accumulator_dtype: The dtype of the average; None: the measurement's, at least float32.

    State: a pair of an `EmptyState` and an `EmaState`, shaped like the measurement.

    Raises:
        ValueError: The decay lies outside [0, 1).
    """
    node = node_of(ema(decay, debias, accumulator_dtype))

    def floating(x: Any) -> Any:
        x = _wide(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(np.float32)

    def measured(tree: Any) -> Any:
        return jax.tree.map(floating, called("measure_with_ema", "measure", measure, _seen(tree)))

    def init(params: Any) -> tuple[EmptyState, EmaState]:
        return EmptyState(), node.init(_zeros(measured, params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if not isinstance(state, tuple) or len(state) != 2:
            raise _checks.wrong_state("measure_with_ema", "(EmptyState, EmaState)", state)
        first, average = state
        value, average = node.update(measured(updates), average)
        return value, (first, average)

    return Pair(init, update)
