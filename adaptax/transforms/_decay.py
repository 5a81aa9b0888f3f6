"""Weight decay."""

from typing import NamedTuple

from jaxtyping import Array, Int

from .._core import (
    EmptyState,
    GradientTransformation,
    Leafwise,
    MaskLike,
    Real,
    leafwise,
    masked,
    transformation,
)


class WeightDecaySchedule(NamedTuple):
    """The state of a scheduled weight decay.

    Attributes:
        count: Steps done, int32 ().
    """

    count: Int[Array, ""]


@transformation
def add_decayed_weights(
    weight_decay: Real = 0.0, mask: MaskLike | None = None
) -> Leafwise | GradientTransformation:
    r"""Add a multiple of the parameters: :math:`u = g + \lambda p`.

    Before the learning rate, as in `adamw`, this makes the decay of a step αλp.

    Args:
        weight_decay: λ, a number or a schedule.
        mask: Which parameters decay: a tree of bools with the structure of the parameters or a
            prefix of it, or a function that makes one from the parameters. None: all.

    State: `EmptyState` (`WeightDecaySchedule` for a schedule), in a `MaskedState` with a mask.

    Raises:
        ValueError: At `update`, if it is called without params.

    References:
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101.
    """
    if mask is not None:
        return masked(add_decayed_weights(weight_decay), mask)
    return leafwise(
        lambda t, g, p: g + weight_decay * p,
        WeightDecaySchedule if callable(weight_decay) else EmptyState,
        needs_params=True,
    )
