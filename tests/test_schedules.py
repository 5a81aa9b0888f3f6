"""Schedules: optax's numbers, as values."""

# pyright: reportArgumentType=false

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Traced, assert_close, assert_same_bits, grads, optax_rules, params, trajectory

import adaptax

N = 30
COUNTS = np.arange(N, dtype=np.int32)
LAST = np.iinfo(np.int32).max


# The same calls of both libraries.
CALLS: dict[str, Callable[[Any], Any]] = {
    "constant": lambda lib: lib.constant_schedule(0.25),
    "linear": lambda lib: lib.linear_schedule(1.0, 0.1, 10),
    "linear, later": lambda lib: lib.linear_schedule(0.0, 3.0, 10, 5),
    "linear, no steps": lambda lib: lib.linear_schedule(0.5, 3.0, 0),
    "polynomial": lambda lib: lib.polynomial_schedule(1.0, 0.1, 2.5, 20, 3),
    "polynomial, no steps": lambda lib: lib.polynomial_schedule(1.0, 0.1, 2, 0, 3),
    "exponential": lambda lib: lib.exponential_decay(1.0, 7, 0.5),
    "exponential, staircase": lambda lib: lib.exponential_decay(1.0, 7, 0.5, staircase=True),
    "exponential, later": lambda lib: lib.exponential_decay(2.0, 7, 0.5, transition_begin=4),
    "exponential, bounded below": lambda lib: lib.exponential_decay(1.0, 5, 0.5, end_value=0.2),
    "exponential, bounded above": lambda lib: lib.exponential_decay(1.0, 5, 1.5, end_value=3.0),
    "exponential, no steps": lambda lib: lib.exponential_decay(1.0, 0, 0.5),
    "exponential, no decay": lambda lib: lib.exponential_decay(1.0, 5, 0.0),
    "exponential, no steps, bounded": lambda lib: lib.exponential_decay(1.0, 0, 0.5, end_value=2.0),
    "cosine": lambda lib: lib.cosine_decay_schedule(0.5, 20),
    "cosine, floor": lambda lib: lib.cosine_decay_schedule(0.5, 20, 0.1),
    "cosine, power": lambda lib: lib.cosine_decay_schedule(0.5, 20, 0.1, 2.0),
    "warm-up": lambda lib: lib.warmup_cosine_decay_schedule(0.0, 1.0, 5, 25),
    "warm-up to a floor": lambda lib: lib.warmup_cosine_decay_schedule(0.1, 1.0, 5, 25, 0.2, 1.5),
    "no warm-up": lambda lib: lib.warmup_cosine_decay_schedule(0.5, 1.0, 0, 25),
    "piecewise": lambda lib: lib.piecewise_constant_schedule(1.0, {20: 0.5, 10: 0.1, 5: 4.0}),
    "piecewise, one": lambda lib: lib.piecewise_constant_schedule(1.0),
    "joined": lambda lib: lib.join_schedules(
        [
            lib.linear_schedule(0.0, 1.0, 5),
            lib.constant_schedule(2.0),
            lib.cosine_decay_schedule(1.0, 9),
        ],
        [5, 12],
    ),
    "joined at 0": lambda lib: lib.join_schedules(
        [lib.constant_schedule(1.0), lib.linear_schedule(0.0, 1.0, 5)], [0]
    ),
    "joined, one": lambda lib: lib.join_schedules([lib.linear_schedule(0.0, 1.0, 5)], []),
    "joined with a function": lambda lib: lib.join_schedules(
        [lib.constant_schedule(1.0), lambda count: jnp.arange(40.0)[count]], [5]
    ),
}  # fmt: skip
calls = pytest.mark.parametrize("make", CALLS.values(), ids=CALLS.keys())
VALUES = {name: make for name, make in CALLS.items() if name != "joined with a function"}
values = pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())


def test_a_boundary_between_steps_is_the_next_step():
    joined = adaptax.join_schedules([0.0, 1.0], [2.5])
    assert [float(joined(count)) for count in range(5)] == [0.0, 0.0, 0.0, 1.0, 1.0]


