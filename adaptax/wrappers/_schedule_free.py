"""Schedule-free learning: averaging in the place of a learning rate schedule."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._core import (
    ArrayTree,
    Constant,
    DecayLike,
    DTypeLike,
    GradientTransformation,
    LearningRate,
    Node,
    NonNegative,
    Pair,
    Real,
    Transform,
    _checks,
    _tree,
    chain,
    compute_dtype,
    node_of,
    safe_increment,
    transformation,
    widen,
)
from .._core._kinds import StaticInt
from .._core._numerics import mixing
from ..optimizers._rms import scale_by_rms
from ..optimizers._sgd import sgd
from ..schedules import linear_schedule
from ..transforms import add_decayed_weights, scale_by_learning_rate
from ._shared import scalar, side_by_side, widened

Interpolation = Annotated[Any, Constant("[0, 1]")]
Power = Annotated[Any, Constant("[0, inf)")]
Steps = Annotated[int, StaticInt(0)]


class ScheduleFreeState(NamedTuple):
    """The state of `schedule_free`.

    Attributes:
        b1: β, float32 or wider ().
        weight_sum: The sum of all weights so far, likewise.
        step_count: The number of the next step, int32 (), from 1.
        max_lr: The largest learning rate so far, float32 or wider ().
        base_optimizer_state: The state of the base optimizer.
        z: The iterates of the base optimizer, like the parameters, float32 or wider unless asked
            otherwise. If β is 0, where they are the parameters, the average x.
    """

    b1: Float[Array, ""]
    weight_sum: Float[Array, ""]
    step_count: Int[Array, ""]
    max_lr: Float[Array, ""]
    base_optimizer_state: Any
    z: ArrayTree


def averaged(b1: Any, y: Any, z: Any) -> Any:
    """x, from y = (1 - β) z + β x; where β is 0, what is stored as z."""
    apart = (1 - b1) / jnp.where(b1 == 0, 1, b1)
    return jnp.where(b1 == 0, z, y + apart * (y - z))


@jax.jit
def _weighed(max_lr: Any, weight_sum: Any, rate: Any, power: Any) -> tuple[Any, Any, Any]:
    """The largest rate, the sum of weights, and the share of this step's weight in it."""
    largest = jnp.maximum(max_lr, jnp.asarray(rate, max_lr.dtype))
    weight = largest ** jnp.asarray(power, max_lr.dtype)
    total = weight_sum + weight
    share = jnp.where(total == 0, 0, weight / jnp.where(total == 0, 1, total))
    return largest, total, share


