"""Averages of the parameters: exponential, equal, lookahead, schedule-free, and eval_params."""

# pyright: reportArgumentType=false

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import Traced, assert_close, assert_same_bits, grads, optax_rules, params, skeleton
from trees import ZOO, as_jax, gradients_like

import adaptax
from adaptax import (
    AverageState,
    LookaheadParams,
    LookaheadState,
    ScheduleFreeState,
    TreeMismatchError,
    ema_params,
    eval_params,
    incremental_update,
    lookahead,
    periodic_update,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
    swa,
)

# A row for each wrapper, with numbers that are not the defaults.
WRAPPERS: dict[str, Callable[[], Any]] = {
    "ema": lambda: ema_params(adaptax.adam(0.1), 0.9),
    "ema constant": lambda: ema_params(adaptax.adam(0.1), 0.9, debias=False, every=2),
    "ema warmup": lambda: ema_params(adaptax.adam(0.1), 0.9, warmup=True, start=2),
    "swa": lambda: swa(adaptax.adam(0.1), start=2, every=2),
    "lookahead": lambda: lookahead(adaptax.adam(0.1), 2, 0.5, True, slow_in_state=True),
    "schedule-free": lambda: schedule_free(adaptax.sgd(0.1), 0.1, b1=0.8),
    "schedule-free adamw": lambda: schedule_free_adamw(0.1, 3, b1=0.8, weight_decay=0.1),
    "schedule-free sgd, b1 of 0": lambda: schedule_free_sgd(0.1, b1=0.0),
}
wrappers = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS.keys())


def step(tx: Any, p: Any, state: Any, g: Any) -> tuple[Any, Any]:
    u, state = tx.update(g, state, p)
    return adaptax.apply_updates(p, u), state


def train(tx: Any, p: Any, gradients: Any) -> tuple[list[Any], Any]:
    """The parameters after each of some gradients, given in advance, and the last state."""
    one, state, path = jax.jit(step), tx.init(p), []
    for g in gradients:
        p, state = one(tx, p, state, g)
        path.append(p)
    return path, state


def noise(steps: int, size: int = 3, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, size)).astype(dtype)


START = np.array([0.5, -1.0, 2.0], np.float32)


# Exponential and equal averages


def ema_weights(n: int, d: float, mode: str) -> np.ndarray:
    """The weights of n parameters in order, from the recurrence of each option's source."""
    if mode == "debias":
        return d ** np.arange(n - 1, -1, -1.0) * (1 - d) / (1 - d**n)
    weights = np.zeros(n)
    for i in range(n):
        decay = d if mode == "constant" else min(d, (1 + i) / (10 + i))
        decay = 0.0 if i == 0 else decay
        weights = decay * weights
        weights[i] = 1 - decay
    return weights


@pytest.mark.parametrize("mode", ["debias", "constant", "warmup", "swa"])
@pytest.mark.parametrize(("start", "every"), [(0, 1), (4, 1), (0, 3), (5, 4)])
def test_the_average_is_the_weighted_sum_of_the_path(mode, start, every):
    tx: Any = swa(adaptax.sgd(0.1), start, every)
    if mode != "swa":
        tx = ema_params(
            adaptax.sgd(0.1), 0.7, mode == "debias", warmup=mode == "warmup", start=start,
            every=every,
        )  # fmt: skip
    p, state, seen = jnp.array(START), tx.init(jnp.array(START)), []
    one = jax.jit(step)
    for t, g in enumerate(noise(17), start=1):
        p, state = one(tx, p, state, g)
        if t >= start and (t - start) % every == 0:
            seen.append(np.asarray(p, np.float64))
        n = len(seen)
        wanted = np.asarray(p, np.float64)
        if n:
            weights = np.full(n, 1 / n) if mode == "swa" else ema_weights(n, 0.7, mode)
            wanted = weights @ np.stack(seen)
        np.testing.assert_allclose(eval_params(state, p), wanted, 2e-6, 2e-6)
        assert (int(state.count), int(state.n_averaged)) == (t, n)


