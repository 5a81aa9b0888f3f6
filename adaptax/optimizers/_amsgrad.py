"""AMSGrad: Adam with a divisor that never shrinks."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    DecayLike,
    DTypeLike,
    GradientTransformation,
    Leafwise,
    LearningRate,
    NonNegative,
    Slot,
    abs_sq,
    average,
    chain,
    debias,
    leafwise,
    root,
    transformation,
)
from ..transforms import scale_by_learning_rate


class ScaleByAmsgradState(NamedTuple):
    """The state of `scale_by_amsgrad`.

    Attributes:
        count: Steps done, int32 ().
        mu: As in `ScaleByAdamState`.
        nu: As in `ScaleByAdamState`.
        nu_max: The largest ν so far.
    """

    count: Int[Array, ""]
    mu: ArrayTree
    nu: ArrayTree
    nu_max: ArrayTree


@transformation
def scale_by_amsgrad(
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    correct_after_max: bool = False,
) -> Leafwise:
    r"""As `scale_by_adam`, with a divisor that never shrinks.

    .. math::

        \begin{aligned}
        \bar\nu_t &= \max(\bar\nu_{t-1}, \hat\nu_t), \qquad \bar\nu_0 = 0 \\
        u_t &= \hat\mu_t / (\sqrt{\bar\nu_t + \bar\varepsilon} + \varepsilon)
        \end{aligned}

    Two orders are published. This one, the default here and in optax, takes the maximum of the
    corrected :math:`\hat\nu_t`: the first steps count in full. With ``correct_after_max`` the
    maximum is of the uncorrected :math:`\nu_t`, and is corrected afterwards,
    :math:`\bar\nu_t / (1 - \beta_2^t)`, as in PyTorch. The paper corrects neither: set both
    ``bias_correction`` flags to False.

    Args:
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root, in the unit of g.
        eps_root: ε̄ >= 0, inside the root, in the unit of g².
        mu_dtype: The dtype in which μ is stored; None: the parameter's, float32 for 16 bits.
        bias_correction_mu: Correct μ.
        bias_correction_nu: Correct ν.
        correct_after_max: Correct the maximum instead of what it is taken of.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Reddi et al., "On the Convergence of Adam and Beyond", 2018, arXiv:1904.09237,
        algorithm 2.
    """
    before = bias_correction_nu and not correct_after_max
    after = bias_correction_nu and correct_after_max

    def rule(t, g, p, mu, nu, nu_max):
        mu = average(g, mu, b1, infinite="")  # beside an infinite ν
        nu = average(abs_sq(g), nu, b2, infinite="+")
        m = debias(mu, b1, t) if bias_correction_mu else mu
        nu_max = jnp.maximum(nu_max, debias(nu, b2, t) if before else nu)
        v = debias(nu_max, b2, t) if after else nu_max
        return m / (root(v + eps_root) + eps), mu, nu, nu_max

    return leafwise(
        rule,
        ScaleByAmsgradState,
        mu=Slot(dtype=mu_dtype),
        nu=Slot(real=True),
        nu_max=Slot(real=True),
    )


@transformation
def amsgrad(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    correct_after_max: bool = False,
) -> GradientTransformation:
    """AMSGrad: `adam` with a divisor that never shrinks; see `scale_by_amsgrad`.

    Args:
        learning_rate: α, a number or a schedule.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype in which μ is stored; None: the parameter's, float32 for 16 bits.
        bias_correction_mu: Correct μ.
        bias_correction_nu: Correct ν.
        correct_after_max: Correct the maximum instead of what it is taken of: PyTorch's order.

    References:
        Reddi et al., "On the Convergence of Adam and Beyond", 2018, arXiv:1904.09237.
    """
    return chain(
        scale_by_amsgrad(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            bias_correction_mu,
            bias_correction_nu,
            correct_after_max=correct_after_max,
        ),
        scale_by_learning_rate(learning_rate),
    )
