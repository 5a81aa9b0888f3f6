"""Updates under a condition."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._core import (
    OptState,
    Pair,
    Transform,
    _checks,
    _manual,
    node_of,
    safe_increment,
    transformation,
)
from .._core._called import called
from .._core._kinds import Kind, StaticInt
from ._step import Step, all_finite, boolean, checked, inner_part


class ConditionallyTransformState(NamedTuple):
    """The state of `conditionally_transform`.

    Attributes:
        inner_state: The inner transformation's state.
        step: Updates seen, int32 ().
    """

    inner_state: OptState
    step: Int[Array, ""]


class ConditionallyMaskState(NamedTuple):
    """The state of `conditionally_mask`.

    Attributes:
        step: Updates seen, int32 ().
        inner_state: The inner transformation's state.
    """

    step: Int[Array, ""]
    inner_state: OptState


class ApplyIfFiniteState(NamedTuple):
    """The state of `apply_if_finite`.

    Attributes:
        notfinite_count: Updates in a row that were not finite, int32 ().
        last_finite: Whether the last update was finite, bool ().
        total_notfinite: Updates in all that were not finite, int32 ().
        inner_state: The inner transformation's state.
    """

    notfinite_count: Int[Array, ""]
    last_finite: Bool[Array, ""]
    total_notfinite: Int[Array, ""]
    inner_state: OptState


class Function(Kind):
    """A function of the user's, as structure."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if not callable(value):
            raise _checks.wrong_kind(function, name, "a function", value)
        return value


ConditionFn = Annotated[Any, Function()]


def _conditionally(
    inner: Any, state_class: Any, condition: Any, forward: bool, instead: Any, where: str
) -> Pair:
    node = node_of(inner)

    def init(params: Any) -> Any:
        return state_class(step=jnp.zeros((), jnp.int32), inner_state=node.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked(where, state_class, state)
        extra = extra_args if forward else {}
        proceed = called(where, "should_transform_fn", condition, state.step, **extra)
        proceed = boolean(where, "the result of should_transform_fn", proceed)
        proceed = _manual.everywhere(proceed, state.step)
        step = Step(node, updates, state.inner_state, params, extra_args)
        new, inner_state = step.taken_if(proceed, instead)
        return new, state_class(step=safe_increment(state.step), inner_state=inner_state)

    return Pair(init, update, inner_part(inner))


@transformation
def conditionally_transform(
    inner: Transform, should_transform_fn: ConditionFn, forward_extra_args: bool = False
) -> Pair:
    """Apply a transformation at some steps; at the others pass the updates on as they are.

    Where the condition does not hold, the inner update is not computed, and the inner state
    stays as it is, bit for bit.

    Args:
        inner: The transformation.
        should_transform_fn: `should_transform_fn(step, **extra_args) -> bool`, of the number of
            updates seen before this one (int32).
        forward_extra_args: Give the function the extra arguments of `update`, too.

    State: `ConditionallyTransformState`.

    Raises:
        TypeError: should_transform_fn is not a function or, at `update`, its result not one bool.

    >>> import adaptax
    >>> tx = adaptax.conditionally_transform(adaptax.clip(1.0), lambda step: step < 1000)
    """
    return _conditionally(
        inner, ConditionallyTransformState, should_transform_fn, forward_extra_args,
        lambda g: g, "conditionally_transform",
    )  # fmt: skip


@transformation
def conditionally_mask(
    inner: Transform, should_transform_fn: ConditionFn, forward_extra_args: bool = False
) -> Pair:
    """Apply a transformation at some steps; at the others the updates are zero.

    Where the condition does not hold, the inner update is not computed, and the inner state
    stays as it is, bit for bit.

    Args:
        inner: The transformation.
        should_transform_fn: `should_transform_fn(step, **extra_args) -> bool`, of the number of
            updates seen before this one (int32).
        forward_extra_args: Give the function the extra arguments of `update`, too.

    State: `ConditionallyMaskState`.

    Raises:
        TypeError: should_transform_fn is not a function or, at `update`, its result not one bool.
    """
    return _conditionally(
        inner, ConditionallyMaskState, should_transform_fn, forward_extra_args,
        jnp.zeros_like, "conditionally_mask",
    )  # fmt: skip


@transformation
def apply_if_finite(inner: Transform, max_consecutive_errors: Annotated[int, StaticInt(0)]) -> Pair:
    """Leave out updates that are not finite, up to so many in a row.

    Such an update becomes zero, and the inner state stays as it is, bit for bit. What comes out
    of the inner transformation counts too, as in `guard`. After
    `max_consecutive_errors` of them in a row the next ones are applied, NaN and all, so that a
    broken run shows. `guard` never lets them through.

    Args:
        inner: The transformation.
        max_consecutive_errors: How many in a row are left out, >= 0.

    State: `ApplyIfFiniteState`.
    """
    node = node_of(inner)

    def init(params: Any) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(
            notfinite_count=jnp.zeros((), jnp.int32),
            last_finite=jnp.array(True),
            total_notfinite=jnp.zeros((), jnp.int32),
            inner_state=node.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked("apply_if_finite", ApplyIfFiniteState, state)
        step = Step(node, updates, state.inner_state, params, extra_args)
        enough = state.notfinite_count >= max_consecutive_errors
        new, inner_state, finite = step.taken_if_sound(
            all_finite(updates), state.notfinite_count, anyway=enough
        )
        in_a_row = jnp.where(finite, 0, safe_increment(state.notfinite_count))
        total = state.total_notfinite
        total = jnp.where(finite, total, safe_increment(total))
        return new, ApplyIfFiniteState(in_a_row, finite, total, inner_state)

    return Pair(init, update, inner_part(inner))