def test_a_decay_near_one_keeps_its_digits():
    decay, steps = 0.9999, 3000
    tx = ema_params(adaptax.identity(), decay)
    gradients = 1e-3 * noise(steps, seed=1)
    p = jnp.array(START)

    def body(carry, g):
        p, state = step(tx, carry[0], carry[1], g)
        return (p, state), (p, eval_params(state, p))

    _, (path, means) = jax.jit(lambda: jax.lax.scan(body, (p, tx.init(p)), gradients))()
    exact = np.cumsum(decay ** -np.arange(steps)[:, None] * np.asarray(path, np.float64), axis=0)
    exact /= np.cumsum(decay ** -np.arange(steps))[:, None]
    # A float32 division by 1 - decayᵗ is off by 1e-4 here.
    np.testing.assert_allclose(means, exact, 1e-6, 1e-6)


def torch_average(path: list[Any], kind: str) -> list[np.ndarray]:
    torch: Any = pytest.importorskip("torch")
    swa_utils = torch.optim.swa_utils
    how = {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)} if kind == "ema" else {}
    model = torch.nn.Linear(3, 1, bias=False)
    averaged = swa_utils.AveragedModel(model, **how)
    out = []
    for p in path:
        model.weight.data = torch.tensor(np.array(p)[None])
        averaged.update_parameters(model)
        out.append(averaged.module.state_dict()["weight"].numpy()[0].copy())
    return out


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_are_those_of_torch(kind):
    wrap = partial(ema_params, decay=0.9, debias=False) if kind == "ema" else swa
    tx = wrap(adaptax.adam(0.05))
    p = jnp.array(START)
    state, path, means = tx.init(p), [], []
    one = jax.jit(step)
    for g in noise(25, seed=2):
        p, state = one(tx, p, state, g)
        path.append(p)
        means.append(eval_params(state, p))
    for mine, theirs in zip(means, torch_average(path, kind), strict=True):
        np.testing.assert_allclose(mine, theirs, 1e-6, 1e-6)


def test_a_schedule_of_decays():
    decays = lambda count: 1.0 - 0.5 / (1.0 + jnp.float32(count))  # noqa: E731
    tx = ema_params(adaptax.sgd(0.1), decays, debias=False)
    path, state = train(tx, jnp.array(START), noise(8))
    mean = np.asarray(path[0], np.float64)
    for t, p in enumerate(path[1:], start=1):
        mean = decays(t) * mean + (1 - decays(t)) * np.asarray(p, np.float64)
    np.testing.assert_allclose(eval_params(state, path[-1]), mean, 1e-6)
    with pytest.raises(TypeError, match=r"^ema_params: decay must be a number where it is debias"):
        ema_params(adaptax.sgd(0.1), decays)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_parameters_are_averaged_as_rounded_in_float32(dtype):
    p = jnp.full(64, 1.0, dtype)
    path, state = train(ema_params(adaptax.sgd(1.0), 0.99), p, 0.03 * noise(60, 64, dtype=dtype))
    every = np.stack([np.asarray(q, np.float64) for q in path])
    wanted = ema_weights(60, 0.99, "debias") @ every
    assert state.average.dtype == jnp.float32
    np.testing.assert_allclose(state.average, wanted, 1e-6)
    got = eval_params(state, path[-1])
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.asarray(state.average).astype(dtype))


def test_the_first_average_forgets_what_is_not_finite():
    tx = swa(adaptax.sgd(1.0), start=2)
    p = jnp.array(1.0)
    state = tx.init(jnp.array(jnp.nan))
    for _ in range(3):
        p, state = step(tx, p, state, jnp.array(0.5))
    assert float(eval_params(state, p)) == -0.25
    one = ema_params(adaptax.sgd(1.0), 0.0)
    state = one.init(p)._replace(average=jnp.array(jnp.inf), n_averaged=jnp.array(3))
    p, state = step(one, p, state, jnp.array(0.5))
    assert float(eval_params(state, p)) == float(p)


def test_an_average_of_a_noisy_path_is_nearer_than_its_end():
    scale = jnp.array([1.0, 0.3, 0.1])
    txs = {
        "ema": ema_params(adaptax.sgd(0.3), 0.99),
        "swa": swa(adaptax.sgd(0.3), start=100),
        "lookahead": lookahead(adaptax.sgd(0.3), 10, 0.1, slow_in_state=True),
        "schedule-free": schedule_free_sgd(0.3),
    }

    def distance(tx, key):
        def body(carry, key):
            p, state = carry
            g = scale * p + jax.random.normal(key, p.shape)
            return step(tx, p, state, g), None

        p = jnp.full(3, 5.0)
        (p, state), _ = jax.lax.scan(body, (p, tx.init(p)), jax.random.split(key, 605))
        return jnp.sum(scale * p**2), jnp.sum(scale * eval_params(state, p) ** 2)

    keys = jax.random.split(jax.random.key(3), 32)
    last = None
    for name, tx in txs.items():
        ends, means = jax.jit(jax.vmap(partial(distance, tx)))(keys)
        last = float(ends.mean()) if last is None else last  # of plain descent: around no more
        assert float(means.mean()) < 0.35 * last, name


