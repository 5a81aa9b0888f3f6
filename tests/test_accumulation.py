"""Gradients of several micro-batches as one: MultiSteps, apply_every."""

# pyright: reportArgumentType=false

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import (
    GRADS,
    Traced,
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
    ApplyEvery,
    MultiSteps,
    MultiStepsState,
    MultiStepsTransformation,
    WeightedMultiStepsState,
    apply_every,
    skip_large_updates,
    skip_not_finite,
)

K = 3
STEPS = [
    jax.tree.map(lambda g, i=i: jnp.asarray(np.cos(g * np.float32(i + 1))), GRADS)
    for i in range(3 * K)
]
NAN = jax.tree.map(
    lambda g: jnp.asarray(np.concatenate([np.full_like(g[:1], np.nan), g[1:]])), STEPS[0]
)


def compiled(tx: Any, p: Any, gradients: Any, weights: Any = None) -> tuple[Any, Any, list[Any]]:
    """The parameters and the state after jitted steps, and the updates."""

    @jax.jit
    def step(p: Any, state: Any, g: Any, extra: Any) -> Any:
        u, state = tx.update(g, state, p, **extra)
        return adaptax.apply_updates(p, u), state, u

    state, out = tx.init(p), []
    for i, g in enumerate(gradients):
        extra = {} if weights is None else {"weight": jnp.float32(weights[i])}
        p, state, u = step(p, state, g, extra)
        out.append(u)
    return p, state, out


def mean(trees: Any, weights: Any = None) -> Any:
    """The float64 mean of some trees."""
    return jax.tree.map(
        lambda *x: np.average(np.stack(x).astype(np.float64), 0, weights).astype(np.float32), *trees
    )


# Optax


MULTI: dict[str, dict[str, Any]] = {
    "mean": {"every_k_schedule": K},
    "sum": {"every_k_schedule": K, "use_grad_mean": False},
    "schedule": {"every_k_schedule": lambda n: jnp.where(n < 1, 2, 3)},
    "skip": {"every_k_schedule": K},
    "bfloat16 accumulator": {"every_k_schedule": K, "accumulator_dtype": jnp.bfloat16},
}


@pytest.mark.parametrize("name", MULTI)
def test_multi_steps_are_those_of_optax(name):
    options = MULTI[name]
    steps = STEPS if name != "skip" else [*STEPS[:2], NAN, *STEPS[2:]]
    skip = {} if name != "skip" else {"should_skip_update_fn": skip_not_finite}
    other_skip = {} if name != "skip" else {"should_skip_update_fn": optax.skip_not_finite}
    _, state, got = compiled(MultiSteps(adaptax.adam(0.1), **options, **skip), params(), steps)
    with optax_rules():
        other = optax.MultiSteps(optax.adam(0.1), **options, **other_skip)
        other_state, wanted, update = other.init(params()), [], jax.jit(other.update)
        middle: Any = None
        for t, g in enumerate(steps):
            u, other_state = update(g, other_state, params())
            wanted.append(u)
            if t == 4:
                middle = other_state
    # Optax's last step of a mean, and ours, round to bfloat16 at another place.
    assert_close(got, wanted, *((2e-2, 5e-4) if "bfloat16" in name else (1e-4, 1e-6)))
    assert skeleton(state) == skeleton(other_state)
    assert_same_bits(
        [state.mini_step, state.gradient_step], [other_state.mini_step, other_state.gradient_step]
    )
    if name == "mean":  # a checkpoint in the middle of a window means the same
        _, ours, _ = compiled(MultiSteps(adaptax.adam(0.1), K), params(), steps[:5])
        assert_same_bits(ours.acc_grads, middle.acc_grads)


def test_an_optax_transformation_may_be_inside_and_ours_inside_of_optax():
    _, _, wanted = compiled(MultiSteps(adaptax.adam(0.1), K), params(), STEPS)
    with optax_rules():
        _, _, got = compiled(MultiSteps(optax.adam(0.1), K), params(), STEPS)
        chained = optax.chain(optax.identity(), MultiSteps(adaptax.adam(0.1), K))
        _, _, inside = compiled(chained, params(), STEPS)
    assert_close(got, wanted, 1e-4, 1e-6)
    assert_same_bits(inside, wanted)


