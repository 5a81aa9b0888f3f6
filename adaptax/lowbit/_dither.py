"""The numbers to round with: no key to carry, and the same on every sharding."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)  # 2³² divided by the golden ratio


def dither(count: Any, shape: tuple[int, ...], seed: Any) -> Any:
    """One number in [0, 2³²) for each element: uniform over elements, and over steps.

    The element's index and the seed are hashed (the finalizer of MurmurHash3) to a phase, and the
    phase advances by the golden ratio with every step (a Weyl sequence). For one element the
    numbers of successive steps are therefore spread more evenly than independent ones, so that
    rounding errors cancel sooner: half of the variance of their sum disappears.

    Args:
        count: The number of the step, int32 ().
        shape: The array's shape. Under `jax.jit` the index is that in the whole array, however it
            is sharded; inside `shard_map` it is that in the shard.
        seed: Tells arrays and purposes apart: an int, or uint32 ().

    Returns:
        uint32, of this shape.
    """
    count = jnp.asarray(count)
    # The step's sign bit is 0. With it, compilers neither fold phases into constants as large as
    # the parameters, nor move them out of a loop over steps.
    sign = (count >> 31).astype(jnp.uint32)
    index = (jnp.asarray(seed, jnp.uint32) + sign) * np.uint32(0x85EBCA77)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    phase = jnp.broadcast_to(index, shape)
    return mixed(phase) + count.astype(jnp.uint32) * _GOLDEN


def draws(count: Any, shape: tuple[int, ...], seed: Any) -> Any:
    """One number in [0, 2³²) for each element, independent from step to step.

    For averages that move by less than a code in a step. What is stored remembers how it was
    rounded, so that any other sequence has a bias: with `dither`, which is spread more evenly, the
    steps of Adam in 8 bits were 1 to 4 % too short. The upper and the lower 16 bits are
    independent of one another.

    Args:
        count: The number of the step, int32 ().
        shape: The array's shape, see `dither`.
        seed: Tells arrays and purposes apart: an int, or uint32 ().

    Returns:
        uint32, of this shape.
    """
    # Over steps the start takes all values alike, so that the numbers of an element are uniform
    # and independent whatever the hash; that has to tell the elements of one step apart only.
    x = mixed(mixed(jnp.asarray(seed, jnp.uint32)) + jnp.asarray(count).astype(jnp.uint32))
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        x = x + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    x = jnp.broadcast_to(x, shape)
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    return (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)


def mixed(x: Any) -> Any:
    """The finalizer of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