# Lookahead


@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_lookahead_is_that_of_optax(base, reset_state):
    def path(lib, wrap, both):
        tx = wrap(getattr(lib, base)(0.1), 3, 0.6, reset_state)
        p = both.init_synced(params())
        state, out = tx.init(p), []
        for i in range(8):
            u, state = tx.update(jax.tree.map(lambda g, i=i: g / (i + 1), grads()), state, p)
            p = lib.apply_updates(p, u)
            out.append(p)
        return out, state

    got, state = path(adaptax, lookahead, LookaheadParams)
    with optax_rules():
        wanted, other = path(optax, optax.lookahead, optax.LookaheadParams)
    assert_close(got, wanted, 1e-5, 5e-6)  # optax's bias correction in float32
    assert skeleton(state) == skeleton(other)
    assert_close(got[2].fast, got[2].slow, 1e-6, 1e-7)  # synchronized
    for mine, theirs in zip(got, wanted, strict=True):
        assert_same_bits(eval_params(state, mine), mine.slow)
        assert_same_bits(eval_params(other, theirs), theirs.slow)


def test_slow_weights_in_the_state_are_the_same():
    gradients = [jax.tree.map(lambda g, i=i: g / (i + 1), grads()) for i in range(7)]
    two = lookahead(adaptax.adam(0.1), 3, 0.6, True)
    one = lookahead(adaptax.adam(0.1), 3, 0.6, True, slow_in_state=True)
    pairs, pair_state = train(two, LookaheadParams.init_synced(params()), gradients)
    plain, plain_state = train(one, params(), gradients)
    assert_close([p.fast for p in pairs], plain, 1e-6, 1e-7)
    assert_close(eval_params(plain_state, plain[-1]), pairs[-1].slow, 1e-6, 1e-7)
    assert_close(plain_state.fast_state, pair_state.fast_state, 1e-6, 1e-7)


def test_lookahead_begins_anew_where_it_synchronized():
    tx = lookahead(schedule_free_sgd(0.1), 2, 0.5, True, slow_in_state=True)
    path, state = train(tx, params(), [grads()] * 4)
    assert_close(state.fast_state.z, path[-1], 1e-6, 1e-7)
    assert int(state.fast_state.step_count) == 1


def test_what_is_not_finite_stays_out_of_the_slow_weights_until_they_meet():
    tx = lookahead(adaptax.sgd(1.0), 3, 0.5)
    p = LookaheadParams.init_synced(jnp.array([1.0, 2.0]))
    state = tx.init(p)
    u, state = tx.update(jnp.array([jnp.inf, jnp.nan]), state, p)
    assert_same_bits(u.slow, jnp.zeros(2))
    tx = lookahead(adaptax.adam(0.1), 2, 0.0, True, slow_in_state=True)
    path, state = train(tx, jnp.ones(2), [jnp.array([jnp.inf, 1.0])] * 2)
    assert_same_bits(eval_params(state, path[-1]), jnp.ones(2))
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state)])).all()


def test_lookahead_says_what_is_wrong():
    tx = lookahead(adaptax.sgd(0.1), 2, 0.5)
    state = tx.init(params())
    assert isinstance(state, LookaheadState)
    with pytest.raises(TypeError, match=r"^lookahead: params must be a LookaheadParams, got dict"):
        tx.update(grads(), state, params())
    with pytest.raises(ValueError, match=r"^lookahead needs params"):
        tx.update(grads(), state)
    with pytest.raises(TypeError, match=r"^lookahead: the second argument .* LookaheadState, got"):
        tx.update(grads(), (), params())
    with pytest.raises(ValueError, match=r"^lookahead: sync_period must lie in \[1, inf\), got 0"):
        lookahead(adaptax.sgd(0.1), 0, 0.5)
    with pytest.raises(ValueError, match=r"^lookahead: slow_step_size must lie in \[0, inf\), got"):
        lookahead(adaptax.sgd(0.1), 1, -0.5)
    with pytest.raises(TypeError, match=r"^lookahead: slow_step_size must be a number, got"):
        lookahead(adaptax.sgd(0.1), 1, adaptax.constant_schedule(0.5))
    both = LookaheadParams({"w": params()["w"]}, {"w": params()["b"]})
    with pytest.raises(TreeMismatchError, match=r"^lookahead: updates do not match slow at 1 of"):
        tx.update({"w": grads()["w"]}, state, both)


