"""Storms of gradients: every case behind every guard; averages without NaN."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same_bits

import adaptax
from adaptax import MultiSteps, apply_if_finite, dynamic_loss_scale, guard, lowbit
from adaptax._core import average
from adaptax.wrappers._step import all_finite

STEPS = 8
ORDINARY = 2.0  # stands for noise


class Guard(NamedTuple):
    """A wrapper that leaves steps out, and where its state says so."""

    wrap: Callable[[Any], Any]
    taken: Callable[[Any, Any], Any]  # of the states before and after
    inner: Callable[[Any], Any]


def _accepted(before: Any, after: Any) -> Any:
    return after.accepted > before.accepted


GUARDS = {
    "guard": Guard(guard, _accepted, lambda s: s.inner_state),
    "limit": Guard(
        lambda tx: guard(tx, max_deviation=6.0, window=4), _accepted, lambda s: s.inner_state
    ),
    "apply_if_finite": Guard(
        lambda tx: apply_if_finite(tx, 1000),
        lambda before, after: after.last_finite,
        lambda s: s.inner_state,
    ),
    "dynamic_loss_scale": Guard(
        lambda tx: dynamic_loss_scale(tx, 1.0, max_scale=1.0),
        lambda before, after: after.skipped == before.skipped,
        lambda s: s.inner_state,
    ),
    "MultiSteps": Guard(
        lambda tx: MultiSteps(guard(tx), 1),
        lambda before, after: _accepted(before.inner_opt_state, after.inner_opt_state),
        lambda s: s.inner_opt_state.inner_state,
    ),
    "MultiSteps, drop": Guard(
        lambda tx: MultiSteps(guard(tx), 1, nonfinite="drop"),
        lambda before, after: _accepted(before.inner_opt_state, after.inner_opt_state),
        lambda s: s.inner_opt_state.inner_state,
    ),
    "MultiSteps alone": Guard(
        lambda tx: MultiSteps(tx, 1, should_skip_update_fn=adaptax.skip_not_finite),
        lambda before, after: after.gradient_step > before.gradient_step,
        lambda s: s.inner_opt_state,
    ),
}


class Storm:
    """A guarded case as one program of some steps, for all gradients."""

    def __init__(self, tx: Any, params: Any, by: Guard, dtype: Any):
        self.params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
        tx, self.dtype = by.wrap(tx), jnp.dtype(dtype)

        @jax.jit
        def run(gradients: Any) -> Any:
            def step(carry: Any, g: Any) -> Any:
                p, state = carry
                u, new = tx.update(g, state, p)
                p = adaptax.apply_updates(p, u)
                return (p, new), (all_finite(p), by.taken(state, new))

            (p, state), seen = jax.lax.scan(step, (self.params, tx.init(self.params)), gradients)
            return (p, by.inner(state)), seen

        self.run = run

    def values(self) -> st.SearchStrategy[list[float]]:
        """What one leaf has at one step: noise, or something odd."""
        info = jnp.finfo(self.dtype)
        some = (1e-30, 1e4, 1e18, 1e19, 2e19, 1e30, 1e100, 1e160)
        odd = [x for x in some if x < float(info.max)] + [0.0, float(info.smallest_subnormal)]
        odd += [s * x for x in (float(info.max), np.inf) for s in (1, -1)] + [np.nan]
        one = st.one_of(st.just(ORDINARY), st.sampled_from(odd))
        number = STEPS * len(jax.tree.leaves(self.params))
        return st.lists(one, min_size=number, max_size=number)

    def gradients(self, values: list[float]) -> Any:
        """Noise, of which one entry (or all) of a leaf is odd at a step."""
        leaves, treedef = jax.tree.flatten(self.params)
        rng, columns = np.random.default_rng(5), []
        for i, p in enumerate(leaves):
            g = rng.normal(size=(STEPS, *p.shape))
            for t, value in enumerate(values[i :: len(leaves)]):
                if value != ORDINARY:
                    g[t].reshape(-1)[slice(None) if (t + i) % 3 == 0 else t % p.size] = value
            columns.append(g.astype(self.dtype))
        return treedef.unflatten(columns)


def weather(storm: Storm, examples: int) -> None:
    """Finite parameters after each step; and those of the steps that were taken, alone."""

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(storm.values())
    def holds(values: list[float]) -> None:
        gradients = storm.gradients(values)
        result, (finite, taken) = storm.run(gradients)
        assert finite.all(), (finite, taken)
        here = np.flatnonzero(taken)

        def clean(g: Any) -> Any:  # what is left of the storm, then nothing that counts
            return np.concatenate([g[here], np.full_like(g[: STEPS - len(here)], np.nan)])

        again, (_, taken) = storm.run(jax.tree.map(clean, gradients))
        assert taken.sum() == len(here)
        assert_same_bits(result, again)

    holds()


@cases(lambda case: case.whole)
def test_parameters_stay_finite_behind_a_guard(case):
    storm = Storm(case.make(), case.params(), GUARDS["guard"], jnp.float32)
    # One square that overflows, in the third step, costs no step, that one or a later one.
    leaves = len(jax.tree.leaves(storm.params))
    values = [2e19 if i // leaves == 2 else ORDINARY for i in range(STEPS * leaves)]
    _, (finite, taken) = storm.run(storm.gradients(values))
    assert finite.all() and taken.all()
    weather(storm, 10)


BEHIND_ALL = {
    "adamw": adaptax.adamw(0.1),
    "no eps": adaptax.adam(0.1, eps=0.0),
    "sgd": adaptax.sgd(10.0, momentum=0.9),
}


# What judges means alone relies on rules that make no NaN of what is finite.
_PAIRS = [(by, inner) for by in GUARDS for inner in BEHIND_ALL if by != "MultiSteps alone"]


@pytest.mark.parametrize("by, inner", [*_PAIRS, ("MultiSteps alone", "adamw")])
def test_parameters_stay_finite_behind_every_guard(by, inner):
    params = {"b": np.ones(3), "w": np.ones((2, 3))}
    weather(Storm(BEHIND_ALL[inner], params, GUARDS[by], jnp.float32), 12)


NARROW = {
    "bfloat16": adaptax.adam(0.1, mu_dtype=jnp.bfloat16),
    "float16": adaptax.adam(0.1, mu_dtype=jnp.float16),
    "float64": adaptax.adafactor(0.1, min_dim_size_to_factor=2),
}


@pytest.mark.parametrize("dtype", NARROW)
def test_parameters_stay_finite_in_all_precisions(dtype):
    with jax.enable_x64(dtype == "float64"):
        params = {"b": np.ones(3), "w": np.ones((2, 3))}
        weather(Storm(NARROW[dtype], params, GUARDS["guard"], dtype), 12)


STORED = {
    "adam8bit": lowbit.adam8bit(0.1),
    "adam4bit": lowbit.adam4bit(0.1),
    "lion8bit": lowbit.lion8bit(0.1),
    "rmsprop8bit": lowbit.rmsprop8bit(0.1),
    "published": lowbit.store(
        adaptax.adam(0.1), {"mu": lowbit.dynamic_int8(8), "nu": lowbit.dynamic_uint8(8)}
    ),
    "fp8": lowbit.store(adaptax.adam(0.1), {"mu": lowbit.fp8_e4m3(), "nu": lowbit.fp8_e5m2()}),
}


@pytest.mark.parametrize("tx", STORED.values(), ids=STORED)
def test_parameters_stay_finite_in_all_formats(tx):
    weather(Storm(tx, {"w": np.ones((2, 4096))}, GUARDS["guard"], jnp.float32), 8)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64"])
def test_averages_keep_infinities_and_make_no_nan(dtype):
    with jax.enable_x64(dtype == "float64"):
        largest = float(jnp.finfo(dtype).max)
        some = [0.0, -1.0, 1.5, largest**0.8, -(largest**0.8), np.inf, -np.inf]
        x, mean = (np.asarray(a, dtype) for a in np.meshgrid(some, some))
        opposed = np.isinf(x) & np.isinf(mean) & (x != mean)
        finite = np.isfinite(x) & np.isfinite(mean)
        for b in (0.3, 0.5, 0.9, 0.999):
            got = np.asarray(average(jnp.asarray(x), jnp.asarray(mean), b))
            assert np.isnan(got[opposed]).all()
            kept = np.where(np.isinf(x), x, mean)[~finite & ~opposed]
            np.testing.assert_array_equal(np.real(got[~finite & ~opposed]), np.real(kept))
            wanted = b * mean[finite].astype(complex) + (1 - b) * x[finite].astype(complex)
            np.testing.assert_allclose(got[finite], wanted, 1e-6)
            up = ~(np.signbit(np.real(x)) | np.signbit(np.real(mean)))
            plus = np.asarray(average(jnp.asarray(x), jnp.asarray(mean), b, infinite="+"))
            np.testing.assert_array_equal(plus[up], got[up])


def test_what_is_stored_in_fewer_bits_saturates():
    tx = adaptax.ema(0.5, accumulator_dtype=jnp.float16)
    _, state = tx.update(jnp.array([1e6, -1e6, jnp.nan]), tx.init(jnp.ones(3)))
    np.testing.assert_array_equal(state.ema, np.array([65504, -65504, np.nan], np.float16))
