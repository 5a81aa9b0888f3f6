"""Multiplying updates by a number."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    EmptyState,
    Leafwise,
    LearningRate,
    NonNegative,
    Real,
    bounded,
    leafwise,
    norm,
    root_mean_square,
    transformation,
)


class ScaleByScheduleState(NamedTuple):
    """The state of a scheduled scale.

    Attributes:
        count: Steps done, int32 ().
    """

    count: Int[Array, ""]


@transformation
def scale(step_size: Real) -> Leafwise:
    """Multiply the updates by a number.

    Args:
        step_size: The factor, any finite number.
    """
    return leafwise(lambda t, g, p: step_size * g, EmptyState)


@transformation
def scale_by_schedule(step_size_fn: Real) -> Leafwise:
    """Multiply the updates by a schedule's value at this step.

    Args:
        step_size_fn: A function of the number of steps done, 0 at the first update.
    """
    return leafwise(lambda t, g, p: step_size_fn * g, ScaleByScheduleState)


@transformation
def scale_by_learning_rate(
    learning_rate: LearningRate | None = None, *, flip_sign: bool = True
) -> Leafwise:
    r"""Turn a direction into a step: multiply it by :math:`-\alpha`.

    Args:
        learning_rate: α, a number or a schedule; None stands for 1. A negative one ascends.
        flip_sign: False multiplies by +α, to ascend.

    State: a `ScaleByScheduleState` for a schedule, else an `EmptyState`.

    Raises:
        ValueError: The learning rate is infinite or NaN.
    """
    sign = -1.0 if flip_sign else 1.0
    if learning_rate is None:
        return leafwise(lambda t, g, p: sign * g, EmptyState)
    return leafwise(
        lambda t, g, p: (sign * learning_rate) * g,
        ScaleByScheduleState if callable(learning_rate) else EmptyState,
    )


@transformation
def scale_by_param_block_rms(min_scale: NonNegative = 1e-3) -> Leafwise:
    """Multiply each leaf's update by the root mean square of its parameter.

    Args:
        min_scale: The least factor, >= 0.
    """

    def rule(t, g, p):
        # Where the squares overflow, as large as they can be.
        most = 2.0 ** (jnp.finfo(p.dtype).maxexp // 2)
        return g * jnp.clip(root_mean_square(p), min_scale, most)

    return leafwise(rule, EmptyState, needs_params=True)


@transformation
def scale_by_trust_ratio(
    min_norm: NonNegative = 0.0, trust_coefficient: NonNegative = 1.0, eps: NonNegative = 0.0
) -> Leafwise:
    r"""Give each leaf's update the size of its parameter.

    .. math::

        u = \frac{c\, \max(\lVert p \rVert, n)}{\max(\lVert g \rVert, n) + \varepsilon}\; g

    The ratio is 1 where one of the two norms is 0.

    Args:
        min_norm: n, the least value that a norm is taken to have, >= 0.
        trust_coefficient: c >= 0.
        eps: ε >= 0.

    References:
        You et al., "Large Batch Optimization for Deep Learning", 2020, arXiv:1904.00962, with
        φ the identity.
    """

    def rule(t, g, p):
        g_norm, p_norm = (jnp.maximum(norm([x]), min_norm) for x in (g, p))
        zero = (g_norm == 0) | (p_norm == 0)
        ratio = bounded(trust_coefficient * p_norm / jnp.where(zero, 1.0, g_norm + eps))
        return jnp.where(zero, 1.0, ratio) * g

    return leafwise(rule, EmptyState, needs_params=True)
