"""Gradient descent, plain and with momentum."""

from .._core import (
    DTypeLike,
    GradientTransformation,
    LearningRate,
    Real,
    chain,
    identity,
    transformation,
)
from ..transforms import scale_by_learning_rate, trace


@transformation
def sgd(
    learning_rate: LearningRate | None,
    momentum: Real | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    r"""Gradient descent, on mini-batches stochastic.

    .. math::

        w := w - \alpha\, m_t, \qquad m_t = g_t + \mu\, m_{t-1}

    and with ``nesterov``, :math:`w := w - \alpha\, (g_t + \mu\, m_t)`. State: nothing, or one
    array a parameter with momentum.

    Args:
        learning_rate: α, a number or a schedule.
        momentum: μ; None for none.
        nesterov: Look one step ahead.
        accumulator_dtype: The dtype in which m is stored; None: the parameter's, float32 for
            16 bits.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Robbins & Monro, "A Stochastic Approximation Method", 1951.
        Sutskever et al., "On the importance of initialization and momentum", 2013.

    Examples:
        >>> import adaptax, jax.numpy as jnp
        >>> tx = adaptax.sgd(0.5)
        >>> w = jnp.array([1.0, -4.0])
        >>> step, state = tx.update(w, tx.init(w))
        >>> step.tolist()
        [-0.5, 2.0]
    """
    return chain(
        identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype),
        scale_by_learning_rate(learning_rate),
    )
