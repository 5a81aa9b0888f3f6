"""Updates under a condition; and what all guards share: a choice that leaves a state untouched."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from .._core import (
    Node,
    OptState,
    Pair,
    Transform,
    Updates,
    _checks,
    _tree,
    node_of,
    safe_increment,
    transformation,
)
from .._core._kinds import Kind, StaticInt


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


@jax.jit
def _finite(arrays: Sequence[Any]) -> Any:
    flags = [jnp.all(jnp.isfinite(x)) for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.array(True)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no entry of a tree is infinite or NaN; None and integers never are."""
    return _finite([jnp.asarray(x) for x in jax.tree.leaves(tree) if not _tree.is_float0(x)])


def choose(proceed: Any, go: Callable[[], Any], stay: Callable[[], Any]) -> Any:
    """The result of one of two functions; the other one is not computed."""
    if isinstance(proceed, Tracer):
        return jax.lax.cond(proceed, go, stay)
    return go() if proceed else stay()  # un-jitted, a cond would compile at every call


class Step(NamedTuple):
    """One update of a wrapped transformation, to be done or left out."""

    node: Node
    updates: Updates
    state: OptState
    params: Any
    extra_args: dict[str, Any]

    def dtypes(self) -> list[Any]:
        """The dtypes of the resulting updates, leaf by leaf.

        Those of the given ones, except that a transformation may widen 16 bits on purpose.
        """
        given = _tree.dtypes(self.updates)
        if not any(d is not None and jnp.issubdtype(d, jnp.inexact) and _narrow(d) for d in given):
            return given

        def arrays() -> list[Any]:
            new, _ = self.node.update(self.updates, self.state, self.params, **self.extra_args)
            leaves = jax.tree.leaves(new, is_leaf=_tree.is_none)
            return [None if _tree.is_float0(x) else x for x in leaves]

        new = jax.eval_shape(arrays)
        return [d if x is None else x.dtype for x, d in zip(new, given, strict=True)]

    def done(self, dtypes: Sequence[Any], updates: Any = None) -> tuple[Any, Any]:
        """The new updates and state, perhaps from wider `updates`; in the dtypes of before."""
        updates = self.updates if updates is None else updates
        new, state = self.node.update(updates, self.state, self.params, **self.extra_args)
        return _tree.round_to(new, dtypes), jax.tree.map(_as_before, self.state, state)

    def left_out(
        self, dtypes: Sequence[Any], instead: Callable[[Any], Any] = jnp.zeros_like
    ) -> tuple[Any, Any]:
        """Zeros, or what `instead` makes of each update; and the state as it is."""

        def leaf(g: Any) -> Any:
            return g if g is None or _tree.is_float0(g) else instead(g)

        new = jax.tree.map(leaf, self.updates, is_leaf=_tree.is_none)
        return _tree.round_to(new, dtypes), self.state

    def taken_if(
        self, proceed: Any, instead: Callable[[Any], Any] = jnp.zeros_like
    ) -> tuple[Any, Any]:
        """`done` where `proceed` holds, else `left_out`."""
        dtypes = self.dtypes()
        return choose(proceed, lambda: self.done(dtypes), lambda: self.left_out(dtypes, instead))


def _narrow(dtype: Any) -> bool:
    return jnp.finfo(dtype).bits < 32


def _as_before(old: Any, new: Any) -> Any:
    """The new leaf of a state in the old one's dtype; transformations from elsewhere may widen."""
    dtype = jnp.result_type(old)
    return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)


