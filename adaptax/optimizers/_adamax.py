"""Adamax: Adam in the infinity norm, with and without weight decay."""

import jax.numpy as jnp

from .._core import (
    Decay,
    DecayLike,
    GradientTransformation,
    Leafwise,
    LearningRate,
    MaskLike,
    NonNegative,
    Real,
    Slot,
    average,
    chain,
    debias,
    leafwise,
    transformation,
)
from ..transforms import add_decayed_weights, scale_by_learning_rate
from ._adam import ScaleByAdamState


@transformation
def scale_by_adamax(
    b1: DecayLike = 0.9, b2: DecayLike = 0.999, eps: NonNegative = 1e-8
) -> Leafwise:
    r"""As `scale_by_adam`, divided by a decaying maximum instead of a mean square.

    .. math::

        \begin{aligned}
        \mu_t &= \beta_1 \mu_{t-1} + (1 - \beta_1)\, g_t, \qquad \mu_0 = 0 \\
        \nu_t &= \max(\beta_2 \nu_{t-1}, |g_t| + \varepsilon), \qquad \nu_0 = 0 \\
        u_t &= \mu_t / \bigl((1 - \beta_1^t)\, \nu_t\bigr)
        \end{aligned}

    Args:
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, in the unit of g.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Kingma & Ba, "Adam", 2015, arXiv:1412.6980, algorithm 2; ε is added, as in PyTorch.
    """

    def rule(t, g, p, mu, nu):
        mu = average(g, mu, b1)
        nu = jnp.maximum(Decay.of(b2).value * nu, jnp.abs(g) + eps)
        return debias(mu, b1, t) / nu, mu, nu

    return leafwise(rule, ScaleByAdamState, mu=Slot(), nu=Slot(real=True))


@transformation
def adamax(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
) -> GradientTransformation:
    """Adamax: Adam in the infinity norm; see `scale_by_adamax`.

    Args:
        learning_rate: α, a number or a schedule. PyTorch's default is 2e-3.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, in the unit of g.

    References:
        Kingma & Ba, "Adam", 2015, arXiv:1412.6980, algorithm 2.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


@transformation
def adamaxw(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Real = 1e-4,
    mask: MaskLike | None = None,
) -> GradientTransformation:
    """`adamax` with the decoupled weight decay of `adamw`.

    Args:
        learning_rate: α, a number or a schedule.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, in the unit of g.
        weight_decay: λ, a number or a schedule.
        mask: Which parameters decay; see `add_decayed_weights`.

    References:
        Kingma & Ba, "Adam", 2015, arXiv:1412.6980, algorithm 2.
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101.
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
