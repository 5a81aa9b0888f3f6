"""Averages of the parameters along the way: exponential and with equal weights."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    Count,
    Decay,
    DecayLike,
    Node,
    Pair,
    Transform,
    _checks,
    _manual,
    _tree,
    apply_updates,
    compute_dtype,
    node_of,
    safe_increment,
    transformation,
    weight,
    widen,
)
from .._core._kinds import StaticInt
from ._shared import scalar, side_by_side, toward, widened

Start = Annotated[int, StaticInt(0)]


class AverageState(NamedTuple):
    """The state of `ema_params` and `swa`.

    Attributes:
        count: Steps done, int32 ().
        n_averaged: How many parameters the average has seen, int32 ().
        average: The average, like the parameters, float32 or wider; the initial parameters
            before it has seen any. Integers are copied.
        inner_state: The state of what is wrapped.
    """

    count: Int[Array, ""]
    n_averaged: Int[Array, ""]
    average: ArrayTree
    inner_state: Any


# The share that the newest parameters get of the average: of n seen before (n >= 1), and numbers.


def _equal(n: Any) -> Any:
    return 1 / (n + 1)


def _constant(n: Any, decay: Decay) -> Any:
    return jnp.broadcast_to(decay.complement, n.shape)


def _debiased(n: Any, decay: Decay) -> Any:
    return decay.complement / weight(decay, n + 1)


def _warmed_up(n: Any, decay: Decay) -> Any:
    return jnp.maximum(decay.complement, 9 / (10 + n))  # 1 - min(d, (1 + n) / (10 + n))


@functools.partial(jax.jit, static_argnames=("share", "start", "every"))
def _next(
    params: list[Any],
    mean: list[Any],
    count: Any,
    n: Any,
    numbers: tuple[Any, ...],
    *,
    share: Callable[..., Any],
    start: int,
    every: int,
) -> tuple[Any, Any, list[Any]]:
    """Count, number and average after this step."""
    count = safe_increment(count)

    def averaged() -> tuple[Any, list[Any]]:
        real = jnp.result_type(float, *jax.tree.leaves(numbers))
        part = share(n.astype(real), *numbers)
        return safe_increment(n), [
            _mixed(p, m, part, n == 0) for p, m in zip(params, mean, strict=True)
        ]

    if start <= 1 and every == 1:
        return count, *averaged()
    due = (count >= start) & ((count - start) % every == 0)
    return count, *_manual.cond(due, averaged, lambda: (n, mean))


@jax.jit
def _mixed(p: Any, mean: Any, part: Any, first: Any) -> Any:
    if not _tree.is_inexact(p):
        return p
    real = compute_dtype(p.dtype, mean.dtype)
    x = widen(p, real)
    new = toward(x, widen(mean, real), part.astype(real))
    return jnp.where(first, x, new).astype(mean.dtype)


def _averaging(
    where: str,
    inner: Any,
    share: Callable[..., Any],
    numbers: Callable[[Any], tuple[Any, ...]],
    start: int,
    every: int,
) -> Node:
    node = node_of(inner)

    def init(params: Any) -> AverageState:
        zero = jnp.zeros((), jnp.int32)
        mean = jax.tree.map(widened, params)
        return AverageState(zero, jnp.zeros_like(zero), mean, node.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, AverageState]:
        if not isinstance(state, AverageState):
            raise _checks.wrong_state(where, "AverageState", state)
        if params is None:
            raise _checks.needs_params(where)
        updates, inner_state = node.update(updates, state.inner_state, params, **extra_args)
        new = apply_updates(params, updates)  # what the caller gets: rounded to its dtype
        trees = {"params": new, "state.average": state.average}
        (leaves, mean), structure = side_by_side(where, trees)
        here = [i for i, p in enumerate(leaves) if p is not None and mean[i] is not None]
        count, n, taken = _next(
            [jnp.asarray(leaves[i]) for i in here],
            [mean[i] for i in here],
            state.count,
            state.n_averaged,
            numbers(state.count),
            share=share,
            start=start,
            every=every,
        )
        for i, leaf in zip(here, taken, strict=True):
            mean[i] = leaf
        return updates, AverageState(count, n, structure.unflatten(mean), inner_state)

    def parts(state: Any) -> Any:
        return {"": (inner, None if state is None else state.inner_state)}

    return Pair(init, update, parts)


@transformation
def ema_params(
    inner: Transform,
    decay: DecayLike,
    debias: bool = True,
    *,
    warmup: bool = False,
    start: Start = 0,
    every: Count = 1,
) -> Node:
    r"""Keep an exponential average of the parameters, to evaluate with; training is unchanged.

    .. math::

        \bar w_n = d_n\, \bar w_{n-1} + (1 - d_n)\, w_{t_n}, \qquad d_1 = 0

    of the parameters after steps :math:`t_1 < t_2 < \dots`: those t >= ``start`` at which
    ``every`` divides t - ``start``. `eval_params` returns the average, or the parameters
    themselves before the first of those steps. The next decays are:

    ======================  ==========================================  ========================
    option                  :math:`d_n`, n > 1                          as
    ======================  ==========================================  ========================
    ``debias=True``         :math:`d (1 - d^{n-1}) / (1 - d^n)`         Adam's moments
    ``debias=False``        :math:`d`                                   PyTorch's AveragedModel
    ``warmup=True``         :math:`\min(d,\, n / (9 + n))`              TensorFlow, diffusers
    ======================  ==========================================  ========================

    With ``debias`` the weights are exactly :math:`d^{n-i} (1 - d) / (1 - d^n)`: none of them is
    larger for being early. With ``debias=False`` the first parameters weigh
    :math:`d^{n-1}`, for long if d is near one. The warm-up forgets them, faster than debiasing
    does; the weights add up to one by themselves, and ``debias`` says nothing. (TensorFlow
    begins with the initial parameters, instead of those after the first step.)

    The wrapper goes around the whole optimizer: it averages p + u as `apply_updates` rounds it,
    so nothing may change the updates afterwards. State: one array a parameter.

    Args:
        inner: The optimizer.
        decay: d, in [0, 1); 0 keeps the newest. A schedule of the number of steps done works
            with ``debias=False`` or ``warmup``.
        debias: Divide by the weight seen so far.
        warmup: Bound the decay by (1 + n) / (10 + n) after n averaged parameters.
        start: The first step whose result is averaged, counted from 1; 0 as 1 if every is 1.
        every: Average the result of each so-manieth step, >= 1. The average then reaches
            back ``every`` times as many steps.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.
        TypeError: The decay is a schedule that would have to be debiased.

    References:
        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
        Kingma & Ba, "Adam", 2015, arXiv:1412.6980, section 7.2.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.ema_params(adaptax.sgd(1.0), 0.5)
    >>> w = jnp.array(4.0)
    >>> state = tx.init(w)
    >>> for _ in range(2):
    ...     updates, state = tx.update(w / 2, state, w)
    ...     w = adaptax.apply_updates(w, updates)
    >>> w, adaptax.eval_params(state, w)  # (0.25 * 2 + 0.5 * 1) / 0.75
    (Array(1., dtype=float32), Array(1.3333333, dtype=float32))
    """
    if callable(decay) and debias and not warmup:
        wanted = "a number where it is debiased (a schedule takes debias=False or warmup=True)"
        raise _checks.wrong_kind("ema_params", "decay", wanted, decay)

    def numbers(count: Any) -> tuple[Decay]:
        d = Decay.of(decay(count)) if callable(decay) else decay
        return (scalar("ema_params", "decay", d),)

    share = _warmed_up if warmup else _debiased if debias else _constant
    return _averaging("ema_params", inner, share, numbers, start, every)


@transformation
def swa(inner: Transform, start: Start = 0, every: Count = 1) -> Node:
    r"""Keep the average, with equal weights, of the parameters from a step on.

    .. math::

        \bar w_n = \bar w_{n-1} + (w_{t_n} - \bar w_{n-1}) / n

    over the parameters after the steps ``start``, ``start`` + ``every``, ... (from ``every`` on
    if ``start`` is 0). `eval_params` returns the average, or the parameters themselves before
    ``start``. With ``every`` = 1 it is Polyak and Ruppert's average; stochastic weight averaging
    takes ``start`` after the usual training and ``every`` the length of a cycle (or of an
    epoch) of a learning rate that stays high.

    The wrapper goes around the whole optimizer: it averages p + u as `apply_updates` rounds it,
    so nothing may change the updates afterwards. Statistics of batch normalization belong to
    the parameters that they were taken with; take them anew for the average. State: one array a
    parameter.

    Args:
        inner: The optimizer.
        start: The first step whose result is averaged, counted from 1.
        every: Average the result of each so-manieth step from there, >= 1.

    Raises:
        ValueError: A number lies outside its range; at `update`, params are missing.

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
        2018, arXiv:1803.05407, algorithm 1, where ``start`` is the end of the usual training.
        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    return _averaging("swa", inner, _equal, lambda count: (), start, every)
