"""Storage formats: codes are fixed points, rounding has no bias, what is not finite shows."""

# pyright: reportArgumentType=false

import functools
import hashlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptax import lowbit
from adaptax.lowbit._codec import NEAREST, row_shape, rows, top_octave
from adaptax.lowbit._dither import dither, draws

pytestmark = pytest.mark.optimized

F32, F64 = np.float32, np.float64
MAX, TINY = float(np.finfo(F32).max), float(np.finfo(F32).tiny)

FORMATS: dict[str, Any] = {
    "uint8": lowbit.uint8(),
    "int8": lowbit.int8(),
    "int8_by_nu": lowbit.int8(root_of="nu"),
    "uint4": lowbit.uint4(),
    "int4": lowbit.int4(),
    "bf16": lowbit.bf16(),
    "fp8_e4m3": lowbit.fp8_e4m3(),
    "fp8_e5m2": lowbit.fp8_e5m2(),
    "dynamic_int8": lowbit.dynamic_int8(),
    "dynamic_uint8": lowbit.dynamic_uint8(),
    "companded_int8": lowbit.companded_int8(),
    "companded_uint8": lowbit.companded_uint8(),
    "linear_int8": lowbit.linear_int8(),
}
formats = pytest.mark.parametrize("name", FORMATS)
BLOCKS = [name for name in FORMATS if "_int8" in name or "_uint8" in name]
POWER = {"uint8": 0.06, "uint4": 0.28}  # in which there is no bias, nearly
POWERS = np.array([2.0**-60, 2.0**-20, 1.0, 2.0**40], F64)
ROWS, SIZE = 64, 256


@cache
def compiled(codec: Any) -> Any:
    """A format's functions: encode and decode; decode; measure."""

    @jax.jit
    def around(x: Any, scale: Any, random: Any) -> Any:
        codes = codec.encode(x, scale, random)
        return codes, codec.decode(codes, scale), codec.is_nan(codes, scale)

    return around, jax.jit(codec.decode), jax.jit(codec.scale_for)


def padded(x: Any) -> Any:
    """Up to 64 rows and 256 columns as so many, so that all tests share what is compiled."""
    if x is None or np.shape(x) == (ROWS, SIZE):
        return x
    x = np.asarray(x)
    return np.pad(x, [(0, ROWS - len(x)), (0, 0 if x.shape[1] == 1 else SIZE - x.shape[1])], "edge")


def around(codec: Any, x: Any, scale: Any, random: Any) -> list[np.ndarray]:
    """Codes of x, with a row's scale for each row; what they stand for; whether that is NaN."""
    random = np.broadcast_to(np.asarray(random, np.uint32), np.shape(x))
    out = compiled(codec)[0](*map(padded, (np.asarray(x, F32), scale, random)))
    return [np.asarray(a)[: np.shape(x)[0], : np.shape(x)[1]] for a in out]


def encoded(codec: Any, x: Any, scale: Any, random: Any) -> np.ndarray:
    """The numbers that the codes of x stand for."""
    return around(codec, x, scale, random)[1]


def decoded(codec: Any, codes: Any, scale: Any) -> np.ndarray:
    """The numbers that rows of 256 codes stand for; subnormal ones are 0, as the CPU has it."""
    x = np.asarray(compiled(codec)[1](padded(codes), padded(scale)))[: len(codes)]
    return np.where(np.abs(x) < TINY, 0, x)


def measured(codec: Any, x: Any) -> Any:
    """The scale of rows of 256; for a format without, that of numbers about 1."""
    if not codec.measures:
        return units(codec, np.ones(len(x)))
    return np.asarray(compiled(codec)[2](padded(x)))[: len(x)]


def units(codec: Any, units: Any) -> Any:
    """The scale of rows in which numbers are about as large as some powers of 2."""
    units = np.asarray(units, F64)[:, None]
    if codec.root_of:
        return np.broadcast_to(units**2, (len(units), SIZE)).astype(F32)
    if not codec.measures:
        return None
    if type(codec).__name__ in BLOCKS:
        return units.astype(F32)
    return (127 + np.log2(units)).astype(np.uint8)