@jax.jit
def _step(b1: Any, share: Any, u: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """The update of y and the next z, of one leaf."""
    dtypes = u.dtype, z.dtype
    real = compute_dtype(u.dtype, y.dtype, z.dtype)
    b1, share = (jnp.asarray(n, real) for n in (b1, share))
    u, y, z = (widen(x, real) for x in (u, y, z))
    with mixing(u, y, z):
        x = averaged(b1, y, z)
        old = jnp.where(b1 == 0, y, z)
        new = widen((old + u).astype(dtypes[1]), real)
        toward_new = share * (new - x)
        # y' - y without subtracting them
        move = b1 * toward_new + (1 - b1) * (new - old)
        kept = jnp.where(b1 == 0, x + toward_new, new)
    return move.astype(dtypes[0]), kept.astype(dtypes[1])


@transformation
def schedule_free(
    base_optimizer: Transform,
    learning_rate: LearningRate,
    b1: Interpolation = 0.9,
    weight_lr_power: Power = 2.0,
    state_dtype: DTypeLike | None = None,
) -> Node:
    r"""Train without a schedule: evaluate at an average, take gradients between it and the end.

    .. math::

        \begin{aligned}
        y_t &= (1 - \beta)\, z_t + \beta\, x_t \\
        z_{t+1} &= z_t + u(\nabla f(y_t)) \\
        x_{t+1} &= (1 - c_t)\, x_t + c_t\, z_{t+1}, \qquad
        c_t = \gamma_t^r \Big/ \sum_{i \le t} \gamma_i^r, \quad
        \gamma_t = \max_{i \le t} \alpha_i
        \end{aligned}

    with :math:`z_1 = x_1 = y_1`. The parameters of the training loop are y; evaluate with x,
    which `eval_params` gives. β takes the place of momentum, so the base optimizer should have
    none: `schedule_free_adamw` and `schedule_free_sgd` are put together that way. A learning
    rate may warm up, but need not decay. State: one array a parameter, z, beside the base's.

    x is not stored but recovered from y and z, and collects the roundings of y, over β. So a
    small β > 0 costs digits, and so do 16-bit parameters: x does not move by less than their
    rounding. At β = 0, where y is z, x itself is stored, in the field `z`.

    Args:
        base_optimizer: What makes u of the gradients, with the learning rate in it.
        learning_rate: α, the base's, a number or a schedule with a warm-up; for the weights.
        b1: β, in [0, 1]; 0 averages the base's iterates without a say in its training, 1 takes
            the gradients at the average.
        weight_lr_power: r >= 0, how the weight in the average grows with the learning rate.
        state_dtype: The dtype of z; None: the parameter's, float32 for 16 bits.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682, equations 2 to 4 and
        section 4.2 for the weights; the largest learning rate so far, as in the authors' code,
        so that a decaying one does not take weight from later steps.
    """
    node = node_of(base_optimizer)

    def init(params: Any) -> ScheduleFreeState:
        real = _tree.compute_dtype(params)
        return ScheduleFreeState(
            b1=jnp.array(scalar("schedule_free", "b1", b1), real),
            weight_sum=jnp.zeros((), real),
            step_count=jnp.ones((), jnp.int32),
            max_lr=jnp.zeros((), real),
            base_optimizer_state=node.init(params),
            z=jax.tree.map(lambda p: widened(p, state_dtype), params),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ScheduleFreeState]:
        if not isinstance(state, ScheduleFreeState):
            raise _checks.wrong_state("schedule_free", "ScheduleFreeState", state)
        if params is None:
            raise _checks.needs_params("schedule_free")
        dtypes = _tree.dtypes(updates)
        rate = learning_rate
        if callable(rate):  # a schedule counts the steps done
            rate = rate(state.step_count - 1)
        largest, total, share = _weighed(
            state.max_lr,
            state.weight_sum,
            scalar("schedule_free", "learning_rate", rate),
            scalar("schedule_free", "weight_lr_power", weight_lr_power),
        )
        base = state.base_optimizer_state
        updates, base = node.update(updates, base, params, **extra_args)
        trees = {"updates": updates, "params": params, "state.z": state.z}
        columns, structure = side_by_side("schedule_free", trees)
        beta = scalar("schedule_free", "b1", b1)
        moves, kept = [], []
        for u, y, z in zip(*columns, strict=True):
            if not any(a is None or _tree.is_float0(a) for a in (u, y, z)) and _tree.is_inexact(z):
                u, z = _step(beta, share, jnp.asarray(u), jnp.asarray(y), jnp.asarray(z))
            moves.append(u)
            kept.append(z)
        moves = _tree.round_to(structure.unflatten(moves), dtypes)
        count = safe_increment(state.step_count)
        z = structure.unflatten(kept)
        return moves, ScheduleFreeState(state.b1, total, count, largest, base, z)

    def parts(state: Any) -> Any:
        return {"": (base_optimizer, None if state is None else state.base_optimizer_state)}

    return Pair(init, update, parts)


def _warmed_up(function: str, learning_rate: Any, steps: int | None) -> Any:
    if not steps:
        return learning_rate
    if callable(learning_rate):
        wanted = "a number where warmup_steps is given"
        raise _checks.wrong_kind(function, "learning_rate", wanted, learning_rate)
    return linear_schedule(0.0, learning_rate, steps)


@transformation
def schedule_free_sgd(
    learning_rate: LearningRate = 1.0,
    warmup_steps: Steps | None = None,
    b1: Interpolation = 0.9,
    weight_decay: Real | None = None,
    weight_lr_power: Power = 2.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """Gradient descent, `schedule_free`.

    Args:
        learning_rate: α, a number >= 0, or without warmup_steps a schedule.
        warmup_steps: For how many steps the learning rate rises from 0 along a line.
        b1: β, in [0, 1], in the place of momentum.
        weight_decay: λ, at y, multiplied by the learning rate; None: none.
        weight_lr_power: r >= 0.
        state_dtype: The dtype of z.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.schedule_free_sgd(0.5)
    >>> w = jnp.array(4.0)
    >>> state = tx.init(w)
    >>> for _ in range(100):
    ...     updates, state = tx.update(w - 1.0, state, w)  # of (w - 1)² / 2
    ...     w = adaptax.apply_updates(w, updates)
    >>> adaptax.eval_params(state, w).round(2)
    Array(1., dtype=float32)
    """
    learning_rate = _warmed_up("schedule_free_sgd", learning_rate, warmup_steps)
    base = sgd(learning_rate)
    if weight_decay is not None:
        base = chain(add_decayed_weights(weight_decay), base)
    return schedule_free(base, learning_rate, b1, weight_lr_power, state_dtype)


@transformation
def schedule_free_adamw(
    learning_rate: LearningRate = 0.0025,
    warmup_steps: Steps | None = None,
    b1: Interpolation = 0.9,
    b2: DecayLike = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Real = 0.0,
    weight_lr_power: Power = 2.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """AdamW without its momentum, `schedule_free`; 8 bytes of state a parameter.

    Args:
        learning_rate: α, a number >= 0, or without warmup_steps a schedule.
        warmup_steps: For how many steps the learning rate rises from 0 along a line.
        b1: β, in [0, 1], in the place of momentum.
        b2: β₂, in [0, 1).
        eps: ε >= 0, outside the root.
        weight_decay: λ, at y, multiplied by the learning rate.
        weight_lr_power: r >= 0.
        state_dtype: The dtype of z.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682, algorithm 1, with the
        bias correction in the update and not in the weights of the average.
    """
    learning_rate = _warmed_up("schedule_free_adamw", learning_rate, warmup_steps)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
    return schedule_free(base, learning_rate, b1, weight_lr_power, state_dtype)