def boolean(function: str, name: str, value: Any) -> Any:
    """A function's answer; refuse anything but one bool."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if not isinstance(value, bool) and (dtype != np.bool_ or shape != ()):
        raise _checks.wrong_kind(function, name, "one bool", value)
    return value


def checked(function: str, wanted: type, state: Any) -> Any:
    """The state, which must be of this class."""
    if not isinstance(state, wanted):
        raise _checks.wrong_state(function, wanted.__name__, state)
    return state


def inner_part(inner: Any) -> Any:
    """The `parts` of a wrapper with a field `inner_state`."""
    return lambda state: {"": (inner, None if state is None else state.inner_state)}


def _conditionally(
    inner: Any, state_class: Any, condition: Any, forward: bool, instead: Any, where: str
) -> Pair:
    node = node_of(inner)

    def init(params: Any) -> Any:
        return state_class(step=jnp.zeros((), jnp.int32), inner_state=node.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked(where, state_class, state)
        proceed = condition(state.step, **(extra_args if forward else {}))
        proceed = boolean(where, "the result of should_transform_fn", proceed)
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

    Such an update becomes zero, and the inner state stays as it is, bit for bit. After
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
        finite = all_finite(updates)
        in_a_row = jnp.where(finite, 0, safe_increment(state.notfinite_count))
        step = Step(node, updates, state.inner_state, params, extra_args)
        new, inner_state = step.taken_if(finite | (in_a_row > max_consecutive_errors))
        total = state.total_notfinite
        total = jnp.where(finite, total, safe_increment(total))
        return new, ApplyIfFiniteState(in_a_row, finite, total, inner_state)

    return Pair(init, update, inner_part(inner))


@transformation
def flatten(inner: Transform) -> Pair:
    """Give a transformation all leaves as one vector, instead of many small arrays.

    For transformations that treat each entry by itself, or the tree as a whole: what looks at
    shapes, names or single leaves (masks, Adafactor, Muon, LAMB) sees one vector.

    The vector has the dtype that the leaves promote to (one complex leaf makes it complex);
    updates return in their own dtypes. A tree without arrays is an empty float32 vector. None,
    jax's float0, and integer parameters are not part of the vector.

    Args:
        inner: The transformation.

    The state is the inner one's, of the vector.

    Raises:
        ValueError: At `update`, if a floating parameter has None as its gradient: the vector
            cannot leave its entries out.
    """
    node = node_of(inner)

    def init(params: Any) -> Any:
        return node.init(_vector(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if params is not None:
            beside = _tree.Beside("flatten", "params", params, holes=True)
            trees = _tree.Aligned("flatten", updates, [beside])
            for path, g, p in zip(
                _tree.paths(updates), trees.leaves, trees.columns[0], strict=True
            ):
                if g is None and _is_inexact(p):
                    raise no_gradient(path)
        vector, state = node.update(
            _vector(updates), state, None if params is None else _vector(params), **extra_args
        )
        return _unflattened(vector, updates), state

    return Pair(init, update, lambda state: {"": (inner, state)})


def no_gradient(path: str) -> ValueError:
    """A leaf of the vector is missing."""
    return ValueError(
        f"flatten: the gradient at {path or 'the root'} is None, but its parameter is part of the "
        "vector; give zeros, or mask the parameter outside of flatten."
    )


def _is_inexact(x: Any) -> bool:
    if x is None or _tree.is_float0(x):
        return False
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def _vector(tree: Any) -> Any:
    arrays = [jnp.asarray(x) for x in jax.tree.leaves(tree) if _is_inexact(x)]
    if not arrays:
        return jnp.zeros(0, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # dtypes are mixed on purpose
        dtype = jnp.result_type(*arrays)
    return jnp.concatenate([x.reshape(-1).astype(dtype) for x in arrays])


def _unflattened(vector: Any, tree: Any) -> Any:
    """The tree's leaves, in their dtypes, from the vector."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_tree.is_none)
    new, at = [], 0
    for x in leaves:
        if not _is_inexact(x):
            new.append(x)
            continue
        piece = vector[at : at + math.prod(jnp.shape(x))].reshape(jnp.shape(x))
        at += math.prod(jnp.shape(x))
        real = not jnp.iscomplexobj(x) and jnp.iscomplexobj(piece)
        new.append((piece.real if real else piece).astype(jnp.result_type(x)))
    return treedef.unflatten(new)