# Schedule-free


def paper(
    gradient: Callable[[np.ndarray], np.ndarray],
    rates: list[float],
    b1: float,
    power: float,
    b2: float | None,
    eps: float = 1e-8,
    decay: float = 0.0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(y, x) after each step in float64: equations 2 to 4, with Adam's divisor if there is a b2."""
    x = z = y = START.astype(np.float64)
    v, total, largest, out = np.zeros(3), 0.0, 0.0, []
    for t, rate in enumerate(rates, start=1):
        g = gradient(y)
        if b2 is not None:
            v = b2 * v + (1 - b2) * g**2
            g = g / (np.sqrt(v / (1 - b2**t)) + eps)
        z = z - rate * (g + decay * y)
        largest = max(largest, rate)
        total += largest**power
        c = largest**power / total if total else 0.0
        x = (1 - c) * x + c * z
        y = (1 - b1) * z + b1 * x
        out.append((y, x))
    return out


A, B = np.array([1.0, 0.3, 2.0]), np.array([0.2, -0.4, 0.1])


def run_schedule_free(tx: Any, read: Any, steps: int, lib: Any = adaptax) -> list[tuple[Any, Any]]:
    y = jnp.array(START)
    state, out = tx.init(y), []

    @jax.jit
    def one(y, state):
        u, state = tx.update(jnp.asarray(A, y.dtype) * y - jnp.asarray(B, y.dtype), state, y)
        y = lib.apply_updates(y, u)
        return y, state, read(state, y)

    for _ in range(steps):
        y, state, x = one(y, state)
        out.append((y, x))
    return out


@pytest.mark.parametrize("b1", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_schedule_free_is_that_of_the_paper(method, b1):
    if method == "sgd":
        tx = schedule_free_sgd(0.05, 5, b1, 0.05, 1.5)
    else:
        tx = schedule_free_adamw(0.05, 5, b1, 0.95, 1e-6, 0.05, 1.5)
    rates = [0.05 * min(t / 5, 1.0) for t in range(40)]  # t steps done
    b2 = 0.95 if method == "adamw" else None
    wanted = paper(lambda y: A * y - B, rates, b1, 1.5, b2, 1e-6, 0.05)
    got = run_schedule_free(tx, eval_params, 40)
    for t, (mine, exact) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_allclose(mine[0], exact[0], 1e-5, 2e-6, err_msg=f"y, step {t + 1}")
        np.testing.assert_allclose(mine[1], exact[1], 1e-5, 2e-6, err_msg=f"x, step {t + 1}")


@pytest.mark.parametrize("method", ["sgd", "adamw", "a schedule"])
def test_schedule_free_is_that_of_optax(method):
    contrib = optax.contrib
    peaked = lambda count: 0.2 / (1.0 + jnp.float32(jnp.abs(count - 9)))  # noqa: E731
    # Optax gives the weights the rate of the next step, so it is handed the schedule one late.
    mine, theirs = {
        "sgd": (schedule_free_sgd(0.2, b1=0.8), contrib.schedule_free_sgd(0.2, b1=0.8)),
        "adamw": (
            schedule_free_adamw(0.1, b2=0.9, weight_decay=0.1),
            contrib.schedule_free_adamw(0.1, b2=0.9, weight_decay=0.1),
        ),
        "a schedule": (
            schedule_free(adaptax.rmsprop(peaked), peaked),
            contrib.schedule_free(optax.rmsprop(peaked), lambda count: peaked(count - 1)),
        ),
    }[method]
    got = run_schedule_free(mine, schedule_free_eval_params, 25)
    with optax_rules():
        wanted = run_schedule_free(theirs, contrib.schedule_free_eval_params, 25, optax)
        read = run_schedule_free(theirs, eval_params, 25, optax)  # ours, of optax's state
        assert skeleton(mine.init(params())) == skeleton(theirs.init(params()))
    assert_close(got, wanted, 2e-5, 2e-6)
    assert_close(read, wanted, 1e-6, 1e-6)


def test_schedule_free_with_b1_of_0_trains_as_the_base_and_averages_it():
    gradients = noise(12)
    base, _ = train(adaptax.adam(0.1), jnp.array(START), gradients)
    path, state = train(schedule_free(adaptax.adam(0.1), 0.1, 0.0), jnp.array(START), gradients)
    assert_close(path, base, 1e-6, 1e-6)
    mean = np.mean(np.stack(base), axis=0, dtype=np.float64)
    np.testing.assert_allclose(eval_params(state, path[-1]), mean, 1e-6, 1e-6)


def test_schedule_free_numbers_of_16_bit_parameters_are_float32():
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    tx = schedule_free_adamw(1e-4)
    state = tx.init(p)
    assert {x.dtype for x in (state.b1, state.weight_sum, state.max_lr)} == {jnp.dtype("float32")}
    assert float(state.b1) == np.float32(0.9)
    assert {x.dtype for x in jax.tree.leaves(state.z)} == {jnp.dtype("float32")}
    cast = schedule_free_adamw(1e-4, state_dtype=jnp.bfloat16).init(params())
    assert {x.dtype for x in jax.tree.leaves(cast.z)} == {jnp.dtype("bfloat16")}


def test_a_learning_rate_of_0_moves_nothing():
    path, state = train(schedule_free_sgd(0.0), jnp.array(START), noise(3))
    assert_same_bits(path[-1], jnp.array(START))
    assert_same_bits(eval_params(state, path[-1]), jnp.array(START))


def test_schedule_free_says_what_is_wrong():
    schedule = adaptax.linear_schedule(0.0, 1.0, 5)
    with pytest.raises(TypeError, match=r"^schedule_free_sgd: learning_rate must be a number wher"):
        schedule_free_sgd(schedule, warmup_steps=3)
    with pytest.raises(TypeError, match=r"^schedule_free: b1 must be a number, got"):
        schedule_free(adaptax.sgd(0.1), 0.1, schedule)
    with pytest.raises(ValueError, match=r"^schedule_free: b1 must lie in \[0, 1\], got 1.5"):
        schedule_free(adaptax.sgd(0.1), 0.1, 1.5)
    tx = schedule_free_sgd(0.1)
    state = tx.init(params())
    with pytest.raises(ValueError, match=r"^schedule_free needs params"):
        tx.update(grads(), state)
    with pytest.raises(TypeError, match=r"must be its state, ScheduleFreeState, got"):
        tx.update(grads(), (), params())
    with pytest.raises(TypeError, match=r"^schedule_free_eval_params: state must be or hold a Sch"):
        schedule_free_eval_params(adaptax.adam(0.1).init(params()), params())
    assert schedule_free_sgd(0.1, warmup_steps=0).init(params()).z.keys() == params().keys()


# What all of them are


@wrappers
def test_a_wrapper_is_a_value(make):
    tx = make()
    assert tx == make()
    assert hash(tx) == hash(make())
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert copy.deepcopy(tx) == tx
    assert all(isinstance(x, float) for x in jax.tree.leaves(tx))
    assert jax.tree.unflatten(jax.tree.structure(tx), jax.tree.leaves(tx)) == tx
    inner = "base_optimizer" if "schedule" in repr(tx) else "optimizer"
    assert "adam" in repr(tx) or "sgd" in repr(tx) or inner in repr(tx)


@wrappers
def test_jit_scan_and_resuming_are_the_loop(make):
    tx, gradients = make(), noise(5, seed=4)
    p = jnp.array(START)
    path, state = train(tx, p, gradients)
    eager, eager_state = p, tx.init(p)
    for g in gradients:
        eager, eager_state = step(tx, eager, eager_state, jnp.array(g))
        leaves, structure = jax.tree.flatten(eager_state)  # as a checkpoint does
        eager_state = structure.unflatten([jnp.array(np.asarray(x)) for x in leaves])
    assert_close((eager, eager_state), (path[-1], state), 1e-6, 1e-6)

    def body(carry, g):
        return step(tx, carry[0], carry[1], g), None

    scanned, _ = jax.lax.scan(body, (p, tx.init(p)), gradients)
    assert_close(scanned, (path[-1], state), 1e-6, 1e-6)
    mean = eval_params(state, path[-1])
    assert_close(jax.jit(eval_params)(state, path[-1]), mean, 1e-6)
    assert not np.allclose(mean, path[-1])


@wrappers
def test_new_numbers_do_not_retrace_and_map(make):
    traced = Traced(lambda tx, g: run(tx, g))

    def run(tx: Any, g: Any) -> Any:
        p, state = jnp.array(START), tx.init(jnp.array(START))
        for _ in range(4):
            p, state = step(tx, p, state, g)
        return p, eval_params(state, p)

    one = make()
    other = jax.tree.map(lambda x: 0.5 * x, one)
    g, jitted = jnp.array(noise(1)[0]), jax.jit(traced)
    alone = [jitted(one, g), jitted(other, g)]
    assert traced.times == 1
    stacked = jax.tree.map(lambda *x: jnp.stack(x), one, other)
    mapped = jax.jit(jax.vmap(run, in_axes=(0, None)))(stacked, g)
    assert_close(mapped, jax.tree.map(lambda *x: jnp.stack(x), *alone), 1e-6, 1e-6)
    with pytest.raises(ValueError, match="is for jax"):
        run(stacked, g)


@wrappers
@pytest.mark.parametrize("name", ["none_leaf", "empty", "zero_size", "mixed_dtypes"])
def test_trees_of_every_kind(make, name):
    tree = ZOO[name]()
    p, g, tx = as_jax(tree), as_jax(gradients_like(tree)), make()
    state = tx.init(p)
    for _ in range(2):
        u, new = tx.update(g, state, p)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
            assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type)
        assert [x.dtype for x in jax.tree.leaves(u)] == [x.dtype for x in jax.tree.leaves(g)]
        p, state = adaptax.apply_updates(p, u), new
    mean = eval_params(state, p)
    assert jax.tree.map(lambda x: x.dtype, mean) == jax.tree.map(lambda x: x.dtype, p)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(mean))