def every_code(codec: Any) -> np.ndarray:
    """Rows of 256 with all codes; of bfloat16 a quarter of the rows."""
    dtype = jnp.dtype(codec.dtype)
    if dtype.name.endswith("int4"):
        return (np.arange(256) % 16 - 8 * codec.signed).astype(dtype)[None]
    n = dtype.itemsize
    codes = np.arange(256**n, dtype=f"uint{8 * n}").view(dtype).reshape(-1, 256)
    if codec.signed and hasattr(codec, "last"):  # there are codes that are not used
        codes = np.where(codes == -128, codes, np.clip(codes, -codec.last, codec.last))
    return codes[:: 4 ** (n - 1)]


@cache
def numbers(codec: Any) -> np.ndarray:
    """The finite numbers of a format, ascending, in the unit 1; of bfloat16, from 1/2 to 2."""
    codes = every_code(codec)
    x = decoded(codec, codes[16:17] if codec.dtype == jnp.bfloat16 else codes, units(codec, [1.0]))
    return np.unique(x[np.isfinite(x)].astype(F64))


# Codes


@formats
def test_codes_are_fixed_points(name):
    """Whatever is rounded with: 0 and 2³² - 1 are the farthest that random numbers go."""
    codec = FORMATS[name]
    codes, scale = every_code(codec), units(codec, POWERS)
    x = decoded(codec, codes if len(codes) > 1 else np.repeat(codes, len(POWERS), 0), scale)
    if name == "bf16":  # the unit of those below is subnormal, which a CPU takes for 0
        x = np.where(np.abs(x) < 2.0**-118, 0, x)
    assert np.isfinite(x).mean() > 0.8
    for random in (dither(jnp.int32(3), x.shape, 7), 0, 2**32 - 1, NEAREST):
        np.testing.assert_array_equal(encoded(codec, x, scale, random), x)


@pytest.mark.parametrize("name", [*BLOCKS, "int8_by_nu", "int4"])
def test_codes_are_fixed_points_of_uneven_scales(name):
    """Where the quotient by the scale is rounded: within the last places of a float32."""
    codec = FORMATS[name]
    scale = units(codec, [3.3, 1e-15, 7e17, 0.1])
    x = decoded(codec, np.repeat(every_code(codec), 4, 0), scale)
    again = encoded(codec, x, scale, dither(jnp.int32(3), x.shape, 7))
    np.testing.assert_array_equal(again, x)


def octaves(*rings: tuple[int, int, int]) -> np.ndarray:
    """Where the codes of a window stand, in octaves: from the definition."""
    (start, end, _), *_ = rings
    places = [float(start)]
    while places[-1] < end:
        k = [k for low, high, k in rings if low <= places[-1] < high][-1]
        places.append(places[-1] + 2.0**-k)
    return np.array(places)


def between_powers(octave: np.ndarray) -> np.ndarray:
    """2^octave, drawn with straight lines between the whole ones."""
    whole = np.floor(octave)
    return 2.0**whole * (1 + octave - whole)


@pytest.mark.parametrize(
    "name, rings, middle",
    [
        ("uint8", [(-41, 44, 0), (-28, 28, 2)], -18),
        ("int8", [(-20, 22, 0), (-6, 6, 3)], -4),
        ("int8_by_nu", [(-10, 5, 3)], 0),
        ("uint4", [(-16, 0, -2), (-8, 0, 0), (-4, -1, 1)], 0),
    ],
)
def test_windows_are_what_they_say(name, rings, middle):
    codec = FORMATS[name]
    wanted = between_powers(octaves(*rings) + middle)
    assert numbers(codec)[numbers(codec) > 0].tolist() == wanted.tolist()
    assert len(wanted) == {"uint8": 254, "int8": 127, "int8_by_nu": 121, "uint4": 14}[name]
    codes = every_code(codec)
    x = decoded(codec, codes, units(codec, [1.0]))
    assert set(codes[np.isnan(x)].astype(int)) == {{"uint8": 255, "uint4": 15}.get(name, -128)}
    assert not np.isinf(x).any()


