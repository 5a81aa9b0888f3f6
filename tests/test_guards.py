"""Updates under a condition, guards, loss scaling, clipping of what is not finite."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import (
    assert_close,
    assert_same_bits,
    grads,
    optax_rules,
    params,
    skeleton,
    trajectory,
)
from trees import ZOO, as_jax, gradients_like

import adaptax
from adaptax import (
    GuardState,
    MultiSteps,
    apply_if_finite,
    conditionally_mask,
    conditionally_transform,
    dynamic_loss_scale,
    flatten,
    guard,
    guard_report,
    loss_scale,
    skip_not_finite,
)
from adaptax.wrappers._step import all_finite

STEPS = [jax.tree.map(lambda g, i=i: jnp.cos(g * (i + 1)), grads()) for i in range(6)]


def spoiled(g: Any, value: float = np.nan) -> Any:
    return {**g, "b": g["b"].at[1].set(value)}


def even(step: Any) -> Any:
    return step % 2 == 0


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "conditionally_transform": lambda tx: conditionally_transform(tx, even),
    "conditionally_mask": lambda tx: conditionally_mask(tx, even),
    "apply_if_finite": lambda tx: apply_if_finite(tx, 2),
    "flatten": flatten,
    "guard": guard,
    "guard with a limit": lambda tx: guard(tx, max_deviation=6.0, window=8),
    "dynamic_loss_scale": lambda tx: dynamic_loss_scale(tx, 4.0),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


# All wrappers


@wrappers
def test_a_wrapper_is_a_value(wrap):
    tx = wrap(adaptax.adam(0.1))
    for other in (wrap(adaptax.adam(0.1)), pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)):
        assert other == tx and hash(other) == hash(tx)
    assert tx != wrap(adaptax.adam(0.2))
    assert "adam(learning_rate=0.1)" in repr(tx)
    assert set(jax.tree.leaves(adaptax.adam(0.1))) <= set(jax.tree.leaves(tx))


SOME = ("none_leaf", "empty", "zero_size", "mixed_dtypes")


@pytest.mark.parametrize(
    "wrapper, name", [(w, n) for w in WRAPPERS for n in (ZOO if w == "flatten" else SOME)]
)
def test_trees_of_every_kind(wrapper, name):
    tx, p = WRAPPERS[wrapper](adaptax.adam(0.1)), as_jax(ZOO[name]())
    g = as_jax(gradients_like(ZOO[name]()))
    state = tx.init(p)
    u, after = jax.jit(tx.update)(g, state, p)
    for a, b in ((u, g), (after, state)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]
    wanted, _ = adaptax.adam(0.1).update(g, adaptax.adam(0.1).init(p), p)
    assert_close(u, wanted, 1e-2 if name == "mixed_dtypes" else 1e-5)


@wrappers
def test_an_optax_transformation_may_be_inside_and_ours_inside_of_optax(wrap):
    p, g = params(jnp.bfloat16), grads(jnp.bfloat16)
    (wanted,), _ = trajectory(wrap(adaptax.adam(0.1)), p, [g])
    tx = optax.chain(wrap(optax.adam(0.1)))
    state = tx.init(p)
    with optax_rules():
        u, after = jax.jit(tx.update)(g, state, p)
    assert_close(u, wanted, 2e-2, 1e-6)
    dtypes = [[x.dtype for x in jax.tree.leaves(s)] for s in (state, after)]
    assert dtypes[0] == dtypes[1]


@wrappers
def test_extra_arguments_reach_the_inside(wrap):
    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return jax.tree.map(lambda g: value * g, updates), state

    tx = wrap((lambda p: (), update))
    g = jax.tree.map(lambda x: 4 * x, grads()) if "loss" in repr(tx) else grads()
    u, _ = tx.update(g, tx.init(params()), value=3.0)
    assert_close(u, jax.tree.map(lambda g: 3 * g, grads()))


@wrappers
def test_integers_and_gradients_that_are_not_there(wrap):
    p = {"n": jnp.arange(3), "none": None, "w": jnp.ones(2)}
    g = {"n": np.zeros(3, jax.dtypes.float0), "none": None, "w": jnp.ones(2)}
    tx = wrap(adaptax.adam(0.1))
    for value in (1.0, jnp.nan):
        bad = {**g, "w": g["w"] * value}
        u, _ = jax.jit(lambda s, bad=bad: tx.update(bad, s, p))(tx.init(p))
        assert u["none"] is None and u["n"].dtype == jax.dtypes.float0
        assert_same_bits(adaptax.apply_updates(p, u)["n"], p["n"])


@pytest.mark.parametrize("name", [n for n in WRAPPERS if n != "flatten"])
def test_a_state_of_another_is_refused(name):
    tx = WRAPPERS[name](adaptax.adam(0.1))
    with pytest.raises(TypeError, match=r"must be its state, .*State, got"):
        tx.update(grads(), adaptax.adam(0.1).init(params()), params())


@wrappers
def test_wrappers_map_over_stacked_numbers(wrap):
    def run(rate: Any) -> Any:
        tx = wrap(adaptax.sgd(rate))
        return tx.update(grads(), tx.init(params()))[0]

    both = jax.vmap(run)(jnp.array([0.5, 0.25]))
    assert_close(jax.tree.map(lambda x: x[1], both), run(0.25), 1e-6)


# Conditions


CONDITIONS: dict[str, Callable[[Any, Any], Any]] = {
    "transform": lambda lib, tx: lib.conditionally_transform(tx, even),
    "mask": lambda lib, tx: lib.conditionally_mask(tx, even),
    "finite": lambda lib, tx: lib.apply_if_finite(tx, 1),
}


class Ours:
    conditionally_transform = staticmethod(conditionally_transform)
    conditionally_mask = staticmethod(conditionally_mask)
    apply_if_finite = staticmethod(apply_if_finite)


@pytest.mark.parametrize("make", CONDITIONS.values(), ids=CONDITIONS.keys())
def test_conditions_are_those_of_optax(make):
    steps = [STEPS[0], spoiled(STEPS[1]), *STEPS[2:5], spoiled(STEPS[1]), spoiled(STEPS[1], np.inf)]
    if "finite" not in repr(make(Ours, adaptax.sgd(0.1))):
        steps = STEPS
    ours, other = make(Ours, adaptax.adam(0.1)), make(optax, optax.adam(0.1))
    update, other_update = jax.jit(ours.update), jax.jit(other.update)
    state, other_state = ours.init(params()), other.init(params())
    assert skeleton(state) == skeleton(other_state)
    for g in steps:
        got, state = update(g, state, params())
        with optax_rules():
            wanted, other_state = other_update(g, other_state, params())
        assert_close(got, wanted, 2e-4, 1e-6)
        assert_close(state, other_state, 1e-4, 1e-6)
        assert [x.dtype for x in jax.tree.leaves(state)] == [
            x.dtype for x in jax.tree.leaves(other_state)
        ]


def test_errors_in_a_row_let_the_next_one_through():
    tx = apply_if_finite(adaptax.sgd(1.0), 2)
    got, state = trajectory(tx, params(), [spoiled(grads())] * 3)
    assert [bool(np.isnan(u["b"][1])) for u in got] == [False, False, True]
    assert int(state.notfinite_count) == 3
    none, _ = trajectory(apply_if_finite(adaptax.sgd(1.0), 0), params(), [spoiled(grads())])
    assert np.isnan(none[0]["b"][1])


def test_conditions_see_extra_arguments_and_give_one_bool():
    tx = conditionally_mask(adaptax.sgd(1.0), lambda step, value: value > 0, True)
    state = tx.init(params())
    update = jax.jit(lambda value: tx.update(grads(), state, value=value)[0])
    assert (update(-1.0)["w"] == 0).all()
    assert_same_bits(update(1.0), jax.tree.map(jnp.negative, grads()))
    with pytest.raises(TypeError, match="should_transform_fn must be a function"):
        conditionally_mask(adaptax.sgd(1.0), True)
    for bad in (lambda step: step, lambda step: jnp.ones(2) > 0):
        tx = conditionally_transform(adaptax.sgd(1.0), bad)
        with pytest.raises(TypeError, match="result of should_transform_fn must be one bool"):
            tx.update(grads(), tx.init(params()))
    with pytest.raises(ValueError, match=r"max_consecutive_errors must lie in \[0, inf\)"):
        apply_if_finite(adaptax.sgd(1.0), -1)


def test_updates_that_are_wider_on_purpose_stay_so():
    wide = adaptax.stateless(lambda u, p: jax.tree.map(lambda x: x.astype(jnp.float32) / 3, u))
    g = grads(jnp.bfloat16)
    for tx in (guard(wide), conditionally_transform(wide, even), MultiSteps(wide, 2)):
        state, update = tx.init(g), jax.jit(tx.update)
        for t in range(2):
            u, state = update(g, state)
            assert u["w"].dtype == jnp.float32
            if isinstance(state, GuardState) or (t == 1 and "Multi" in repr(tx)):
                assert_same_bits(u["w"], g["w"].astype(jnp.float32) / 3)


# flatten


def test_flatten_is_that_of_optax_and_of_each_leaf():
    tx, other = flatten(adaptax.adam(0.1)), optax.flatten(optax.adam(0.1))
    got, state = trajectory(tx, params(), STEPS)
    with optax_rules():
        wanted, other_state = trajectory(other, params(), STEPS)
    assert_close(got, wanted, 2e-4, 1e-6)
    assert skeleton(state) == skeleton(other_state)
    assert_close(got, trajectory(adaptax.adam(0.1), params(), STEPS)[0], 1e-6)


def test_flatten_keeps_dtypes_and_holes():
    p = {
        "z": jnp.ones(2, jnp.complex64),
        "h": jnp.ones(2, jnp.bfloat16),
        "n": jnp.arange(3),
        "no": None,
        "w": jnp.ones((2, 1)),
    }
    g = {**p, "n": np.zeros(3, jax.dtypes.float0), "z": jnp.array([1j, 2.0], jnp.complex64)}
    u, state = trajectory(flatten(adaptax.trace(0.5)), p, [g, g])
    assert state.trace.shape == (6,) and state.trace.dtype == jnp.complex64
    assert_same_bits(
        {k: u[1][k] for k in "zhw"}, {k: (1.5 * g[k]).astype(g[k].dtype) for k in "zhw"}
    )
    with pytest.raises(ValueError, match=r"flatten: the gradient at \['w'\] is None"):
        flatten(adaptax.trace(0.5)).update({**g, "w": None}, state, p)


# guard


def rounds(tx: Any, gradients: Any) -> tuple[Any, Any]:
    """Parameters and state after jitted steps."""

    @jax.jit
    def step(p: Any, state: Any, g: Any) -> Any:
        u, state = tx.update(g, state, p)
        return adaptax.apply_updates(p, u), state

    p, state = params(), tx.init(params())
    for g in gradients:
        p, state = step(p, state, g)
    return p, state


STORM: dict[str, Callable[[Any], Any]] = {
    "guard": guard,
    "guard with a limit": lambda tx: guard(tx, max_deviation=6.0, window=8),
    "apply_if_finite": lambda tx: apply_if_finite(tx, 3),
    "MultiSteps": lambda tx: MultiSteps(tx, 2, should_skip_update_fn=skip_not_finite),
    "MultiSteps of 1, drop": lambda tx: MultiSteps(tx, 1, nonfinite="drop"),
    "guarded MultiSteps": lambda tx: guard(MultiSteps(tx, 3)),
    "dynamic_loss_scale": lambda tx: dynamic_loss_scale(tx, 1.0, max_scale=1.0),
}


@pytest.mark.optimized
@pytest.mark.parametrize("wrap", STORM.values(), ids=STORM.keys())
@pytest.mark.parametrize("inner", [adaptax.adam, adaptax.rmsprop])
def test_a_storm_of_nan_leaves_no_trace(wrap, inner):
    rng = np.random.default_rng(3)
    steps, clean = [], []
    for t in range(42):
        g = jax.tree.map(lambda x: jnp.asarray(x * rng.normal(1, 0.2), jnp.float32), grads())
        if t % 7 == 6:
            bad = [np.nan, np.inf, -np.inf][t % 3]
            g = jax.tree.map(lambda x, bad=bad: x.at[0].set(bad), g)
        else:
            clean.append(g)
        steps.append(g)
    tx = wrap(inner(0.1))
    (p, state), (q, other) = rounds(tx, steps), rounds(tx, clean)
    assert_same_bits(p, q)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        if jnp.ndim(a):  # not the counts
            assert_same_bits(a, b)
    assert all_finite(p)


@pytest.mark.optimized
def test_dropped_windows_are_the_means_of_what_was_clean():
    steps = [spoiled(g) if t % 7 == 6 else g for t, g in enumerate(STEPS * 4)]
    clean = [g for t, g in enumerate(STEPS * 4) if t % 7 != 6]
    sizes = [3 - any((3 * i + j) % 7 == 6 for j in range(3)) for i in range(8)]
    p, state = rounds(MultiSteps(adaptax.adam(0.1), 3, nonfinite="drop"), steps)
    by_size = MultiSteps(
        adaptax.adam(0.1), lambda n: jnp.array(sizes, jnp.int32)[n], nonfinite="drop"
    )
    q, other = rounds(by_size, clean)
    assert_same_bits(p, q)
    assert_same_bits(state, other)


def test_a_spike_is_skipped_and_the_state_is_as_it_was():
    tx = guard(adaptax.adam(0.1), max_deviation=3.0, window=6, max_consecutive=2)
    update = jax.jit(tx.update)
    norms: list[Any] = [1.0, 2.0, 3.0, 2.0]
    state = tx.init(jnp.zeros(1))
    for n in norms:
        _, state = update(jnp.array([n]), state)
    limit = np.mean(norms) + 3 * np.std(norms)
    before = state
    u, state = update(jnp.array([limit * 1.001]), state)
    assert (u == 0).all() and int(state.spikes) == 1 and not state.stuck
    assert_same_bits([state.inner_state, state.norms], [before.inner_state, before.norms])
    u, state = update(jnp.array([limit * 0.999]), state)
    assert (u != 0).all() and int(state.accepted) == 5 and int(state.consecutive) == 0
    # The oldest norm leaves the window.
    norms += [limit * 0.999]
    for n in (2.0, 2.0, 2.0):
        _, state = update(jnp.array([n]), state)
        norms.append(n)
    assert sorted(state.norms.tolist()) == pytest.approx(sorted(norms[-6:]), 1e-6)
    limit = np.mean(norms[-6:]) + 3 * np.std(norms[-6:])
    for scale, taken in ((0.999, True), (10.0, False), (10.0, False)):
        u, state = update(jnp.array([limit * scale]), state)
        assert bool((u != 0).all()) == taken
    assert state.stuck
    u, state = update(jnp.array([2.0]), state)
    assert (u != 0).all() and state.stuck and int(state.consecutive) == 0


def test_norms_are_not_judged_before_there_are_enough():
    tx = guard(adaptax.sgd(0.1), max_deviation=1.0, window=8)
    _, state = rounds(tx, [jax.tree.map(lambda g, i=i: 10.0**i * g, grads()) for i in range(4)])
    assert int(state.accepted) == 4 and int(state.spikes) == 0
    _, state = rounds(tx, [grads()] * 20)  # equal norms are no spikes
    assert int(state.spikes) == 0
    _, state = rounds(tx, [jax.tree.map(lambda g: 1e30 * g, grads())] * 6)
    assert int(state.accepted) == 6 and np.isfinite(state.norms).all()


def test_a_report_is_found_at_any_depth():
    tx = adaptax.chain(
        adaptax.clip(10.0), adaptax.adjustable(adaptax.masked(guard(adaptax.adam(0.1)), True))
    )
    _, state = rounds(tx, [*STEPS, spoiled(STEPS[0]), spoiled(STEPS[0], np.inf)])
    report = guard_report(state)
    assert (int(report.steps), int(report.skipped), int(report.not_finite)) == (8, 1, 1)
    # clip made 10 of the infinity
    assert str(report).startswith("1 of 8 steps skipped (1 not finite, 0 above the limit), 0 in a")
    assert int(jax.jit(lambda s: guard_report(s).skipped)(state)) == 1
    stuck = guard(adaptax.sgd(0.1), max_consecutive=1)
    assert str(guard_report(rounds(stuck, [spoiled(grads())])[1])).endswith("norm nan; stuck")
    with pytest.raises(ValueError, match="guard_report: the state must hold one GuardState, got 0"):
        guard_report(adaptax.adam(0.1).init(params()))
    with pytest.raises(ValueError, match="got 2; give the part"):
        guard_report((report, state, state))


def test_arguments_of_guard_are_checked():
    with pytest.raises(ValueError, match=r"guard: max_deviation must lie in \(0, inf\)"):
        guard(adaptax.sgd(0.1), max_deviation=0.0)
    with pytest.raises(TypeError, match="guard: max_deviation must be a number"):
        guard(adaptax.sgd(0.1), max_deviation=lambda t: 6.0)
    with pytest.raises(ValueError, match=r"guard: window must lie in \[2, inf\)"):
        guard(adaptax.sgd(0.1), window=1)
    with pytest.raises(ValueError, match=r"guard: max_consecutive must lie in \[1, inf\)"):
        guard(adaptax.sgd(0.1), max_consecutive=0)


# Loss scaling


def test_float16_training_works_with_a_scaled_loss():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 4)), jnp.float16)
    goal = jnp.array([1.0, -2.0, 0.5, 3.0], jnp.float16)

    def loss(w: Any) -> Any:
        # In float16 from the parameters on; gradients of some 1e-9 vanish there.
        error = (x @ w.astype(jnp.float16) - x @ goal).astype(jnp.float32)
        return 1e-9 * jnp.mean(jnp.square(error))

    def train(tx: Any, scaled: bool) -> tuple[Any, Any]:
        @jax.jit
        def step(w: Any, state: Any) -> Any:
            scale = loss_scale(state) if scaled else jnp.float32(1.0)
            g = jax.grad(lambda w: loss(w) * scale)(w)
            u, state = tx.update(g, state, w)
            return adaptax.apply_updates(w, u), state

        w, state = jnp.zeros(4), tx.init(jnp.zeros(4))
        for _ in range(150):
            w, state = step(w, state)
        return w, state

    adam = adaptax.adam(0.1, eps=1e-15)
    plain, _ = train(adam, False)
    assert_same_bits(plain, jnp.zeros(4))  # every gradient was zero
    # Begins too high, so that it must find its scale.
    tx = dynamic_loss_scale(adam, 2.0**60, growth_interval=50, factor=16.0, max_scale=2.0**60)
    got, state = train(tx, True)
    np.testing.assert_allclose(got, goal.astype(jnp.float32), atol=0.05)
    assert int(state.skipped) > 0 and float(state.loss_scale) < 2.0**60


def test_float16_parameters_get_float16_updates_from_float32_moments():
    tx = dynamic_loss_scale(adaptax.adam(0.1, eps=1e-15), 2.0**15)
    p = jnp.ones(2, jnp.float16)
    g = jnp.array([1e-3, -1e-4], jnp.float16)  # unscaled 3e-8: nothing in float16
    u, state = jax.jit(tx.update)(g, tx.init(p), p)
    assert u.dtype == jnp.float16
    np.testing.assert_allclose(u, [-0.1, 0.1], rtol=1e-3)
    mu = state.inner_state[0].mu
    assert_close(mu, 0.1 * (g.astype(jnp.float32) * 2.0**-15), 1e-6, 0.0)


def test_the_scale_is_that_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    bad = rng.random(60) < 0.15
    tx = dynamic_loss_scale(adaptax.sgd(0.1), 2.0**6, growth_interval=4, factor=4.0)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**6, growth_factor=4.0, backoff_factor=0.25, growth_interval=4
    )
    w = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([w], 0.1)
    p, state, update = jnp.ones(2), tx.init(jnp.ones(2)), jax.jit(tx.update)
    for t, wrong in enumerate(bad):
        assert float(loss_scale(state)) == scaler.get_scale(), t
        value = np.inf if wrong else 0.5
        sgd.zero_grad()
        (scaler.scale(value * w.sum())).backward()
        scaler.step(sgd)
        scaler.update()
        g = jnp.full(2, value, jnp.float32) * loss_scale(state)
        u, state = update(g, state, p)
        p = adaptax.apply_updates(p, u)
    np.testing.assert_allclose(p, w.detach().numpy(), rtol=1e-6)
    assert int(state.skipped) == bad.sum() and 0 < bad.sum() < 60


def test_the_scale_keeps_its_bounds_and_is_exact():
    tx = dynamic_loss_scale(adaptax.sgd(1.0), 2.0, 1, min_scale=1.0, max_scale=4.0)
    state, scales, update = tx.init(grads()), [], jax.jit(tx.update)
    for g in (STEPS[0], STEPS[0], STEPS[0], *[spoiled(STEPS[0])] * 4):
        scales.append(float(loss_scale(state)))
        _, state = update(g, state)
    assert [*scales, float(loss_scale(state))] == [2.0, 4.0, 4.0, 4.0, 2.0, 1.0, 1.0, 1.0]
    scaled = jax.tree.map(lambda g: 2.0**20 * g, STEPS[0])
    tx = dynamic_loss_scale(adaptax.sgd(1.0), 2.0**20)
    u, _ = tx.update(scaled, tx.init(grads()))
    assert_same_bits(u, jax.tree.map(jnp.negative, STEPS[0]))
    high = dynamic_loss_scale(adaptax.sgd(1.0), 2.0**30)
    assert float(loss_scale(high.init(grads()))) == 2.0**24


def test_arguments_of_loss_scaling_are_checked():
    with pytest.raises(ValueError, match="init_scale must be one of the powers of 2, got 3"):
        dynamic_loss_scale(adaptax.sgd(0.1), 3.0)
    with pytest.raises(ValueError, match=r"factor must lie in \(1, inf\)"):
        dynamic_loss_scale(adaptax.sgd(0.1), factor=0.5)
    with pytest.raises(TypeError, match="init_scale must be a number"):
        dynamic_loss_scale(adaptax.sgd(0.1), lambda t: 2.0)
    with pytest.raises(ValueError, match="loss_scale: the state must hold one DynamicLossScale"):
        loss_scale(adaptax.sgd(0.1).init(params()))


# Clipping


def clipped(g: Any, max_norm: float = 2.0, jitted: bool = False) -> Any:
    tx = adaptax.clip_by_global_norm(max_norm)
    (u,), _ = trajectory(tx, g, [g])
    if jitted:
        assert_same_bits(u, jax.jit(lambda g: tx.update(g, adaptax.EmptyState())[0])(g))
    return u


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_infinities_share_the_norm(dtype):
    g = {
        "a": jnp.array([1.0, -jnp.inf, jnp.inf], dtype),
        "b": jnp.array([[jnp.inf], [-3.0]], dtype),
        "c": jnp.array([-jnp.inf], dtype),
        "none": None,
        "n": np.zeros(2, jax.dtypes.float0),
        "empty": jnp.zeros((0, 2), dtype),
    }
    u = clipped({k: v for k, v in g.items() if k != "n"}, jitted=True)
    assert_same_bits(u["a"], jnp.array([0, -1, 1], dtype))
    assert_same_bits(u["b"] == 0, jnp.array([[False], [True]]))
    assert float(adaptax.global_norm(u)) == 2.0
    u, _ = adaptax.clip_by_global_norm(2.0).update(g, adaptax.EmptyState())
    assert_same_bits(u["c"], jnp.array([-1], dtype))


def test_infinities_are_the_limit_of_large_entries():
    for large, value in ((1e15, 1e-12), (1e25, 1e-12)):
        near = clipped([jnp.array([1.0, -large, large])])
        limit = clipped([jnp.array([1.0, -jnp.inf, jnp.inf])])
        assert_close(near, limit, 1e-6, value)


def test_a_norm_beyond_the_dtype_is_clipped_all_the_same():
    g = {"a": jnp.full(9, 3e38), "b": jnp.array([-3e38, 1.0])}
    assert np.isinf(adaptax.global_norm(g))
    u = clipped(g, 1.0, jitted=True)
    np.testing.assert_allclose(u["a"], 1 / np.sqrt(10), rtol=1e-6)
    np.testing.assert_allclose(u["b"], [-1 / np.sqrt(10), 0], rtol=1e-6, atol=1e-35)


def test_float64_norms_beyond_the_dtype(x64):
    u = clipped({"a": jnp.full(4, 1.7e308), "h": jnp.ones(1, jnp.float32)}, 1.0)
    np.testing.assert_allclose(u["a"], 0.5, rtol=1e-15)
    assert u["h"].dtype == jnp.float32 and float(u["h"][0]) == 0
    u = clipped({"a": jnp.array([jnp.inf]), "h": jnp.array([jnp.inf, 1.0], jnp.float32)}, 1.0)
    # The infinity of float32 is next to nothing beside that of float64.
    np.testing.assert_allclose(np.concatenate([u["a"], u["h"]]), [1, 0, 0], 1e-6)


def test_complex_infinities_count_by_parts():
    inf = np.inf
    g = jnp.array([complex(inf, 1.0), complex(2.0, -inf), complex(-inf, inf), 3 + 4j], "complex64")
    u = clipped(g, 2.0, jitted=True)
    np.testing.assert_allclose(u, [1, -1j, -1 + 1j, 0], 1e-6, 1e-30)
    u = clipped(jnp.array([3 + 4j, 0], "complex64"), 1.0)
    np.testing.assert_allclose(u, [0.6 + 0.8j, 0], 1e-6)


def test_nan_shows():
    for other in (1.0, jnp.inf):
        u = clipped({"a": jnp.array([jnp.nan, other]), "b": jnp.array([5.0])})
        assert np.isnan(u["a"][0]) and not np.isnan(u["b"][0])
    u = clipped(jnp.array([complex(np.nan, 1.0), 2.0], "complex64"))
    assert np.isnan(u[0].real)


def test_finite_gradients_are_clipped_as_by_one_factor():
    for g in STEPS:
        norm = adaptax.global_norm(g)
        for most in (0.5, 1e3):
            factor = jnp.where(norm > most, jnp.float32(most) / norm, 1.0)
            got, _ = adaptax.clip_by_global_norm(most).update(g, adaptax.EmptyState())
            assert_same_bits(got, jax.tree.map(lambda x, f=factor: f * x, g))
    assert clipped(jnp.array([jnp.inf, 1.0]), 0.0).tolist() == [0.0, 0.0]


def test_the_data_are_read_again_only_where_the_norm_is_out_of_range():
    tx = adaptax.clip_by_global_norm(1.0)
    closed = jax.make_jaxpr(lambda g: tx.update(g, adaptax.EmptyState())[0])(grads())
    text = str(closed)
    names = [line for line in text.splitlines() if "name=_sum_of_squares" in line]
    assert len(names) == 2 * len(jax.tree.leaves(grads()))  # one pass, and one under the cond
    assert text.count("cond[") == 1


def test_the_slope_of_clipping_is_finite():
    def size(max_norm: Any, g: Any) -> Any:
        u, _ = adaptax.clip_by_global_norm(max_norm).update(g, adaptax.EmptyState())
        return jnp.sum(u["w"])

    slopes = jax.grad(size, (0, 1))(1.0, grads())
    assert all_finite(slopes)
    wanted = jnp.sum(grads()["w"]) / adaptax.global_norm(grads())
    assert_close(slopes[0], wanted, 1e-5)