# The value


def test_multi_steps_is_a_transformation_and_a_value():
    tx = MultiSteps(adaptax.adam(0.1), np.int64(4), nonfinite="drop")
    assert isinstance(tx, adaptax.GradientTransformation)
    assert tx == MultiSteps(adaptax.adam(0.1), 4, nonfinite="drop")
    assert tx != MultiSteps(adaptax.adam(0.1), 5, nonfinite="drop")
    for other in (pickle.loads(pickle.dumps(tx)), jax.tree.map(lambda x: x, tx)):
        assert type(other) is MultiStepsTransformation
        assert other == tx and hash(other) == hash(tx)
    assert repr(tx) == (
        "MultiSteps(opt=adam(learning_rate=0.1), every_k_schedule=4, nonfinite='drop')"
    )
    assert tx.inner_opt == adaptax.adam(0.1)
    assert tx.gradient_transformation() is tx
    assert jax.tree.leaves(tx) == jax.tree.leaves(adaptax.adam(0.1))


def test_new_numbers_do_not_retrace():
    traced = Traced(lambda tx, state, g: tx.update(g, state))
    step = jax.jit(traced)
    for rate in (0.1, 0.2):
        tx = MultiSteps(adaptax.sgd(rate), 1)
        u, _ = step(tx, tx.init(params()), grads())
        assert_close(u["b"], -rate * grads()["b"], 1e-6)
    assert traced.times == 1


@pytest.mark.parametrize("k", [0, -1])
def test_a_window_of_nothing_is_refused(k):
    with pytest.raises(ValueError, match=r"MultiSteps: every_k_schedule must lie in \[1, inf\)"):
        MultiSteps(adaptax.sgd(0.1), k)
    with pytest.raises(ValueError, match=r"apply_every: k must lie in \[1, inf\)"):
        apply_every(k)


def test_other_arguments_are_refused():
    with pytest.raises(TypeError, match="MultiSteps: every_k_schedule must be a concrete integer"):
        MultiSteps(adaptax.sgd(0.1), 2.5)
    with pytest.raises(TypeError, match="should_skip_update_fn must be None or a function"):
        MultiSteps(adaptax.sgd(0.1), 2, should_skip_update_fn=3)
    tx = MultiSteps(adaptax.sgd(0.1), 2, weighted=True)
    with pytest.raises(ValueError, match="update needs the weight of the micro-batch"):
        tx.update(grads(), tx.init(params()))
    with pytest.raises(ValueError, match=r"weight has shape \(2,\)"):
        tx.update(grads(), tx.init(params()), weight=jnp.ones(2))
    with pytest.raises(TypeError, match="its state, WeightedMultiStepsState"):
        tx.update(grads(), MultiSteps(adaptax.sgd(0.1), 2).init(params()), weight=1.0)
    bad = MultiSteps(adaptax.sgd(0.1), 2, should_skip_update_fn=lambda *_: (jnp.ones(2) > 0, ()))
    with pytest.raises(TypeError, match="answer of should_skip_update_fn must be one bool"):
        bad.init(params())
    for tx in (MultiSteps(adaptax.sgd(0.1), 2), apply_every(2)):
        with pytest.raises(adaptax.TreeMismatchError, match=r"\['b'\] has shape"):
            tx.update({**grads(), "b": jnp.ones(5)}, tx.init(params()))
        with pytest.raises(adaptax.TreeMismatchError, match="is not in updates"):
            tx.update({"w": grads()["w"]}, tx.init(params()))
        with pytest.raises(adaptax.TreeMismatchError, match="must be floating"):
            tx.update(jax.tree.map(lambda g: g.astype(int), grads()), tx.init(params()))


# What it computes


def test_a_window_is_one_update_with_the_mean():
    tx = adaptax.adamw(0.1)
    got, state, updates = compiled(MultiSteps(tx, K), params(), STEPS)
    means = [mean(STEPS[i : i + K]) for i in range(0, len(STEPS), K)]
    wanted, inner, _ = compiled(tx, params(), means)
    assert_close(got, wanted, 1e-5)
    assert_close(state.inner_opt_state, inner, 1e-5, 1e-7)
    for i, u in enumerate(updates):
        still = all((x == 0).all() for x in jax.tree.leaves(u))
        assert still == ((i + 1) % K != 0)