def test_a_window_follows_the_root_of_the_other_slot():
    """Its middle is the power of 2 at √nu or below, wherever nu lies."""
    codec = FORMATS["int8_by_nu"]
    nu = np.concatenate([2.0 ** np.arange(-126, 128, 3) * 1.7, [0.0, np.inf, np.nan]]).astype(F32)
    codes = np.full((1, SIZE), 81, np.int8)  # 80 cells are ten octaves
    middle = decoded(codec, codes, np.resize(nu, (1, SIZE)))[0, : len(nu)].astype(F64)
    usual = np.isfinite(nu) & (nu > 0)
    ratio = middle[usual] / np.sqrt(nu[usual].astype(F64))
    assert np.all((ratio > 0.5) & (ratio <= 1))
    assert np.all(np.isfinite(middle)) and np.all(np.log2(middle) % 1 == 0)


def create_dynamic_map(signed: bool) -> np.ndarray:
    """The construction as published, literally, for 8 bits and 7 exponent bits."""
    data = []
    for i in range(7):
        n = 2**i + 1 if signed else 2 ** (i + 1) + 1
        boundaries = np.linspace(0.1, 1, n)
        means = (boundaries[:-1] + boundaries[1:]) / 2.0
        data += ((10 ** (-6 + i)) * means).tolist()
        if signed:
            data += (-(10 ** (-6 + i)) * means).tolist()
    data.append(0)
    data.append(1.0)
    return np.array(sorted(data), F32)


@pytest.mark.parametrize(
    "name, zero, smallest, first, per_decade, digest",
    [
        (
            "dynamic_int8", 127, [5.5e-7, 3.25e-6, 7.75e-6], -0.99297, [1, 2, 4, 8, 16, 32, 65],
            "035c4114538df2a03bbcb4d8a39b9325d26d84a00cf6cf29018d1a6608ab14c4",
        ),
        (
            "dynamic_uint8", 0, [3.25e-7, 7.75e-7], 0.0, [2, 4, 8, 16, 32, 64, 129],
            "02a9b523750e21348029626da435f2adadb851b687d86349cd20752f9255de26",
        ),
    ],
)  # fmt: skip
def test_the_dynamic_map_is_the_published_one(name, zero, smallest, first, per_decade, digest):
    codec = FORMATS[name]
    x = decoded(codec, every_code(codec), units(codec, [1.0]))[0]
    assert hashlib.sha256(x.astype("<f4").tobytes()).hexdigest() == digest
    np.testing.assert_allclose(x, create_dynamic_map(codec.signed), rtol=1e-6)
    assert x[zero] == 0 and x[-1] == 1 and np.all(np.diff(x) > 0)
    np.testing.assert_allclose(x[0], first, rtol=1e-5)
    np.testing.assert_allclose(x[x > 0][: len(smallest)], smallest, rtol=1e-6)
    decades = np.floor(np.log10(x[x > 0] * (1 - 1e-6))).astype(int)
    assert np.bincount(decades + 7).tolist() == per_decade


@pytest.mark.parametrize(
    "name, power, codes", [("linear", 1, 255), ("companded", 2, 255), ("companded_u", 4, 256)]
)
def test_companded_maps_are_powers_of_even_steps(name, power, codes):
    codec = FORMATS[name + "int8" if name.endswith("u") else f"{name}_int8"]
    x = numbers(codec)
    assert len(x) == codes and x[-1] == 1 and x[0] == (-1 if codec.signed else 0)
    roots = np.sign(x) * np.abs(x) ** (1 / power)
    np.testing.assert_allclose(np.diff(roots), (x[-1] - x[0]) / (codes - 1), rtol=1e-4)


# Rounding


