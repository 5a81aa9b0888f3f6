"""Floating formats of 16 and 8 bits as storage."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ._codec import Codec, row_shape, top_octave


@dataclass(frozen=True)
class Float(Codec):
    """A floating dtype, rounded to stochastically, without bias; perhaps times a power of 2.

    What is too large becomes the largest number; NaN stays NaN, and infinity what the dtype has
    in its place.
    """

    name: ClassVar[str]
    scaled: ClassVar[bool] = False

    @property
    def dtype(self) -> Any:
        """The dtype of the codes."""
        return jnp.dtype(self.name)

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """All zero."""
        scale = jnp.full(row_shape(shape), 127, jnp.uint8) if self.scaled else None
        return jnp.zeros(shape, self.dtype), scale

    def scale_for(self, x: Any, old: Any = None) -> Any:
        """The exponent above the largest magnitude of each row, where the format is scaled."""
        return top_octave(x, old) if self.scaled else None

    @property
    def measures(self) -> bool:
        """Whether there is a scale."""
        return self.scaled

    def _unit(self, scale: Any, sign: int) -> Any:
        if scale is None:
            return jnp.float32(1)
        highest = int(jnp.finfo(self.dtype).maxexp) - 1  # so that 2^e is just out of range
        exponent = sign * (scale.astype(jnp.int32) - 127 - highest) + 127
        return jax.lax.bitcast_convert_type(exponent << 23, jnp.float32)

    def encode(self, x: Any, scale: Any, random: Any) -> Any:
        """Round x / 2^e to one of the two neighbors."""
        info = jnp.finfo(self.dtype)
        y = x * self._unit(scale, -1)
        size = jnp.abs(y)
        exponent = jnp.maximum(
            jax.lax.bitcast_convert_type(size, jnp.int32) >> 23, 127 + int(info.minexp)
        )
        unit = jax.lax.bitcast_convert_type(
            jnp.maximum(exponent - info.nmant, 1) << 23, jnp.float32
        )
        part = (random >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24
        whole = jnp.floor(size / unit)
        up = part * unit < size - whole * unit
        rounded = (whole + up.astype(jnp.float32)) * unit
        rounded = jnp.minimum(rounded, jnp.float32(info.max))
        rounded = jnp.where(jnp.isfinite(size), rounded, size)
        return jnp.copysign(rounded, y).astype(self.dtype)

    def decode(self, codes: Any, scale: Any) -> Any:
        """The numbers, float32."""
        return codes.astype(jnp.float32) * self._unit(scale, 1)

    def is_nan(self, codes: Any, scale: Any) -> Any:
        """Where the code is NaN."""
        del scale
        return jnp.isnan(codes.astype(jnp.float32))


@dataclass(frozen=True)
class bf16(Float):
    """bfloat16: 2 bytes, a float32's range, 8 bits of precision."""

    name = "bfloat16"


@dataclass(frozen=True)
class fp8_e4m3(Float):
    """float8_e4m3fn times a power of 2: 18 octaves, 8 numbers an octave."""

    name, scaled = "float8_e4m3fn", True


@dataclass(frozen=True)
class fp8_e5m2(Float):
    """float8_e5m2 times a power of 2: 32 octaves, 4 numbers an octave."""

    name, scaled = "float8_e5m2", True
