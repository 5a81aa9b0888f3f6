"""Codes of 4 and 8 bits for the logarithm of a number, finest in the middle of a window."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ._codec import Codec, row_shape, top_octave

_INF = 0x7F800000
_LOWEST = 32  # a biased exponent that leaves room for the window's end
_ROOT = 3 / 8 * 0.693 * 2.0**-23  # see `Window.root`


@dataclass(frozen=True)
class Window(Codec):
    """A code for the distance of log₂|x| from the middle of a window, in steps that grow outward.

    The logarithm is the piecewise linear one that the bits of a float32 are. With s = `steps`
    and a = `first`, the codes of the region e = 0, 1, ... stand 2^(a - s + e) octaves apart, and
    the region is 2^(a + e) octaves wide, on both sides of the middle. So numbers far from most
    others are kept too, with less precision, and nothing has to be known of the largest.
    """

    bits: ClassVar[int]
    first: ClassVar[int]
    steps: ClassVar[int]
    reach: ClassVar[int]  # the last code, counted from the middle
    special: ClassVar[int] = 2  # codes for what is not finite: infinity and NaN, or NaN for both
    root: ClassVar[float] = 0.0  # _ROOT: round without bias in the fourth root, not in the number

    @property
    def dtype(self) -> Any:
        """The dtype of the codes."""
        return getattr(jnp, f"{'' if self.signed else 'u'}int{self.bits}")

    def _middle(self, scale: Any) -> Any:
        """The bits of the float in the middle of the window."""
        if self.root_of is not None:  # the root of the other number, and what it is mostly below
            exponent = jax.lax.bitcast_convert_type(scale, jnp.int32) >> 23
            return (jnp.maximum((exponent + 127) >> 1, _LOWEST + 2) - 2) << 23
        return self._fixed(scale)

    def _fixed(self, scale: Any) -> Any:
        """The middle where no other slot says it."""
        raise NotImplementedError

    def encode(self, x: Any, scale: Any, random: Any) -> Any:
        """Round to one of the two neighbors, at random, so that the mean is the number.

        With `root`, so that the mean of x^(1/4) is: then the mean of 1/√x over many steps of an
        average, which is what a second moment is for, is that of the average not rounded. (With v
        the relative variance that rounding leaves in the average, rounding without bias in x^p
        moves its mean by (1 - p) v, and the mean of 1/√x by 3/8 v - (1 - p) v / 2.)
        """
        middle = self._middle(scale)
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        size = bits & 0x7FFFFFFF
        far = size - middle
        wide = jnp.abs(far) + (1 << 23 + self.first)
        region = (8 - self.first) - jax.lax.clz(wide)
        shift = region + (23 + self.first - self.steps)
        # Inside an octave the float is linear in its bits, and a cell lies in one.
        part = (random >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24
        width = jax.lax.bitcast_convert_type((shift + 127) << 23, jnp.float32)
        chance = width * part
        if self.root:
            lift = jnp.where(far < 0, -self.root, self.root) * width
            chance += chance * (1 - part) * lift
        cell = jax.lax.shift_right_arithmetic(wide + chance.astype(jnp.int32), shift)
        away = cell + ((region - 1) << self.steps)
        code = jnp.where(far < 0, -away, away) + (self.reach + 1)
        code = jnp.clip(code, 1, 2 * self.reach + 1)
        if self.signed:
            lowest = self._bits(jnp.int32(1), middle)
            unit = jax.lax.bitcast_convert_type(lowest, jnp.float32)
            code = jnp.where((size < lowest) & (part * unit >= jnp.abs(x)), 0, code)
        else:  # what is positive stays so: rounded to 0, it would divide the update
            code = jnp.where(size == 0, 0, code)
        code = jnp.where(size >= _INF, self._not_finite(size), code)
        if self.signed:
            code = jnp.where(bits < 0, -code, code)
        else:
            code = jnp.where((bits < 0) & (size > 0), self._nan, code)
        return code.astype(self.dtype)

    def decode(self, codes: Any, scale: Any) -> Any:
        """The numbers, float32."""
        code = codes.astype(jnp.int32)
        size = self._bits(jnp.abs(code) if self.signed else code, self._middle(scale))
        if self.signed:
            size = size | (code & np.int32(-(2**31)))
        return jax.lax.bitcast_convert_type(size, jnp.float32)

    def _bits(self, code: Any, middle: Any) -> Any:
        """The bits of the float of a code without sign."""
        far = code - (self.reach + 1)
        away = jnp.abs(far)
        region = away >> self.steps
        cell = (away & ((1 << self.steps) - 1)) + (1 << self.steps)
        shift = region + (23 + self.first - self.steps)
        wide = (cell << shift) - (1 << 23 + self.first)
        bits = jnp.where(code == 0, 0, middle + jnp.where(far < 0, -wide, wide))
        odd = _INF + ((code - (2 * self.reach + self.special)) << 22)  # infinity, or a NaN
        return jnp.where(code > 2 * self.reach + 1, odd, bits)

    @property
    def _nan(self) -> int:
        return 2 * self.reach + 1 + self.special

    def _not_finite(self, size: Any) -> Any:
        return self._nan if self.special == 1 else jnp.where(size > _INF, self._nan, self._nan - 1)

    def is_nan(self, codes: Any, scale: Any) -> Any:
        """Where the code is that of NaN."""
        del scale
        code = codes.astype(jnp.int32)
        return (jnp.abs(code) if self.signed else code) == self._nan


@dataclass(frozen=True)
class uint8(Window):
    """8 bits for a second moment: 253 numbers >= 0, no scale, whatever the unit of the gradients.

    Eight an octave within four octaves of 2^middle, four an octave within 12, two within 28, one
    within 58: with the default, from 2⁻⁸⁴ to 2³² (gradients from 2e-13 to 65,000). Rounding leaves
    noise in a number, up to a fifth where there are two codes an octave, but none on average in
    the 1/√x that an update is made with. What is positive stays positive; what lies outside is
    stored as the last number inside.

    Args:
        middle: The exponent around which codes are dense: of the square of a usual gradient.
    """

    middle: int = -26

    bits = 8
    signed = False
    first, steps, reach = 2, 5, 126
    root = _ROOT

    def __post_init__(self) -> None:
        if type(self.middle) is not int or not -68 <= self.middle <= 69:
            raise ValueError(
                f"uint8: middle must be an int in [-68, 69], got {self.middle!r}; it is the "
                "exponent of 2 of a usual squared gradient."
            )

    def _fixed(self, scale: Any) -> Any:
        del scale
        return np.int32(127 + self.middle << 23)


@dataclass(frozen=True)
class int8(Window):
    """8 bits with a sign: 125 magnitudes.

    Args:
        root_of: The slot of second moments beside this one: an average of gradients is mostly a
            little smaller than the root of that of their squares, so that its entry says where
            the window is. Then there is no scale: 16 codes an octave in the middle two, 28
            octaves. None: a window for each row, in uint8 an exponent that follows the largest
            magnitude; 8 codes an octave in the middle four, 56 octaves. A step then reads its
            arrays twice.
    """

    root_of: str | None = None  # type: ignore[override]

    bits = 8
    steps, reach = 4, 62

    @property
    def first(self) -> int:  # type: ignore[override]
        """Log2 of the octaves in the first region."""
        return 1 if self.root_of is None else 0

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """All codes zero."""
        scale = None if self.root_of else jnp.full(row_shape(shape), _LOWEST, jnp.uint8)
        return jnp.zeros(shape, self.dtype), scale

    def scale_for(self, x: Any, old: Any = None) -> Any:
        """The exponent above the largest magnitude of each row."""
        return None if self.root_of else top_octave(x, old)

    def _fixed(self, scale: Any) -> Any:
        return (scale.astype(jnp.int32) - 4) << 23  # most lie a few octaves below the largest