@calls
def test_values_are_those_of_optax(make):
    with optax_rules():
        wanted = [float(make(optax)(jnp.int32(c))) for c in COUNTS]
    schedule = make(adaptax)
    traced = jax.jit(jax.vmap(lambda c: jnp.asarray(schedule(c), jnp.float32)))(COUNTS)
    np.testing.assert_allclose(traced, wanted, 2e-6, 1e-7)
    for c in (0, 1, 5, 12, N - 1):
        for count in (c, np.int32(c), jnp.int32(c)):
            value = schedule(count)
            assert jnp.shape(value) == (), f"at {count!r}"
            np.testing.assert_allclose(value, wanted[c], 2e-6, 1e-7, err_msg=f"at {count!r}")


@values
def test_a_schedule_is_a_value(make):
    one, again = make(adaptax), make(adaptax)
    assert one == again and hash(one) == hash(again)
    for other in (
        pickle.loads(pickle.dumps(one)),
        copy.deepcopy(one),
        eval(repr(one), vars(adaptax)),
        jax.tree.map(lambda x: x, one),
    ):
        assert other == one, repr(other)
        assert hash(other) == hash(one)
    assert all(type(x) is float for x in jax.tree.leaves(one)), jax.tree.leaves(one)
    assert len({name for name, f in VALUES.items() if f(adaptax) == one}) == 1