def cells(codec: Any) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The power in which a format rounds evenly, the ends of its cells, four places in each."""
    ends = numbers(codec)
    root = 1.0
    if (name := type(codec).__name__) in POWER:
        root, ends = POWER[name], ends[ends > 0]  # below the first, all become the first
    part = np.random.default_rng(1).uniform(size=(4, len(ends) - 1))
    part[:2] = [[1e-3], [1 - 1e-3]]
    low, high = ends[:-1], ends[1:]
    return root, low, high, (low + part * (high - low)).astype(F32)


def in_power(x: Any, root: float) -> np.ndarray:
    return np.asarray(x, F64) if root == 1 else np.asarray(x, F64) ** root


@formats
def test_rounding_has_no_bias(name):
    """In every cell, so across octaves and regions too: 64 even random numbers say the mean.

    How many of them round up is within 1 of what it should be, so that the mean is within 1/64
    of a cell, and what a float32 rounds.
    """
    codec = FORMATS[name]
    root, low, high, places = cells(codec)
    random = ((np.arange(ROWS) + 0.5) * 2.0**26).astype(np.uint32)[:, None]
    scale = units(codec, np.ones(ROWS))
    gap = in_power(high, root) - in_power(low, root)
    # The power is a near one: a parabola in a cell, and the wider the cell the less near.
    # Without bias in x instead, this would be 0.17 of the wider cells of uint8.
    room = (1.02 / ROWS + {"uint8": 0.03, "uint4": 0.15}.get(name, 0)) * gap
    for x in places:
        got = encoded(codec, np.broadcast_to(x, (ROWS, len(x))), scale, random).astype(F64)
        assert np.all((got == low) | (got == high))
        x = in_power(x, root)
        assert np.all(np.abs(np.mean(in_power(got, root), axis=0) - x) <= room + 2.0**-22 * abs(x))


@formats
def test_random_numbers_of_a_step_round_without_bias(name):
    """The mean over an array is within 5 standard deviations, a half of a cell at most each."""
    codec = FORMATS[name]
    root, low, high, places = cells(codec)
    k = len(low) // 2 + 3 if len(low) > 20 else 5
    x = np.full((ROWS, SIZE), places[2, k], F32)
    random = dither(jnp.int32(5), x.shape, 1)
    got = in_power(encoded(codec, x, units(codec, np.ones(ROWS)), random), root)
    start, end, y = (in_power(v, root) for v in (low[k], high[k], places[2, k]))
    chance = (y - start) / (end - start)
    deviation = (end - start) * np.sqrt(chance * (1 - chance) / x.size)
    assert got.std() > 0 and abs(got.mean() - y) < 5 * deviation


@formats
def test_rounding_to_the_nearest(name):
    """At most half a cell away, and ascending numbers stay ascending."""
    codec = FORMATS[name]
    root, low, high, places = cells(codec)
    got = encoded(codec, places, units(codec, np.ones(4)), NEAREST)
    gap = in_power(high, root) - in_power(low, root)
    room = {"uint8": 0.53, "uint4": 0.58}.get(name, 0.5001) * gap
    off = np.abs(in_power(got, root) - in_power(places, root))
    assert np.all(off <= room + 2.0**-22 * np.abs(in_power(places, root)))
    by_size = np.argsort(places, axis=None)
    assert np.all(np.diff(got.ravel()[by_size]) >= 0)
    assert len(np.unique(got)) == len(low) + 1


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3", "fp8_e5m2"])
def test_floats_to_the_nearest_are_a_cast(name):
    """Also subnormal ones. Where two are as near, a cast goes to the even one, and this to 0."""
    codec = FORMATS[name]
    info = ml_dtypes.finfo(codec.dtype)
    rng = np.random.default_rng(0)
    lowest = max(float(info.smallest_subnormal) / 2, 2.0**-118)
    x = 2.0 ** rng.uniform(np.log2(lowest), np.log2(float(info.max)), (8, SIZE))
    x = (x * rng.choice([-1, 1], x.shape)).astype(F32)
    scale = None if name == "bf16" else np.full((8, 1), 126 + info.maxexp, np.uint8)  # the unit 1
    x *= np.float32(1 + 2**-20)  # none in the middle between two
    wanted = x.astype(codec.dtype).astype(F32)
    np.testing.assert_array_equal(encoded(codec, x, scale, NEAREST), wanted)


@formats
def test_no_rounding_changes_a_sign(name):
    """And what is positive stays positive where it would divide: in uint8 and uint4."""
    codec = FORMATS[name]
    rng = np.random.default_rng(2)
    x = POWERS[:, None] * 2.0 ** rng.uniform(-60, 60, (len(POWERS), SIZE))
    x = (x * rng.choice([-1, 1], x.shape) if codec.signed else x).astype(F32)
    for random in (dither(jnp.int32(3), x.shape, 7), 0, 2**32 - 1):
        got = encoded(codec, x, units(codec, POWERS), random)
        assert np.all(np.isfinite(got)) and np.all((np.sign(got) == np.sign(x)) | (got == 0))
        if name in POWER:
            assert np.all(got > 0)


# What is measured


def test_rows_share_an_exponent_that_follows_the_largest():
    assert [rows(s) for s in [(), (5,), (300,), (3, 256), (4, 3, 100), (4, 2, 100)]] == [
        (), (0,), (0,), (1,), (1, 2), (1, 2),
    ]  # fmt: skip
    assert row_shape((4, 3, 100)) == (4, 1, 1) and row_shape((7, 300)) == (7, 1)
    x = np.zeros((9, 128), F32)
    x[:, 5] = [1.0, 1.9, 2.0, 0.49, 0.5, 0.0, 1e-38, MAX, -3.0]
    x[:, 6] = [0, np.inf, 0, np.nan, -np.inf, np.nan, 0, 0, 0]
    first = jax.jit(lambda x: top_octave(x, None))(x)
    assert first[:, 0].tolist() == [128, 128, 129, 126, 127, 32, 32, 222, 129]
    old = jnp.full((9, 1), 128, jnp.uint8)  # up at once, down below a quarter, zeros keep it
    then = jax.jit(top_octave)(x, old)
    assert then[:, 0].tolist() == [128, 128, 129, 126, 128, 128, 32, 222, 129]


def test_rows_of_int4_reach_to_their_largest_ratio():
    """Also where ν is rounded down by an octave; and no farther than twice that."""
    codec, rng = FORMATS["int4"], np.random.default_rng(4)
    nu = np.repeat(2.0 ** rng.uniform(-40, 40, (6, 1)), SIZE, 1).astype(F32)
    ratio = rng.uniform(-1, 1, (6, SIZE)) * [[6.6], [1.0], [0.3], [1e-9], [1e9], [0.0]]
    ratio[:, 0] = np.abs(ratio).max(1)
    x = (ratio * np.sqrt(nu)).astype(F32)
    nu[:3, 5], x[:3, 6], x[:3, 7] = 0, np.inf, np.nan  # which say nothing of the others
    scale = np.asarray(jax.jit(codec.scale_beside)(x, None, nu))
    above = 2.0 ** (scale[:3, 0].astype(F64) - 127) / ratio[:3, 0] ** 2
    assert np.all((above > 2 - 1e-5) & (above <= 4 + 1e-5))
    assert scale[3:, 0].tolist() == [107, 147, 107] and scale.dtype == np.uint8
    by = np.asarray(codec.reference(scale, nu / 2))
    got = encoded(codec, x, by, NEAREST)[:3, 0] / x[:3, 0]
    assert np.all(np.abs(got - 1) < 0.31)  # half of the widest cell
    top = np.asarray(codec.decode(jnp.full((6, 1), 7, jnp.int4), by[:, :1]))[:, 0]
    assert np.all((top[:3] >= x[:3, 0] * (1 - 1e-5)) & (top[:3] <= 1.42 * x[:3, 0]))


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].measures])
def test_zero_and_constant_rows(name):
    codec = FORMATS[name]
    constants = np.array([0.0, 1.0, 3e-25, 7.7, 1e20, 2.0**-60, 1.1 * TINY, 2.0**90], F32)
    x = np.broadcast_to(constants[:, None], (8, SIZE))
    x = np.where(np.arange(SIZE) % 2 * codec.signed, -x, x)
    got = encoded(codec, x, measured(codec, x), NEAREST)
    assert not got[0].any()
    # Half of a cell of an octave or of a quarter of one; a table has the number itself, but one.
    near = {"uint4": 0.5, "int8": 0.126, "fp8_e4m3": 0.063, "fp8_e5m2": 0.126}
    off = np.abs(got - x) <= near.get(name, 0.00704 if name == "dynamic_int8" else 1e-6) * np.abs(x)
    assert np.all(off | (np.abs(x) < 1e-28))  # nothing is finer than the smallest exponent
    codes, scale = codec.zeros((3, SIZE))
    assert not decoded(codec, codes, scale).any()
    assert not encoded(codec, np.zeros((3, SIZE)), scale, NEAREST).any()


# What is not finite, or does not fit


# For inf, -inf, NaN, -1: what it becomes. Of a block, all of it.
SHOWS = {
    "uint8": "nan nan nan nan",
    "uint4": "nan nan nan nan",
    "bf16": "inf -inf nan -1.0",
    "fp8_e4m3": "nan nan nan -1.0",
    "fp8_e5m2": "inf -inf nan -1.0",
    "dynamic_uint8": "nan nan nan nan",
    "companded_uint8": "nan nan nan nan",
}


@formats
def test_what_is_not_finite_shows(name):
    codec = FORMATS[name]
    x = np.full((5, SIZE), 1.0, F32)
    x[:4, 7] = [np.inf, -np.inf, np.nan, -1.0]
    scale = measured(codec, x)
    shown = np.array(SHOWS.get(name, "nan nan nan -1.0").split(), F32)
    for random in (NEAREST, 0, 2**32 - 1):
        codes, got, is_nan = around(codec, x, scale, random)
        assert codes.dtype == codec.dtype
        np.testing.assert_array_equal(is_nan, np.isnan(got))
        if random == NEAREST:
            np.testing.assert_allclose(got[:4, 7], shown, rtol=0.00704)
        np.testing.assert_array_equal(np.isinf(got[:4, 7]), np.isinf(shown))
        spoilt = SIZE if name in BLOCKS else 1
        assert np.isnan(got).sum(1).tolist() == [*np.isnan(shown) * spoilt, 0]


@formats
def test_the_largest_and_the_smallest(name):
    """The largest float32 becomes the largest number, not infinity; subnormal ones are 0 or tiny.

    (A CPU takes subnormal numbers for 0.)
    """
    codec = FORMATS[name]
    x = np.zeros((1, SIZE), F32)
    x[0, :4] = [MAX, 1e-40, TINY, 1e30]
    for random in (NEAREST, 0, 2**32 - 1):
        got = encoded(codec, x, measured(codec, x), random)[0]
        assert np.all(np.isfinite(got)) and np.all(got[4:] == 0)
        assert got[1] <= got[2] <= got[3] <= got[0] and got[0] > 0
        assert got[1] == 0


# Shapes


SHAPES = [(), (0,), (1,), (255,), (257,), (3, 257), (2, 3, 100), (0, 5), (5, 0)]


@pytest.mark.parametrize(
    "name", ["uint8", "int8", "int8_by_nu", "uint4", "int4", "fp8_e4m3", "companded_uint8"]
)
def test_shapes(name):
    """Codes have the array's shape; scales the one that `zeros` has said."""
    codec = FORMATS[name]
    for shape in SHAPES:
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        zeros = jax.eval_shape(lambda shape=shape: codec.zeros(shape))
        scale = x if codec.root_of else jax.eval_shape(codec.scale_for, x)
        if codec.measures:
            assert scale == zeros[1] == jax.eval_shape(codec.scale_for, x, scale)
        random = jax.ShapeDtypeStruct(shape, jnp.uint32)
        codes = jax.eval_shape(codec.encode, x, scale, random)
        assert (codes.shape, codes.dtype) == (shape, codec.dtype) == (zeros[0].shape, codes.dtype)
        assert zeros[0].dtype == codec.dtype
        assert jax.eval_shape(codec.decode, codes, scale) == x
        assert jax.eval_shape(codec.is_nan, codes, scale).shape == shape


