"""Lion: step by the sign of an interpolated momentum."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    DecayLike,
    DTypeLike,
    GradientTransformation,
    Leafwise,
    LearningRate,
    MaskLike,
    NonNegative,
    Real,
    Slot,
    average,
    chain,
    leafwise,
    transformation,
)
from ..transforms import add_decayed_weights, scale_by_learning_rate


class ScaleByLionState(NamedTuple):
    """The state of `scale_by_lion`.

    Attributes:
        count: Steps done, int32 (). The rule does not read it; optax keeps it.
        mu: The average of g, like the parameters, float32 or wider unless asked otherwise.
    """

    count: Int[Array, ""]
    mu: ArrayTree


@transformation
def scale_by_lion(
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: NonNegative = 1.0,
) -> Leafwise:
    r"""Replace each gradient by the sign of its average.

    .. math::

        \begin{aligned}
        u_t &= \operatorname{sign}\bigl(\beta_1 \mu_{t-1} + (1 - \beta_1)\, g_t\bigr) \\
        \mu_t &= \beta_2 \mu_{t-1} + (1 - \beta_2)\, g_t, \qquad \mu_0 = 0
        \end{aligned}

    Elementwise; sign(0) = 0. Scaling the loss leaves u unchanged. State: one array a parameter.

    Args:
        b1: β₁, in [0, 1), of the step.
        b2: β₂, in [0, 1), of the memory.
        mu_dtype: The dtype in which μ is stored; None: the parameter's, float32 for 16 bits.
        mode: "hard" is the sign; "smooth" is tanh(c x); "refined" is x clipped to [-1, 1].
        smooth_beta: c >= 0 of the smooth mode.

    Raises:
        ValueError: A number lies outside its range, or the mode is unknown.

    References:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv:2302.06675,
        algorithm 2; the modes other than "hard" are optax's.
    """

    def rule(t, g, p, mu):
        x = average(g, mu, b1)
        if mode == "hard":
            u = jnp.sign(x)
        elif mode == "smooth":
            u = jnp.tanh(smooth_beta * x)
        else:
            u = jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))
        return u, average(g, mu, b2)

    return leafwise(rule, ScaleByLionState, mu=Slot(dtype=mu_dtype))


@transformation
def lion(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Real = 1e-3,
    mask: MaskLike | None = None,
) -> GradientTransformation:
    r"""Lion: step by the sign of an average gradient; see `scale_by_lion`.

    .. math::

        w := w - \alpha \bigl(\operatorname{sign}(\beta_1 \mu + (1 - \beta_1)\, dw)
            + \lambda w\bigr)

    Each step moves each coordinate by α: α is 3 to 10 times smaller than Adam's, and λ as many
    times larger.

    Args:
        learning_rate: α, a number or a schedule.
        b1: β₁, in [0, 1), of the step.
        b2: β₂, in [0, 1), of the memory.
        mu_dtype: The dtype in which μ is stored; None: the parameter's, float32 for 16 bits.
        weight_decay: λ, a number or a schedule.
        mask: Which parameters decay; see `add_decayed_weights`.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv:2302.06675.
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
