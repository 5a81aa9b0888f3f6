"""The formats of the page: adaptax's, and published ones from their formulas."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import lowbit
from ...lowbit._codec import NEAREST, Codec

RoundTrip = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(x, nu) -> x` after encoding, rounded to nearest, and decoding; blocks on the last axis."""


@dataclass(frozen=True)
class Subject:
    """A storage format, as one function.

    Attributes:
        name: As it is called.
        slot: "mu" or "nu", what it is to hold.
        reference: What the distances of the table of decades are counted from.
        unit: That reference, where it does not follow from the data.
        round_trip: What becomes of numbers; `nu` are the second moments beside them.
        positive: Makes `numbers`, which takes a second for all formats.
        bytes: Of an entry, scales included, in an array of 4096 x 4096.
        source: Where a published one is from.
    """

    name: str
    slot: str
    reference: str
    round_trip: RoundTrip
    positive: Callable[[], np.ndarray]
    bytes: float
    unit: float = 1.0
    source: str = ""

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """All positive numbers that it has with a reference of 1 (its unit), ascending."""
        return self.positive()

    @property
    def octaves(self) -> float:
        """From the smallest positive number to the largest."""
        return float(np.log2(self.numbers[-1] / self.numbers[0]))

    @property
    def an_octave(self) -> tuple[float, float]:
        """Numbers an octave, where they are closest and where they are farthest apart."""
        apart = np.diff(np.log2(self.numbers))
        return float(1 / apart.min()), float(1 / apart.max())


def _scale(codec: Codec, x: Any, nu: Any) -> Any:
    if codec.root_of is None:
        return codec.scale_for(x)
    return codec.reference(codec.scale_beside(x, None, nu), nu)


@functools.partial(jax.jit, static_argnums=0)
def _there_and_back(codec: Codec, x: Any, nu: Any) -> Any:
    scale = _scale(codec, x, nu)
    return codec.decode(codec.encode(x, scale, jnp.full(x.shape, NEAREST)), scale)


def _size(codec: Codec) -> float:
    codes, scale = jax.eval_shape(lambda: codec.zeros((4096, 4096)))
    narrow = codes.dtype in (jnp.int4, jnp.uint4)
    total = codes.size * (0.5 if narrow else codes.dtype.itemsize)
    return (total + (0 if scale is None else scale.size * scale.dtype.itemsize)) / codes.size


def _numbers(codec: Codec) -> np.ndarray:
    """The numbers of all codes, beside a largest number, or a root of nu, of 1."""
    if jnp.issubdtype(codec.dtype, jnp.floating):
        bits = jnp.finfo(codec.dtype).bits
        words = np.arange(2**bits, dtype=f"uint{bits}")
        codes = jax.lax.bitcast_convert_type(words, codec.dtype)
    else:
        info = jnp.iinfo(codec.dtype)
        codes = jnp.arange(int(info.min), int(info.max) + 1).astype(codec.dtype)
    one = jnp.ones((1, codes.size), jnp.float32)
    x = codec.decode(codes[None, :], _scale(codec, one[:, :256], one))
    x = np.asarray(x, np.float64).ravel()
    return np.unique(x[np.isfinite(x) & (x > 0)])


def _ours(codec: Codec, slot: str, reference: str, unit: float = 1.0) -> Subject:
    def round_trip(x: np.ndarray, nu: np.ndarray) -> np.ndarray:
        return np.asarray(_there_and_back(codec, jnp.asarray(x), jnp.asarray(nu)), np.float64)

    fields = ("root_of=None", "middle=-18", "block=256")  # defaults, which go without saying
    name = functools.reduce(lambda name, field: name.replace(field, ""), fields, repr(codec))
    numbers = functools.partial(_numbers, codec)
    return Subject(name, slot, reference, round_trip, numbers, _size(codec), unit)


def _published(
    name: str, slot: str, values: np.ndarray, block: int, scale_bytes: int, source: str,
    bits: int = 8, via: Callable[[Any], Any] = np.asarray,
) -> Subject:  # fmt: skip
    """A published format: the nearest of some values, times the largest magnitude of a block.

    The nearest after `via`, which grows.
    """
    ascending = np.unique(values.astype(np.float64))
    at = via(ascending)
    middles = (at[1:] + at[:-1]) / 2

    def round_trip(x: np.ndarray, nu: np.ndarray) -> np.ndarray:
        del nu
        blocks = x.astype(np.float64).reshape(-1, block)
        scale = np.abs(blocks).max(1, keepdims=True)
        y = blocks / np.where(scale > 0, scale, 1)
        place = np.searchsorted(middles, via(y))
        return (ascending[place] * scale).reshape(x.shape)

    positive = ascending[ascending > 0]
    size = bits / 8 + scale_bytes / block
    return Subject(name, slot, BLOCK, round_trip, lambda: positive, size, source=source)


def _companded(x: Any) -> Any:
    return 2 * x / (1 + np.abs(x))


def _flash_mu() -> np.ndarray:
    z = np.arange(-127, 128) / 127
    return z / (2 - np.abs(z))


BLOCK, ROW, ROOT, FIXED = "block's largest", "row's largest", "√ν", "2⁻¹⁸"
_FLASH = "FlashOptim, arXiv:2602.23349"
_TORCHAO = np.array([0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875])

SUBJECTS: tuple[Subject, ...] = (
    _ours(lowbit.int8(root_of="nu"), "mu", ROOT),
    _ours(lowbit.int8(), "mu", ROW),
    _ours(lowbit.dynamic_int8(), "mu", BLOCK),
    _ours(lowbit.companded_int8(), "mu", BLOCK),
    _ours(lowbit.linear_int8(), "mu", BLOCK),
    _ours(lowbit.fp8_e4m3(), "mu", ROW),
    _ours(lowbit.fp8_e5m2(), "mu", ROW),
    _ours(lowbit.bf16(), "mu", "1"),
    _ours(lowbit.int4(), "mu", ROOT),
    _published("m", "mu", _flash_mu(), 32, 2, _FLASH, via=_companded),
    _published(
        "m", "mu",
        np.concatenate([-_TORCHAO, [0.0], _TORCHAO, [1.0]]), 128, 4, "torchao's 4 bits", bits=4,
    ),
    _ours(lowbit.uint8(), "nu", FIXED, 2.0**-18),
    _ours(lowbit.dynamic_uint8(), "nu", BLOCK),
    _ours(lowbit.companded_uint8(), "nu", BLOCK),
    _ours(lowbit.dynamic_int8(), "nu", BLOCK),
    _ours(lowbit.linear_int8(), "nu", BLOCK),
    _ours(lowbit.fp8_e4m3(), "nu", ROW),
    _ours(lowbit.fp8_e5m2(), "nu", ROW),
    _ours(lowbit.bf16(), "nu", "1"),
    _ours(lowbit.uint4(), "nu", ROW),
    _published("ν", "nu", (np.arange(256) / 255) ** 2, 32, 2, _FLASH, via=np.sqrt),
    _published(
        "ν", "nu", np.linspace(0, 1, 17)[1:], 128, 4, "torchao's 4 bits", bits=4
    ),
)  # fmt: skip
"""In the order of the tables."""
