"""16-bit parameters: where updates land, what is not lost, what a compiler may not fold away."""

# pyright: reportArgumentType=false

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import assert_same_bits, optax_rules
from trees import ZOO, as_jax, gradients_like

import adaptax
from adaptax.lowbit import kahan, master_weights, stochastic_rounding, ulp_correction
from adaptax.lowbit._compiled import missing
from adaptax.lowbit._dither import dither
from adaptax.lowbit._rounding import leaf_seed

pytestmark = pytest.mark.optimized

F32 = np.float32
BF16, F16 = ml_dtypes.bfloat16, np.float16

METHODS: dict[str, Callable[[], Any]] = {
    "stochastic_rounding": stochastic_rounding,
    "kahan": kahan,
    "ulp_correction": ulp_correction,
    "master_weights": lambda: master_weights(adaptax.identity()),
}
methods = pytest.mark.parametrize("name", METHODS)
dtypes = pytest.mark.parametrize("dtype", [BF16, F16])


def after(name: str, inner: Any, seed: int = 0) -> Any:
    """One of the methods after (or around) another transformation."""
    if name == "master_weights":
        return master_weights(inner)
    method = METHODS[name]() if name == "kahan" else globals()[name](seed)
    return adaptax.chain(inner, method)


# References, in numpy


def flushed(x: np.ndarray) -> np.ndarray:
    """Zeros for what is below float32's normal numbers, as the CPU has it."""
    return np.where(np.abs(x) < 2.0**-126, 0, x).astype(F32)


def by_chance(x: np.ndarray, bits: int, low: int, random: Any) -> np.ndarray:
    """Float32 numbers stochastically rounded to some bits, from the definition, in float64.

    `low` is the smallest exponent, below which numbers keep their spacing.
    """
    if low > -126:  # the chances there are in units of 2⁻²⁴ of the smallest normal number
        least = F32(2.0**low)
        x = np.where(np.abs(x) < least, np.copysign((np.abs(x) + least) - least, x), x)
    exponent = np.frexp(np.where(np.isfinite(x), x, 0).astype(np.float64))[1] - 1
    unit = np.ldexp(1.0, np.maximum(exponent, low) - bits + 1)
    part = np.abs(x) / unit
    chances = 2 ** (24 - bits)  # of the random number, as many bits count as are dropped
    up = np.floor((part - np.floor(part)) * chances) + random // 2 ** (8 + bits) >= chances
    return np.copysign((np.floor(part) + up) * unit, x).astype(F32)


class Reference:
    """The steps of one array, one after the other."""

    def __init__(self, name: str, p: np.ndarray):
        self.name, self.dtype, self.steps = name, p.dtype, 0
        self.bits, self.low = (8, -126) if p.dtype == BF16 else (11, -14)
        self.p = self.x = flushed(p.astype(F32))
        self.c = np.zeros_like(self.p)

    def step(self, u: np.ndarray) -> np.ndarray:
        self.steps += 1
        with np.errstate(invalid="ignore", over="ignore"):
            self.p = getattr(self, self.name)(flushed(u))
            self.x = np.where(np.isfinite(self.p), self.x, self.p)
        return self.p

    def nearest(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self.dtype).astype(F32)

    def random(self) -> np.ndarray:
        return np.asarray(dither(jnp.int32(self.steps), self.p.shape, leaf_seed(0, 0)))

    def stochastic_rounding(self, u: np.ndarray) -> np.ndarray:
        x = flushed(self.p + u)
        inside = np.abs(x) <= F32(ml_dtypes.finfo(self.dtype).max)
        return np.where(inside, by_chance(x, self.bits, self.low, self.random()), self.nearest(x))

    def kahan(self, u: np.ndarray) -> np.ndarray:
        x = flushed(self.p + flushed(u - self.c))
        p = self.nearest(x)
        self.c = np.where(np.isfinite(p), flushed(self.nearest(flushed(p - x))), 0)
        return p

    def ulp_correction(self, u: np.ndarray) -> np.ndarray:
        self.x = by_chance(flushed(self.x + u), self.bits + 8, self.low, self.random())
        away = by_chance(self.x, self.bits, self.low, np.uint32(2**31))
        return np.where(np.abs(self.x) < 2.0**127, self.nearest(away), self.nearest(self.x))

    def master_weights(self, u: np.ndarray) -> np.ndarray:
        self.x = flushed(self.x + u)
        return self.nearest(self.x)