def test_the_inner_update_is_computed_only_when_it_is_due():
    inner = Traced(lambda u, p: u)
    ran: list[int] = []

    def f(updates: Any, p: Any) -> Any:
        jax.debug.callback(lambda: ran.append(1))
        return inner(updates, p)

    tx = MultiSteps(adaptax.stateless(f), K)
    compiled(tx, params(), STEPS)
    jax.effects_barrier()
    assert len(ran) == 3
    assert inner.times == 1
    trajectory(tx, params(), STEPS)  # un-jitted too
    jax.effects_barrier()
    assert len(ran) == 6


def test_jit_is_eager_and_scan_is_a_loop():
    tx = MultiSteps(adaptax.adam(0.1), K)
    p, state, wanted = compiled(tx, params(), STEPS)
    got, eager = trajectory(tx, params(), STEPS)
    assert_close([*got, eager], [*wanted, state], 1e-5, 1e-7)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *STEPS)

    def step(carry: Any, g: Any) -> Any:
        u, state = tx.update(g, carry[1], carry[0])
        return (adaptax.apply_updates(carry[0], u), state), None

    (scanned, _), _ = jax.jit(lambda: jax.lax.scan(step, (params(), tx.init(params())), stacked))()
    assert_close(scanned, p, 1e-5)


def test_schedules_give_windows():
    schedule = adaptax.piecewise_constant_schedule(2, {1: 1.5})
    tx = MultiSteps(adaptax.sgd(1.0), schedule)
    _, state, updates = compiled(tx, params(), STEPS)
    moved = [bool((u["b"] != 0).any()) for u in updates]
    assert moved == [False, True, False, False, True, False, False, True, False]
    assert tx == MultiSteps(
        adaptax.sgd(1.0), adaptax.piecewise_constant_schedule(2, {1: 1.5})
    ) and "piecewise_constant_schedule" in repr(tx)
    assert int(state.gradient_step) == 3 and int(state.mini_step) == 1


def test_has_updated():
    tx = MultiSteps(adaptax.sgd(0.1), 2)
    state, seen = tx.init(params()), [bool(tx.has_updated(tx.init(params())))]
    for g in STEPS[:4]:
        state = tx.update(g, state)[1]
        seen.append(bool(tx.has_updated(state)))
    assert seen == [False, False, True, False, True]


def test_extra_arguments_reach_the_inside():
    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return jax.tree.map(lambda g: value * g, updates), state

    inner: Any = (lambda p: (), update)
    tx = MultiSteps(inner, 2)
    state = tx.init(params())
    _, state = tx.update(grads(), state, value=2.0)
    u, _ = tx.update(grads(), state, value=3.0)
    assert_close(u, jax.tree.map(lambda g: 3 * g, grads()))


# What is not finite


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_nan_poisons_its_window_alone(bad, at):
    steps = list(STEPS)
    steps[at] = jax.tree.map(lambda g: g.at[0].set(bad), steps[at])
    tx = MultiSteps(adaptax.adam(0.1), K)
    got, state, updates = compiled(tx, params(), steps)
    wanted, clean, _ = compiled(tx, params(), STEPS[K:])
    assert all((x == 0).all() for x in jax.tree.leaves(updates[:K]))
    assert_same_bits(got, wanted)
    assert_same_bits(state, clean)


def test_dropped_micro_batches_are_not_in_the_mean():
    tx = MultiSteps(adaptax.adam(0.1), K, nonfinite="drop")
    steps = [STEPS[0], NAN, STEPS[2], NAN, NAN, NAN, *STEPS[3:6]]
    got, state, updates = compiled(tx, params(), steps)
    assert isinstance(state, WeightedMultiStepsState)
    wanted, inner, _ = compiled(
        adaptax.adam(0.1), params(), [mean([STEPS[0], STEPS[2]]), mean(STEPS[3:6])]
    )
    assert_close(got, wanted, 1e-5)
    assert_close(state.inner_opt_state, inner, 1e-5, 1e-7)
    assert int(state.gradient_step) == 2 and int(state.mini_step) == 0
    assert all((x == 0).all() for x in jax.tree.leaves(updates[3:6]))
    assert float(state.weight) == 0.0