RAGGED: list[Any] = [lowbit.companded_uint8(block=16), lowbit.int8()]


@pytest.mark.parametrize("codec", RAGGED, ids=lambda c: type(c).__name__)
def test_ragged_ends(codec):
    """A block's scale, or a row's, is of its own entries only."""
    few = settings(max_examples=10, deadline=None, derandomize=True)
    shapes = st.sampled_from([(0,), (), (17,), (2, 3, 50)])

    @few
    @given(shapes, st.integers(0, 2**32 - 1), st.floats(-20, 20), st.floats(0, 4))
    def run(shape: Any, seed: int, middle: float, spread: float) -> None:
        rng = np.random.default_rng(seed)
        x = 2.0 ** (middle + spread * rng.normal(size=shape))
        x = np.asarray(x * rng.choice([-1, 0, 1] if codec.signed else [0, 1], shape), F32)
        encode, _, measure = compiled(codec)
        scale = measure(x)
        codes, got, _ = map(np.asarray, encode(x, scale, jnp.full(shape, NEAREST)))
        assert codes.shape == got.shape == shape
        if codec.signed:
            top = np.max(np.abs(x), axis=rows(shape), keepdims=True, initial=0)
            wanted = np.where(top > 0, np.frexp(top)[1] + 127, 32)
        else:
            flat = x if shape else x[None]
            edges = range(0, flat.shape[-1], codec.block)
            tops = [flat[..., i : i + codec.block].max(-1) for i in edges]
            wanted = np.stack(tops, -1) if tops else flat
            top = np.repeat(wanted, codec.block, -1)[..., : flat.shape[-1]].reshape(shape)
        np.testing.assert_array_equal(np.asarray(scale), wanted)
        # Near the top, a quarter of an octave or an 85th of the root; the least is 2⁻³².
        assert np.all(np.abs(got - x) <= 0.51 * np.abs(x) + top * 2.0**-28)

    run()