# Landing


def plain(p: Any, u: Any) -> Any:
    return (p + u).astype(p.dtype)


def steps(p: np.ndarray, n: int) -> list[np.ndarray]:
    """Updates of all sizes for each parameter: relative to it, and absolute."""
    rng = np.random.default_rng(0)
    some = [0.0, 2.0**-25 * 1.1, -1e-3, 1.0, 65503.9, 65519.9, -65520.0, 3e38, np.inf, np.nan]
    sizes = [3.9, -2.6, 0.78, -0.039, 2.0**-9, -(2.0**-12), 2.0**-15.7, -(2.0**-18), 2.0**-26]
    relative = p.astype(F32) * rng.choice(np.array(sizes, F32), p.shape)
    updates = np.where(rng.uniform(size=p.shape) < 0.8, relative, rng.choice(some, p.shape))
    scales = [1.0, *rng.uniform(-1, 1, n - 1)]
    return [(updates * scale).astype(F32) for scale in scales]


@np.errstate(invalid="ignore", over="ignore")
@dtypes
@methods
def test_all_parameters_land_where_they_should(name, dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    p = np.stack([every] * 4)
    tx, reference = METHODS[name](), Reference(name, p)
    update, state, p = jax.jit(tx.update), tx.init(p), jnp.asarray(p)
    applies = [adaptax.apply_updates, optax.apply_updates, plain]
    exact = np.ones(p.shape, bool)
    for u in steps(p, 3):
        before = np.abs(np.asarray(p).astype(F32))
        d, state = update(u, state, p)
        assert d.dtype == F32
        with optax_rules():
            p, *others = [way(p, d) for apply in applies for way in (apply, jax.jit(apply))]
        for other in others:
            assert_same_bits(other, p)
        got, wanted = flushed(np.asarray(p).astype(F32)), reference.step(u)
        if dtype == BF16:  # differences below float32's smallest normal number are none
            exact &= before > 2.0**-110
        if name == "ulp_correction":  # the largest have no byte, nor what is left of nearly all
            exact &= (np.maximum(before, np.abs(wanted)) < 2.0**127) | np.isnan(wanted)
            exact &= (np.abs(wanted) > 2.0**-5 * before) | (before == 0)
        same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
        bad = np.argwhere(exact & ~same)
        assert not len(bad), [(before[i], u[i], got[i], wanted[i]) for i in map(tuple, bad[:5])]
        assert exact.mean() > 0.8


@pytest.mark.parametrize("excess", [True, False])
@methods
def test_a_compiler_folds_nothing_away(name, excess):
    """Two steps in one program, the first one's parameters not rounded in memory."""
    p = np.random.default_rng(1).normal(size=(8, 128)).astype(BF16)
    u = (2.0**-10 * np.random.default_rng(2).normal(size=(2, 8, 128))).astype(F32)
    tx, reference = METHODS[name](), Reference(name, p)

    def two(p: Any, state: Any) -> Any:
        for one in u:
            updates, state = tx.update(one, state, p)
            p = adaptax.apply_updates(p, updates)
        return p

    lowered = jax.jit(two).lower(p, tx.init(p))
    compiled = lowered.compile(compiler_options={"xla_allow_excess_precision": excess})
    wanted = [reference.step(one) for one in u][-1]
    np.testing.assert_array_equal(np.asarray(compiled(p, tx.init(p))).astype(F32), wanted)
    assert missing(compiled.as_text() or "", name, BF16) == []


def test_a_plain_step_lacks_what_a_rounding_is_made_of():
    step = jax.jit(lambda p, u: adaptax.apply_updates(p, u))
    text = step.lower(jnp.ones(8, jnp.bfloat16), jnp.ones(8)).compile().as_text() or ""
    for name in METHODS:
        assert missing(text, name, BF16)
        assert len(missing(text, name, F16)) == len(missing(text, name, BF16)) + 1
    folded = text + "reduce-precision(%x), exponent_bits=8, mantissa_bits=7"
    assert not missing(folded, "kahan", BF16)
    assert len(missing(folded, "stochastic_rounding", BF16)) == 6


# What is not lost


@pytest.mark.parametrize("value", [1.5, -1.7, 3e-6])
@dtypes
def test_stochastic_rounding_has_no_bias(dtype, value):
    """The mean of n roundings is off by less than 5 standard deviations, each <= 1/2 unit."""
    p = jnp.full(2**16, value, dtype)
    tx, n = stochastic_rounding(3), p.size
    unit = float(np.spacing(np.abs(np.asarray(p[0]))).astype(F32))
    for part in (0.003, -0.3, 0.75, 3.2):
        u = jnp.full(n, part * unit, jnp.float32)
        new = adaptax.apply_updates(p, tx.update(u, tx.init(p), p)[0])
        moved = np.asarray(new).astype(np.float64) - float(p[0])
        chance = part - np.floor(part)
        assert set(np.unique(moved / unit)) == {np.floor(part), np.ceil(part)}
        deviation = unit * np.sqrt(chance * (1 - chance) / n)
        assert abs(moved.mean() - float(u[0])) < 5 * deviation + 2.0**-11 * unit


def many(tx: Any, p: Any, u: float, n: int) -> np.ndarray:
    """How far n equal steps move parameters."""

    def step(carry: Any, _: None) -> Any:
        p, state = carry
        updates, state = tx.update(jnp.full(p.shape, u, jnp.float32), state, p)
        return (adaptax.apply_updates(p, updates), state), None

    (new, _), _ = jax.jit(partial(jax.lax.scan, step, length=n))((p, tx.init(p)), None)
    return np.asarray(new).astype(np.float64) - np.asarray(p).astype(np.float64)


@pytest.mark.parametrize(
    "name, size, n",
    [(name, 2.0**-12, 1000) for name in METHODS]
    + [(name, 2.0**-19, 2**15) for name in METHODS if name != "kahan"],
)
def test_many_small_steps_add_up(name, size, n):
    """Parameters in [1, 2), whose last place is 2⁻⁷: a step below 2⁻⁸ is lost alone."""
    p = jnp.asarray(1 + 0.5 * np.random.default_rng(0).uniform(size=512), jnp.bfloat16)
    assert not many(adaptax.identity(), p, size, 10).any()
    moved = many(METHODS[name](), p, size, n)
    ulp = 2.0**-7
    # Beside half of the last place, what the roundings that keep the rest may add up to: 2⁻¹⁷ a
    # step in a compensation, 2⁻²⁴ in a master, six standard deviations by chance.
    deviation = np.sqrt(n * size * ulp)
    rest = {"stochastic_rounding": 6 * deviation, "ulp_correction": 6 * deviation / 2**4}
    rest |= {"kahan": n * 2.0**-17, "master_weights": n * 2.0**-24}
    assert np.max(np.abs(moved - n * size)) <= ulp / 2 + rest[name]
    if name == "stochastic_rounding":
        assert abs(moved.mean() - n * size) <= 5 * deviation / np.sqrt(p.size)


@pytest.mark.parametrize("size", [2.0**-31, -(2.0**-31)])
def test_a_byte_below_zero(size):
    """A float16 zero leaves its sign to the byte, of units of 2⁻³²."""
    zeros = jnp.zeros(2, jnp.float16)
    for n in (100, 1001):
        moved = many(ulp_correction(), zeros, size, n)
        assert moved.tolist() == [np.float16(n * size)] * 2


# From outside


def test_masters_begin_anew_where_parameters_were_changed():
    tx, p = master_weights(adaptax.sgd(1.0)), jnp.array([1.0, 2.0], jnp.bfloat16)
    u, state = tx.update(jnp.full(2, 2.0**-10), tx.init(p), p)
    p = adaptax.apply_updates(p, u).at[1].set(5.0)
    assert state.master.tolist() == [1 - 2.0**-10, 2 - 2.0**-10]
    u, state = tx.update(jnp.full(2, 2.0**-10), state, p)
    assert state.master.tolist() == [1 - 2.0**-9, 5 - 2.0**-10]


@pytest.mark.parametrize("name", ["kahan", "ulp_correction"])
def test_other_parameters_take_the_rest_along(name):
    tx, p = METHODS[name](), jnp.array([1.0, 1.0, 1.0, 1.0, -1.0, np.inf], jnp.bfloat16)
    _, state = tx.update(jnp.full(6, 2.0**-10), tx.init(p), p)
    p = jnp.array([4.0, 0.0, np.nan, np.inf, -np.inf, 2.0], jnp.bfloat16)
    u, state = tx.update(jnp.zeros(6), state, p)
    new = adaptax.apply_updates(p, u)
    np.testing.assert_allclose(new.astype(jnp.float32), p.astype(jnp.float32), atol=2.0**-8)
    rest = state.compensation if name == "kahan" else state.correction
    assert not rest[2:5].any()


# Trees and surroundings


@methods
def test_a_tree_of_every_kind(name):
    trees = (*(ZOO[kind]() for kind in ("none_leaf", "mixed_dtypes", "zero_size")), {}, None)
    p, g = as_jax(trees), as_jax(gradients_like(trees))
    p[2]["w"] = p[2]["w"].astype(jnp.bfloat16)
    p[0]["b"][1] = p[0]["b"][1][0].astype(jnp.float16)
    g[0]["b"][1] = g[0]["b"][1][0].astype(jnp.float16)
    tx = after(name, adaptax.sgd(0.1))
    state = tx.init(p)
    u, new = jax.jit(tx.update)(g, state, p)
    for one, other in ((u, g), (new, state)):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert [x.shape for x in jax.tree.leaves(one)] == [x.shape for x in jax.tree.leaves(other)]
    assert {x.dtype for x in jax.tree.leaves(u)} == {jnp.dtype("float32")}
    assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(state)]
    for q, a, b in zip(*map(jax.tree.leaves, (adaptax.apply_updates(p, u), p, g)), strict=True):
        x, unit = np.asarray(a, F32) - 0.1 * np.asarray(b, F32), float(jnp.finfo(q.dtype).eps)
        np.testing.assert_allclose(np.asarray(q, F32), x, rtol=1.01 * unit)