def test_weights():
    weights = [1.0, 3.0, 0.0, 5.0, 5.0, 7.0, 0.0, 0.0, 0.0]
    steps = [*STEPS[:2], NAN, *STEPS[3:6], NAN, STEPS[7], NAN]
    tx = MultiSteps(adaptax.sgd(1.0), K, weighted=True)
    _, state, got = compiled(tx, params(), steps, weights)
    assert_close(got[2], mean([jax.tree.map(jnp.negative, g) for g in STEPS[:2]], [1, 3]), 1e-5)
    assert_close(
        got[5], mean([jax.tree.map(jnp.negative, g) for g in STEPS[3:6]], [5, 5, 7]), 1e-5, 1e-7
    )
    assert all((x == 0).all() for x in jax.tree.leaves(got[6:]))
    assert int(state.gradient_step) == 2
    total = MultiSteps(adaptax.sgd(1.0), 2, use_grad_mean=False, weighted=True)
    _, _, got = compiled(total, params(), STEPS[:2], [2.0, 3.0])
    wanted = jax.tree.map(lambda a, b: -(2 * a + 3 * b), *STEPS[:2])
    assert_close(got[1], wanted, 1e-5, 1e-6)


def test_a_weight_of_nan_loses_its_window_or_is_dropped():
    weights = [1.0, np.nan, 1.0]
    for nonfinite, updated in (("poison", False), ("drop", True)):
        tx = MultiSteps(adaptax.sgd(1.0), K, weighted=True, nonfinite=nonfinite)
        _, _, got = compiled(tx, params(), STEPS[:K], weights)
        assert (got[2]["w"] != 0).all() == updated


SKIPS: dict[str, Any] = {
    "not finite": (skip_not_finite, optax.skip_not_finite),
    "large": (
        functools.partial(skip_large_updates, max_squared_norm=20.0),
        functools.partial(optax.skip_large_updates, max_squared_norm=20.0),
    ),
}


@pytest.mark.parametrize("ours, other", SKIPS.values(), ids=SKIPS.keys())
@pytest.mark.parametrize("scale", [1.0, 2.0, np.nan, np.inf])
def test_skips_are_those_of_optax(ours, other, scale):
    g = jax.tree.map(lambda x: x.at[..., 0].mul(scale), grads())
    zero = jnp.zeros((), jnp.int32)
    (got, info), (wanted, other_info) = ours(g, zero, None), other(g, zero, None)
    assert bool(got) == bool(wanted)
    assert skeleton(info) == skeleton(other_info)
    assert_close(info, other_info, 1e-5)


def test_a_large_norm_is_accumulated_without_overflow():
    skip = functools.partial(skip_large_updates, max_squared_norm=1e60)
    assert not skip({"a": jnp.full(4, 1e29)}, 0, None)[0]
    assert skip({"a": jnp.full(4, 1e30)}, 0, None)[0]
    sixteen = functools.partial(skip_large_updates, max_squared_norm=1e6)
    assert not sixteen({"a": jnp.full(4, 300.0, jnp.float16)}, 0, None)[0]
    assert skip_large_updates({}, 0, None, 1.0)[0].shape == ()
    assert not skip_not_finite({"a": None}, 0, None)[0]


# Dtypes and trees


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("inner", [adaptax.adam, optax.adam], ids=["ours", "optax"])
def test_16_bits_are_averaged_in_float32(dtype, inner):
    g = [jnp.array([v, 1.0], dtype) for v in (256.0, 1.0, 1.0, 1.0)]
    tx = MultiSteps(inner(0.1), 4)
    with optax_rules():
        _, state, u = compiled(tx, g[0], g)
    assert u[0].dtype == u[-1].dtype == jnp.dtype(dtype)
    _, state, _ = compiled(MultiSteps(adaptax.trace(0.5), 4), g[0], g)
    # 64.75 is no bfloat16 (64.5, 65); the inner transformation gets it whole.
    assert_same_bits(state.inner_opt_state.trace, jnp.array([64.75, 1.0]))


