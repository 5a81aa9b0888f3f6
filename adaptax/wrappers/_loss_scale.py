"""Loss scaling for float16, whose gradients vanish below 6e-8."""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._core import (
    Constant,
    Count,
    OptState,
    Pair,
    Transform,
    _checks,
    _manual,
    _tree,
    compute_dtype,
    has_foreign,
    node_of,
    safe_increment,
    transformation,
    widen,
)
from .._core._numerics import mixing
from ._step import Step, all_finite, checked, inner_part, only_state


class DynamicLossScaleState(NamedTuple):
    """The state of `dynamic_loss_scale`.

    Attributes:
        loss_scale: What the loss is to be multiplied by at the next step, float32 ().
        good_steps: Steps taken since the scale last changed, int32 ().
        skipped: Steps skipped in all, int32 ().
        inner_state: The inner transformation's state.
    """

    loss_scale: Float[Array, ""]
    good_steps: Int[Array, ""]
    skipped: Int[Array, ""]
    inner_state: OptState


class _PowerOfTwo(Constant):
    """A number by which to multiply and divide is exact."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        value = super().canonical(function, name, value)
        if isinstance(value, float) and math.frexp(value)[0] != 0.5:
            raise _checks.out_of_range(
                function, name, "one of the powers of 2", value, "Then scaling does not round."
            )
        return value


_Scale = Annotated[Any, _PowerOfTwo("(0, inf)")]


@transformation
def dynamic_loss_scale(
    inner: Transform,
    init_scale: _Scale = 2.0**15,
    growth_interval: Count = 2000,
    factor: Annotated[Any, _PowerOfTwo("(1, inf)")] = 2.0,
    *,
    min_scale: _Scale = 1.0,
    max_scale: _Scale = 2.0**24,
) -> Pair:
    r"""Undo the scaling of the loss, and find the largest scale that does not overflow.

    The caller multiplies the loss by the scale in the state, so that gradients do not underflow
    in float16 on their way back:

    .. code-block:: python

        grads = jax.grad(lambda p: loss(p) * adaptax.loss_scale(state))(params)
        updates, state = tx.update(grads, state, params)

    `update` divides the gradients by the scale, in float32, and gives them so to the inner
    transformation (rounded to the gradients' dtypes if that is from elsewhere; put
    `lowbit.master_weights` between the two to keep it from that); what returns has the dtypes of
    the gradients. Where one is NaN or infinite,
    the updates are zero, the inner state stays as it is, bit for bit, and the scale falls by
    the factor; after `growth_interval` steps without one it rises by it. A step whose result is
    not finite (see `guard`) is left out too; the scale stays.

    .. math::

        s \leftarrow \min(f s, s_{\max}) \;\text{ after } N \text{ good steps, }\quad
        s \leftarrow \max(s / f, s_{\min}) \;\text{ after a bad one}

    Multiply a loss in float32: one in float16 is at most 65504, scale included.

    Args:
        inner: The transformation.
        init_scale: The first scale, a power of two.
        growth_interval: N >= 1, in steps.
        factor: f > 1, a power of two.
        min_scale: The smallest scale, a power of two.
        max_scale: The largest scale, a power of two.

    State: `DynamicLossScaleState`.

    Raises:
        ValueError: A number is not a power of two, or growth_interval < 1.

    References:
        Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740, section 3.2.
    """
    node = node_of(inner)
    rounds = has_foreign(node)

    def clamped(scale: Any) -> Any:
        low, high = (jnp.asarray(x, jnp.float32) for x in (min_scale, max_scale))
        return jnp.clip(scale, low, high)

    def init(params: Any) -> DynamicLossScaleState:
        zero = jnp.zeros((), jnp.int32)
        scale = clamped(jnp.asarray(init_scale, jnp.float32))
        return DynamicLossScaleState(scale, zero, zero, node.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked("dynamic_loss_scale", DynamicLossScaleState, state)
        scale = state.loss_scale
        good = _manual.everywhere(all_finite(updates), state.good_steps)
        step = Step(node, updates, state.inner_state, params, extra_args)
        new, inner_state, taken = step.taken_if_sound(
            good,
            state.good_steps,
            updates=lambda: jax.tree.map(lambda g: _divided(g, scale), updates),
            rounds=rounds,
        )
        steps = jnp.where(taken, safe_increment(state.good_steps), state.good_steps)
        grows = good & (steps >= growth_interval)
        by = jnp.asarray(factor, jnp.float32)
        scale = jnp.where(good, jnp.where(grows, scale * by, scale), scale / by)
        skipped = state.skipped
        return new, DynamicLossScaleState(
            loss_scale=clamped(scale),
            good_steps=jnp.where(good & ~grows, steps, 0),
            skipped=jnp.where(taken, skipped, safe_increment(skipped)),
            inner_state=inner_state,
        )

    return Pair(init, update, inner_part(inner))


def _divided(g: Any, scale: Any) -> Any:
    """g / scale in float32 or wider; an integer's gradient has nothing to divide."""
    if _tree.is_float0(g) or not jnp.issubdtype(jnp.result_type(g), np.inexact):
        return g
    return _quotient(jnp.asarray(g), scale)


@jax.jit
def _quotient(g: Any, scale: Any) -> Any:
    real = compute_dtype(g.dtype)
    with mixing(g):
        return widen(g, real) / scale.astype(real)


def loss_scale(state: OptState) -> Float[Array, ""]:
    """The scale by which to multiply the loss, read from any state that it is part of.

    Args:
        state: A state with one `dynamic_loss_scale` in it, at any depth.

    Returns:
        The scale, float32 ().

    Raises:
        ValueError: There is no such state in it, or more than one.
    """
    return only_state("loss_scale", state, DynamicLossScaleState).loss_scale