@wrappers
def test_integers_keys_and_complex_parameters(make):
    p = {"i": jnp.arange(3), "key": jax.random.key(1), "w": jnp.zeros(2, jnp.complex64)}
    p["frozen"] = jnp.ones(2)
    g = {"i": np.zeros(3, jax.dtypes.float0), "key": None, "w": jnp.array([1j, 1.0], jnp.complex64)}
    g["frozen"] = None
    path, state = [p], make().init(p)
    for _ in range(4):
        u, state = make().update(g, state, path[-1])
        path.append(adaptax.apply_updates(path[-1], u))
    mean = eval_params(state, path[-1])
    for name in ("i", "frozen"):
        assert_same_bits(mean[name], p[name])
    assert mean["key"] == p["key"]
    assert mean["w"].dtype == jnp.complex64
    # Along 1j and along 1 the same way, as for two real parameters.
    moved = np.asarray(mean["w"])
    np.testing.assert_allclose(moved[0].imag, moved[1].real, 1e-5)
    np.testing.assert_allclose(moved[0].real, 0, atol=1e-6)
    assert moved[1].real < -0.01


@wrappers
def test_state_and_parameters_can_be_donated(make):
    tx = make()
    p = {**params(), "i": jnp.arange(3)}
    g = {**grads(), "i": None}
    state = tx.init(p)
    p, state = step(tx, p, state, g)  # not jitted: nothing may be shared
    jitted = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))
    for _ in range(2):
        p, state = jitted(tx, p, state, g)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(eval_params(state, p)))


