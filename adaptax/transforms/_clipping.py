"""Keeping updates small."""

from typing import Any

import jax.numpy as jnp

from .._core import (
    Bound,
    EmptyState,
    Leafwise,
    PositiveBound,
    _checks,
    _manual,
    _tree,
    bounded,
    leafwise,
    root_mean_square,
    transformation,
)


@transformation
def clip(max_delta: Bound) -> Leafwise:
    """Clip each entry to [-max_delta, max_delta]. NaN stays NaN.

    Args:
        max_delta: The largest magnitude, in [0, inf], in the unit of the updates.

    Raises:
        TreeMismatchError: At `update`, if an update is complex.
    """

    def rule(t, g, p):
        if jnp.iscomplexobj(g):
            hint = "clip_by_block_rms and clip_by_global_norm shrink them, with their phase."
            raise _checks.ComplexLeafError("clip", hint)
        return jnp.clip(g, -max_delta, max_delta)

    return leafwise(rule, EmptyState)


@transformation
def clip_by_global_norm(max_norm: Bound) -> Leafwise:
    r"""Shrink all updates together so that their 2-norm is at most :math:`c`.

    .. math::

        u = g \cdot \min(1, c / \lVert g \rVert), \qquad
        \lVert g \rVert = \sqrt{\textstyle\sum_{\text{leaves}} \sum_i |g_i|^2}

    The norm is accumulated in float32 or wider and does not overflow where it is
    representable. Updates whose norm is at most c pass unchanged, bit for bit; so do zeros.

    An infinite entry counts as the largest finite number: k of them become
    :math:`\pm c / \sqrt{k}` and leave next to nothing to the others. If all are finite but the
    norm is beyond the dtype, the norm of the result is still c. With a NaN, nothing is scaled,
    so that it shows. Inside `jax.shard_map` the norm is that of whole arrays, where types say that
    these are parts.

    Args:
        max_norm: c in [0, inf], in the unit of the updates; infinity does not clip.

    References:
        Pascanu et al., "On the difficulty of training recurrent neural networks", 2013,
        arXiv:1211.5063, algorithm 1.
    """

    def shared(t: Any, updates: Any, params: Any, state: Any) -> dict[str, Any]:
        scale, norm = _manual.scaled_norm(_tree.entries(updates), finite=True)
        one = jnp.ones_like(norm)
        # Norm / scale > max_norm, where neither side overflows.
        large = norm / jnp.maximum(scale, one) > max_norm * jnp.minimum(scale, one)
        return {
            "factor": jnp.where(large, max_norm, one) / jnp.where(large, norm, one),
            "scale": jnp.where(large, scale, one),
        }

    def rule(t, g, p, *, factor, scale):
        return factor * (scale * bounded(g))

    return leafwise(rule, EmptyState, shared=shared)


@transformation
def clip_by_block_rms(threshold: PositiveBound) -> Leafwise:
    """Shrink each leaf's update so that its root mean square is at most the threshold.

    Args:
        threshold: The largest root mean square, in (0, inf], in the unit of the updates.

    References:
        Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, section 6.
    """

    def rule(t, g, p):
        return g / jnp.maximum(1.0, root_mean_square(g) / threshold)

    return leafwise(rule, EmptyState)
