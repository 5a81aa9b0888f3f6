"""States in few bits: the step between the codes, where it may stand, what it refuses."""

# pyright: reportArgumentType=false

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import Traced, assert_same_bits, optax_rules
from test_formats import between_powers, octaves

import adaptax
from adaptax import lowbit
from adaptax.lowbit import decode_state, encode_state, store
from adaptax.lowbit._dither import dither, draws

pytestmark = pytest.mark.optimized

F32, F64 = np.float32, np.float64
SHAPE = (64, 64)  # as many entries as min_size

ALIASES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "adam8bit": (lowbit.adam8bit, adaptax.adam),
    "adamw8bit": (lowbit.adamw8bit, adaptax.adamw),
    "adam4bit": (lowbit.adam4bit, adaptax.adam),
    "rmsprop8bit": (lowbit.rmsprop8bit, adaptax.rmsprop),
    "lion8bit": (lowbit.lion8bit, adaptax.lion),
}
aliases = pytest.mark.parametrize("name", ALIASES)

# One transformation with formats of every kind, one parameter for each pair.
PAIRS: dict[str, tuple[Any, Any]] = {
    "8": (lowbit.int8(root_of="nu"), lowbit.uint8()),
    "4": (lowbit.int4(), lowbit.uint4()),
    "row": (lowbit.int8(), lowbit.fp8_e5m2()),
}


def every_format(inner: Any = None, pairs: Any = PAIRS, **options: Any) -> Any:
    slots = {
        "mu": {name: mu for name, (mu, _) in pairs.items()},
        "nu": {name: nu for name, (_, nu) in pairs.items()},
    }
    return store(inner or adaptax.adam(1e-2), slots, **options)


