"""Optimizers with their state in few bits, under the signatures of their float32 twins."""

from .._core import (
    DecayLike,
    DTypeLike,
    LearningRate,
    MaskLike,
    Node,
    NonNegative,
    Real,
    node_of,
    transformation,
)
from ..optimizers._adam import adam, adamw
from ..optimizers._lion import lion
from ..optimizers._rms import rmsprop
from ._codec import Codec
from ._store import store
from ._table import int4
from ._window import int8, uint4, uint8

EIGHT: dict[str, Codec] = {"mu": int8(root_of="nu"), "nu": uint8()}
FOUR: dict[str, Codec] = {"mu": int4(root_of="nu"), "nu": uint4()}


@transformation
def adam8bit(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> Node:
    """`adam` with 2 bytes of state a parameter instead of 8.

    `store(adam(...), {"mu": int8(root_of="nu"), "nu": uint8()})`. Arrays of fewer than 4096
    entries stay float32.

    Args:
        learning_rate: As in `adam`, like all arguments.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype of V where it is not encoded.
        nesterov: Look one step ahead.

    Raises:
        ValueError: A number lies outside its range.

    >>> import jax.numpy as jnp
    >>> from adaptax import lowbit
    >>> lowbit.report(lowbit.adam8bit(1e-3), {"w": jnp.zeros((256, 256))}).bytes_per_parameter
    2.000244140625
    """
    return node_of(
        store(adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov), EIGHT)
    )


@transformation
def adamw8bit(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Real = 1e-4,
    mask: MaskLike | None = None,
    *,
    nesterov: bool = False,
) -> Node:
    """`adamw` with 2 bytes of state a parameter instead of 8; see `adam8bit`.

    Args:
        learning_rate: As in `adamw`, like all arguments.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype of V where it is not encoded.
        weight_decay: λ, a number or a schedule.
        mask: Which parameters decay.
        nesterov: Look one step ahead.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.
    """
    numbers = (learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask)
    return node_of(store(adamw(*numbers, nesterov=nesterov), EIGHT))


@transformation
def adam4bit(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> Node:
    """`adam` with 1 byte of state a parameter instead of 8.

    `store(adam(...), {"mu": int4(root_of="nu"), "nu": uint4()})`. Arrays of fewer than 4096
    entries stay float32.

    Args:
        learning_rate: As in `adam`, like all arguments.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype of V where it is not encoded.
        nesterov: Look one step ahead.

    Raises:
        ValueError: A number lies outside its range.
    """
    return node_of(
        store(adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov), FOUR)
    )


@transformation
def rmsprop8bit(
    learning_rate: LearningRate | None,
    decay: DecayLike = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Real | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Node:
    """`rmsprop` with 1 byte of state a parameter instead of 4 (with momentum 2 instead of 8).

    `store(rmsprop(...), {"nu": uint8()})`, with momentum also `"trace": int8()`. Arrays of fewer
    than 4096 entries stay float32.

    Args:
        learning_rate: As in `rmsprop`, like all arguments.
        decay: β, in [0, 1).
        eps: ε >= 0.
        initial_scale: S before the first step, >= 0.
        eps_in_sqrt: ε inside the root.
        centered: Refused: the variance is a small difference of averages, which 8 bits don't hold.
        momentum: The decay of a trace of the updates; None: no trace.
        nesterov: Look one step ahead.
        bias_correction: Correct S for its start.

    Raises:
        ValueError: A number lies outside its range; or centered.
    """
    if centered:
        raise ValueError(
            "rmsprop8bit: centered=True needs the variance, a small difference of two averages, "
            "which 8 bits do not hold; take rmsprop, or centered=False."
        )
    slots: dict[str, Codec] = {"nu": uint8()}
    if momentum is not None:
        slots["trace"] = int8()
    inner = rmsprop(
        learning_rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov,
        bias_correction,
    )  # fmt: skip
    return node_of(store(inner, slots))


@transformation
def lion8bit(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Real = 1e-3,
    mask: MaskLike | None = None,
) -> Node:
    """`lion` with 1 byte of state a parameter instead of 4.

    `store(lion(...), {"mu": int8()})`. Arrays of fewer than 4096 entries stay float32.

    Args:
        learning_rate: As in `lion`, like all arguments.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        mu_dtype: The dtype of μ where it is not encoded.
        weight_decay: λ, a number or a schedule.
        mask: Which parameters decay.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.
    """
    return node_of(store(lion(learning_rate, b1, b2, mu_dtype, weight_decay, mask), {"mu": int8()}))
