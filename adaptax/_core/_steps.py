"""Numbers of steps: compared and subtracted as integers, exact up to 2^31 - 1."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._numerics import INT32_MAX


def first(step: Any) -> tuple[Any, Any]:
    """The first whole step at or after a number of steps, int32, and by how much it is later.

    A Python number is split in double precision; a traced one has the digits of its dtype. One
    beyond 2^31 - 1 is never reached: the rest is negative then.
    """
    if isinstance(step, float | int):
        whole = max(min(math.ceil(step), INT32_MAX), -INT32_MAX)
        return np.int32(whole), whole - step
    step = jnp.asarray(step)
    if jnp.issubdtype(step.dtype, jnp.integer):
        return step.astype(jnp.int32), 0.0
    step = step.astype(jnp.result_type(float))
    whole, beyond = jnp.ceil(step), np.asarray(2.0**31, step.dtype)
    within = jnp.minimum(whole, np.nextafter(beyond, np.zeros_like(beyond))).astype(jnp.int32)
    within = jnp.where(whole < beyond, within, np.int32(INT32_MAX))
    return within, jnp.where(whole < beyond, whole - step, jnp.minimum(beyond - step, -1.0))


def since(count: Any, step: Any) -> tuple[Any, Any]:
    """The number of steps since another: a whole one, and a rest to add.

    A count that is not an integer, as in a plot, is subtracted in floating point.
    """
    count = jnp.asarray(count)
    if not jnp.issubdtype(count.dtype, jnp.integer):
        return jnp.asarray(count, jnp.result_type(float)) - step, 0.0
    if count.dtype.itemsize < 4:
        count = count.astype(jnp.int32)
    elif jnp.issubdtype(count.dtype, jnp.unsignedinteger):
        count = jnp.minimum(count, INT32_MAX).astype(jnp.int32)
    whole, rest = first(step)
    whole = jnp.asarray(whole, count.dtype)
    most = jnp.iinfo(count.dtype).max + jnp.minimum(whole, 0)  # the difference does not wrap
    return jnp.minimum(count, most) - whole, rest


def reached(count: Any, step: Any) -> Any:
    """Whether a step is reached."""
    whole, rest = since(count, step)
    return (whole >= 0) & (rest >= 0)


def elapsed(count: Any, begin: Any) -> Any:
    """The number of steps since `begin` as a float: an exact difference, rounded once."""
    whole, rest = since(count, begin)
    real = jnp.result_type(float)
    return whole.astype(real) + jnp.asarray(rest, real)


def periods(count: Any, begin: Any, length: Any) -> Any:
    """How many periods are over, as a float; exact where their length is a whole number."""
    past, (steps, rest) = jnp.maximum(since(count, begin)[0], 0), first(length)
    floored = jnp.floor(jnp.maximum(elapsed(count, begin), 0) / jnp.where(length > 0, length, 1))
    if not jnp.issubdtype(past.dtype, jnp.integer):
        return floored
    exact = past // jnp.maximum(jnp.asarray(steps, past.dtype), 1)
    return jnp.where(rest == 0, exact.astype(floored.dtype), floored)
