"""Gradients of several micro-batches as one: `MultiSteps`, `apply_every`."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._core import (
    ArrayTree,
    DTypeLike,
    GradientTransformation,
    OptState,
    Pair,
    Slot,
    Transform,
    Updates,
    _checks,
    _manual,
    _tree,
    compute_dtype,
    has_foreign,
    node_of,
    safe_increment,
    unboxed,
    widen,
)
from .._core._called import called, number_now
from .._core._kinds import Kind, StaticInt, check_schedule
from .._core._numerics import mixing
from .._core._value import call_of, transformation_of
from ._step import Step, all_finite, boolean, checked, choose


class MultiStepsState(NamedTuple):
    """The state of `MultiSteps`.

    Attributes:
        mini_step: Micro-batches seen in this window, int32 ().
        gradient_step: Windows that ended in an update, int32 ().
        inner_opt_state: The inner transformation's state.
        acc_grads: The mean (or sum) over this window so far, like the parameters, in
            `accumulator_dtype`.
        skip_state: What `should_skip_update_fn` said last.
    """

    mini_step: Int[Array, ""]
    gradient_step: Int[Array, ""]
    inner_opt_state: OptState
    acc_grads: ArrayTree
    skip_state: ArrayTree = ()


class WeightedMultiStepsState(NamedTuple):
    """The state of `MultiSteps` where micro-batches are weighted or dropped.

    Attributes:
        mini_step: As in `MultiStepsState`.
        gradient_step: As in `MultiStepsState`.
        inner_opt_state: As in `MultiStepsState`.
        acc_grads: As in `MultiStepsState`.
        skip_state: As in `MultiStepsState`.
        weight: The weight of what is in `acc_grads`, float32 ().
    """

    mini_step: Int[Array, ""]
    gradient_step: Int[Array, ""]
    inner_opt_state: OptState
    acc_grads: ArrayTree
    skip_state: ArrayTree
    weight: Float[Array, ""]


def skip_not_finite(
    updates: Updates, gradient_step: Any, params: Any = None
) -> tuple[Bool[Array, ""], dict[str, Any]]:
    """Skip a micro-batch whose gradients are not finite; a `should_skip_update_fn`.

    Args:
        updates: The gradients.
        gradient_step: The number of updates done; devices that share it decide together.
        params: Not used.

    Returns:
        Whether to skip, and a dict of "should_skip" (bool) and "num_not_finite" (int32).
    """
    skip = _manual.anywhere(~all_finite(updates), gradient_step)
    wrong = [
        _manual.total(jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), gradient_step)
        for x in jax.tree.leaves(updates)
        if not _tree.is_float0(x) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    ]
    total = _manual.largest(sum(wrong, jnp.zeros((), jnp.int32)), gradient_step)
    return skip, {"should_skip": skip, "num_not_finite": total}


def skip_large_updates(
    updates: Updates, gradient_step: Any, params: Any, max_squared_norm: Any
) -> tuple[Bool[Array, ""], dict[str, Any]]:
    """Skip a micro-batch whose squared norm is not below a bound; a `should_skip_update_fn`.

    The norm is accumulated in float32 or wider and compared before it is squared, so neither
    overflow nor underflow decides. A norm of NaN is skipped.

    Args:
        updates: The gradients.
        gradient_step: The number of updates done; devices that share it decide together.
        params: Not used.
        max_squared_norm: The bound on the squared 2-norm of the whole tree, >= 0.

    Returns:
        Whether to skip, and a dict of "should_skip" (bool) and "norm_squared" (float32).

    >>> import adaptax, functools
    >>> skip = functools.partial(adaptax.skip_large_updates, max_squared_norm=100.0)
    >>> tx = adaptax.MultiSteps(adaptax.adam(1e-3), 4, should_skip_update_fn=skip)
    """
    norm = _manual.norm(_tree.entries(updates), gradient_step)
    concrete = isinstance(max_squared_norm, float | int)
    most = math.sqrt(max_squared_norm) if concrete else jnp.sqrt(max_squared_norm)
    skip = ~(norm < jnp.asarray(most, norm.dtype))
    return skip, {"should_skip": skip, "norm_squared": jnp.square(norm)}


class _EveryK(Kind):
    """A whole number from 1, or a function of the number of updates done."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if not callable(value):
            return StaticInt(1).canonical(function, name, value)
        check_schedule(function, name, value)
        return value