def test_sizes_around_a_block():
    """A row of 257 is a block and one."""
    codec = FORMATS["companded_int8"]
    x = np.random.default_rng(3).normal(size=(3, 257)).astype(F32)

    @jax.jit
    def rounded(x: Any) -> Any:
        scale = codec.scale_for(x)
        return codec.decode(codec.encode(x, scale, jnp.full(x.shape, NEAREST)), scale)

    whole, first = np.asarray(rounded(x)), np.asarray(rounded(x[0, :256]))
    np.testing.assert_array_equal(whole[0], [*first, x[0, 256]])
    assert whole[2, 256] == x[2, 256]  # alone in its block, it is the largest
    x[0, 100] = 7  # another largest number is that of its block only
    other = np.asarray(rounded(x))
    assert not np.array_equal(other[0, :256], whole[0, :256])
    np.testing.assert_array_equal(other[:, 256], whole[:, 256])
    np.testing.assert_array_equal(other[1:], whole[1:])


# The numbers to round with


def test_random_numbers_are_even_over_entries_and_steps():
    n = SIZE**2
    some = jax.jit(dither, static_argnums=1)

    def numbers(count: int, seed: int) -> np.ndarray:
        return np.asarray(some(jnp.int32(count), (SIZE, SIZE), seed), F64).ravel() / 2**32

    x = numbers(9, 3)
    assert abs(x.mean() - 0.5) < 5 / np.sqrt(12 * n)
    for lag in (1, SIZE, SIZE + 1):  # neighbors, along both axes
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / np.sqrt(n)
    counts = np.bincount((x * 64).astype(int))
    assert np.sum((counts - n / 64) ** 2) / (n / 64) < 64 + 5 * np.sqrt(2 * 64)
    assert abs(np.corrcoef(x, numbers(9, 4))[0, 1]) < 5 / np.sqrt(n)
    # Of one entry, a tenth of any 100 steps in a row in each tenth of the range, nearly.
    steps = np.stack([numbers(t, 3)[:3] for t in range(100)])
    for entry in (steps * 10).astype(int).T:
        assert np.all(np.abs(np.bincount(entry) - 10) <= 2)


