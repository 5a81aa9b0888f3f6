"""Codes of 8 bits for the logarithm of a number, finest in the middle of a window."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ._codec import Codec, row_shape, top_octave

_INF = 0x7F800000
_LOWEST = 32  # a biased exponent that leaves room for the window's end
_NAN = 0x7FC00000
_WIDTH = 0.693  # the mean of a cell over its number, where there is one an octave


@dataclass(frozen=True)
class Window(Codec):
    """A code for log₂|x| in a window around a middle, with most codes in its inner part.

    The logarithm is the piecewise linear one that the bits of a float32 are. `rings` lie around
    one another: with (-20, 20, 0), (-6, 6, 3) there are 2³ codes an octave within six octaves of
    the middle, and one an octave up to 20. So numbers far from most others are kept too, with
    less precision, and nothing has to be known of the largest.
    """

    rings: ClassVar[tuple[tuple[int, int, int], ...]]  # from, to, log2 of the codes an octave
    lean: ClassVar[float] = 0.0  # (1 - p) / 2, where x^p is what is rounded without bias
    version = 2

    bits: ClassVar[int] = 8

    @property
    def dtype(self) -> Any:
        """The dtype of the codes."""
        return getattr(jnp, f"{'' if self.signed else 'u'}int{self.bits}")

    @property
    def _nan(self) -> int:
        return -(2 ** (self.bits - 1)) if self.signed else 2**self.bits - 1

    @property
    def last(self) -> int:
        """The code of the largest number; that of the smallest is 1."""
        return 1 + self._cells(0)

    def _cells(self, ring: int) -> int:
        """The cells of a ring and what lies inside it."""
        spans = [high - low for low, high, _ in self.rings[ring:]] + [0]
        ks = [k for *_, k in self.rings[ring:]]
        pairs = zip(spans[:-1], spans[1:], ks, strict=True)
        return sum(int((outer - inner) * 2.0**k) for outer, inner, k in pairs)

    def _before(self, ring: int) -> int:
        """The cells below a ring."""
        pairs = zip(self.rings[:ring], self.rings[1 : ring + 1], strict=True)
        return sum(int((inner[0] - outer[0]) * 2.0 ** outer[2]) for outer, inner in pairs)

    def _bottom(self, scale: Any) -> Any:
        """The bits of the smallest number."""
        return (self._middle(scale) + self.rings[0][0]) << 23

    def _middle(self, scale: Any) -> Any:
        """The biased exponent of the middle."""
        raise NotImplementedError

    def encode(self, x: Any, scale: Any, random: Any) -> Any:
        """Round to one of the two neighbors, at random, so that the mean is the number.

        With `lean`, so that the mean of x^p is, see `uint8`.
        """
        (low, high, k), *inner = self.rings
        bottom = self._bottom(scale)
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        size = bits & 0x7FFFFFFF if self.signed else bits
        far = jnp.clip(size - bottom, 0, high - low << 23)
        # Inside an octave the float is linear in its bits, and a cell lies in one.
        place, lift, outer = far, self._lift(k), k
        for start, end, more in inner:
            away = far - (start - low << 23)
            part = jnp.clip(away, 0, end - start << 23)
            place = place + ((1 << more - k) - (1 << outer - k)) * part
            within = away.astype(jnp.uint32) < np.uint32(end - start << 23)
            lift = jnp.where(within, self._lift(more), lift)
            outer = more
        cell = 1 << 23 - k
        chance = (random >> 9 + max(k, 0) << max(-k, 0)).astype(jnp.int32)  # less than a cell
        if self.lean:
            part = chance.astype(jnp.float32)
            chance = (part + part * (cell - part) * (lift * np.float32(1 / cell))).astype(jnp.int32)
        code = (place + chance + cell) >> (23 - k)
        if self.signed:  # below the smallest number: that or 0
            part = (random >> 8).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-24)
            unit = jax.lax.bitcast_convert_type(bottom, jnp.float32)
            code = jnp.where((size < bottom) & (part * unit >= jnp.abs(x)), 0, code)
            code = jnp.where(bits < 0, -code, code)
            return jnp.where(size >= _INF, self._nan, code).astype(self.dtype)
        # What is positive stays so: rounded to 0, it would divide the update.
        code = jnp.where(bits.astype(jnp.uint32) >= np.uint32(_INF), self._nan, code)
        return jnp.where(x == 0, 0, code).astype(self.dtype)

    def _lift(self, k: int) -> Any:
        return np.float32(self.lean * _WIDTH * min(2.0**-k, 1.0))

    def decode(self, codes: Any, scale: Any) -> Any:
        """The numbers, float32."""
        code = codes.astype(jnp.int32)
        size = jnp.abs(code) if self.signed else code
        outer = self.rings[0][2]
        far = size << 23 - outer
        for ring, (*_, k) in enumerate(self.rings[1:], 1):
            part = jnp.clip(size - (1 + self._before(ring)), 0, self._cells(ring))
            far = far - ((1 << 23 - outer) - (1 << 23 - k)) * part
            outer = k
        bits = far + (self._bottom(scale) - (1 << 23 - self.rings[0][2]))
        bits = jnp.where(size == 0, 0, bits)
        if self.signed:
            bits = bits | (code & np.int32(-(2**31)))
        bits = jnp.where(self.is_nan(codes, scale), _NAN, bits)
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def is_nan(self, codes: Any, scale: Any) -> Any:
        """Where the code is that of NaN."""
        del scale
        return codes.astype(jnp.int32) == self._nan


@dataclass(frozen=True)
class uint8(Window):
    """8 bits for a second moment: 254 numbers >= 0, no scale, whatever the unit of the gradients.

    Four an octave within 28 octaves of 2^middle on both sides, and one an octave beyond: with the
    default, from 2⁻⁵⁹ to 2²⁶ (gradients from 1.3e-9 to 8,000). What is positive stays positive;
    what lies outside is stored as the last number inside.

    Rounding leaves noise in an average, of relative variance v, and the step is divided by its
    root. A rounding without bias in x^p moves the mean of the average by (1 - p) v, and leaves
    that of 1/√x where it was for p = 1/4 where the average is stationary or grows. In one that
    only decays, errors don't fade, and p = -1/2 would be right. Here p = 0.06: steps are within
    1 % of float32's in both.

    Args:
        middle: The exponent around which codes are dense: of the square of a usual gradient.
    """

    middle: int = -18

    signed = False
    rings = ((-41, 44, 0), (-28, 28, 2))
    lean = 0.47

    def __post_init__(self) -> None:
        if type(self.middle) is not int or not -85 <= self.middle <= 83:
            raise ValueError(
                f"uint8: middle must be an int in [-85, 83], got {self.middle!r}; it is the "
                "exponent of 2 of a usual squared gradient."
            )

    def _middle(self, scale: Any) -> Any:
        del scale
        return np.int32(127 + self.middle)


@dataclass(frozen=True)
class int8(Window):
    """8 bits with a sign.

    Args:
        root_of: The slot of second moments beside this one: an average of gradients is about as
            large as the root of that of their squares, and up to 7 times in the first steps of
            Adam, so that its entry says where the window is. Then there is no scale: 8 codes an
            octave, from 2⁻¹⁰ to 2⁵ times that root. None: a window for each row, in uint8 an
            exponent that follows the largest magnitude; 8 codes an octave in 12 octaves, one an
            octave in 30 more. A step then reads its arrays twice.
    """

    root_of: str | None = None  # type: ignore[override]

    @property
    def even(self) -> bool:  # type: ignore[override]
        """Whether it is rounded with numbers that are spread evenly over the steps."""
        return self.root_of is None

    @property
    def rings(self) -> tuple[tuple[int, int, int], ...]:  # type: ignore[override]
        """The window."""
        return ((-20, 22, 0), (-6, 6, 3)) if self.root_of is None else ((-10, 5, 3),)

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """All codes zero."""
        scale = None if self.root_of else jnp.full(row_shape(shape), _LOWEST, jnp.uint8)
        return jnp.zeros(shape, self.dtype), scale

    def scale_for(self, x: Any, old: Any = None) -> Any:
        """The exponent above the largest magnitude of each row."""
        return None if self.root_of else top_octave(x, old)

    def _middle(self, scale: Any) -> Any:
        return scale.astype(jnp.int32) - 4  # most lie a few octaves below the largest

    def _bottom(self, scale: Any) -> Any:
        if self.root_of is None:
            return super()._bottom(scale)
        # Half the exponent is that of the root: of the power of two at it or below.
        bits = jax.lax.bitcast_convert_type(scale, jnp.int32)
        return ((bits >> 1) + (127 << 22) & _INF) + (self.rings[0][0] << 23)


@dataclass(frozen=True)
class uint4(Window):
    """4 bits for a second moment, two entries in a byte: 14 numbers >= 0 over 16 octaves.

    From the largest number of its row down: half an octave apart from 1/2 to 1/16, an octave down
    to 2⁻⁸, and then four; the scale is an exponent for each row in uint8. What is positive stays
    positive: what is smaller is stored as the smallest. The code 15 is NaN. Rounds as `uint8`
    does, with p = 0.28. A step reads its arrays twice.
    """

    bits, signed = 4, False
    rings = ((-16, 0, -2), (-8, 0, 0), (-4, -1, 1))
    lean = 0.36

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """All zero."""
        return jnp.zeros(shape, self.dtype), jnp.full(row_shape(shape), _LOWEST, jnp.uint8)

    def scale_for(self, x: Any, old: Any = None) -> Any:
        """The exponent above the largest number of each row."""
        return top_octave(x, old)

    def _middle(self, scale: Any) -> Any:
        return scale.astype(jnp.int32)