class _Skip(Kind):
    """A function, or None."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if value is not None and not callable(value):
            raise _checks.wrong_kind(function, name, "None or a function", value)
        return value


class MultiStepsTransformation(GradientTransformation):
    """What `MultiSteps` returns: a transformation that also answers questions about its state."""

    __slots__ = ()

    @property
    def inner_opt(self) -> GradientTransformation:
        """The transformation that gets the means."""
        return cast(Any, call_of(self)).arguments["opt"]

    def has_updated(self, state: Any) -> Bool[Array, ""]:
        """Whether the window has just ended, in the words of the state.

        True between an update and the next micro-batch, and also after micro-batches that were
        skipped there or a window of which nothing was left.
        """
        state = unboxed(state)
        return (state.mini_step == 0) & (state.gradient_step > 0)

    def gradient_transformation(self) -> "MultiStepsTransformation":
        """The transformation itself."""
        return self


@transformation_of(MultiStepsTransformation)
def MultiSteps(
    opt: Transform,
    every_k_schedule: Annotated[Any, _EveryK()],
    use_grad_mean: bool = True,
    should_skip_update_fn: Annotated[Any, _Skip()] = None,
    accumulator_dtype: DTypeLike = np.float32,
    *,
    weighted: bool = False,
    nonfinite: Literal["poison", "drop"] = "poison",
) -> Pair:
    r"""Average the gradients of k micro-batches, then do one update.

    .. math::

        \bar g_n = \bar g_{n-1} + \frac{w_n}{\sum_{i \le n} w_i} (g_n - \bar g_{n-1}),
        \qquad u = \mathrm{opt}(\bar g_k) \text{ at the end of a window, else } 0

    The inner update is computed only when it is due; the other micro-batches cost one pass over
    the mean and the gradient. The inner transformation receives the mean in float32 or wider (one
    from elsewhere: in the gradients' dtypes); the updates have the gradients' dtypes.

    Args:
        opt: The transformation that gets the means.
        every_k_schedule: k >= 1: a whole number, or a function of the number of updates done
            (its result is rounded, and at least 1).
        use_grad_mean: Average; if False, add up.
        should_skip_update_fn: `f(updates, gradient_step, params) -> (bool, tree)`. Where it says
            True it is as if the micro-batch had never been, except that the tree (of fixed
            structure) is kept as `skip_state`. See `skip_not_finite`, `skip_large_updates`.
        accumulator_dtype: The dtype of the mean between micro-batches (its complex counterpart
            for complex parameters); None: the parameter's, float32 for 16 bits.
        weighted: Call as `update(..., weight=w)`, w a number >= 0 such as the micro-batch's
            tokens: the mean is Σ w g / Σ w, the sum Σ w g. A micro-batch of weight 0 does not
            count, whatever its gradients.
        nonfinite: What a micro-batch with a gradient of NaN or infinity does. "poison": its
            window is lost, and the next one begins anew. "drop": it is left out of the mean, and
            the window ends after k micro-batches all the same.

    To judge also what comes of a mean, wrap the inner transformation: `MultiSteps(guard(tx), k)`.
    A window that is lost, or of which no weight is left because all was dropped or had weight 0,
    does no update, leaves the inner state as it is, and is not counted in `gradient_step`.

    State: `MultiStepsState`; `WeightedMultiStepsState` with `weighted` or "drop".

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: k < 1; or, at `update`, the weight is missing or not a scalar.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.MultiSteps(adaptax.sgd(1.0), every_k_schedule=2)
    >>> state = tx.init(jnp.zeros(()))
    >>> for g in (1.0, 3.0):
    ...     u, state = tx.update(jnp.array(g), state)
    >>> float(u), bool(tx.has_updated(state))
    (-2.0, True)
    """
    node = node_of(opt)
    rounds = has_foreign(node)
    counts_weight = weighted or nonfinite == "drop"
    slot = Slot(dtype=accumulator_dtype)
    wanted = WeightedMultiStepsState if counts_weight else MultiStepsState

    def skips(updates: Any, gradient_step: Any, params: Any) -> tuple[Any, Any]:
        if should_skip_update_fn is None:
            return False, ()
        skip, info = called(
            "MultiSteps",
            "should_skip_update_fn",
            should_skip_update_fn,
            updates,
            gradient_step,
            params,
        )
        skip = boolean("MultiSteps", "the answer of should_skip_update_fn", skip)
        return _manual.anywhere(skip, gradient_step), info

    def init(params: Any) -> Any:
        zero = jnp.zeros((), jnp.int32)
        nothing = jax.tree.map(lambda p: jnp.zeros_like(p) if _tree.is_inexact(p) else None, params)
        _, info = skips(nothing, zero, params)
        fields = (zero, zero, node.init(params), jax.tree.map(slot.init, params), info)
        return wanted(*fields, *[jnp.zeros((), jnp.float32)] * counts_weight)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked("MultiSteps", wanted, state)
        w = _scalar_weight(extra_args.pop("weight", None)) if weighted else 1.0
        skip, info = skips(updates, state.gradient_step, params)
        info = jax.tree.map(_tree_dtype, state.skip_state, info)
        keep = ~jnp.asarray(skip)
        if weighted:
            keep &= w != 0
        if nonfinite == "drop":
            whole = all_finite(updates) & jnp.isfinite(w)
            keep &= _manual.everywhere(whole, state.mini_step)
        seen = state.weight if counts_weight else state.mini_step.astype(jnp.float32)
        weight = jnp.where(keep, seen + w, seen)
        k = _window(every_k_schedule, state.gradient_step)
        ends = (state.mini_step >= k - 1) & ~jnp.asarray(skip)
        acc, mean = _accumulated(updates, state.acc_grads, keep, w, weight, use_grad_mean)

        step = Step(node, updates, state.inner_opt_state, params, extra_args)
        dtypes = step.dtypes()

        def go() -> Any:
            finite = _manual.everywhere(all_finite(acc), state.mini_step)
            done = choose(
                finite, lambda: step.done(dtypes, mean(), rounds), lambda: step.left_out(dtypes)
            )
            return *done, jax.tree.map(jnp.zeros_like, acc), finite

        def stay() -> Any:
            return *step.left_out(dtypes), acc, jnp.array(False)

        new, inner_state, acc, updated = choose(ends & (weight != 0), go, stay)
        mini_step = safe_increment(state.mini_step)
        mini_step = jnp.where(ends, 0, jnp.where(skip, state.mini_step, mini_step))
        steps = state.gradient_step
        steps = jnp.where(updated, safe_increment(steps), steps)
        fields = (mini_step, steps, inner_state, acc, info)
        return new, wanted(*fields, *[jnp.where(ends, 0.0, weight)] * counts_weight)

    def parts(state: Any) -> Any:
        return {"": (opt, None if state is None else state.inner_opt_state)}

    return Pair(init, update, parts)


def _scalar_weight(w: Any) -> Any:
    if w is None:
        raise ValueError(
            "MultiSteps: with weighted=True, update needs the weight of the micro-batch: "
            "update(grads, state, params, weight=w)."
        )
    if jnp.ndim(w) != 0:
        raise _checks.not_scalar("MultiSteps", "weight", w)
    return jnp.asarray(w).astype(jnp.float32)


def _window(k: Any, gradient_step: Any) -> Any:
    if not callable(k):
        return k
    k = jnp.asarray(number_now("MultiSteps", "every_k_schedule", k, gradient_step))
    if k.ndim != 0:
        raise _checks.not_scalar("MultiSteps", "every_k_schedule", k)
    whole = k if jnp.issubdtype(k.dtype, jnp.integer) else jnp.round(k)
    return jnp.maximum(whole.astype(jnp.int32), 1)


def _tree_dtype(old: Any, new: Any) -> Any:
    return jnp.asarray(new).astype(jnp.result_type(old))


def _accumulated(
    updates: Any, acc_grads: Any, keep: Any, w: Any, weight: Any, use_grad_mean: bool
) -> tuple[Any, Callable[[], Any]]:
    """The accumulator with these gradients; and a function that makes updates of it."""
    trees = _tree.Aligned(
        "MultiSteps", updates, [_tree.Beside("MultiSteps", "state.acc_grads", acc_grads)]
    )
    acc = list(trees.columns[0])
    total = jnp.where(weight == 0, 1.0, weight) if use_grad_mean else None
    real = [g is not None and not _tree.is_float0(g) for g in trees.leaves]
    for i, g in enumerate(trees.leaves):
        if real[i]:
            if not jnp.issubdtype(jnp.result_type(g), jnp.inexact) or jnp.shape(g) != acc[i].shape:
                raise trees.explain()
            acc[i] = _add(acc[i], jnp.asarray(g), keep, w, total)

    def mean() -> Any:
        wide = [
            widen(a, compute_dtype(a.dtype, g.dtype)) if used else g
            for a, g, used in zip(acc, trees.leaves, real, strict=True)
        ]
        return trees.rebuild(wide)

    return trees.rebuild(acc), mean


@jax.jit
def _add(acc: Any, g: Any, keep: Any, w: Any, total: Any) -> Any:
    """One step of the mean (of the sum, where total is None), rounded to the accumulator."""
    real = compute_dtype(acc.dtype, g.dtype)
    w = jnp.asarray(w, real)
    old, new = widen(acc, real), widen(g, real)
    with mixing(acc, g):
        if total is None:
            new = old + w * new
        else:
            new = old + w * (new - old) / total.astype(real)
    return jnp.where(keep, new, old).astype(acc.dtype)