@methods
def test_other_leaves_pass(name):
    p = {"n": jnp.arange(3), "none": None, "c": jnp.ones(2, complex), "w": jnp.ones(2)}
    g = {"n": np.zeros(3, jax.dtypes.float0), "none": None, "c": p["c"] * 1e-9, "w": p["w"] * 1e-9}
    tx = METHODS[name]()
    u, state = jax.jit(lambda s: tx.update(g, s, p))(tx.init(p))
    assert u["n"].dtype == jax.dtypes.float0 and u["none"] is None
    assert_same_bits((u["c"], u["w"]), (g["c"], g["w"]))
    assert all(leaf.shape == () for leaf in jax.tree.leaves(state))  # a count, if anything


@methods
def test_inside_of_chains_and_masks(name):
    """The float32 updates reach apply_updates whatever is around, for 16-bit gradients."""
    values = np.random.default_rng(0).normal(size=(4, 256)).astype(BF16)
    p, g = (
        dict(zip("ab", map(jnp.asarray, pair), strict=True)) for pair in (values[:2], values[2:])
    )
    inner = after(name, adaptax.sgd(0.3))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), g)
    wanted = adaptax.apply_updates(p, inner.update(wide, inner.init(p), p)[0])
    for tx in (
        inner,
        adaptax.chain(adaptax.identity(), inner),
        optax.chain(optax.identity(), inner),
        adaptax.chain(adaptax.guard(inner)),
        adaptax.named_chain(("all", inner)),
    ):
        u, _ = tx.update(g, tx.init(p), p)
        assert_same_bits(adaptax.apply_updates(p, u), wanted)
    parts = adaptax.partition({"a": inner, "b": adaptax.sgd(0.1)})
    for tx in (adaptax.chain(adaptax.masked(inner, "a")), parts, adaptax.chain(parts)):
        u, _ = tx.update(g, tx.init(p), p)
        assert_same_bits(adaptax.apply_updates(p, u)["a"], wanted["a"])


