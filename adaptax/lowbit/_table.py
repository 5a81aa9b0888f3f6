"""Codes that are places in a table: of 4 bits, and the published ones of 8 bits, in blocks."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ._codec import Codec, largest_of_row, row_shape

Values = tuple[float, ...]


def dynamic_map(*, signed: bool) -> Values:
    """The 256 numbers of the dynamic map of 8-bit optimizers, ascending.

    In each of seven decades numbers are spread evenly, twice as many as in the decade below; and
    0 and 1. Signed, the numbers of each decade stand on both sides.

    References:
        Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022, arXiv:2110.02861,
        section 1.3 and the construction in bitsandbytes, `create_dynamic_map`.
    """
    numbers = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        numbers += [*middles, *-middles] if signed else [*middles]
    return tuple(float(np.float32(x)) for x in sorted(numbers))


def powers(power: int, *, signed: bool) -> Values:
    """Even steps of the root: (k / 255)^power, or ± (k / 127)^power."""
    if signed:
        steps = np.arange(-127, 128) / 127
    else:
        steps = np.arange(256) / 255
    return tuple(float(np.float32(x)) for x in np.sign(steps) * np.abs(steps) ** power)


@dataclass(frozen=True)
class Table(Codec):
    """Places in a table of numbers in [-1, 1], times a scale.

    Rounded to one of the two neighbors at random, so that the mean is the number. Infinity and
    NaN in a block make all of it NaN.
    """

    values: ClassVar[Values]

    @property
    def dtype(self) -> Any:
        """The dtype of the codes."""
        return jnp.uint8

    def _find(self, x: Any) -> Any:
        """The place of the last number that is not above x, but the last but one at most."""
        place = jnp.searchsorted(self._array[1:-1], x, side="right", method="sort")
        return place.astype(jnp.int32)

    @property
    def _array(self) -> np.ndarray:
        return np.asarray(self.values, np.float32)

    def _at(self, place: Any) -> Any:
        return jnp.take(jnp.asarray(self._array), place, mode="clip")

    def _rounded(self, x: Any, random: Any) -> Any:
        place = self._find(x)
        low, high = self._at(place), self._at(place + 1)
        part = (random >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24
        return place + (part * (high - low) < x - low).astype(jnp.int32)


@dataclass(frozen=True)
class Blocks(Table):
    """Places in a table, times the largest magnitude of each block of the last axis.

    The published way. The scale has to be known before the first code of a block can be written,
    so that a step reads its arrays twice; that costs accelerators what the codes save.

    Args:
        block: Entries in a block of the last axis; the last block of a row may be shorter.
    """

    block: int = 256

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], -(-(shape[-1] if shape else 1) // self.block))

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """All zero."""
        zero = self.values.index(0.0)
        return jnp.full(shape, zero, self.dtype), jnp.zeros(self._shape(shape), jnp.float32)

    def scale_for(self, x: Any, old: Any = None) -> Any:
        """The largest magnitude of each block."""
        del old
        return _placed(self._largest, x, whole_rows=True)

    def _largest(self, x: Any) -> Any:
        x = x if x.ndim else x[None]
        # Of the bits: a maximum of floats drops NaN on CPUs.
        size = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
        size = size if self.signed else jnp.where(x < 0, 0x7F800000, size)
        *front, n = x.shape
        blocks = self._shape(x.shape)[-1]
        size = jnp.pad(size, [(0, 0)] * len(front) + [(0, blocks * self.block - n)])
        top = jnp.max(size.reshape(*front, blocks, self.block), axis=-1)
        top = jax.lax.bitcast_convert_type(top, jnp.float32)
        return jnp.where(top < math.inf, top, jnp.nan)  # also of an infinity, for all of the block

    def _spread(self, scale: Any, shape: tuple[int, ...]) -> Any:
        return jnp.repeat(scale, self.block, axis=-1)[..., : (shape or (1,))[-1]].reshape(shape)

    def encode(self, x: Any, scale: Any, random: Any) -> Any:
        """Places of x / scale."""

        def places(x: Any, scale: Any, random: Any) -> Any:
            scale = self._spread(scale, x.shape)
            return self._rounded(jnp.where(scale > 0, x / scale, 0.0), random).astype(self.dtype)

        return _placed(places, x, scale, random)

    def decode(self, codes: Any, scale: Any) -> Any:
        """The numbers, float32."""

        def numbers(codes: Any, scale: Any) -> Any:
            return self._at(codes.astype(jnp.int32)) * self._spread(scale, codes.shape)

        return _placed(numbers, codes, scale)


def _placed(f: Callable[..., Any], x: Any, *others: Any, whole_rows: bool = False) -> Any:
    """f(x, ...), placed as x is, perhaps with the last axis whole.

    Where shardings are types, f may not take sharded axes apart; the compiler may.
    """
    sharding = jax.typeof(x).sharding
    if all(entry is None for entry in sharding.spec):
        return f(x, *others)
    *front, last = sharding.spec
    placed = NamedSharding(sharding.mesh, PartitionSpec(*front, None if whole_rows else last))
    return jax.sharding.auto_axes(f, out_sharding=placed)(x, *others)


@dataclass(frozen=True)
class dynamic_int8(Blocks):
    """The published dynamic map of 8 bits, signed (arXiv:2110.02861)."""

    values = dynamic_map(signed=True)


@dataclass(frozen=True)
class dynamic_uint8(Blocks):
    """The published dynamic map of 8 bits for numbers >= 0 (arXiv:2110.02861)."""

    values, signed = dynamic_map(signed=False), False


@dataclass(frozen=True)
class companded_int8(Blocks):
    """8 bits in even steps of the signed square root."""

    values = powers(2, signed=True)


@dataclass(frozen=True)
class companded_uint8(Blocks):
    """8 bits in even steps of the fourth root, for numbers >= 0."""

    values, signed = powers(4, signed=False), False


@dataclass(frozen=True)
class linear_int8(Blocks):
    """8 bits in even steps: for first moments; second moments diverge with it."""

    values = powers(1, signed=True)
    refusal = (
        "in even steps, what is small beside the largest of its block becomes 0, which divides the "
        "update; training diverges. Take uint8()."
    )


# --- 4 bits


@dataclass(frozen=True)
class Nibble(Table):
    """Places in a table of at most 16 numbers, found by comparing with each."""

    def _find(self, x: Any) -> Any:
        above = [(x >= v).astype(jnp.int32) for v in self._array[1:-1]]
        return functools.reduce(jnp.add, above)

    def _at(self, place: Any) -> Any:
        x = jnp.full(place.shape, self._array[0])
        for i, v in enumerate(self._array[1:], 1):
            x = jnp.where(place >= i, v, x)
        return x


_LOWEST, _HIGHEST = 107, 147  # exponents of 2ᵉ from 2⁻²⁰ to 2²⁰, biased
# Least noise in the update at equal weights of a gradient that is noise and one that is signal.
_RATIOS = (0.0, 0.045, 0.095, 0.15, 0.225, 0.335, 0.53, 1.0)


@dataclass(frozen=True)
class int4(Nibble):
    """4 bits with a sign, two entries in a byte, for an average of gradients beside their squares.

    Seven magnitudes, 0.045 to 1, and 0, times the root of 2ᵉ ν, where ν is the second moment's
    entry and e an exponent for each row in uint8: 2ᵉ is more than twice the largest m² / ν of the
    row, since ν may be rounded down by an octave. So the first steps of Adam, where m / √ν is up
    to 6.6, are not cut off, and later ones, where it is at most about 1, get finer codes. The code
    -8 is NaN. A step reads its arrays twice, as `uint4` does.

    Args:
        root_of: The slot of second moments beside this one.
    """

    root_of: str = "nu"  # type: ignore[override]

    values, even, version = _RATIOS, True, 3

    @property
    def dtype(self) -> Any:
        """The dtype of the codes."""
        return jnp.int4

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """All zero."""
        return jnp.zeros(shape, self.dtype), jnp.full(row_shape(shape), _LOWEST, jnp.uint8)

    def scale_beside(self, x: Any, old: Any, other: Any) -> Any:
        """The exponent above twice the largest x² / ν of each row, biased by 127."""
        ratio = jnp.where(other > 0, x * jax.lax.rsqrt(other), 0.0)
        top = largest_of_row(ratio * ratio, old)
        return jnp.clip((top >> 23) + 2, _LOWEST, _HIGHEST).astype(jnp.uint8)

    def reference(self, scale: Any, other: Any) -> Any:
        """2ᵉ ν."""
        return other * jax.lax.bitcast_convert_type(scale.astype(jnp.int32) << 23, jnp.float32)

    def encode(self, x: Any, scale: Any, random: Any) -> Any:
        """Places of x / √scale."""
        root = jnp.sqrt(scale)
        ratio = jnp.where(root > 0, jnp.abs(x) / root, 0.0)
        code = jnp.minimum(self._rounded(ratio, random), 7)
        code = jnp.where(x < 0, -code, code)
        return jnp.where(jnp.isfinite(x), code, -8).astype(self.dtype)

    def decode(self, codes: Any, scale: Any) -> Any:
        """The numbers, float32."""
        code = codes.astype(jnp.int32)
        x = self._at(jnp.abs(code)) * jnp.sqrt(scale)
        return jnp.where(code == -8, jnp.nan, jnp.where(code < 0, -x, x))

    def is_nan(self, codes: Any, scale: Any) -> Any:
        """Where the code is that of NaN."""
        return codes.astype(jnp.int32) == -8
