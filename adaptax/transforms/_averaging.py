"""Running sums and averages of updates."""

from typing import NamedTuple

from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    DecayLike,
    DTypeLike,
    Leafwise,
    Real,
    Slot,
    average,
    leafwise,
    transformation,
)
from .._core import debias as debiased


class TraceState(NamedTuple):
    """The state of `trace`.

    Attributes:
        trace: Σ dⁱ g, like the parameters, float32 or wider.
    """

    trace: ArrayTree


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
        count: Steps done, int32 ().
        ema: The average before debiasing, like the parameters, float32 or wider.
    """

    count: Int[Array, ""]
    ema: ArrayTree


@transformation
def trace(
    decay: Real, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> Leafwise:
    r"""Heavy-ball momentum: a decaying sum of the updates.

    .. math::

        m_t = g_t + d\, m_{t-1}, \quad m_0 = 0; \qquad
        u_t = m_t \;\text{ or, with nesterov, }\; g_t + d\, m_t

    Args:
        decay: d.
        nesterov: Look one step ahead.
        accumulator_dtype: The dtype of the sum; None: the parameter's, float32 for 16 bits.

    References:
        Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
        Sutskever et al., "On the importance of initialization and momentum", 2013.
    """

    def rule(t, g, p, m):
        m = g + decay * m
        return (g + decay * m if nesterov else m), m

    return leafwise(rule, TraceState, trace=Slot(dtype=accumulator_dtype))


@transformation
def ema(
    decay: DecayLike, debias: bool = True, accumulator_dtype: DTypeLike | None = None
) -> Leafwise:
    r"""Replace the updates by their exponential average.

    .. math::

        m_t = d\, m_{t-1} + (1 - d)\, g_t, \quad m_0 = 0; \qquad
        u_t = m_t / (1 - d^t) \;\text{ or, without debias, }\; m_t

    Args:
        decay: d, in [0, 1).
        debias: Divide by the weight seen so far.
        accumulator_dtype: The dtype of the average; None: the parameter's, float32 for 16 bits.

    Raises:
        ValueError: The decay lies outside [0, 1).
    """

    def rule(t, g, p, m):
        m = average(g, m, decay)
        return (debiased(m, decay, t) if debias else m), m

    return leafwise(rule, EmaState, ema=Slot(dtype=accumulator_dtype))
