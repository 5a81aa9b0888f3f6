"""Schedules: functions of the number of steps done, as values.

A schedule goes wherever a learning rate goes. Like a transformation it equals another from an
equal call, and is a pytree whose leaves are its numbers; so a sweep over a schedule's numbers is
a `jax.vmap`. Any function of the step works as a schedule too; it has no leaves.

Steps are counted, compared and subtracted as integers, up to 2^31 - 1; only the fraction of a
transition that is done is a float. Numbers of steps that are traced, such as the leaves of a
transformation that is an argument of a jitted function, have the digits of their dtype: 2^24 in
float32.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ._core import NonNegative, Number, Numbers, Positive, Real, _checks, _steps, schedule


class _Scales(Number):
    """Factors by the step from which they hold; the steps are structure, the factors numbers."""

    def canonical(self, function: str, name: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _checks.wrong_kind(function, name, "a mapping of steps to factors", value)
        for step in value:
            real = isinstance(step, int | float | np.integer | np.floating)
            if isinstance(step, bool) or not real or step != step:
                raise _checks.wrong_kind(function, f"a step of {name}", "a number", step)
        scales = {int(k) if float(k).is_integer() else float(k): v for k, v in value.items()}
        return {
            k: super(_Scales, self).canonical(function, f"{name}[{k}]", scales[k])
            for k in sorted(scales)
        }

    def prepare(self, value: Any) -> Any:
        return value


def _from_zero(step: Any) -> Any:
    """The later of a step and 0; a Python number stays one."""
    return max(step, 0.0) if isinstance(step, float) else jnp.maximum(step, 0)


def _progress(count: Any, begin: Any, steps: Any) -> Any:
    """How much of a transition is done, from 0 to 1; 0 for a transition of no steps."""
    done = jnp.clip(_steps.elapsed(count, begin) / jnp.where(steps > 0, steps, 1), 0.0, 1.0)
    return jnp.where(steps > 0, done, 0.0)


@schedule
def constant_schedule(value: Real) -> Any:
    """The same value at every step.

    Args:
        value: The value.
    """
    return lambda count: value


@schedule
def polynomial_schedule(
    init_value: Real,
    end_value: Real,
    power: NonNegative,
    transition_steps: Real,
    transition_begin: Real = 0,
) -> Any:
    r"""From one value to another along a power of the time.

    .. math::

        \alpha_t = E + (I - E)(1 - s)^P, \qquad
        s = \operatorname{clip}\bigl((t - B) / T,\, 0,\, 1\bigr)

    Args:
        init_value: I.
        end_value: E.
        power: P >= 0.
        transition_steps: T, in steps; 0 or less keeps I forever.
        transition_begin: B, in steps; less than 0 counts as 0.

    >>> from adaptax import polynomial_schedule
    >>> float(polynomial_schedule(1.0, 0.0, power=2, transition_steps=10)(5))
    0.25
    """

    def at(count: Any) -> Any:
        left = 1.0 - _progress(count, _from_zero(transition_begin), transition_steps)
        return (init_value - end_value) * left**power + end_value

    return at


@schedule
def linear_schedule(
    init_value: Real,
    end_value: Real,
    transition_steps: Real,
    transition_begin: Real = 0,
) -> Any:
    """From one value to another along a line: `polynomial_schedule` with power 1.

    Args:
        init_value: The value before.
        end_value: The value after.
        transition_steps: How many steps it takes; 0 or less keeps the first value forever.
        transition_begin: The step at which it begins; less than 0 counts as 0.
    """
    return polynomial_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)


@schedule
def exponential_decay(
    init_value: Real,
    transition_steps: Real,
    decay_rate: NonNegative,
    transition_begin: Real = 0,
    staircase: bool = False,
    end_value: Real | None = None,
) -> Any:
    r"""Multiply by a factor every T steps.

    .. math::

        \alpha_t = I\, r^{\max(t - B,\, 0) / T}

    Args:
        init_value: I.
        transition_steps: T, in steps; 0 or less keeps I forever.
        decay_rate: r >= 0; 0 keeps I forever.
        transition_begin: B, in steps; less than 0 counts as 0.
        staircase: Round the exponent down to whole numbers.
        end_value: A bound: from below where r < 1, else from above.
    """

    def at(count: Any) -> Any:
        begin = _from_zero(transition_begin)
        if staircase:
            exponent = _steps.periods(count, begin, transition_steps)
        else:
            elapsed = jnp.maximum(_steps.elapsed(count, begin), 0)
            exponent = elapsed / jnp.where(transition_steps > 0, transition_steps, 1)
        frozen = jnp.logical_or(transition_steps <= 0, decay_rate == 0)
        value = init_value * jnp.where(frozen, 1.0, decay_rate**exponent)
        if end_value is None:
            return value
        bounded = jnp.where(
            decay_rate < 1,
            jnp.maximum(value, end_value),
            jnp.minimum(value, end_value),
        )
        return jnp.where(frozen, init_value, bounded)

    return at


@schedule
def cosine_decay_schedule(
    init_value: Real, decay_steps: Positive, alpha: Real = 0.0, exponent: Positive = 1.0
) -> Any:
    r"""Down a half period of a cosine.

    .. math::

        \alpha_t = I \bigl((1 - a)\, c^p + a\bigr), \qquad
        c = \tfrac12 \bigl(1 + \cos(\pi \min(t / T, 1))\bigr)

    Args:
        init_value: I.
        decay_steps: T > 0, in steps.
        alpha: a, the last value as a fraction of I.
        exponent: p > 0.

    References:
        Loshchilov & Hutter, "SGDR", 2017, arXiv:1608.03983, equation 5.
    """

    def at(count: Any) -> Any:
        cosine = _half_cosine(_progress(count, 0, decay_steps)) ** exponent
        return init_value * ((1 - alpha) * cosine + alpha)

    return at


def _half_cosine(s: Any) -> Any:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * s))


@schedule
def warmup_cosine_decay_schedule(
    init_value: Real,
    peak_value: Real,
    warmup_steps: NonNegative,
    decay_steps: Positive,
    end_value: Real = 0.0,
    exponent: Positive = 1.0,
) -> Any:
    """Up a line to a peak, then down a half period of a cosine.

    Args:
        init_value: The value at the first step.
        peak_value: The value at the end of the warm-up.
        warmup_steps: The length of the warm-up, in steps, >= 0.
        decay_steps: The length of the whole, warm-up included, in steps.
        end_value: The value at the end and after.
        exponent: The power to which the cosine is taken, > 0.

    Raises:
        ValueError: `decay_steps` is not greater than `warmup_steps`.
    """
    if isinstance(decay_steps, float) and isinstance(warmup_steps, float):
        length = f"({warmup_steps:g}, inf), after warmup_steps"
        if not decay_steps > warmup_steps:
            raise _checks.out_of_range(
                "warmup_cosine_decay_schedule", "decay_steps", length, decay_steps
            )

    def at(count: Any) -> Any:
        up = init_value + (peak_value - init_value) * _progress(count, 0, warmup_steps)
        s = _progress(count, warmup_steps, decay_steps - warmup_steps)
        down = end_value + (peak_value - end_value) * _half_cosine(s) ** exponent
        return jnp.where(_steps.reached(count, warmup_steps), down, up)

    return at


@schedule
def piecewise_constant_schedule(
    init_value: Real,
    boundaries_and_scales: Annotated[Mapping[int, Any], _Scales("[0, inf)")] | None = None,
) -> Any:
    """A value that is multiplied by a factor at each of some steps.

    Args:
        init_value: The value at the first step.
        boundaries_and_scales: `{step: factor}`: from this step on, the value is multiplied by the
            factor, >= 0. A step between two whole ones is reached with the later one.
    """

    def at(count: Any) -> Any:
        value = init_value
        for boundary, factor in (boundaries_and_scales or {}).items():
            value = jnp.where(_steps.reached(count, boundary), value * factor, value)
        return value

    return at


@schedule
def join_schedules(
    schedules: Annotated[Sequence[Any], Numbers(Number("(-inf, inf)"), schedules=True)],
    boundaries: Annotated[Sequence[Any], Numbers(Number("[0, inf)"))],
) -> Any:
    """Schedules one after the other.

    Args:
        schedules: Schedules (or numbers); each begins to count where it begins.
        boundaries: The steps at which the second and later ones begin, rising; one fewer than
            there are schedules.

    Raises:
        ValueError: The numbers of schedules and boundaries don't fit, or the boundaries do
            not rise.
    """
    if len(boundaries) != len(schedules) - 1:
        raise _checks.wrong_number(
            "join_schedules", "boundaries", len(schedules) - 1, len(boundaries)
        )
    known = [b for b in boundaries if isinstance(b, float)]
    if any(a >= b for a, b in pairwise(known)):
        raise _checks.out_of_range("join_schedules", "boundaries", "rising order", boundaries)

    def at(count: Any) -> Any:
        value = _value(schedules[0], count)
        for boundary, later in zip(boundaries, schedules[1:], strict=True):
            here = _value(later, _steps.since(count, boundary)[0])
            value = jnp.where(_steps.reached(count, boundary), here, value)
        return value

    return at


def _value(scheduled: Any, count: Any) -> Any:
    return scheduled(count) if callable(scheduled) else scheduled