def test_leaves_are_the_numbers_of_the_call():
    linear = adaptax.linear_schedule(1.0, 0.5, 10, 2)
    paths = [(jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(linear)]
    assert paths == [
        (".init_value", 1.0),
        (".end_value", 0.5),
        (".transition_steps", 10.0),
        (".transition_begin", 2.0),
    ]
    assert linear != adaptax.linear_schedule(1.0, 0.5, 10, 3)
    assert linear != adaptax.polynomial_schedule(1.0, 0.5, 1, 10, 2)
    joined = adaptax.join_schedules([linear, lambda count: 1.0], [5])
    assert jax.tree.leaves(joined) == [5.0]


@values
def test_new_numbers_do_not_retrace(make):
    traced = Traced(lambda schedule, count: schedule(count))
    jitted = jax.jit(traced)
    schedule = make(adaptax)
    for other in (schedule, make(adaptax), jax.tree.map(lambda x: 1.25 * x, schedule)):
        np.testing.assert_allclose(
            jitted(other, jnp.int32(7)), other(7), 1e-5, 1e-6, err_msg=repr(other)
        )
    assert traced.times == 1


@values
def test_stacked_numbers_map_like_a_loop(make):
    one = make(adaptax)
    other = jax.tree.map(lambda x: 1.25 * x, one)
    stacked = jax.tree.map(lambda *xs: jnp.array(xs), one, other)
    got = jax.vmap(lambda schedule: jnp.asarray(schedule(jnp.int32(7)), jnp.float32))(stacked)
    np.testing.assert_allclose(got, [one(7), other(7)], 1e-5, 1e-6)


def test_traced_numbers_are_accepted():
    got = jax.jit(lambda end: adaptax.linear_schedule(0.0, end, 10)(5))(2.0)
    assert float(got) == 1.0
    got = jax.jit(lambda steps: adaptax.warmup_cosine_decay_schedule(0.0, 1.0, 5, steps)(5))(10.0)
    assert float(got) == 1.0


@values
def test_a_schedule_has_a_gradient_in_its_numbers(make):
    slopes = jax.grad(lambda schedule: jnp.asarray(schedule(jnp.int32(7)), jnp.float32))(
        make(adaptax)
    )
    assert all(np.isfinite(x) for x in jax.tree.leaves(slopes)), slopes


# In a transformation

RATES: dict[str, Any] = {
    "schedule": adaptax.constant_schedule(0.25),
    "function": lambda count: 0.25,
    "function of arrays": lambda count: jnp.float32(0.25),
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor", "prodigy"])
def test_a_constant_schedule_is_a_constant(name, rate):
    factory = getattr(adaptax, name)
    constant, _ = trajectory(factory(0.25), params(), [grads()] * 2)
    scheduled, _ = trajectory(factory(rate), params(), [grads()] * 2)
    assert_close(scheduled, constant, 1e-6)


def from_one(count: Any) -> Any:
    return 1.0 + jnp.asarray(count, jnp.float32)


def test_a_schedule_is_evaluated_at_the_number_of_steps_done():
    seen = trajectory(adaptax.sgd(from_one), params(), [grads()] * 4)[0]
    for i, u in enumerate(seen):
        assert_close(u, jax.tree.map(lambda g, i=i: -(1.0 + i) * g, grads()), 1e-6)


def test_a_scheduled_decay_of_moments_is_that_of_each_step():
    def b1(count: Any) -> Any:
        return 0.5 + 0.1 * jnp.asarray(count, jnp.float32)

    tx = adaptax.scale_by_adam(b1=b1, b2=adaptax.linear_schedule(0.5, 0.9, 4))
    state = tx.init(grads())
    mu, nu = np.zeros(3), np.zeros(3)
    g = np.asarray(grads()["b"], np.float64)
    for i in range(4):
        u, state = tx.update(grads(), state)
        b, c = 0.5 + 0.1 * i, 0.5 + 0.1 * i
        mu, nu = b * mu + (1 - b) * g, c * nu + (1 - c) * g**2
        np.testing.assert_allclose(state.mu["b"], mu, 1e-5)
        np.testing.assert_allclose(state.nu["b"], nu, 1e-5)
        t = i + 1
        with np.errstate(invalid="ignore"):
            wanted = mu / (1 - b**t) / (np.sqrt(nu / (1 - c**t)) + 1e-8)
        np.testing.assert_allclose(u["b"], wanted, 1e-5)
    assert int(state.count) == 4


def test_a_scheduled_weight_decay_follows_its_own_count():
    tx = adaptax.add_decayed_weights(from_one)
    us, state = trajectory(tx, params(), [grads()] * 3)
    assert int(state.count) == 3
    for i, u in enumerate(us):
        wanted = jax.tree.map(lambda g, p, i=i: g + (i + 1) * p, grads(), params())
        assert_close(u, wanted, 1e-6, 1e-7)


def test_equal_schedules_share_the_compiled_update():
    traced = Traced(lambda tx, g: tx.update(g, tx.init(g))[0])
    jitted = jax.jit(traced, static_argnums=0)
    for _ in range(2):
        jitted(adaptax.adam(adaptax.linear_schedule(1.0, 0.0, 10)), grads())
    assert traced.times == 1
    argument = Traced(lambda tx, g: tx.update(g, tx.init(g))[0])
    jitted = jax.jit(argument)
    for steps in (10, 20):
        jitted(adaptax.adam(adaptax.linear_schedule(1.0, 0.0, steps)), grads())
    assert argument.times == 1


# Everywhere


def late(schedule: Any) -> np.ndarray:
    counts = np.array([1000, 2**24, 2**24 + 1, LAST - 1, LAST], np.int32)
    return np.array([schedule(jnp.int32(c)) for c in counts], np.float64)


@values
def test_the_last_value_holds_up_to_the_largest_count(make):
    schedule = make(adaptax)
    assert np.isfinite(late(schedule)).all()
    if late(schedule)[0] == late(schedule)[1]:
        assert len(set(late(schedule))) == 1


def test_a_saturated_count_stays():
    tx = adaptax.sgd(adaptax.linear_schedule(1.0, 0.25, 10))
    state = jax.tree.map(lambda c: jnp.full_like(c, LAST), tx.init(params()))
    for _ in range(2):
        u, state = tx.update(grads(), state)
        assert_same_bits(u, jax.tree.map(lambda g: -0.25 * g, grads()))
        assert jax.tree.leaves(state) == [LAST]


numbers = st.floats(-10, 10, width=32)
steps = st.integers(1, 50)
SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)


def at(schedule: Any, counts: Any) -> np.ndarray:
    return np.array([schedule(int(c)) for c in counts], np.float64)


@SETTINGS
@given(numbers, numbers, steps, st.integers(0, 20), st.floats(0.25, 4, width=32))
def test_a_transition_stays_between_its_ends(first, last, length, begin, power):
    schedule = adaptax.polynomial_schedule(first, last, power, length, begin)
    counts = [0, begin, begin + length // 2, begin + length, begin + length + 1, 1000]
    got = at(schedule, counts)
    low, high = min(first, last), max(first, last)
    room = 1e-5 * (1 + abs(first) + abs(last))
    assert (got >= low - room).all() and (got <= high + room).all()
    np.testing.assert_allclose(got[:2], first, 1e-6, room)
    np.testing.assert_array_equal(got[3:], np.float32(last))


@SETTINGS
@given(st.floats(0, 10, width=32), steps, st.floats(0, 1, width=32))
def test_a_cosine_falls_from_its_first_value_to_its_floor(first, length, alpha):
    schedule = adaptax.cosine_decay_schedule(first, length, alpha)
    got = at(schedule, [0, length // 3, length // 2, length, length + 7])
    assert (np.diff(got) <= 1e-5 * first).all()
    np.testing.assert_allclose(got[0], first, 1e-6)
    np.testing.assert_allclose(got[-2:], first * alpha, 1e-5, 1e-6 * first)


@SETTINGS
@given(numbers, numbers, numbers, st.integers(0, 20), steps)
def test_a_warm_up_meets_its_peak_and_its_end(first, peak, last, warm, rest):
    schedule = adaptax.warmup_cosine_decay_schedule(first, peak, warm, warm + rest, last)
    got = at(schedule, [0, warm, warm + rest, warm + rest + 9])
    room = 1e-5 * (1 + abs(first) + abs(peak) + abs(last))
    np.testing.assert_allclose(got, [first if warm else peak, peak, last, last], 0, room)


@SETTINGS
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True))
def test_joined_schedules_change_at_their_boundaries(boundaries):
    boundaries = sorted(boundaries)
    parts = [adaptax.constant_schedule(float(i)) for i in range(len(boundaries) + 1)]
    got = at(adaptax.join_schedules(parts, boundaries), range(42))
    wanted = [sum(c >= b for b in boundaries) for c in range(42)]
    np.testing.assert_array_equal(got, wanted)


# Near the largest counts: how many steps are over is exact, and only their fraction is a float


FAR = 20_000_001  # beyond 2^24, and odd: no float32


def _line(a: float, b: float, begin: float, steps: float, power: float = 1.0) -> Any:
    def at(t: int) -> float:
        left = 1.0 - min(max((t - begin) / steps, 0.0), 1.0)
        return (a - b) * left**power + b

    return at


def _count(t: Any) -> Any:
    return jnp.asarray(t, jnp.float32)


def _cosine(t: float, steps: float) -> float:
    return 0.5 * (1 + np.cos(np.pi * min(max(t / steps, 0.0), 1.0)))


# For a boundary B: the schedule, and its value in Python's numbers.
FAR_CALLS: dict[str, Callable[[int], tuple[Any, Callable[[int], float]]]] = {
    "linear": lambda b: (adaptax.linear_schedule(1.0, 0.0, 4, b), _line(1.0, 0.0, b, 4)),
    "linear, between steps": lambda b: (
        adaptax.linear_schedule(1.0, 0.0, 4, b - 0.5),
        _line(1.0, 0.0, b - 0.5, 4),
    ),
    "linear, long": lambda b: (adaptax.linear_schedule(0.0, 1.0, b), _line(0.0, 1.0, 0, b)),
    "polynomial": lambda b: (
        adaptax.polynomial_schedule(1.0, 0.5, 2, 4, b - 2),
        _line(1.0, 0.5, b - 2, 4, 2.0),
    ),
    "exponential": lambda b: (
        adaptax.exponential_decay(1.0, 2, 0.5, b),
        lambda t: 0.5 ** (max(t - b, 0) / 2),
    ),
    "exponential, staircase": lambda b: (
        adaptax.exponential_decay(1.0, 3, 0.5, b - 3, staircase=True),
        lambda t: 0.5 ** (max(t - b + 3, 0) // 3),
    ),
    "exponential, one stair": lambda b: (
        adaptax.exponential_decay(1.0, b, 0.5, staircase=True),
        lambda t: 0.5 ** (t // b),
    ),
    "cosine": lambda b: (
        adaptax.cosine_decay_schedule(1.0, b, 0.25),
        lambda t: 0.75 * _cosine(t, b) + 0.25,
    ),
    "warm-up": lambda b: (
        adaptax.warmup_cosine_decay_schedule(2.0, 1.0, b, b + 4),
        lambda t: _line(2.0, 1.0, 0, b)(t) if t < b else _cosine(t - b, 4),
    ),
    "piecewise": lambda b: (
        adaptax.piecewise_constant_schedule(1.0, {b - 1: 0.5, float(b): 0.5}),
        lambda t: 1.0 if t < b - 1 else 0.5 if t < b else 0.25,
    ),
    "joined": lambda b: (
        adaptax.join_schedules([3.0, adaptax.linear_schedule(1.0, 0.0, 4), _count], [b, b + 3]),
        lambda t: 3.0 if t < b else 1 - (t - b) / 4 if t < b + 3 else t - b - 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("boundary", [FAR, LAST - 4])
@pytest.mark.parametrize("make", FAR_CALLS.values(), ids=FAR_CALLS.keys())
def test_steps_are_counted_as_integers(make, boundary):
    schedule, wanted = make(boundary)
    counts = boundary + np.arange(-3, 5)
    want = np.array([wanted(int(t)) for t in counts])
    mapped = jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t), jnp.float32)))
    np.testing.assert_allclose(mapped(counts.astype(np.int32)), want, 1e-6, 3e-7)
    for count in (int(counts[2]), np.int32(counts[2]), np.uint32(counts[2])):
        np.testing.assert_allclose(schedule(count), want[2], 1e-6, 3e-7)


def test_a_boundary_beyond_the_largest_count_is_never_reached():
    for boundary in (LAST + 1, 2**40):
        for schedule in (
            adaptax.piecewise_constant_schedule(1.0, {boundary: 0.0}),
            adaptax.join_schedules([1.0, 0.0], [boundary]),
            adaptax.linear_schedule(1.0, 0.0, 1, boundary),
        ):
            traced = jax.jit(lambda schedule, count: schedule(count))
            assert float(schedule(LAST)) == float(traced(schedule, jnp.int32(LAST))) == 1.0
    assert float(adaptax.join_schedules([1.0, 0.0], [LAST])(LAST)) == 0.0


def test_boundaries_that_are_traced_have_the_digits_of_their_dtype():
    traced = jax.jit(lambda schedule, count: schedule(count))
    boundary = 2**24 + 2  # a float32
    for schedule in (
        adaptax.piecewise_constant_schedule(1.0, {boundary: 0.5}),
        adaptax.join_schedules([1.0, 0.5], [boundary]),
        adaptax.warmup_cosine_decay_schedule(1.0, 1.0, boundary, boundary + 2, 0.5),
    ):
        got = [float(traced(schedule, jnp.int32(boundary + i))) for i in (-1, 0)]
        assert got[0] == 1.0 and got[1] in (0.5, 1.0), repr(schedule)
    stairs = adaptax.exponential_decay(1.0, boundary, 0.5, staircase=True)
    assert [float(traced(stairs, jnp.int32(boundary + i))) for i in (-1, 0)] == [1.0, 0.5]


def test_counts_that_are_not_whole_are_for_plots():
    for schedule in (
        adaptax.linear_schedule(1.0, 0.0, 4, 1),
        adaptax.join_schedules([1.0, adaptax.linear_schedule(1.0, 0.0, 4)], [1]),
    ):
        assert float(schedule(2.5)) == float(schedule(jnp.float32(2.5))) == 0.625
    assert float(adaptax.exponential_decay(1.0, 2, 0.5, staircase=True)(4.5)) == 0.25
    assert float(adaptax.exponential_decay(1.0, 2.5, 0.5, staircase=True)(5)) == 0.25
    assert float(adaptax.linear_schedule(1.0, 0.0, 4)(np.int8(2))) == 0.5