def test_updates_reach_the_end_of_a_chain_in_float32():
    seen = []

    def look(updates: Any, params: Any) -> Any:
        seen.append(jax.tree.map(lambda u: u.dtype, updates))
        return updates

    g = jnp.ones(3, jnp.bfloat16)
    tx = adaptax.chain(adaptax.scale_by_adam(), adaptax.scale(-1e-3), adaptax.stateless(look))
    u, _ = tx.update(g, tx.init(g), g)
    assert seen == [jnp.float32] and u.dtype == jnp.bfloat16  # a chain of others rounds, as ever


def test_masters_are_what_the_inside_sees():
    seen = []

    def look(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        seen.append([x.dtype for x in jax.tree.leaves((updates, params))])
        return jax.tree.map(lambda u: value * u, updates), state

    p = {"h": jnp.ones(3, jnp.float16), "w": jnp.ones(3)}
    tx = master_weights((lambda p: (), look))
    u, state = tx.update(p, tx.init(p), p, value=-0.5)
    assert set(seen[0]) == {jnp.dtype("float32")}
    assert state.master["w"] is None and state.master["h"].tolist() == [0.5] * 3
    assert adaptax.apply_updates(p, u)["h"].tolist() == [0.5] * 3


@methods
def test_vmap_and_donation(name):
    tx = after(name, adaptax.sgd(0.1))
    p = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64)), jnp.bfloat16)

    def step(p: Any, state: Any) -> Any:
        u, state = tx.update(p.astype(jnp.float32), state, p)
        return adaptax.apply_updates(p, u), state

    mapped = jax.jit(jax.vmap(step))(p, jax.vmap(tx.init)(p))
    one = jax.jit(step, donate_argnums=(0, 1))
    alone = [one(jnp.array(p[i]), tx.init(p[i])) for i in range(2)]
    assert_same_bits(mapped, jax.tree.map(lambda *x: jnp.stack(x), *alone))