def test_draws_are_uniform_and_independent():
    """Over entries, steps, seeds, and between the halves of a number: within 5 deviations."""
    some = jax.jit(lambda count, seed: draws(count, (SIZE, SIZE), seed))

    def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(some(jnp.int32(count), jnp.uint32(seed))).ravel()
        return x >> 16, x & 0xFFFF

    def uneven(*numbers: np.ndarray) -> float:
        """By how many deviations cells of numbers, of pairs or triples of them, are uneven."""
        bins = {1: 256, 2: 16, 3: 8}[len(numbers)]
        place = functools.reduce(
            lambda place, x: place * bins + x.astype(int) * bins // 2**16, numbers, 0
        )
        cells = bins ** len(numbers)
        counts = np.bincount(place, minlength=cells)
        expected = counts.sum() / cells
        return float((np.sum((counts - expected) ** 2) / expected - cells) / np.sqrt(2 * cells))

    for count, seed in ((1, 1), (2, 1), (1000, 7), (2**31 - 1, 2**32 - 1)):
        upper, lower = halves(count, seed)
        found = {
            "upper": uneven(upper),
            "lower": uneven(lower),
            "halves": uneven(upper, lower),
            "neighbors": uneven(upper[:-1], upper[1:]),
            "lower neighbors": uneven(lower[:-1], lower[1:]),
            "rows": uneven(upper[:-SIZE], upper[SIZE:]),
            "steps": uneven(upper, halves(count - 1, seed)[0]),
            "lower of steps": uneven(lower, halves(count - 1, seed)[1]),
            "three steps": uneven(upper, halves(count - 1, seed)[0], halves(count - 2, seed)[0]),
            "seeds": uneven(upper, halves(count, seed - 1)[0]),
            "halves of seeds": uneven(upper, halves(count, seed - 1)[1]),
        }
        assert all(abs(x) < 5 for x in found.values()), found
    # Of one entry, over 4,096 steps.
    entry = jax.jit(jax.vmap(lambda count: draws(count, (4,), jnp.uint32(3))))(jnp.arange(4096))
    for x in np.asarray(entry).T >> 16:
        assert abs(uneven(x)) < 5 and abs(uneven(x[:-1], x[1:])) < 5


# Values


def test_formats_are_values():
    assert lowbit.uint8() == lowbit.uint8(middle=-18) != lowbit.uint8(middle=0)
    assert lowbit.int8() != lowbit.int8(root_of="nu") and lowbit.int4() == lowbit.int4("nu")
    assert len({lowbit.dynamic_int8(), lowbit.dynamic_int8(256), lowbit.dynamic_int8(64)}) == 2
    assert len(set(FORMATS.values())) == len(FORMATS)
    assert repr(lowbit.uint8()) == "uint8(middle=-18)"


@pytest.mark.parametrize("middle", [-86, 84, True])
def test_a_middle_out_of_range(middle):
    with pytest.raises(ValueError, match=r"^uint8: middle must be an int in \[-85, 83\], got "):
        lowbit.uint8(middle=middle)


@pytest.mark.parametrize("middle", [-85, 83])
def test_a_middle_at_the_end_of_its_range(middle):
    """The windows there are within the range of a float32."""
    codec = lowbit.uint8(middle=middle)
    x = np.asarray(codec.decode(np.arange(255, dtype=np.uint8), None))
    assert np.all(np.isfinite(x)) and np.all(np.diff(x) > 0) and x[1] >= TINY
