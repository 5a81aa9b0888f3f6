"""Adafactor: the second moments of a matrix from their row and column means."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    DecayLike,
    DTypeLike,
    EmptyState,
    GradientTransformation,
    Leafwise,
    LearningRate,
    MaskLike,
    NonNegative,
    PositiveBound,
    Real,
    Slot,
    abs_sq,
    average,
    chain,
    leafwise,
    masked,
    quotient,
    root,
    transformation,
)
from .._core._kinds import StaticInt
from ..transforms import (
    WeightDecaySchedule,
    add_decayed_weights,
    clip_by_block_rms,
    ema,
    scale,
    scale_by_learning_rate,
    scale_by_param_block_rms,
)

Size = Annotated[int, StaticInt(0)]


class FactoredState(NamedTuple):
    """The state of `scale_by_factored_rms`.

    Attributes:
        count: Steps done, int32 ().
        v_row: Means of |g|² over the largest axis, float32 or wider; (1,) where not factored.
        v_col: Means over the second largest axis, likewise.
        v: |g|² averaged entry by entry where not factored, else (1,).
    """

    count: Int[Array, ""]
    v_row: ArrayTree
    v_col: ArrayTree
    v: ArrayTree


def _power_decay(step: Any, exponent: Any) -> Any:
    """β̂₂ after `step` steps: 1 - (step + 1)^-exponent."""
    return 1.0 - (step + 1.0) ** -exponent


@transformation
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: NonNegative = 0.8,
    step_offset: Real = 0,
    min_dim_size_to_factor: Size = 128,
    epsilon: NonNegative = 1e-30,
    decay_rate_fn: Callable[[Any, Any], Any] = _power_decay,
) -> Leafwise:
    r"""Divide each gradient by a root mean square kept as row and column means.

    .. math::

        \begin{aligned}
        \hat\beta_t &= 1 - t^{-c} \\
        R_t &= \hat\beta_t R_{t-1} + (1 - \hat\beta_t)\operatorname{mean}_{\text{cols}}
            (|G_t|^2 + \varepsilon), \qquad C_t \text{ likewise over rows} \\
        U_t &= G_t / \sqrt{R_t C_t / \operatorname{mean}(R_t)}
        \end{aligned}

    for a leaf whose two largest axes both have at least ``min_dim_size_to_factor`` entries
    (further axes are batches); any other leaf keeps the full average of :math:`|G|^2 +
    \varepsilon`. State of an n × m leaf: n + m numbers.

    Args:
        factored: False keeps the full average for every leaf.
        decay_rate: c >= 0.
        step_offset: The step at which t counts 1, for continued training. Before it t stays 1.
        min_dim_size_to_factor: The least size of the second largest axis.
        epsilon: ε >= 0, in the unit of g².
        decay_rate_fn: β̂ from the number of steps done and c.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, algorithms 1 and 4.
    """

    def axes(x: Any) -> tuple[int, int] | None:
        """The second largest and the largest axis, if both are large enough."""
        if not factored or x.ndim < 2:
            return None
        second, largest = (int(a) for a in np.argsort(x.shape, kind="stable")[-2:])
        return (second, largest) if x.shape[second] >= min_dim_size_to_factor else None

    def without(which: int) -> Callable[[Any, Any], Any]:
        def make(param: Any, dtype: Any) -> Any:
            pair, shape = axes(param), list(jnp.shape(param))
            if pair is None:
                return jnp.zeros((1,), dtype)
            del shape[pair[which]]
            return jnp.zeros(shape, dtype)

        return make

    def full(param: Any, dtype: Any) -> Any:
        return Slot(dtype=dtype).init(param) if axes(param) is None else jnp.zeros((1,), dtype)

    def rule(t, g, p, row, col, v):
        decay = decay_rate_fn(jnp.maximum(t - 1.0 - step_offset, 0.0), decay_rate)
        pair = axes(g)
        square = abs_sq(g) + epsilon
        if pair is None:
            v = average(square, v, decay, infinite="+")
            return g / root(v), row, col, v
        second, largest = pair
        # Within bounds in which all can be added: an infinite mean would be the end of a row.
        square = jnp.minimum(square, float(jnp.finfo(square.dtype).max) / square.size)
        row = average(jnp.mean(square, largest), row, decay, infinite="")
        col = average(jnp.mean(square, second), col, decay, infinite="")
        mean = jnp.mean(row, second - (second > largest), keepdims=True)
        rows, cols = jnp.expand_dims(quotient(row, mean), largest), jnp.expand_dims(col, second)
        return g / root(rows) / root(cols), row, col, v

    return leafwise(
        rule,
        FactoredState,
        v_row=Slot(make=without(1), real=True),
        v_col=Slot(make=without(0), real=True),
        v=Slot(make=full, real=True),
    )


@transformation
def _add_scaled_decay(weight_decay: Real, learning_rate: LearningRate) -> Leafwise:
    """u = g + αλp: this link comes after the learning rate, so it multiplies by α itself."""
    scheduled = any(map(callable, (weight_decay, learning_rate)))
    return leafwise(
        lambda t, g, p: g + (weight_decay * learning_rate) * p,
        WeightDecaySchedule if scheduled else EmptyState,
        needs_params=True,
    )


@transformation
def adafactor(
    learning_rate: LearningRate | None = None,
    min_dim_size_to_factor: Size = 128,
    decay_rate: NonNegative = 0.8,
    decay_offset: Real = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: PositiveBound | None = 1.0,
    momentum: DecayLike | None = None,
    dtype_momentum: DTypeLike = jnp.float32,
    weight_decay_rate: Real | None = None,
    eps: NonNegative = 1e-30,
    factored: bool = True,
    weight_decay_mask: MaskLike | None = None,
    *,
    scale_decay_by_rate: bool = False,
) -> GradientTransformation:
    r"""Adafactor: adaptive steps in memory of n + m for an n × m matrix.

    .. math::

        \begin{aligned}
        \hat U &= U / \max(1, \operatorname{RMS}(U) / d) \\
        w &:= w - \alpha \max(\operatorname{RMS}(w), 10^{-3})\, \hat U - \lambda w
        \end{aligned}

    with U from `scale_by_factored_rms`, for each leaf w; with momentum the product of α, scale
    and Û is averaged. The weight decay is not multiplied by the learning rate, as in optax;
    `scale_decay_by_rate=True` multiplies it: -αλw, as in AdamW and in PyTorch's Adafactor.

    Args:
        learning_rate: α, a number or a schedule; None stands for 1.
        min_dim_size_to_factor: The least size of the second largest axis of a factored leaf.
        decay_rate: c >= 0, of the decay 1 - t^-c.
        decay_offset: The step at which t counts 1.
        multiply_by_parameter_scale: Multiply by max(RMS(w), 1e-3).
        clipping_threshold: d, in (0, inf]; None for no clipping.
        momentum: The decay of an average of the steps (`ema` without debiasing); None for none.
        dtype_momentum: The dtype of that average.
        weight_decay_rate: λ, a number or a schedule; None for none.
        eps: ε >= 0, added to g².
        factored: False keeps full second moments.
        weight_decay_mask: Which parameters decay; see `add_decayed_weights`.
        scale_decay_by_rate: Multiply the decay by the learning rate.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, algorithms 4 and 5; the paper has
        no weight decay.
    """
    links = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        links.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        links.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        links.append(scale_by_param_block_rms())
    if momentum is not None:
        links.append(ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    if weight_decay_rate is not None:
        if scale_decay_by_rate and learning_rate is not None:
            decay = _add_scaled_decay(weight_decay_rate, learning_rate)
        else:
            decay = add_decayed_weights(weight_decay_rate)
        links.append(decay if weight_decay_mask is None else masked(decay, weight_decay_mask))
    return chain(*links, scale(-1.0))
