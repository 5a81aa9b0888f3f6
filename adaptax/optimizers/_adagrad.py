"""Adagrad: divide each gradient by the root of the sum of all its squares so far."""

from typing import NamedTuple

import jax.numpy as jnp

from .._core import (
    ArrayTree,
    GradientTransformation,
    Leafwise,
    LearningRate,
    NonNegative,
    Slot,
    abs_sq,
    chain,
    leafwise,
    root,
    transformation,
)
from ..transforms import scale_by_learning_rate


class ScaleByRssState(NamedTuple):
    """The state of `scale_by_rss`.

    Attributes:
        sum_of_squares: Σ|g|², like the parameters, real, float32 or wider, >= 0.
    """

    sum_of_squares: ArrayTree


@transformation
def scale_by_rss(initial_accumulator_value: NonNegative = 0.1, eps: NonNegative = 1e-7) -> Leafwise:
    r"""Divide each gradient by the root of the sum of its squares.

    .. math::

        s_t = s_{t-1} + |g_t|^2, \qquad u_t = g_t / \sqrt{s_t + \varepsilon}

    and :math:`u_t = 0` where :math:`s_t = 0`. Elementwise. State: one array a parameter.

    Args:
        initial_accumulator_value: s₀ >= 0, in the unit of g². PyTorch has 0.
        eps: ε >= 0, inside the root, in the unit of g². PyTorch has 1e-10, outside.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", 2011, figure 1 with diagonal matrices.
    """

    def rule(t, g, p, s):
        s = s + abs_sq(g)
        v = s + eps
        return g / root(jnp.where(v == 0, 1.0, v)), s

    slot = Slot(fill=initial_accumulator_value, real=True)
    return leafwise(rule, ScaleByRssState, sum_of_squares=slot)


@transformation
def adagrad(
    learning_rate: LearningRate | None,
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
) -> GradientTransformation:
    """Adagrad: steps that shrink in each coordinate with its gradients; see `scale_by_rss`.

    Args:
        learning_rate: α, a number or a schedule.
        initial_accumulator_value: The initial sum of squares, >= 0.
        eps: ε >= 0, inside the root.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", 2011.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate)
    )
