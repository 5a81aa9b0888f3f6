"""Keeping updates small."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._core import (
    EmptyState,
    Leafwise,
    NonNegative,
    Positive,
    _tree,
    global_norm,
    leafwise,
    root_mean_square,
    transformation,
    widen,
)


@transformation
def clip(max_delta: NonNegative) -> Leafwise:
    """Clip each entry to [-max_delta, max_delta]. NaN stays NaN.

    Args:
        max_delta: The largest magnitude, >= 0, in the unit of the updates.
    """
    return leafwise(lambda t, g, p: jnp.clip(g, -max_delta, max_delta), EmptyState)


@transformation
def clip_by_global_norm(max_norm: NonNegative) -> Leafwise:
    r"""Shrink all updates together so that their 2-norm is at most :math:`c`.

    .. math::

        u = g \cdot \min(1, c / \lVert g \rVert), \qquad
        \lVert g \rVert = \sqrt{\textstyle\sum_{\text{leaves}} \sum_i |g_i|^2}

    The norm is accumulated in float32 or wider and does not overflow where it is
    representable. Updates whose norm is at most c pass unchanged, bit for bit; so do zeros.

    Where the norm is infinite, the result is the limit: with k infinite entries (real and
    imaginary parts count by themselves), these become :math:`\pm c / \sqrt{k}` and all others
    0; if all are finite but the norm is beyond the dtype, the norm of the result is still c.
    Updates with a NaN pass unchanged, so that it shows.

    Args:
        max_norm: c >= 0, in the unit of the updates.

    References:
        Pascanu et al., "On the difficulty of training recurrent neural networks", 2013,
        arXiv:1211.5063, algorithm 1.
    """

    def shared(t: Any, updates: Any, params: Any, state: Any) -> dict[str, Any]:
        arrays = [jnp.asarray(x) for x in jax.tree.leaves(updates) if not _tree.is_float0(x)]
        factor, unit, share = _factors(arrays, max_norm)
        return {"factor": factor, "unit": unit, "share": share}

    def rule(t, g, p, *, factor, unit, share):
        def part(x: Any) -> Any:
            return jnp.where(jnp.isinf(x), jnp.where(x > 0, share, -share), factor * (unit * x))

        return jax.lax.complex(part(g.real), part(g.imag)) if jnp.iscomplexobj(g) else part(g)

    return leafwise(rule, EmptyState, shared=shared)


@jax.jit
def _factors(arrays: Sequence[Any], max_norm: Any) -> tuple[Any, Any, Any]:
    """What finite entries are multiplied by, in two steps, and what infinite ones become.

    There is a second pass over the data only where the norm is not finite.
    """
    norm = global_norm(arrays)
    max_norm = jnp.asarray(max_norm, norm.dtype)
    one, inf = jnp.ones_like(norm), jnp.full_like(norm, jnp.inf)

    def ordinary() -> tuple[Any, Any, Any]:
        return jnp.where(norm > max_norm, max_norm / norm, one), one, inf

    def limit() -> tuple[Any, Any, Any]:
        # In this unit no finite entry's square overflows, and only what vanishes anyway vanishes.
        unit = jnp.full_like(norm, 2.0**-100 if norm.dtype == jnp.float32 else 2.0**-800)
        every = [_sums(part, unit) for x in arrays for part in _parts(x)]
        squares, infinities = (sum(column) for column in zip(*every, strict=True))
        share = max_norm / jnp.sqrt(jnp.maximum(infinities, one))
        factor = jnp.where(infinities > 0, 0, max_norm / jnp.sqrt(squares))
        nan = jnp.isnan(squares)
        return jnp.where(nan, one, factor), jnp.where(nan, one, unit), jnp.where(nan, inf, share)

    if not arrays:
        return ordinary()
    return jax.lax.cond(jnp.isfinite(norm) | jnp.isinf(max_norm), ordinary, limit)


def _parts(x: Any) -> tuple[Any, ...]:
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


@jax.jit
def _sums(x: Any, unit: Any) -> tuple[Any, Any]:
    """The sum of squares, in a unit, and the number of infinities."""
    squares = jnp.sum(jnp.square(unit * widen(x, unit.dtype)))
    return squares, jnp.sum(jnp.isinf(x), dtype=unit.dtype)


@transformation
def clip_by_block_rms(threshold: Positive) -> Leafwise:
    """Shrink each leaf's update so that its root mean square is at most the threshold.

    Args:
        threshold: The largest root mean square, > 0, in the unit of the updates.

    References:
        Shazeer & Stern, "Adafactor", 2018, arXiv:1804.04235, section 6.
    """

    def rule(t, g, p):
        return g / jnp.maximum(1.0, root_mean_square(g) / threshold)

    return leafwise(rule, EmptyState)
