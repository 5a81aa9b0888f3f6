"""What a storage format is: an array of numbers kept as codes of a few bits."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import _manual

NEAREST = np.uint32(2**31)
"""In the place of a random number, this rounds to the nearest."""


@dataclass(frozen=True)
class Codec:
    """A storage format, a value: how float32 numbers become codes, and codes numbers.

    Everything that a subclass does with arrays is elementwise, except for scales.
    """

    signed: ClassVar[bool] = True
    version: ClassVar[int] = 1  # of what the codes mean; a checkpoint says in which it is written
    refusal: ClassVar[str | None] = None  # why it can't hold a second moment
    even: ClassVar[bool] = False  # round with `dither`, for less noise in a short average
    root_of: ClassVar[str | None] = None  # the slot whose root says how large the numbers are

    @property
    def dtype(self) -> Any:
        """The dtype of the codes."""
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Codes and scale of an array of zeros, before anything is known of its size."""
        return jnp.zeros(shape, self.dtype), None

    def scale_for(self, x: Any, old: Any = None) -> Any:
        """The scale that suits these float32 numbers; `old` is the one so far."""
        del x, old
        return None

    def scale_beside(self, x: Any, old: Any, other: Any) -> Any:
        """For a format with `root_of`, a scale besides the numbers of that slot, or None."""
        del x, old, other
        return None

    def reference(self, scale: Any, other: Any) -> Any:
        """What `encode` and `decode` take as the scale, of the scale and the other slot."""
        return scale if self.root_of is None else other

    def encode(self, x: Any, scale: Any, random: Any) -> Any:
        """Codes of a float32 array.

        Args:
            x: The numbers.
            scale: The `reference`: the scale; for a format with `root_of`, that slot's numbers.
            random: Numbers in [0, 2³²) to round with, uint32, of the same shape; or `NEAREST`.
        """
        raise NotImplementedError

    def decode(self, codes: Any, scale: Any) -> Any:
        """The numbers, float32."""
        raise NotImplementedError

    def is_nan(self, codes: Any, scale: Any) -> Any:
        """Where the number is NaN, in a form that follows from the codes."""
        return jnp.isnan(self.decode(codes, scale))

    @property
    def measures(self) -> bool:
        """Whether the numbers have to be looked at for a scale before they can be encoded."""
        return type(self).scale_for is not Codec.scale_for and self.root_of is None


class _Arrays(NamedTuple):
    codes: Any
    scale: Any
    seed: Any


_CLASSES: dict[tuple[Codec, Any], type["Encoded"]] = {}


class Encoded(_Arrays):
    """An array kept in a storage format: a node of a state where an array was.

    A named tuple of arrays, so that whatever takes apart a state of named tuples takes this apart
    too. The format and the dtype belong to the class: each pair of them has a subclass.

    Attributes:
        codes: The codes, in the array's shape.
        scale: What the format needs besides: an exponent for each row (uint8), a float32 for each
            block, or None.
        seed: Tells the array's random numbers from those of others, uint32 ().
        codec: The format.
        kept: The dtype of the array that it stands for.
    """

    codec: Codec
    kept: Any

    def __new__(
        cls, codes: Any, scale: Any, seed: Any, codec: Codec | None = None, kept: Any = None
    ) -> "Encoded":
        """Make one of the subclass for a format; of a subclass, with the arrays alone."""
        made: Any = cls if codec is None else _class_for(codec, np.dtype(kept))
        return super().__new__(made, codes, scale, seed)

    def __reduce__(self) -> Any:
        return Encoded, (*self, self.codec, self.kept)

    def __repr__(self) -> str:
        arrays = f"codes={self.codes!r}, scale={self.scale!r}, seed={self.seed!r}"
        return f"Encoded({arrays}, codec={self.codec!r}, kept={self.kept!r})"


def _class_for(codec: Codec, kept: Any) -> type[Encoded]:
    """The one class of a format and a dtype: jax compares nodes by their classes."""
    if (codec, kept) not in _CLASSES:
        made = type("Encoded", (Encoded,), {"codec": codec, "kept": kept, "__doc__": None})
        made.__module__ = __name__
        _CLASSES.setdefault((codec, kept), made)  # another thread may have been first
    return _CLASSES[codec, kept]


_ROW = 128


def rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that share a scale: the last, and more before it until they hold 128 entries."""
    first = len(shape)
    while first > 0 and math.prod(shape[first:]) < _ROW:
        first -= 1
    return tuple(range(first, len(shape)))


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of rows: 1 along the axes that share one."""
    shared = rows(shape)
    return tuple(1 if axis in shared else n for axis, n in enumerate(shape))


def top_octave(x: Any, old: Any) -> Any:
    """For each row the exponent e of a float32, biased: the largest finite |x| is below 2^e.

    It moves up at once, and down when |x| stays below a quarter of 2^e, so that codes keep their
    meaning from step to step; uint8, from 32 to 222.
    """
    top = largest_of_row(x, old)
    wanted = jnp.clip((top >> 23) + 1, 32, 222)
    if old is None:
        return wanted.astype(jnp.uint8)
    now = old.astype(jnp.int32)
    keep = ((wanted <= now) & (wanted > now - 2)) | (top == 0)
    return jnp.where(keep, now, wanted).astype(jnp.uint8)


def largest_of_row(x: Any, old: Any) -> Any:
    """The bits of the largest finite |x| of each row, int32; `old` is the rows' scale so far."""
    size = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    size = jnp.where(size < 0x7F800000, size, 0)
    top = jnp.max(size, axis=rows(x.shape), keepdims=True, initial=0)
    split = () if old is None else _manual.parted(top, old)  # a row that devices have parts of
    return jax.lax.pmax(top, split) if split else top
