"""Transformations under jit, scan, vmap, grad, cond and donation, and as values in all of them."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, Trajectory, cases
from trees import as_jax, assert_leaves_equal, assert_trees_close, paths

import adaptax

STEPS = 4


def run(case: Case, tx: Any, state: Any, steps: list[tuple[Any, Any]], update: Any = None) -> Any:
    """The updates of each step, and the last state."""
    out = []
    for grads, params in steps:
        updates, state = (update or tx.update)(grads, state, params)
        out.append(updates)
    return out, state


def scan(tx: Any, state: Any, stacked: Any) -> Any:
    """Likewise, in one loop of jax, of steps and updates that are stacked."""

    def step(state: Any, inputs: Any) -> Any:
        grads, params = inputs
        updates, state = tx.update(grads, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, state, stacked)
    return updates, state


def stack(trees: Any) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def steps_of(case: Case, dtype: Any = np.float32, steps: int = STEPS) -> list[tuple[Any, Any]]:
    """(gradients, parameters) for each step."""
    trajectory = Trajectory(case.params_as(dtype), dtype, steps)
    return [
        (as_jax(g), as_jax(p)) for g, p in zip(trajectory.grads, trajectory.params, strict=True)
    ]


@cases()
def test_jit_and_scan_do_what_a_loop_does(case: Case) -> None:
    tx, steps = case.make(), steps_of(case)
    state = tx.init(steps[0][1])
    looped, last = run(case, tx, state, steps)
    scanned, scanned_last = jax.jit(partial(scan, tx))(state, stack(steps))
    for t, updates in enumerate(looped):
        one = jax.tree.map(lambda x, t=t: x[t], scanned)
        assert_trees_close(one, updates, case.rtol32, f"{case.name}, step {t + 1}, update")
    assert_trees_close(scanned_last, last, case.rtol32, f"{case.name}, state")
    chex.assert_trees_all_equal_shapes_and_dtypes(scanned_last, last, state)


@cases(lambda case: case.first)
def test_a_jitted_init_is_the_init(case: Case) -> None:
    params, tx = as_jax(case.params_as(np.float32)), case.make()
    assert_leaves_equal(jax.jit(tx.init)(params), tx.init(params), case.name)


def _other(value: Any) -> Any:
    """Another number of the same kind."""
    return jnp.where(value == 0, 0.01, 0.95 * value)


@cases(lambda case: case.whole and bool(jax.tree.leaves(case.make())))
def test_vmap_over_stacked_transformations_is_a_loop_over_each_number(case: Case) -> None:
    """Row i differs from the case in its i-th number; row 0 is the case itself."""
    numbers, treedef = jax.tree.flatten(case.make())
    numbers = [jnp.asarray(n, jnp.float32) for n in numbers]
    settings = [treedef.unflatten(numbers)]
    for i in range(len(numbers)):
        settings.append(
            treedef.unflatten(_other(n) if i == j else n for j, n in enumerate(numbers))
        )
    steps = steps_of(case, steps=2)

    def outcome(tx: Any) -> Any:
        return scan(tx, tx.init(steps[0][1]), stack(steps))

    mapped = jax.jit(jax.vmap(outcome))(stack(settings))
    chex.clear_trace_counter()
    one_by_one = jax.jit(chex.assert_max_traces(outcome, n=1))
    names = ["nothing", *paths(settings[0])]
    for i, (name, tx) in enumerate(zip(names, settings, strict=True)):
        mine = jax.tree.map(lambda x, i=i: x[i], mapped)
        where = f"{case.name}, other {name}, "
        assert_trees_close(mine, one_by_one(tx), max(case.rtol32, 5e-6), where)


@cases(lambda case: case.smooth and case.whole and bool(jax.tree.leaves(case.make())))
def test_the_slope_by_the_numbers_is_that_of_finite_differences(case: Case, x64: None) -> None:
    """Through three updates, along a direction that changes every number."""
    params = as_jax(case.params_as(np.float64))
    target = jax.tree.map(lambda p: 0.3 + 0.5 * jnp.cos(3.0 * p), params)
    numbers, treedef = jax.tree.flatten(case.make())
    numbers = [jnp.asarray(n, jnp.float64) for n in numbers]
    direction = [n * w for n, w in zip(numbers, np.cos(np.arange(len(numbers))), strict=True)]

    def loss(now: Any) -> Any:
        terms = jax.tree.map(lambda p, q: jnp.sum(jnp.sin(p - q)), now, target)
        return sum(jax.tree.leaves(terms))

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})  # compiles fast
    @jax.value_and_grad
    def outcome(numbers: Any) -> Any:
        tx = treedef.unflatten(numbers)

        def step(carry: Any, _: Any) -> Any:
            now, state = carry
            updates, state = tx.update(jax.grad(loss)(now), state, now)
            return (adaptax.apply_updates(now, updates), state), None

        (now, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        return loss(now)

    _, slope = outcome(numbers)
    for name, s in zip(paths(case.make()), slope, strict=True):
        assert np.isfinite(s), f"{case.name}: the slope by {name} is {s}"
    h = 1e-5
    ahead, behind = (
        outcome([n + sign * h * d for n, d in zip(numbers, direction, strict=True)])[0]
        for sign in (1.0, -1.0)
    )
    wanted = float(ahead - behind) / (2 * h)
    along = float(sum(s * d for s, d in zip(slope, direction, strict=True)))
    assert along == pytest.approx(wanted, rel=1e-4, abs=1e-7), case.name


@cases(lambda case: case.main)
def test_new_numbers_and_equal_transformations_do_not_retrace(case: Case) -> None:
    (grads, params), *_ = steps_of(case, steps=1)
    state = case.make().init(params)

    def update(tx: Any, g: Any, s: Any, p: Any) -> Any:
        return tx.update(g, s, p)

    chex.clear_trace_counter()
    as_argument = jax.jit(chex.assert_max_traces(update, n=1))
    for rate in (0.1, 0.2, 0.3):
        _, state = as_argument(case.make(learning_rate=rate), grads, state, params)
    chex.clear_trace_counter()
    as_static = jax.jit(chex.assert_max_traces(update, n=1), static_argnums=0)
    for _ in range(3):
        _, state = as_static(case.make(), grads, state, params)


@cases()
def test_a_run_resumed_from_disk_is_the_same_to_the_bit(case: Case) -> None:
    tx, steps = case.make(), steps_of(case)
    whole, last = run(case, tx, tx.init(steps[0][1]), steps)
    _, half = run(case, tx, tx.init(steps[0][1]), steps[:2])
    stored = pickle.dumps((tx, jax.tree.map(np.asarray, half)))
    again, state = pickle.loads(stored)
    resumed, resumed_last = run(case, again, state, steps[2:])
    assert_leaves_equal(resumed, whole[2:], f"{case.name}, updates: ")
    assert_leaves_equal(resumed_last, last, f"{case.name}, state: ")


@cases(lambda case: case.main)
def test_parameters_and_state_can_be_donated_right_after_init(case: Case) -> None:
    (grads, params), *_ = steps_of(case, steps=1)
    tx = case.make()
    wanted = adaptax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return adaptax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    state = tx.init(params)
    params, state = donating(params, state, grads)
    assert_trees_close(params, wanted, case.rtol32, case.name)
    donating(params, state, grads)


DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("param_dtype", DTYPES, ids=lambda d: d.__name__)
@cases(lambda case: case.main or case.stores_otherwise)
def test_update_keeps_all_dtypes_so_that_it_fits_into_cond(
    case: Case, param_dtype: Any, grad_dtype: Any
) -> None:
    params = as_jax(case.params_as(param_dtype))
    grads = jax.tree.map(lambda p: p.astype(grad_dtype), params)
    tx = case.make()

    def maybe(skip: Any, grads: Any, state: Any) -> Any:
        keep: Callable[[], Any] = lambda: (grads, state)  # noqa: E731
        return jax.lax.cond(skip, keep, lambda: tx.update(grads, state, params))

    state = jax.eval_shape(tx.init, params)
    result = jax.eval_shape(maybe, jnp.asarray(True), grads, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(result, (grads, state))


@cases()
def test_the_state_is_strongly_typed_from_the_start(case: Case) -> None:
    """Else the second call of a jitted step would trace again."""
    params = as_jax(case.params_as(np.float32))
    state = case.make().init(params)
    weak = [
        path
        for path, leaf in zip(paths(state), jax.tree.leaves(state), strict=True)
        if leaf.weak_type
    ]
    assert not weak, f"{case.name}: {weak} of the initial state are weakly typed"
