"""A wrapper that takes no step on gradients that would spoil a run."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._core import (
    Constant,
    Count,
    OptState,
    Pair,
    Transform,
    _manual,
    _tree,
    node_of,
    safe_increment,
    transformation,
)
from .._core._kinds import StaticInt
from .._core._numerics import INT32_MAX
from ._step import Step, checked, inner_part, only_state


class GuardState(NamedTuple):
    """The state of `guard`.

    Attributes:
        inner_state: The inner transformation's state.
        accepted: Steps taken, int32 ().
        not_finite: Steps skipped because the norm, or what came out, was not finite, int32 ().
        spikes: Steps skipped because the norm was above the limit, int32 ().
        consecutive: Steps skipped in a row, up to now, int32 ().
        stuck: Whether `max_consecutive` steps in a row have been skipped at any time, bool ().
        norm: The global norm of the last gradients, float32 ().
        norms: Those of the last accepted ones, float32 (window,), the newest at
            (accepted - 1) mod window; None without `max_deviation`.
    """

    inner_state: OptState
    accepted: Int[Array, ""]
    not_finite: Int[Array, ""]
    spikes: Int[Array, ""]
    consecutive: Int[Array, ""]
    stuck: Bool[Array, ""]
    norm: Float[Array, ""]
    norms: Float[Array, " window"] | None


class GuardReport(NamedTuple):
    """What `guard_report` reads; prints as a sentence where the numbers are concrete.

    Attributes:
        steps: Steps in all, int32 ().
        skipped: Of these skipped, int32 ().
        not_finite: Of the skipped, those whose norm, or result, was not finite, int32 ().
        spikes: Of the skipped, those whose norm was above the limit, int32 ().
        consecutive: Skipped in a row up to now, int32 ().
        stuck: Whether too many were skipped in a row at any time, bool ().
        norm: The global norm of the last gradients, float32 ().
    """

    steps: Int[Array, ""]
    skipped: Int[Array, ""]
    not_finite: Int[Array, ""]
    spikes: Int[Array, ""]
    consecutive: Int[Array, ""]
    stuck: Bool[Array, ""]
    norm: Float[Array, ""]

    def __str__(self) -> str:
        if any(isinstance(x, Tracer) or jnp.ndim(x) for x in self):
            return repr(self)
        text = (
            f"{int(self.skipped)} of {int(self.steps)} steps skipped "
            f"({int(self.not_finite)} not finite, {int(self.spikes)} above the limit), "
            f"{int(self.consecutive)} in a row now; last norm {float(self.norm):.4g}"
        )
        return f"{text}; stuck" if bool(self.stuck) else text


@transformation
def guard(
    inner: Transform,
    *,
    max_deviation: Annotated[Any, Constant("(0, inf)")] | None = None,
    window: Annotated[int, StaticInt(2)] = 128,
    max_consecutive: Count = 10,
) -> Pair:
    r"""Take no step that is not finite, or on gradients larger than they have been.

    With the global norm :math:`n_t = \lVert g_t \rVert`, a step is skipped if n is NaN or
    infinite, or if

    .. math:: n_t > \mu + k \max(\sigma, 10^{-6} \mu)

    where μ and σ are the mean and the standard deviation (of the population) of the last
    `window` norms that were accepted, once there are half as many, and at least two. It is also
    skipped if what comes out is not finite: an update, or a parameter with it where parameters
    are given, or if something in the state becomes NaN. (A second moment may become infinite; its
    entry then stands still.) A skipped step has updates of zero and leaves the inner state as it
    is, bit for bit. Under jit the inner update is computed twice, first only to look at it, which
    reads the state once more and takes no memory.

    Nothing is raised and no NaN is let through, ever: after `max_consecutive` skipped steps in a
    row, `stuck` in the state becomes True and stays so. Look at it now and then
    (`guard_report`), for the window does not learn from what is skipped: after a lasting jump of
    the norm all steps are.

    Args:
        inner: The transformation.
        max_deviation: k > 0, in standard deviations, 6 for example; None: only what is not finite
            is skipped.
        window: How many accepted norms are kept, >= 2.
        max_consecutive: How many skipped steps in a row are too many, >= 1.

    State: `GuardState`; 4 bytes for each norm of the window, beside the inner state.

    References:
        Groeneveld et al., "2 OLMo 2 Furious", 2024, arXiv:2501.00656, and its SkipStepOptimizer,
        which also looks at the loss and keeps the norms of skipped steps.

    >>> import adaptax, jax.numpy as jnp
    >>> tx = adaptax.guard(adaptax.adam(1e-3), max_deviation=6.0)
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
    >>> print(updates, adaptax.guard_report(state))
    [0. 0.] 1 of 1 steps skipped (1 not finite, 0 above the limit), 1 in a row now; last norm nan
    """
    node = node_of(inner)

    def init(params: Any) -> GuardState:
        zero = jnp.zeros((), jnp.int32)
        real = _tree.compute_dtype(params)
        return GuardState(
            inner_state=node.init(params),
            accepted=zero,
            not_finite=zero,
            spikes=zero,
            consecutive=zero,
            stuck=jnp.array(False),
            norm=jnp.zeros((), real),
            norms=None if max_deviation is None else jnp.zeros(window, real),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked("guard", GuardState, state)
        norm = _manual.norm(_tree.entries(updates), state.norm).astype(state.norm.dtype)
        finite = jnp.isfinite(norm)
        norms, accept = state.norms, finite
        if max_deviation is not None:
            accept &= norm <= _limit(norms, state.accepted, max_deviation)
        step = Step(node, updates, state.inner_state, params, extra_args)
        new, inner_state, accepted = step.taken_if_sound(accept, state.accepted)
        finite &= accepted | ~accept
        if max_deviation is not None:
            place = state.accepted % window
            norms = jnp.where(accepted, jnp.asarray(norms).at[place].set(norm), norms)
        consecutive = jnp.where(accepted, 0, safe_increment(state.consecutive))
        return new, GuardState(
            inner_state=inner_state,
            accepted=_counted(state.accepted, accepted),
            not_finite=_counted(state.not_finite, ~finite),
            spikes=_counted(state.spikes, finite & ~accepted),
            consecutive=consecutive,
            stuck=state.stuck | (consecutive >= max_consecutive),
            norm=norm,
            norms=norms,
        )

    return Pair(init, update, inner_part(inner))


def _counted(count: Any, happened: Any) -> Any:
    return jnp.where(happened, safe_increment(count), count)


def _sum(a: Any, b: Any) -> Any:
    """The sum of two counts, staying at the largest int32."""
    return a + jnp.minimum(b, INT32_MAX - a)


@jax.jit
def _limit(norms: Any, accepted: Any, deviation: Any) -> Any:
    """The largest norm to be accepted after these; infinite while there are too few."""
    (window,) = norms.shape
    number = jnp.minimum(accepted, window)
    total = jnp.maximum(number, 1).astype(norms.dtype)
    peak = jnp.max(norms)
    unit = jnp.where(peak > 0, peak, jnp.ones_like(peak))  # squares of norms may overflow
    x = norms / unit  # zero where there are none yet
    mean = jnp.sum(x) / total
    there = jnp.arange(window, dtype=number.dtype) < number
    deviations = jnp.sqrt(jnp.sum(jnp.where(there, jnp.square(x - mean), 0)) / total)
    # Norms that are all equal differ by their rounding; that is no spike.
    deviations = jnp.maximum(deviations, 1e-6 * mean)
    limit = unit * (mean + jnp.asarray(deviation, norms.dtype) * deviations)
    return jnp.where(number >= max(2, window // 2), limit, jnp.inf)


def guard_report(state: OptState) -> GuardReport:
    """What a guard has done, read from any state that it is part of.

    Args:
        state: A state with one `guard` in it, at any depth.

    Returns:
        Its counts. It prints as a sentence.

    Raises:
        ValueError: There is no guard's state in it, or more than one.
    """
    found = only_state("guard_report", state, GuardState)
    skipped = _sum(found.not_finite, found.spikes)
    return GuardReport(
        steps=_sum(found.accepted, skipped),
        skipped=skipped,
        not_finite=found.not_finite,
        spikes=found.spikes,
        consecutive=found.consecutive,
        stuck=found.stuck,
        norm=found.norm,
    )
