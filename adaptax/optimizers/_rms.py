"""RMSprop: divide each gradient by a running root mean square of itself."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    DecayLike,
    GradientTransformation,
    Leafwise,
    LearningRate,
    NonNegative,
    Real,
    Slot,
    abs_sq,
    average,
    chain,
    debias,
    identity,
    leafwise,
    root,
    transformation,
)
from ..transforms import scale_by_learning_rate, trace


class ScaleByRmsState(NamedTuple):
    """The state of `scale_by_rms`.

    Attributes:
        nu: The average of |g|², like the parameters, real, float32 or wider, >= 0.
    """

    nu: ArrayTree


class ScaleByRmsWithCountState(NamedTuple):
    """The state of `scale_by_rms` with bias correction.

    Attributes:
        count: Steps done, int32 ().
        nu: As in `ScaleByRmsState`.
    """

    count: Int[Array, ""]
    nu: ArrayTree


class ScaleByRStdDevState(NamedTuple):
    """The state of `scale_by_stddev`.

    Attributes:
        mu: The average of g, like the parameters, float32 or wider.
        nu: The average of |g|², likewise, real, >= 0.
    """

    mu: ArrayTree
    nu: ArrayTree


class ScaleByRStdDevWithCountState(NamedTuple):
    """The state of `scale_by_stddev` with bias correction.

    Attributes:
        count: Steps done, int32 ().
        mu: As in `ScaleByRStdDevState`.
        nu: As in `ScaleByRStdDevState`.
    """

    count: Int[Array, ""]
    mu: ArrayTree
    nu: ArrayTree


@transformation
def scale_by_rms(
    decay: DecayLike = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Leafwise:
    r"""Divide each gradient by a running root mean square of itself.

    .. math::

        \begin{aligned}
        \nu_t &= \beta \nu_{t-1} + (1 - \beta)\, |g_t|^2, \qquad \nu_0 = s \\
        u_t &= g_t / \sqrt{\hat\nu_t + \varepsilon}
        \end{aligned}

    where :math:`\hat\nu_t` is :math:`\nu_t`, or :math:`\nu_t / (1 - \beta^t)` with bias
    correction; without ``eps_in_sqrt`` the divisor is :math:`\sqrt{\hat\nu_t} + \varepsilon`.
    Elementwise. Scaling the loss leaves u unchanged up to ε. State: one array a parameter.

    Args:
        decay: β, in [0, 1).
        eps: ε >= 0, in the unit of g² inside the root, of g outside. At 0, an entry whose
            gradients have all been 0 gives 0/0 = NaN.
        initial_scale: s >= 0, in the unit of g².
        eps_in_sqrt: Where ε is added.
        bias_correction: Divide ν by the weight seen so far, as Adam does.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Tieleman & Hinton, "Lecture 6.5: rmsprop", 2012; the lecture has no ε.
    """
    state = ScaleByRmsWithCountState if bias_correction else ScaleByRmsState

    def rule(t, g, p, nu):
        nu = average(abs_sq(g), nu, decay, infinite="+")
        v = debias(nu, decay, t) if bias_correction else nu
        return g / (root(v + eps) if eps_in_sqrt else root(v) + eps), nu

    return leafwise(rule, state, nu=Slot(fill=initial_scale, real=True))


@transformation
def scale_by_stddev(
    decay: DecayLike = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Leafwise:
    r"""Divide each gradient by a running standard deviation of itself.

    .. math::

        \begin{aligned}
        \mu_t &= \beta \mu_{t-1} + (1 - \beta)\, g_t, \qquad \mu_0 = 0 \\
        \nu_t &= \beta \nu_{t-1} + (1 - \beta)\, |g_t|^2, \qquad \nu_0 = s \\
        u_t &= g_t / \sqrt{\max(\hat\nu_t - |\hat\mu_t|^2, 0) + \varepsilon}
        \end{aligned}

    with hats and ε as in `scale_by_rms`. The variance is clamped at zero, where rounding can
    take it below. State: two arrays a parameter.

    Args:
        decay: β, in [0, 1).
        eps: ε >= 0, in the unit of g² inside the root, of g outside. A gradient that does not
            vary has variance 0 and is divided by ε (or its root) alone.
        initial_scale: s >= 0, in the unit of g².
        eps_in_sqrt: Where ε is added.
        bias_correction: Divide μ and ν by the weight seen so far.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Graves, "Generating Sequences With Recurrent Neural Networks", 2013, arXiv:1308.0850,
        equations 38 to 40; the clamp is added.
    """
    state = ScaleByRStdDevWithCountState if bias_correction else ScaleByRStdDevState

    def rule(t, g, p, mu, nu):
        mu = average(g, mu, decay)
        nu = average(abs_sq(g), nu, decay, infinite="+")
        m, v = (debias(x, decay, t) if bias_correction else x for x in (mu, nu))
        # Beside an infinite ν the variance is infinite, whatever the mean.
        v = jnp.maximum(v - jnp.minimum(abs_sq(m), float(jnp.finfo(v.dtype).max)), 0.0)
        return g / (root(v + eps) if eps_in_sqrt else root(v) + eps), mu, nu

    return leafwise(rule, state, mu=Slot(), nu=Slot(fill=initial_scale, real=True))


@transformation
def rmsprop(
    learning_rate: LearningRate | None,
    decay: DecayLike = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Real | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    r"""RMSprop: gradient descent, each coordinate scaled by its recent gradients.

    .. math::

        \begin{aligned}
        S &:= \beta S + (1 - \beta)\, dw^2 \\
        w &:= w - \alpha\, dw / \sqrt{S + \varepsilon}
        \end{aligned}

    Steep directions are damped, so that a larger α is safe. The first step is
    :math:`\alpha / \sqrt{1 - \beta}` long in each coordinate (3.2 α at β = 0.9), since S begins
    at 0; ``bias_correction`` makes it α. `scale_by_rms` has the details; with ``centered``,
    `scale_by_stddev`. Momentum follows the learning rate (as in TensorFlow and optax; PyTorch
    has it before, which differs under a schedule).

    Args:
        learning_rate: α, a number or a schedule.
        decay: β, in [0, 1).
        eps: ε >= 0. PyTorch has it outside the root.
        initial_scale: The initial value of S, >= 0.
        eps_in_sqrt: Add ε inside the root.
        centered: Subtract the squared average gradient from S.
        momentum: The decay of a `trace` of the steps; None for none.
        nesterov: Whether that trace looks ahead.
        bias_correction: Divide S by the weight seen so far.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Tieleman & Hinton, "Lecture 6.5: rmsprop", 2012.
        Graves, "Generating Sequences With Recurrent Neural Networks", 2013, arXiv:1308.0850
        (centered).

    Examples:
        >>> import adaptax, jax.numpy as jnp
        >>> tx = adaptax.rmsprop(0.1, decay=0.75)
        >>> w = jnp.array([1.0, -4.0])
        >>> step, state = tx.update(w, tx.init(w))
        >>> step.round(3).tolist()  # α / √(1 - β) against each sign
        [-0.20000000298023224, 0.20000000298023224]
    """
    scaled = scale_by_stddev if centered else scale_by_rms
    return chain(
        scaled(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )
