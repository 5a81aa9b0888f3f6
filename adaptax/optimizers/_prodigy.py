"""Prodigy: Adam that finds its own learning rate from how far it has come."""

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._core import (
    ArrayTree,
    Decay,
    DecayLike,
    Leafwise,
    LearningRate,
    NonNegative,
    Number,
    Numbers,
    Positive,
    Real,
    Slot,
    _tree,
    abs_sq,
    average,
    compute_dtype,
    leafwise,
    root,
    saturated,
    transformation,
    weight,
    widen,
)


class ProdigyState(NamedTuple):
    """The state of `prodigy`.

    Attributes:
        exp_avg: m, the average of d·g, like the parameters, float32 or wider.
        exp_avg_sq: v, the average of d²|g|², likewise, real, >= 0.
        grad_sum: s, the weighted sum of gradients, like the parameters, float32 or wider.
        params0: The parameters at `init`.
        estim_lr: d, float32 ().
        numerator_weighted: r, float32 ().
        count: Steps done, int32 ().
    """

    exp_avg: ArrayTree
    exp_avg_sq: ArrayTree
    grad_sum: ArrayTree
    params0: ArrayTree
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]
    count: Int[Array, ""]


@jax.jit
def _inner_product(g: Any, p0: Any, p: Any) -> Any:
    """⟨g, w₀ - w⟩ of one leaf."""
    real = compute_dtype(g.dtype, p.dtype)
    g, p0, p = (widen(x, real) for x in (g, p0, p))
    return jnp.sum(
        jnp.real(saturated(g).conj() * (p0 - p))
    )  # a dot has 8 bits on TPUs, and no sharding


@jax.jit
def _l1_norm(b3: Any, push: Any, g: Any, s: Any) -> Any:
    """‖s‖₁ of one leaf after this step."""
    real = compute_dtype(g.dtype, s.dtype)
    b3, push = jnp.asarray(b3, real), jnp.asarray(push, real)
    return jnp.sum(jnp.abs(b3 * widen(s, real) + push * saturated(widen(g, real))))


@transformation
def prodigy(
    learning_rate: LearningRate = 1.0,
    betas: Annotated[tuple[Any, Any], Numbers(Number("[0, 1)", decay=True), 2)] = (0.9, 0.999),
    beta3: DecayLike | None = None,
    eps: NonNegative = 1e-8,
    estim_lr0: Positive = 1e-6,
    estim_lr_coef: Positive = 1.0,
    weight_decay: Real = 0.0,
    safeguard_warmup: bool = False,
) -> Leafwise:
    r"""Prodigy: Adam whose learning rate is an estimate of the distance to the solution.

    .. math::

        \begin{aligned}
        \alpha_t &= d_t\, \gamma_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t) \\
        r_{t+1} &= \beta_3 r_t + \tfrac{d_t}{d_0} \alpha_t \langle g_t, w_0 - w_t \rangle, \qquad
        s_{t+1} = \beta_3 s_t + \tfrac{d_t}{d_0} \alpha_t\, g_t \\
        d_{t+1} &= \max(d_t,\; c\, r_{t+1} / \lVert s_{t+1} \rVert_1) \\
        m_{t+1} &= \beta_1 m_t + (1 - \beta_1)\, d_t g_t, \qquad
        v_{t+1} = \beta_2 v_t + (1 - \beta_2)\, d_t^2 |g_t|^2 \\
        w_{t+1} &= w_t - \alpha_t \bigl(m_{t+1} / (\sqrt{v_{t+1}} + d_{t+1} \varepsilon)
            + \lambda w_t\bigr)
        \end{aligned}

    Inner product and norm are over all leaves. The learning rate γ is a schedule around 1. With
    ``safeguard_warmup`` s takes :math:`d_t` in the place of :math:`\alpha_t`. State: four arrays
    a parameter.

    Args:
        learning_rate: γ, a number or a schedule.
        betas: (β₁, β₂), in [0, 1).
        beta3: β₃, in [0, 1); None: √β₂.
        eps: ε >= 0, relative to d.
        estim_lr0: d₀ > 0, far below the right learning rate.
        estim_lr_coef: c > 0.
        weight_decay: λ.
        safeguard_warmup: Keep a warm-up of γ out of the estimate.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Mishchenko & Defazio, "Prodigy", 2023, arXiv:2306.06101, the Adam version, with bias
        correction and the authors' ε (relative to the new d). A step whose gradients have all
        been 0 leaves d as it is.
    """
    b1, b2 = (Decay.of(b) for b in betas)
    b3 = Decay.of(beta3) if beta3 is not None else b2.root()

    def shared(t: Any, updates: Any, params: Any, state: ProdigyState) -> dict[str, Any]:
        d = state.estim_lr
        rate = d * learning_rate * jnp.sqrt(weight(b2, t)) / weight(b1, t)
        push = (d if safeguard_warmup else rate) * d / estim_lr0
        come = _tree.total(_inner_product, updates, state.params0, params, like=d)
        r = b3.value * state.numerator_weighted + rate * d / estim_lr0 * come
        after = functools.partial(_l1_norm, b3.value, push)
        norm = _tree.total(after, updates, state.grad_sum, like=d)
        seen = norm > 0
        found = jnp.where(seen, estim_lr_coef * r / jnp.where(seen, norm, 1.0), 0.0)
        return {
            "estim_lr": jnp.maximum(d, found),
            "numerator_weighted": r,
            "d": d,
            "rate": rate,
            "push": push,
        }

    def rule(t, g, p, m, v, s, p0, *, estim_lr, numerator_weighted, d, rate, push):
        g = saturated(g)
        scaled = d * g
        m = average(scaled, m, b1)
        v = average(abs_sq(scaled), v, b2, infinite="+")
        s = b3.value * s + push * g
        return -rate * (m / (root(v) + estim_lr * eps) + weight_decay * p), m, v, s, p0

    return leafwise(
        rule,
        ProdigyState,
        needs_params=True,
        shared=shared,
        scalars={"estim_lr": estim_lr0, "numerator_weighted": 0.0},
        exp_avg=Slot(),
        exp_avg_sq=Slot(real=True),
        grad_sum=Slot(),
        params0=Slot(make=lambda param, dtype: jnp.asarray(param)),
    )