@pytest.mark.parametrize("wrap", ["ema", "swa", "lookahead", "schedule-free"])
def test_extra_arguments_reach_a_foreign_optimizer(wrap):
    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return jax.tree.map(lambda g: value * g, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = {
        "ema": lambda: ema_params(inner, 0.5),
        "swa": lambda: swa(inner),
        "lookahead": lambda: lookahead(inner, 5, 0.5, slow_in_state=True),
        "schedule-free": lambda: schedule_free(inner, 1.0),
    }[wrap]()
    u, state = tx.update(jnp.ones(3), tx.init(jnp.zeros(3)), jnp.zeros(3), value=-2.0)
    assert_same_bits(u, jnp.full(3, -2.0))
    node = tx.init.call.built  # type: ignore[attr-defined]
    part, inside = node.parts(state)[""]
    assert part.update is update
    assert inside == optax.EmptyState()
    assert node.parts(None)[""][1] is None


def test_averages_say_what_is_wrong():
    tx = ema_params(adaptax.sgd(0.1), 0.9)
    state = tx.init(params())
    with pytest.raises(ValueError, match=r"^ema_params needs params"):
        tx.update(grads(), state)
    with pytest.raises(TypeError, match=r"^swa: .* must be its state, AverageState, got"):
        swa(adaptax.sgd(0.1)).update(grads(), (), params())
    for wrong, match in [
        (lambda: ema_params(adaptax.sgd(0.1), 1.0), r"decay must lie in \[0, 1\), got 1.0"),
        (lambda: swa(adaptax.sgd(0.1), start=-1), r"start must lie in \[0, inf\), got -1"),
        (lambda: swa(adaptax.sgd(0.1), every=0), r"every must lie in \[1, inf\), got 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            wrong()
    with pytest.raises(TypeError, match=r"^swa: inner is the function sgd itself; call it"):
        swa(adaptax.sgd)
    other = state._replace(average={"w": params()["w"], "b": jnp.zeros(2)})
    with pytest.raises(TreeMismatchError, match=r"^ema_params: params do not match state.average"):
        tx.update(grads(), other, params())


# eval_params


def test_an_average_is_found_wherever_it_is():
    ema = ema_params(adaptax.sgd(0.1), 0.9)
    hyper = optax.inject_hyperparams(lambda r: ema_params(adaptax.sgd(0.1), r))(r=0.9)
    alone, state = train(ema, params(), [grads()] * 3)
    wanted = eval_params(state, alone[-1])
    for tx in [
        adaptax.chain(adaptax.clip(10.0), ema),
        adaptax.named_chain(("clip", adaptax.clip(10.0)), ("ema", ema)),
        optax.chain(optax.clip(10.0), ema),
        optax.MultiSteps(ema, 1),
        optax.apply_if_finite(ema, 3),
        adaptax.masked(ema, True),
        hyper,
    ]:
        with optax_rules():
            state, p = tx.init(params()), params()
            for _ in range(3):
                u, state = tx.update(grads(), state, p)
                p = adaptax.apply_updates(p, u)
        assert_close(eval_params(state, p), wanted, 1e-6)


@pytest.mark.parametrize("lib", [adaptax, optax], ids=["adaptax", "optax"])
def test_averages_of_parts_are_laid_over_the_others(lib):
    labels = {"b": "sf", "w": "ema", "frozen": "plain", "none": "plain"}
    p = {**params(), "frozen": jnp.ones(2), "none": None}
    g = {**grads(), "frozen": jnp.ones(2), "none": None}
    if lib is optax:
        labels, p, g = ({k: v for k, v in t.items() if k != "none"} for t in (labels, p, g))
    parts = {
        "ema": ema_params(adaptax.adam(0.1), 0.9),
        "sf": schedule_free_adamw(0.1),
        "plain": adaptax.adam(0.1),
    }
    tx = lib.partition(parts, labels)
    state, q = tx.init(p), p
    for _ in range(3):
        u, state = tx.update(g, state, q)
        q = adaptax.apply_updates(q, u)
    mean = eval_params(state, q)
    for label, name in [("ema", "w"), ("sf", "b")]:
        alone, own = train(parts[label], {name: p[name]}, [{name: g[name]}] * 3)
        assert_close(mean[name], eval_params(own, alone[-1])[name], 1e-6)
        assert not np.allclose(mean[name], q[name])
    assert_same_bits(mean["frozen"], q["frozen"])
    assert_close(schedule_free_eval_params(state, q), mean, 1e-7)


def test_where_nothing_averages_the_parameters_are_returned():
    state = adaptax.adam(0.1).init(params())
    assert_same_bits(eval_params(state, params()), params())
    before = ema_params(adaptax.sgd(0.1), 0.9)
    assert_same_bits(eval_params(before.init(params()), grads()), grads())


def test_the_average_of_lookahead_is_that_of_its_slow_weights():
    tx = swa(lookahead(adaptax.sgd(0.1), 2, 0.5))
    p = LookaheadParams.init_synced(params())
    state, slow = tx.init(p), []
    for _ in range(4):
        p, state = step(tx, p, state, grads())
        slow.append(p.slow)
    mean = jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *slow)
    assert_close(eval_params(state, p), mean, 1e-6, 1e-7)


def test_eval_params_says_what_is_wrong():
    one = ema_params(adaptax.sgd(0.1), 0.9)
    for tx in [
        adaptax.chain(one, swa(adaptax.identity())),
        swa(one),
        ema_params(schedule_free_sgd(0.1), 0.9),
        lookahead(one, 2, 0.5, slow_in_state=True),
    ]:
        with pytest.raises(ValueError, match=r"^eval_params: two averages cover \['b'\]: \w+ and "):
            eval_params(tx.init(params()), params())
    tx = lookahead(one, 2, 0.5)
    both = LookaheadParams.init_synced(params())
    with pytest.raises(ValueError, match="cover the fast weights: LookaheadParams and AverageSta"):
        eval_params(tx.init(both), both)
    state = one.init(params())
    with pytest.raises(ValueError, match="got them swapped"):
        eval_params(params(), state)
    with pytest.raises(TreeMismatchError, match=r"the average at 1 of 2 leaves: \['w'\] is not in"):
        eval_params(state, {"b": params()["b"]})
    wrong = {"b": params()["b"], "w": jnp.zeros((2, 2))}
    with pytest.raises(TreeMismatchError, match=r"\['w'\] has shape \(2, 2\) against \(4, 3\)"):
        eval_params(state, wrong)


# By hand


def test_incremental_update_is_that_of_optax():
    new, old = params(), grads()
    assert_close(
        incremental_update(new, old, 0.3), optax.incremental_update(new, old, 0.3), 1e-6, 1e-7
    )
    assert_close(
        jax.jit(incremental_update)(new, old, 0.3), incremental_update(new, old, 0.3), 1e-6
    )
    tree = {"h": jnp.full(3, 300.0, jnp.bfloat16), "i": jnp.arange(2), "n": None, "kept": None}
    slow = {"h": jnp.full(3, 1.0), "i": jnp.zeros(2, int), "n": None, "kept": jnp.ones(1)}
    got = incremental_update(tree, slow, 1e-4)
    np.testing.assert_allclose(got["h"], 1.0299, 1e-6)
    assert_same_bits((got["i"], got["n"], got["kept"]), (tree["i"], None, slow["kept"]))
    half = incremental_update(slow, tree, 0.5)["h"]
    assert half.dtype == jnp.bfloat16
    assert_same_bits(half, jnp.full(3, 150.5, jnp.bfloat16))
    nan, one = jnp.array(jnp.nan), jnp.array(1.0)
    assert float(incremental_update(one, nan, 1.0)) == float(incremental_update(nan, one, 0.0)) == 1
    with pytest.raises(TreeMismatchError, match=r"^incremental_update: new_tensors do not match"):
        incremental_update(params(), {"w": params()["w"]}, 0.5)


def test_periodic_update_is_that_of_optax():
    for steps in range(5):
        got = periodic_update(params(), grads(), steps, 2)
        assert_same_bits(got, optax.periodic_update(params(), grads(), steps, 2))
        traced = jax.jit(periodic_update)(params(), grads(), steps, 2)
        assert_same_bits(traced, got)
    new = {"h": jnp.full(2, 1.5), "n": None, "kept": None}
    old = {"h": jnp.zeros(2, jnp.bfloat16), "n": None, "kept": jnp.ones(1)}
    got = periodic_update(new, old, jnp.array(4), 4)
    assert_same_bits(got, {**old, "h": jnp.full(2, 1.5, jnp.bfloat16)})
    assert periodic_update({}, {}, 0, 1) == {}
    with pytest.raises(ValueError, match=r"^periodic_update: update_period must lie in \[1, inf\)"):
        periodic_update(params(), grads(), 0, 0)


def test_the_classes_have_optaxs_fields():
    assert LookaheadState._fields == optax.LookaheadState._fields
    assert LookaheadParams._fields == optax.LookaheadParams._fields
    assert ScheduleFreeState._fields == optax.contrib.ScheduleFreeState._fields
    assert AverageState._fields == ("count", "n_averaged", "average", "inner_state")