@pytest.mark.parametrize("method", [stochastic_rounding, ulp_correction])
def test_sharding_and_seeds(method):
    p = jnp.asarray(np.random.default_rng(0).normal(size=(16, 24)), jnp.bfloat16)
    rows = NamedSharding(Mesh(np.array(jax.devices()), "d"), PartitionSpec("d"))

    def run(p: Any, seed: int = 0) -> Any:
        tx = method(seed)
        return jax.tree.map(
            np.asarray, tx.update([jnp.full_like(x, 2e-3) for x in p], tx.init(p), p)
        )

    (u, _), (other, _), (far, _) = run([p, p]), run([p, p], 1), run([p, p], 12345)
    assert_same_bits(run(jax.device_put([p, p], rows))[0], u)
    for one in (u[1], other[0], other[1], far[0]):  # leaves and seeds round otherwise
        assert not np.array_equal(u[0], one)


@methods
def test_a_method_is_a_value(name):
    tx = METHODS[name]()
    assert tx == METHODS[name]() == pickle.loads(pickle.dumps(tx)) == copy.deepcopy(tx)
    assert hash(tx) == hash(METHODS[name]()) and repr(tx).startswith(f"{name}(")


@methods
def test_what_does_not_fit_is_refused(name):
    tx, p = METHODS[name](), {"w": jnp.ones(3, jnp.bfloat16)}
    state, g = tx.init(p), {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=rf"^{name} needs params"):
        tx.update(g, state)
    with pytest.raises(TypeError, match=rf"^{name}: .* must be its state, \w+State, got"):
        tx.update(g, (), p)
    with pytest.raises(ValueError, match=rf"^{name}: updates do not match params .*\['w'\]"):
        tx.update({"w": jnp.ones(4)}, state, p)
    with pytest.raises(TypeError, match=rf"^{name}: updates\['w'\] must be real where"):
        tx.update({"w": jnp.ones(3, complex)}, state, p)
    with pytest.raises(ValueError, match=rf"^{name}: updates must be floating or complex"):
        tx.update({"w": jnp.ones(3, int)}, state, p)
    if name != "stochastic_rounding":
        wide = tx.init({"w": jnp.ones(3)})
        with pytest.raises(ValueError, match=r"do not match state.*\['w'\] is an array against"):
            tx.update(g, wide, p)
