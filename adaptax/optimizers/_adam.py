"""Adam: momentum over a running root mean square, both corrected for their start at zero."""

from typing import NamedTuple

from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    Decay,
    DecayLike,
    DTypeLike,
    GradientTransformation,
    Leafwise,
    LearningRate,
    MaskLike,
    NonNegative,
    Real,
    Slot,
    abs_sq,
    average,
    chain,
    debias,
    leafwise,
    root,
    transformation,
)
from ..transforms import add_decayed_weights, scale_by_learning_rate


class ScaleByAdamState(NamedTuple):
    """The state of `scale_by_adam`; of `scale_by_adamax`, where ν is a maximum.

    Attributes:
        count: Steps done, int32 ().
        mu: The average of g, like the parameters, float32 or wider unless asked otherwise.
        nu: The average of |g|², likewise, real, >= 0.
    """

    count: Int[Array, ""]
    mu: ArrayTree
    nu: ArrayTree


@transformation
def scale_by_adam(
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> Leafwise:
    r"""Divide an average of the gradients by a running root mean square of them.

    .. math::

        \begin{aligned}
        \mu_t &= \beta_1 \mu_{t-1} + (1 - \beta_1)\, g_t, \qquad \mu_0 = 0 \\
        \nu_t &= \beta_2 \nu_{t-1} + (1 - \beta_2)\, |g_t|^2, \qquad \nu_0 = 0 \\
        \hat\mu_t &= \mu_t / (1 - \beta_1^t), \qquad
        \hat\nu_t = \nu_t / (1 - \beta_2^t) \\
        u_t &= \hat\mu_t / (\sqrt{\hat\nu_t + \bar\varepsilon} + \varepsilon)
        \end{aligned}

    and with ``nesterov``, :math:`\hat\mu_t = \beta_1 \mu_t / (1 - \beta_1^{t+1}) +
    (1 - \beta_1)\, g_t / (1 - \beta_1^t)`. Elementwise. Scaling the loss leaves u unchanged up
    to ε. State: two arrays a parameter.

    Args:
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root, in the unit of g. At 0 (with eps_root 0), an entry whose
            gradients have all been 0 gives 0/0 = NaN.
        eps_root: ε̄ >= 0, inside the root, in the unit of g². Not needed to differentiate through
            gradients of zero: at g = 0, √ν counts as constant, and the slope of the first step is
            1/ε.
        mu_dtype: The dtype in which μ is stored; None: the parameter's, float32 for 16 bits.
        nesterov: Look one step ahead.

    Raises:
        ValueError: A number lies outside its range.

    References:
        Kingma & Ba, "Adam", 2015, arXiv:1412.6980, algorithm 1; ε̄ is added.
        Dozat, "Incorporating Nesterov Momentum into Adam", 2016, algorithm 2 with constant β₁
        and without its extra factor β₂ on ν̂.
    """

    def rule(t, g, p, mu, nu):
        mu = average(g, mu, b1, infinite="")  # beside an infinite ν
        nu = average(abs_sq(g), nu, b2, infinite="+")
        if nesterov:
            d = Decay.of(b1)
            m = d.value * debias(mu, b1, t + 1) + d.complement * debias(g, b1, t)
        else:
            m = debias(mu, b1, t)
        return m / (root(debias(nu, b2, t) + eps_root) + eps), mu, nu

    return leafwise(rule, ScaleByAdamState, mu=Slot(dtype=mu_dtype), nu=Slot(real=True))


@transformation
def adam(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    r"""Adam: momentum and RMSprop together, both corrected for their start at zero.

    .. math::

        \begin{aligned}
        V &:= \beta_1 V + (1 - \beta_1)\, dw, \qquad S := \beta_2 S + (1 - \beta_2)\, dw^2 \\
        \hat V &= V / (1 - \beta_1^t), \qquad \hat S = S / (1 - \beta_2^t) \\
        w &:= w - \alpha\, \hat V / (\sqrt{\hat S} + \varepsilon)
        \end{aligned}

    The first step is α long in each coordinate. α is the number to tune; ε hardly matters.
    `scale_by_adam` has the details.

    Args:
        learning_rate: α, a number or a schedule.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype in which V is stored; None: the parameter's, float32 for 16 bits.
        nesterov: Look one step ahead (`nadam`).

    Raises:
        ValueError: A number lies outside its range.

    References:
        Kingma & Ba, "Adam", 2015, arXiv:1412.6980, algorithm 1.

    Examples:
        >>> import adaptax, jax.numpy as jnp
        >>> tx = adaptax.adam(0.1)
        >>> w = jnp.array([1.0, -4.0])
        >>> step, state = tx.update(w, tx.init(w))
        >>> step.round(3).tolist()
        [-0.10000000149011612, 0.10000000149011612]
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


@transformation
def adamw(
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
) -> GradientTransformation:
    r"""Adam with decoupled weight decay.

    .. math::

        w := w - \alpha \bigl(\hat V / (\sqrt{\hat S} + \varepsilon) + \lambda w\bigr)

    with V̂ and Ŝ as in `adam`. The decay is multiplied by the whole learning rate (as in PyTorch
    and optax; the paper multiplies it by the schedule's factor alone).

    Args:
        learning_rate: α, a number or a schedule.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype in which V is stored; None: the parameter's, float32 for 16 bits.
        weight_decay: λ, a number or a schedule. PyTorch's default is 1e-2.
        mask: Which parameters decay; see `add_decayed_weights`.
        nesterov: Look one step ahead (`nadamw`).

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101,
        algorithm 2.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@transformation
def nadam(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """`adam` with Nesterov's look ahead.

    Args:
        learning_rate: As in `adam`, like all arguments.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype in which V is stored.
        nesterov: True.

    References:
        Dozat, "Incorporating Nesterov Momentum into Adam", 2016; see `scale_by_adam`. PyTorch's
        NAdam has a schedule of β₁ besides.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


@transformation
def nadamw(
    learning_rate: LearningRate | None,
    b1: DecayLike = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Real = 1e-4,
    mask: MaskLike | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """`adamw` with Nesterov's look ahead.

    Args:
        learning_rate: As in `adamw`, like all arguments.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        eps_root: ε̄ >= 0, inside the root.
        mu_dtype: The dtype in which V is stored.
        weight_decay: λ.
        mask: Which parameters decay.
        nesterov: True.

    References:
        Dozat, "Incorporating Nesterov Momentum into Adam", 2016; see `scale_by_adam`.
    """
    return adamw(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov
    )