@pytest.mark.parametrize("name", ["single", "none_leaf", "empty", "zero_size", "mixed_dtypes"])
@pytest.mark.parametrize("make", [lambda: MultiSteps(adaptax.adam(0.1), 2), lambda: apply_every(2)])
def test_trees_of_every_kind(name, make):
    tx, p = make(), as_jax(ZOO[name]())
    g = as_jax(gradients_like(ZOO[name]()))
    state, update, u = tx.init(p), jax.jit(tx.update), None
    for _ in range(2):
        u, after = update(g, state, p)
        for a, b in ((u, g), (after, state)):
            assert jax.tree.structure(a) == jax.tree.structure(b)
            assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]
        state = after
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(u))


def test_integers_complex_numbers_and_gradients_that_are_not_there():
    p = {"n": jnp.arange(3), "z": jnp.ones(2, jnp.complex64), "w": jnp.ones(2), "m": jnp.ones(3)}
    g = {
        "n": np.zeros(3, jax.dtypes.float0),
        "z": jnp.array([1 + 2j, 3j], jnp.complex64),
        "w": jnp.ones(2),
        "m": None,
    }
    for tx in (MultiSteps(adaptax.trace(0.5), 2), apply_every(2)):
        state, u = tx.init(p), {}
        for _ in range(2):
            u, state = jax.jit(lambda s, tx=tx: tx.update(g, s, p))(state)
        assert u["m"] is None and u["n"].dtype == jax.dtypes.float0
        factor = 1 if isinstance(state, MultiStepsState) else 2
        assert_same_bits(u["z"], factor * g["z"])
        q = adaptax.apply_updates(p, tx.update(g, tx.update(g, tx.init(p), p)[1], p)[0])
        assert_same_bits([q["n"], q["m"]], [p["n"], p["m"]])


def test_float64_is_not_rounded_in_the_last_step(x64):
    g = [jnp.array([1.0 + 1e-12]), jnp.array([1.0 + 1e-12])]
    tx = MultiSteps(adaptax.sgd(1.0), 2, accumulator_dtype=jnp.float64)
    _, state, u = compiled(tx, jnp.ones(1), g)
    assert u[-1].dtype == jnp.float64 and float(u[-1][0]) == -(1.0 + 1e-12)
    _, state, u = compiled(MultiSteps(adaptax.sgd(1.0), 2), jnp.ones(1), g)
    assert u[-1].dtype == jnp.float64 and state.acc_grads.dtype == jnp.float32


def test_a_window_of_one_is_the_transformation():
    got, state, _ = compiled(MultiSteps(adaptax.adam(0.1), 1), params(), STEPS)
    wanted, inner, _ = compiled(adaptax.adam(0.1), params(), STEPS)
    assert_close([got, state.inner_opt_state], [wanted, inner], 1e-6)


# apply_every


@pytest.mark.parametrize("k", [1, K])
def test_apply_every_is_that_of_optax(k):
    _, state, got = compiled(apply_every(k), params(), STEPS[:5])
    with optax_rules():
        _, other, wanted = compiled(optax.apply_every(k), params(), STEPS[:5])
    assert_close([got, state], [wanted, other], 1e-6, 1e-7)
    assert skeleton(state) == skeleton(other)
    assert isinstance(state, ApplyEvery)


def test_a_nan_spoils_one_sum_of_apply_every():
    steps = [STEPS[0], NAN, *STEPS[2:]]
    _, state, got = compiled(apply_every(K), params(), steps)
    _, clean, wanted = compiled(apply_every(K), params(), STEPS)
    assert np.isnan(got[K - 1]["b"][0]) and (got[0]["b"] == 0).all()
    assert_same_bits(got[K:], wanted[K:])
    assert_same_bits(state, clean)


def test_apply_every_adds_16_bits_in_float32():
    g = [jnp.array([v], jnp.bfloat16) for v in (256.0, 1.0, 1.0)]
    _, state, u = compiled(apply_every(3), g[0], g)
    assert state.grad_acc.dtype == jnp.float32
    assert_same_bits(u[-1], jnp.array([258.0], jnp.bfloat16))