def normal(*shape: int, seed: int = 0) -> Any:
    """Numbers over about four decades."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 0, shape), jnp.float32)


def params() -> Any:
    """A matrix "w" that is large enough, and a vector "b" that is not."""
    return {"b": normal(64), "w": normal(*SHAPE, seed=1)}


def gradients(tree: Any, n: int) -> list[Any]:
    leaves, structure = jax.tree.flatten(tree)
    return [
        structure.unflatten([normal(*x.shape, seed=100 * t + i) for i, x in enumerate(leaves)])
        for t in range(1, n + 1)
    ]


def run(update: Any, state: Any, p: Any, gs: list[Any]) -> tuple[list[Any], Any]:
    """The updates of some steps, and the last state."""
    out = []
    for g in gs:
        u, state = update(g, state, p)
        out.append(u)
    return out, state


def codes(state: Any) -> dict[str, str]:
    """The dtypes of what is encoded, by path."""
    found = jax.tree_util.tree_leaves_with_path(state, is_leaf=_encoded)
    return {jax.tree_util.keystr(path): x.codes.dtype.name for path, x in found if _encoded(x)}


def _encoded(x: Any) -> bool:
    return isinstance(x, lowbit.Encoded)


# The step


def test_without_formats_it_is_the_transformation():
    p, plain = params(), adaptax.adam(1e-2)
    tx = store(plain, {"mu": None, "nu": None})
    gs = gradients(p, 3)
    us, state = run(tx.update, tx.init(p), p, gs)
    wanted, inner = run(plain.update, plain.init(p), p, gs)
    assert_same_bits((us, state.inner_state), (wanted, inner))
    assert state.count == 3


class Steps:
    """Three steps with every format, one kernel after the other."""

    def __init__(self) -> None:
        self.p = {name: normal(*SHAPE, seed=i) for i, name in enumerate(PAIRS)}
        self.gs, self.tx = gradients(self.p, 3), every_format()
        self.us, self.state = [], self.tx.init(self.p)
        for g in self.gs:
            u, self.state = self.tx.update(g, self.state, self.p)
            self.us.append(u)


@pytest.fixture(scope="module")
def eager() -> Steps:
    return Steps()


def test_jit_donation_and_resumption(eager):
    step = jax.jit(eager.tx.update, donate_argnums=1)
    state, out = eager.tx.init(eager.p), []
    for g in eager.gs:
        state = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.device_get(state))))
        u, new = step(g, state, eager.p)
        assert all(x.is_deleted() for x in jax.tree.leaves(state.inner_state))
        assert jax.tree.structure(new) == jax.tree.structure(state)
        for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
            assert (one.shape, one.dtype, one.weak_type) == (other.shape, other.dtype, False)
        out.append(u)
        state = new
    assert_same_bits(out, eager.us)
    assert_same_bits(state, eager.state)


def test_scan_is_a_loop(eager):
    def step(state: Any, g: Any) -> Any:
        u, state = eager.tx.update(g, state, eager.p)
        return state, u

    gs, us = (jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (eager.gs, eager.us))
    state, out = jax.jit(lambda s, gs: jax.lax.scan(step, s, gs))(eager.tx.init(eager.p), gs)
    assert_same_bits(out, us)
    assert_same_bits(state, eager.state)


def test_vmap_is_one_after_the_other():
    pairs = {name: PAIRS[name] for name in ("8", "row")}
    p = {name: normal(*SHAPE) for name in pairs}
    g, tx = gradients(p, 1)[0], every_format(pairs=pairs)
    several = [(g, tx.init(p)), ({k: -2.0 * x for k, x in g.items()}, tx.update(g, tx.init(p))[1])]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    out = jax.jit(jax.vmap(tx.update))(*stacked)
    for i, (one, state) in enumerate(several):
        assert_same_bits(jax.tree.map(lambda x, i=i: x[i], out), tx.update(one, state))


class Halves(NamedTuple):
    """A state with an average and one that is positive, in which nothing is rounded twice."""

    mu: Any
    nu: Any


def halves() -> Any:
    def update(u: Any, state: Any, params: Any = None) -> Any:
        mu, nu = (jax.tree.map(lambda x, g: 0.5 * (x + g), *pair) for pair in (
            (state.mu, u), (state.nu, jax.tree.map(jnp.abs, u)),
        ))  # fmt: skip
        return mu, Halves(mu, nu)

    return (lambda p: Halves(p, jax.tree.map(jnp.abs, p))), update


def test_formats_are_the_same_on_eight_devices():
    """With an inside that is, which `adam` on several arrays is not to the last bit."""
    p = {name: normal(*SHAPE, seed=i) for i, name in enumerate(PAIRS)}
    g, tx = gradients(p, 1)[0], every_format(halves())

    state, step = tx.init(p), jax.jit(tx.update)
    wanted = step(g, state, p)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
    where = NamedSharding(mesh, PartitionSpec("rows", "columns"))
    far = jax.tree.map(lambda x: jax.device_put(x, where) if x.shape == SHAPE else x, (g, state, p))
    us, new = step(*far)
    assert_same_bits((us, new), wanted)
    for x in (us["4"], new.inner_state.mu["8"].codes):
        assert x.sharding.is_equivalent_to(where, 2)


@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec(None, "d")], ids=str)
def test_adam8bit_sends_nothing(spec):
    where = NamedSharding(Mesh(np.array(jax.devices()), "d"), spec)
    p, tx = {"w": normal(*SHAPE)}, lowbit.adam8bit(1e-3)
    far = jax.device_put(p, where)
    state = tx.init(far)
    assert_same_bits(state, tx.init(p))
    assert state.inner_state[0].mu["w"].codes.sharding.is_equivalent_to(where, 2)
    compiled = jax.jit(tx.update).lower(far, state, far).compile()
    assert_same_bits(compiled(far, state, far), tx.update(p, tx.init(p), p))
    text = compiled.as_text() or ""
    assert "s8[" in text and "u8[" in text
    for name in ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"):
        assert name not in text


# Against float64


def stored(values: np.ndarray, x: np.ndarray, up: Any) -> np.ndarray:
    """The place of one of the two neighbors of each x; `up(low, high, x)` says which."""
    k = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 2)
    return k + up(k, values[k], values[k + 1], x)


def bent(part: np.ndarray, lift: Any) -> np.ndarray:
    """Random numbers in a cell, moved up a little in its middle."""
    return part + lift * part * (1 - part)


class EightBits:
    """uint8 and int8(root_of="nu") from their definitions, in float64."""

    nu_values = between_powers(octaves((-41, 44, 0), (-28, 28, 2)) - 18)
    ratios = between_powers(octaves((-10, 5, 3)))
    even = False

    def unit(self, nu: np.ndarray) -> np.ndarray:
        return 2.0 ** np.floor(np.floor(np.log2(np.where(nu > 0, nu, 1))) / 2)

    def check_scale(self, scale: Any, x: np.ndarray, nu: np.ndarray) -> None:
        assert scale is None

    def mu_by(self, scale: Any, nu: np.ndarray) -> np.ndarray:
        return nu

    def nu(self, codes: Any, scale: Any) -> np.ndarray:
        return np.concatenate([[0], self.nu_values])[codes]

    def mu(self, codes: Any, nu: np.ndarray) -> np.ndarray:
        size = np.concatenate([[0], self.ratios])[np.abs(codes.astype(int))]
        return np.sign(codes) * size * self.unit(nu)

    def nu_codes(self, x: np.ndarray, part: np.ndarray, scale: Any) -> np.ndarray:
        def up(k: Any, low: Any, high: Any, x: Any) -> Any:
            octave = 2.0 ** np.floor(np.log2(low))
            lift = 0.47 * 0.693 * (high - low) / octave
            return bent(part, lift) >= 1 - (x - low) / (high - low)

        return np.clip(stored(self.nu_values, x, up), 0, 253) + 1

    def mu_codes(self, x: np.ndarray, part: np.ndarray, nu: np.ndarray) -> np.ndarray:
        def up(k: Any, low: Any, high: Any, x: Any) -> Any:
            chance = (x - low) / (high - low)
            return np.where(low == 0, part < x / high, part >= 1 - chance)

        values = np.concatenate([[0], self.ratios])
        size = np.abs(x) / self.unit(nu)
        return np.sign(x) * np.clip(stored(values, size, up), 0, 121)


class FourBits:
    """uint4 and int4 from their definitions, in float64."""

    nu_values = between_powers(octaves((-16, 0, -2), (-8, 0, 0), (-4, -1, 1)))
    ratios = np.array([0, 0.045, 0.095, 0.15, 0.225, 0.335, 0.53, 1.0])
    even = True

    def nu(self, codes: Any, scale: Any) -> np.ndarray:
        values = np.concatenate([[0], self.nu_values])
        return values[codes.astype(int)] * 2.0 ** (np.asarray(scale, F64) - 127)

    def mu(self, codes: Any, by: np.ndarray) -> np.ndarray:
        codes = codes.astype(int)
        return np.sign(codes) * self.ratios[np.abs(codes)] * np.sqrt(by)

    def check_scale(self, scale: Any, x: np.ndarray, nu: np.ndarray) -> None:
        """2ᵉ is the power of 2 above twice the largest m² / ν, of all: rows of 64 are short."""
        above = 2.0 ** (np.asarray(scale, F64) - 127) / np.max(x**2 / nu)
        assert scale.shape == (1, 1) and 2 - 1e-5 < above <= 4 + 1e-5

    def mu_by(self, scale: Any, nu: np.ndarray) -> np.ndarray:
        return nu * 2.0 ** (np.asarray(scale, F64) - 127)

    def nu_codes(self, x: np.ndarray, part: np.ndarray, scale: Any) -> np.ndarray:
        def drawn(x: Any) -> Any:
            """The logarithm, in straight lines between powers of 2."""
            whole = np.floor(np.log2(x))
            return whole + x / 2.0**whole - 1

        def up(k: Any, low: Any, high: Any, x: Any) -> Any:
            width = drawn(high) - drawn(low)
            f = (drawn(np.maximum(x, low)) - drawn(low)) / width
            return bent(part, 0.36 * 0.693 * np.minimum(width, 1)) >= 1 - f

        x = x / 2.0 ** (np.asarray(scale, F64) - 127)
        return np.clip(stored(self.nu_values, x, up), 0, 13) + 1

    def mu_codes(self, x: np.ndarray, part: np.ndarray, by: np.ndarray) -> np.ndarray:
        def up(k: Any, low: Any, high: Any, x: Any) -> Any:
            return part * (high - low) < x - low

        ratio = np.abs(x) / np.sqrt(by)
        return np.sign(x) * np.minimum(stored(self.ratios, ratio, up), 7)


@pytest.mark.parametrize("name, bits", [("adam8bit", EightBits()), ("adam4bit", FourBits())])
def test_a_step_is_decoding_adam_and_encoding(name, bits):
    """In float64, from the definitions, with the same random numbers.

    Where float32 rounds otherwise, or draws the fourth root with a straight line, a number
    lands on the other neighbor: in one place of a hundred at most.
    """
    b1, b2, eps = 0.8, 0.98, 1e-7
    tx = ALIASES[name][0](0.03, b1, b2, eps)
    p = {"w": normal(*SHAPE)}
    state, step = tx.init(p), jax.jit(tx.update)
    m = v = np.zeros(SHAPE)
    for t, g in enumerate(gradients(p, 4), 1):
        u, state = step(g, state, p)
        g = np.asarray(g["w"], F64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        wanted = -0.03 * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        np.testing.assert_allclose(u["w"], wanted, rtol=2e-5, atol=3e-7)
        inner = state.inner_state[0]
        mu, nu = inner.mu["w"], inner.nu["w"]
        random = draws(jnp.int32(t), SHAPE, nu.seed)
        even = dither(jnp.int32(t), SHAPE, mu.seed) if bits.even else random << 16
        part = [(np.asarray(x) >> 8) / 2.0**24 for x in (even, random)]
        bits.check_scale(mu.scale, m, v)
        by = bits.mu_by(mu.scale, bits.nu(np.asarray(nu.codes), nu.scale))
        for got, wanted in (
            (nu.codes, bits.nu_codes(v, part[1], nu.scale)),
            (mu.codes, bits.mu_codes(m, part[0], by)),
        ):
            off = np.abs(np.asarray(got).astype(int) - wanted)
            assert off.max() <= 1 and off.mean() < 0.01
        v = bits.nu(np.asarray(nu.codes), nu.scale)
        m = bits.mu(np.asarray(mu.codes), by)
        opened = decode_state(state)[0]
        np.testing.assert_allclose(opened.nu["w"], v, rtol=1e-6)
        np.testing.assert_allclose(opened.mu["w"], m, rtol=1e-6)
    assert state.count == 4 and state.inner_state[0].count == 4


def test_the_average_over_seeds_is_the_step_in_float32():
    """Of the second one, which the rounding of the first shows in; 5 standard deviations."""
    p, n = {"w": normal(*SHAPE)}, 32
    gs, plain = gradients(p, 2), adaptax.trace(0.9)

    def second(tx: Any) -> np.ndarray:
        return np.abs(np.asarray(run(tx.update, tx.init(p), p, gs)[0][1]["w"], F64))

    slots = {"trace": lowbit.int8()}
    several = np.stack([second(store(plain, slots, seed=seed)) for seed in range(n)])
    wanted = second(plain)
    off, spread = several.mean(0) / wanted - 1, several.std(0) / wanted
    assert np.mean(spread > 0) > 0.8
    usual = wanted > np.median(wanted)
    assert abs(off[usual].sum()) < 5 * np.sqrt(np.sum(spread[usual] ** 2) / n)


# Aliases


@aliases
def test_aliases_are_called_as_their_twins(name):
    small, twin = (inspect.signature(f, eval_str=True) for f in ALIASES[name])
    assert small.parameters == twin.parameters


@aliases
def test_bytes_of_state(name):
    """Of a million parameters, some of them in small arrays."""
    p = {"embed": (1000, 512), "layer": {"kernel": (512, 1000), "bias": (1000,)}, "scale": (512,)}
    p = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), p, is_leaf=lambda s: isinstance(s, tuple)
    )
    state = jax.tree.leaves(jax.eval_shape(ALIASES[name][0](1e-3).init, p))
    bits = [x.size * (4 if x.dtype.name.endswith("int4") else 8 * x.dtype.itemsize) for x in state]
    per_parameter = sum(bits) / 8 / sum(x.size for x in jax.tree.leaves(p))
    most = {"adam8bit": 2.04, "adamw8bit": 2.04, "adam4bit": 1.07}.get(name, 1.02)
    assert 0.9 * most < per_parameter <= most


@aliases
def test_aliases_stay_near_their_twins(name):
    """Steps of a twin with the same gradients: nearly the same way."""
    p = {"w": normal(*SHAPE)}
    gs = gradients(p, 4)
    ways = []
    for factory in ALIASES[name]:
        tx = factory(0.1)
        us, state = run(tx.update, tx.init(p), p, gs)
        ways.append(np.sum([u["w"] for u in us], 0).ravel())
        assert bool(codes(state)) == (factory is ALIASES[name][0])
    assert np.corrcoef(*ways)[0, 1] > (0.9 if name == "adam4bit" else 0.98)
    assert not np.array_equal(*ways)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_rmsprop8bit_keeps_its_initial_scale(scale):
    p = params()
    tx = lowbit.rmsprop8bit(0.1, initial_scale=scale, momentum=0.9)
    state = tx.init(p)
    assert sorted(set(codes(state).values())) == ["int8", "uint8"]
    assert ".inner_state[0].nu['w']" in codes(state)
    nu = decode_state(state)[0].nu["w"]
    np.testing.assert_allclose(nu, scale, rtol=0 if scale == 1 else 0.21)
    g = gradients(p, 1)[0]
    plain = adaptax.rmsprop(0.1, initial_scale=scale, momentum=0.9)
    wanted = plain.update(g, plain.init(p), p)[0]
    u = tx.update(g, state, p)[0]
    np.testing.assert_allclose(u["w"], wanted["w"], rtol=1e-6 if scale == 1 else 0.12)
    assert_same_bits(u["b"], wanted["b"])


# Which arrays


def test_small_arrays_and_those_without_a_format_stay():
    p = {"embed": {"w": normal(*SHAPE)}, "w": normal(*SHAPE), "b": normal(4095)}
    nu = {"*embed*": None, "*": lowbit.uint8()}
    state = store(adaptax.adam(1e-3), {"nu": nu}).init(p)
    assert codes(state) == {".inner_state[0].nu['w']": "uint8"}
    assert state.inner_state[0].nu["b"].dtype == state.inner_state[0].mu["w"].dtype == F32
    state = store(adaptax.adam(1e-3), {"nu": nu}, min_size=4095).init(p)
    assert set(codes(state)) == {f".inner_state[0].nu['{k}']" for k in "bw"}
    state = store(adaptax.adam(1e-3), {"mu": lowbit.bf16()}, min_size=0).init(jnp.ones(()))
    assert codes(state) == {".inner_state[0].mu": "bfloat16"}


def test_a_tree_of_every_kind():
    """Holes, no entries, integers with their gradients, 16 bits, complex numbers, a scalar."""
    p = {
        "none": None,
        "empty": {},
        "zero": jnp.zeros((0, 3)),
        "scalar": jnp.float32(2.0),
        "n": jnp.arange(8),
        "h": jnp.ones(8, jnp.bfloat16),
        "c": jnp.ones(8, jnp.complex64),
    }
    g = jax.tree.map(lambda x: x * jnp.asarray(0.5, x.dtype), p | {"n": jnp.ones(())})
    g["n"] = np.zeros(8, jax.dtypes.float0)
    slots = {"mu": lowbit.int8(root_of="nu"), "nu": {"zero": None, "*": lowbit.uint8()}}
    tx = store(adaptax.adam(0.1), slots, min_size=0)
    state = tx.init(p)
    inner = state.inner_state[0]
    kept = {k for k in p if _encoded(inner.nu[k])}
    assert kept == {"scalar", "n", "h", "c"} and not _encoded(inner.mu["c"])
    u, new = tx.update(g, state, p)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert u["none"] is None and u["n"].dtype == jax.dtypes.float0
    assert u["h"].dtype == jnp.bfloat16 and u["c"].dtype == jnp.complex64
    assert decode_state(new)[0].nu["h"].dtype == jnp.float32
    for k in ("scalar", "h", "c"):
        np.testing.assert_allclose(np.asarray(u[k], np.complex64), -0.1, rtol=4e-3)
    tx = store(adaptax.adam(0.1), _eight(), min_size=0)
    for nothing in ({}, None, (), {"w": None}):
        state = tx.init(nothing)
        assert jax.tree.leaves(state.inner_state) == [0]
        assert tx.update(nothing, state, nothing)[0] == nothing


def test_integers_and_frozen_leaves_keep_their_codes():
    """What gets no gradient is decoded and encoded, and stays what it is."""
    p = {"f": normal(*SHAPE), "w": normal(*SHAPE)}
    tx = lowbit.adam8bit(0.1)
    _, first = run(tx.update, tx.init(p), p, gradients(p, 2))
    u, then = tx.update({"f": None, "w": p["w"]}, first, p)
    assert u["f"] is None
    for slot in ("mu", "nu"):
        old, new = (getattr(s.inner_state[0], slot) for s in (first, then))
        assert_same_bits(old["f"].codes, new["f"].codes)
        assert not np.array_equal(old["w"].codes, new["w"].codes)


# What is not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["adam8bit", "adam4bit", "lion8bit"])
def test_a_gradient_that_is_not_finite_shows(name, bad):
    """In its own entry, and there only, in the state and in all updates from then on."""
    p = {"w": normal(*SHAPE)}
    tx = ALIASES[name][0](0.1)
    good, last = gradients(p, 2)
    spoilt = {"w": good["w"].at[3, 5].set(bad)}
    state, clean = tx.init(p), tx.init(p)
    for g, h in ((spoilt, good), (last, last)):
        u, state = tx.update(g, state, p)
        wanted, clean = tx.update(h, clean, p)
        here = np.zeros(SHAPE, bool)
        here[3, 5] = True
        np.testing.assert_array_equal(np.asarray(u["w"])[~here], np.asarray(wanted["w"])[~here])
        opened = [x for x in jax.tree.leaves(decode_state(state)) if x.shape == SHAPE]
        for x in opened:
            np.testing.assert_array_equal(~np.isfinite(x), here)
    if name != "lion8bit" or np.isnan(bad):  # its update is a sign, also of an infinity
        assert np.isnan(u["w"][3, 5])


def test_of_a_block_that_is_not_finite_all_shows():
    p = {"w": normal(*SHAPE)}
    slots = {"mu": lowbit.dynamic_int8(block=32), "nu": lowbit.companded_uint8(block=32)}
    tx = store(adaptax.adam(0.1), slots)
    g = gradients(p, 1)[0]
    wanted, _ = tx.update(g, tx.init(p), p)
    u, state = tx.update({"w": g["w"].at[3, 40].set(jnp.inf)}, tx.init(p), p)
    here = np.zeros(SHAPE, bool)
    here[3, 32:] = True
    np.testing.assert_array_equal(np.isnan(u["w"]), here)
    np.testing.assert_array_equal(u["w"][~here], wanted["w"][~here])
    for slot in (decode_state(state)[0].mu, decode_state(state)[0].nu):
        np.testing.assert_array_equal(np.isnan(slot["w"]), here)


class Level(NamedTuple):
    """A state whose field is not known to have both signs."""

    level: Any


def test_what_a_format_cannot_hold_spoils_the_update():
    """A number that becomes NaN as it is stored makes the update of that very step NaN."""
    p = {"w": normal(*SHAPE)}
    ones = ((lambda p: Level(p)), lambda u, s, p=None: (jax.tree.map(jnp.ones_like, u), Level(u)))
    tx = store(ones, {"level": lowbit.uint8()})
    u, state = tx.update(p, tx.init(jax.tree.map(jnp.zeros_like, p)), p)
    np.testing.assert_array_equal(u["w"], np.where(p["w"] < 0, np.nan, 1))
    np.testing.assert_array_equal(np.isnan(decode_state(state).level["w"]), p["w"] < 0)


# Float32 and back


def test_from_float32_to_eight_bits_and_back():
    p, wide, small = params(), adaptax.adam(1e-2), lowbit.adam8bit(1e-2)
    gs = gradients(p, 6)
    _, state = run(wide.update, wide.init(p), p, gs[:2])
    begun = encode_state(small, state, jax.eval_shape(lambda: p))
    assert jax.tree.structure(begun) == jax.tree.structure(small.init(p))
    assert begun.count == begun.inner_state[0].count == 2
    assert_same_bits(begun.inner_state[0].nu["b"], state[0].nu["b"])
    opened = decode_state(begun)
    assert jax.tree.structure(opened) == jax.tree.structure(state)
    mu, nu, near = state[0].mu["w"], state[0].nu["w"], opened[0]
    np.testing.assert_allclose(near.nu["w"], nu, rtol=0.27)  # an octave between two: half of it
    assert np.median(np.abs(near.nu["w"] / nu - 1)) < 0.05
    assert np.all(np.abs(near.mu["w"] - mu) <= 0.126 * np.abs(mu) + 2.0**-11 * np.sqrt(nu))

    us, then = run(small.update, begun, p, gs[2:4])
    wanted, state = run(wide.update, state, p, gs[2:4])
    assert then.count == 4
    assert_same_bits([u["b"] for u in us], [u["b"] for u in wanted])
    assert np.corrcoef(us[-1]["w"].ravel(), wanted[-1]["w"].ravel())[0, 1] > 0.99
    assert_same_bits(encode_state(small, decode_state(then), p), then)

    us, _ = run(wide.update, decode_state(then), p, gs[4:])
    wanted, _ = run(wide.update, state, p, gs[4:])
    assert_same_bits([u["b"] for u in us], [u["b"] for u in wanted])
    assert np.corrcoef(us[-1]["w"].ravel(), wanted[-1]["w"].ravel())[0, 1] > 0.99


def test_states_within_states():
    p = params()
    small, wide = (
        adaptax.chain(adaptax.clip(1.0), adaptax.masked(f(0.1), {"b": False, "w": True}))
        for f in (lowbit.adam8bit, adaptax.adam)
    )
    assert jax.tree.structure(decode_state(small.init(p))) == jax.tree.structure(wide.init(p))
    tx = store(adaptax.adam(0.1), {"nu": lowbit.uint8()}, seed=7)
    begun = encode_state(tx, adaptax.adam(0.1).init(p), p)
    assert_same_bits(begun, tx.init(p))


# Values


def test_it_is_a_value():
    for make in (lambda: lowbit.adam8bit(1e-3), every_format):
        tx = make()
        assert tx == make() == pickle.loads(pickle.dumps(tx)) == copy.deepcopy(tx)
        assert hash(tx) == hash(make())
    assert repr(lowbit.adam8bit(1e-3, b2=0.99)) == "adam8bit(learning_rate=0.001, b2=0.99)"
    text = repr(store(adaptax.adam(1e-3), {"nu": lowbit.uint8()}, seed=3))
    assert text == "store(inner=adam(learning_rate=0.001), slots={'nu': uint8(middle=-18)}, seed=3)"
    assert every_format() != every_format(seed=1)
    one, other = (store(adaptax.adam(1e-3), {"nu": lowbit.uint8(m)}) for m in (-18, -25))
    assert one != other


def test_one_executable_for_all_learning_rates():
    p = params()
    g, traced = gradients(p, 1)[0], Traced(lambda tx, g, s, p: tx.update(g, s, p))
    step = jax.jit(traced)
    us = [step(tx, g, tx.init(p), p)[0] for tx in map(lowbit.adam8bit, (1e-3, 2e-3))]
    assert traced.times == 1
    np.testing.assert_allclose(2 * us[0]["w"], us[1]["w"], rtol=1e-5)


def test_seeds_slots_and_parameters_round_otherwise():
    p = {k: jnp.ones(SHAPE) for k in "ab"}
    g = {k: normal(*SHAPE) for k in "ab"}

    def rounded(seed: int) -> list[np.ndarray]:
        tx = store(adaptax.trace(0.9), {"trace": lowbit.int8()}, seed=seed)
        _, state = tx.update(g, tx.init(p), p)
        return [np.asarray(state.inner_state.trace[k].codes) for k in "ab"]

    several = [*rounded(0), *rounded(1), *rounded(2**31)]
    for i, one in enumerate(several):
        for other in several[:i]:
            assert not np.array_equal(one, other) and np.mean(one == other) > 0.2
    leaves = jax.tree_util.tree_leaves_with_path(every_format().init(dict.fromkeys(PAIRS, p["a"])))
    seeds = [int(x) for path, x in leaves if getattr(path[-1], "name", "") == "seed"]
    assert len(set(seeds)) == len(seeds) == 2 * len(PAIRS)


# Surroundings


def test_inside_of_others():
    """The same updates whatever is around."""
    p = params()
    g = gradients(p, 1)[0]
    inner = lowbit.adam8bit(0.1)
    wanted, last = run(inner.update, inner.init(p), p, [g, g])
    only_w = {"b": False, "w": True}
    around: dict[str, Any] = {
        "optax.chain": optax.chain(optax.identity(), inner),
        "chain": adaptax.chain(adaptax.identity(), inner),
        "masked": adaptax.masked(inner, only_w),
        "of masked": store(adaptax.masked(adaptax.adam(0.1), only_w), _eight()),
        "partition": adaptax.partition({"s": inner, "p": adaptax.sgd(0.1)}, {"b": "p", "w": "s"}),
        "inject": adaptax.inject_hyperparams(lowbit.adam8bit)(learning_rate=0.1),
        "by what is not encoded": store(adaptax.adam(0.1), {"mu": lowbit.int8(root_of="nu")}),
        "nested": store(store(adaptax.adam(0.1), {"nu": lowbit.uint8()}), {"mu": None}),
    }
    for name, tx in around.items():
        with optax_rules():
            us, state = run(tx.update, tx.init(p), p, [g, g])
        assert codes(state), name
        if name not in ("nested", "by what is not encoded"):
            assert_same_bits([u["w"] for u in us], [u["w"] for u in wanted], name)
    steps = adaptax.MultiSteps(inner, 2)
    us, state = run(steps.update, steps.init(p), p, [g] * 4)
    assert not us[0]["w"].any() and not us[2]["w"].any()
    assert_same_bits([us[1], us[3]], wanted)
    assert_same_bits(state.inner_opt_state, last)


def _eight() -> Any:
    return {"mu": lowbit.int8(root_of="nu"), "nu": lowbit.uint8()}


def test_transformations_of_optax_inside():
    p = params()
    gs, plain = gradients(p, 3), optax.adam(0.1)
    tx = store(plain, _eight())
    with optax_rules():
        us, state = run(jax.jit(tx.update), tx.init(p), p, gs)
        wanted, inner = run(jax.jit(plain.update), plain.init(p), p, gs)
    assert set(codes(state).values()) == {"int8", "uint8"}
    np.testing.assert_allclose(us[0]["w"], wanted[0]["w"], rtol=1e-6)  # nothing rounded so far
    assert np.corrcoef(us[2]["w"].ravel(), wanted[2]["w"].ravel())[0, 1] > 0.99
    assert jax.tree.structure(decode_state(state)) == jax.tree.structure(inner)


# Errors


@pytest.mark.parametrize(
    "slots, error, message",
    [
        ({"nu": "uint8"}, TypeError, r"slots\['nu'\] must be a format of adaptax.lowbit, None, or"),
        ({"nu": lowbit.uint8}, TypeError, r"slots\['nu'\] must be a format: uint8\(\)"),
        ({"nu": {"*": lowbit.uint8}}, TypeError, r"slots\['nu'\] must be a format: uint8\(\)"),
        ({}, TypeError, r"slots must be a mapping such as"),
        ({1: lowbit.uint8()}, TypeError, r"slots must be a mapping such as"),
        ({"mu": lowbit.uint8()}, ValueError, r"'mu' has both signs, and uint8\(middle=-18\) holds"),
        ({"trace": lowbit.uint4()}, ValueError, r"'trace' has both signs, and uint4\(\) holds"),
        ({"nu": lowbit.linear_int8()}, ValueError, r"linear_int8.* can't hold 'nu': .*diverges"),
        ({"nu": {"w": lowbit.linear_int8()}}, ValueError, r".* can't hold 'nu': .*diverges"),
    ],
)  # fmt: skip
def test_formats_that_do_not_fit(slots, error, message):
    with pytest.raises(error, match=rf"^store: {message}"):
        store(adaptax.adam(1e-3), slots)


def test_states_that_do_not_fit():
    p = params()
    with pytest.raises(
        ValueError, match=r"no slot 'nus' in the shape of a parameter; it has .*mu.*nu"
    ):
        store(adaptax.adam(1e-3), {"nus": lowbit.uint8()}).init(p)
    with pytest.raises(ValueError, match=r"no slot 'nu' in the shape of a parameter; it has"):
        store(adaptax.lion(1e-3), {"nu": lowbit.uint8()}).init(p)
    with pytest.raises(ValueError, match=r"measures .*\.mu\['w'\] by the slot 'nu' beside it, and"):
        store(adaptax.lion(1e-3), {"mu": lowbit.int8(root_of="nu")}).init(p)
    with pytest.raises(ValueError, match=r"^rmsprop8bit: centered=True needs the variance"):
        lowbit.rmsprop8bit(1e-3, centered=True)
    tx = lowbit.adam8bit(1e-3)
    with pytest.raises(TypeError, match=r"^store: .* must be its state, StoreState, got"):
        tx.update(p, adaptax.adam(1e-3).init(p), p)
    with pytest.raises(
        TypeError, match=r"^encode_state: tx must be a transformation made by store"
    ):
        encode_state(adaptax.adam(1e-3), tx.init(p), p)
    with pytest.raises(ValueError, match=r"^encode_state: the state is not one of what tx wraps"):
        encode_state(tx, adaptax.sgd(1e-3).init(p), p)
    for option in ({"min_size": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=rf"^store: {next(iter(option))} must lie in"):
            store(adaptax.adam(1e-3), _eight(), **option)
    grows = store((lambda p: (), lambda u, s, p=None: (u, (*s, 1))), {"x": None})
    with pytest.raises(
        ValueError, match=r"^store: the wrapped transformation changed the structure"
    ):
        grows.update({}, grows.init({}), {})
