"""LAMB: Adam's direction, each leaf given the size of its parameter."""

from .._core import (
    DecayLike,
    GradientTransformation,
    LearningRate,
    MaskLike,
    NonNegative,
    Real,
    chain,
    transformation,
)
from ..transforms import add_decayed_weights, scale_by_learning_rate, scale_by_trust_ratio
from ._adam import scale_by_adam


@transformation
def lamb(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: Real = 0.0,
    mask: MaskLike | None = None,
) -> GradientTransformation:
    r"""LAMB: layerwise adaptive steps for large batches.

    .. math::

        \begin{aligned}
        r &= \hat\mu / (\sqrt{\hat\nu + \bar\varepsilon} + \varepsilon) + \lambda w \\
        w &:= w - \alpha\, \frac{\lVert w \rVert}{\lVert r \rVert}\, r
        \end{aligned}

    for each leaf w, with the averages of `scale_by_adam`; the ratio is 1 where a norm is 0
    (`scale_by_trust_ratio`). State: two arrays a parameter.

    Args:
        learning_rate: α, a number or a schedule.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        weight_decay: λ, a number or a schedule.
        mask: Which parameters decay; see `add_decayed_weights`.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        You et al., "Large Batch Optimization for Deep Learning", 2020, arXiv:1904.00962,
        algorithm 2 with φ the identity.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
