"""Sweeps: what runs at once is what runs alone, stops early, survives a kill, and is told apart."""

import dataclasses
import inspect
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Traced, assert_close, assert_same_bits, compilations

import adaptax
from adaptax import sweep
from adaptax.sweep import _program, _progress, _store, _train
from adaptax.sweep._store import Store, claimed, digest
from adaptax.sweep._train import Trainer

ONE = jax.devices()[:1]
RATES = {"learning_rate": [0.01, 0.03, 0.1, 0.3, 1.0]}
X = np.random.default_rng(0).standard_normal((4, 16, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32) + np.float32(0.3)
PARAMS = {"b": np.zeros((), np.float32), "w": np.zeros(3, np.float32)}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def starting(key):
    return {"b": jnp.zeros(()), "w": jax.random.normal(key, (3,))}


def unchecked(function):
    """A function without the checks of annotations that the tests put around it."""
    return inspect.unwrap(function)


def run(tx=None, settings=None, loss=loss_fn, params=PARAMS, batches=(X, Y), **rest):
    tx = adaptax.adam(0.1) if tx is None else tx
    settings = RATES if settings is None else settings
    rest = {"steps": 12, "devices": ONE, "progress": False} | rest
    return unchecked(sweep.run)(tx, settings, loss, params, batches, **rest)


@partial(jax.jit, static_argnums=0)
def step(tx, params, state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params)
    return adaptax.apply_updates(params, updates), state, loss


def alone(tx, params, steps):
    """One setting, trained in a loop of its own."""
    params = jax.tree.map(jnp.asarray, params)
    state, losses = tx.init(params), []
    for i in range(steps):
        params, state, loss = step(tx, params, state, (X[i % 4], Y[i % 4]))
        losses.append(loss)
    return params, np.array(losses)


def assert_same(one, other, rtol=1e-6):
    assert one.status.tolist() == other.status.tolist()
    assert one.steps.tolist() == other.steps.tolist()
    np.testing.assert_allclose(one.losses, other.losses, rtol)
    np.testing.assert_allclose(one.scores, other.scores, rtol)
    assert_close(one.best.params, other.best.params, rtol, 1e-6)


class Call(NamedTuple):
    """A call of a compiled program."""

    width: int
    first: int
    count: int
    result: Any


@pytest.fixture
def calls(monkeypatch):
    """A list to which each call of a compiled program adds itself."""
    found: list[Call] = []
    program = Trainer.program

    def recording(trainer, width):
        compiled = program(trainer, width)

        def call(numbers, lanes, batches, first, count):
            result = compiled(numbers, lanes, batches, first, count)
            found.append(Call(width, int(first), int(count), result))
            return result

        call.memory_analysis = compiled.memory_analysis  # pyright: ignore[reportFunctionMemberAccess]
        return call

    monkeypatch.setattr(Trainer, "program", recording)
    return found


# Settings


def test_grid_is_every_combination():
    found = sweep.grid({"a": [1, 2], "b": np.array([3.0, 4.0, 5.0])})
    assert list(zip(*found.values(), strict=True)) == [
        (a, b) for a in (1.0, 2.0) for b in (3.0, 4.0, 5.0)
    ]
    assert all(column.dtype == np.float64 for column in found.values())
    np.testing.assert_allclose(np.diff(np.log10(sweep.log_range(1e-4, 10.0, 6))), 1.0)


def test_draws():
    spaces = {
        "learning_rate": sweep.log_uniform(1e-5, 1e-1),
        "b1": sweep.uniform(0.5, 0.9),
        "eps": sweep.choices([1e-8, 1e-4, 1e-2]),
    }
    found = sweep.draw(spaces, 4000, key=3)
    rates, b1, eps = found.values()
    assert 1e-5 <= rates.min() < 1.1e-5 and 0.9e-1 < rates.max() < 1e-1
    quarters = np.histogram(np.log10(rates), bins=4, range=(-5, -1))[0]
    assert np.all(abs(quarters - 1000) < 120)
    assert b1.min() >= 0.5 and b1.max() < 0.9 and abs(b1.mean() - 0.7) < 0.01
    assert set(eps) == {1e-8, 1e-4, 1e-2}
    assert abs(np.corrcoef(np.log(rates), b1)[0, 1]) < 0.05
    for again in (
        sweep.draw(spaces, 4000, key=np.int64(3)),
        sweep.draw({"learning_rate": spaces["learning_rate"]}, 4000, 3),
    ):
        np.testing.assert_array_equal(again["learning_rate"], rates)
    keyed = [
        sweep.draw(spaces, 5, key)["b1"].tolist() for key in jax.random.split(jax.random.key(3))
    ]
    assert keyed[0] != keyed[1] != found["b1"][:5].tolist()
    assert keyed[0] == sweep.draw(spaces, 5, jax.random.split(jax.random.key(3))[0])["b1"].tolist()


# Running


def test_all_at_once_is_each_alone():
    schedule = adaptax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 20)
    groups = {
        "slow": adaptax.sgd(0.1, momentum=0.9),
        "fast": adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adamw(schedule)),
    }
    tx = adaptax.partition(groups, {"b": "slow", "w": "fast"})
    settings = {
        "peak_value": [0.01, 0.1, 0.5],
        "slow/learning_rate": [0.1, 0.01, 0.2],
        "fast/1/b2": [0.9, 0.9999, 0.99],
        "max_norm": [0.1, 1.0, 10.0],
        "*/momentum": [0.0, 0.9, 0.5],
    }
    found = run(tx, settings, steps=30)
    assert found.status.tolist() == ["finished"] * 3 and found.steps.tolist() == [30] * 3
    for i in range(3):
        params, losses = alone(found.transformation(i), PARAMS, 30)
        np.testing.assert_allclose(found.losses[i], losses, 1e-5)
        np.testing.assert_allclose(found.score[i], losses[-3:].mean(), 1e-5)
        if i == found.best.index:
            assert_close(found.best.params, params)
    slow, fast = groups["slow"], groups["fast"]
    best = found.best
    assert best.setting == found.setting(best.index)
    assert repr(best.tx) == repr(found.transformation(best.index))
    assert all(type(leaf) is float for leaf in jax.tree.leaves(best.tx))
    assert best.index == found.score.argmin() and best.score == found.score.min()
    assert (slow, fast) == (groups["slow"], groups["fast"])


def test_a_decay_keeps_the_digits_of_its_double():
    found = run(adaptax.rmsprop(1e-3), {"decay": [0.9999, 0.99999]}, steps=40)
    for i in range(2):
        decay = found.settings["decay"][i]
        params, losses = alone(adaptax.rmsprop(1e-3, decay), PARAMS, 40)
        np.testing.assert_allclose(found.losses[i], losses, 1e-5)
        if i == found.best.index:
            assert_close(found.best.params, params)


def test_doubles(x64):
    params = jax.tree.map(lambda x: x.astype(np.float64), PARAMS)
    batches = X.astype(np.float64), Y.astype(np.float64)
    found = run(params=params, batches=batches, batch_size=2, halving=sweep.halving([5], 0.9))
    assert found.losses.dtype == np.float64
    w, losses = params, []
    tx = found.best.tx
    state = tx.init(w)
    for i in range(12):
        loss, grads = jax.value_and_grad(loss_fn)(w, (batches[0][i % 4], batches[1][i % 4]))
        updates, state = tx.update(grads, state, w)
        w = adaptax.apply_updates(w, updates)
        losses.append(float(loss))
    np.testing.assert_allclose(found.losses[found.best.index], losses, 1e-12)
    assert_close(found.best.params, w, 1e-12)


def test_what_stops_it_stops_the_threads(calls):
    def interrupted(*args):
        raise KeyboardInterrupt

    before = threading.active_count()
    long = {"steps": 10**6, "batch_size": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_finished", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(**long)
    assert threading.active_count() == before
    assert sum(call.count for call in calls) < 10**6


def test_pieces_devices_and_memory_change_nothing():
    loss = Traced(loss_fn)
    whole = run(loss=loss, steps=12)
    assert loss.times == 2  # its shapes, and one program
    with compilations() as compiled:
        run(loss=loss, settings={"learning_rate": [0.2, 0.3, 0.1, 0.5, 0.6]}, steps=12)
    assert not compiled
    traced = loss.times
    pieces = run(loss=loss, batch_size=2)  # three pieces of one program, the last one padded
    assert loss.times - traced == 1
    assert_same(whole, pieces)
    assert_same(whole, run(devices=jax.devices()[:8]))
    assert_same(whole, run(devices=jax.devices()[:2], batch_size=3))


def test_a_piece_fits_into_memory(calls):
    wide = {"learning_rate": np.geomspace(0.01, 1, 24)}
    workers = _train.cores()
    whole = run(settings=wide)
    assert {call.width for call in calls} == {math.ceil(24 / min(workers, 24))}
    calls.clear()
    batches = sum(x.nbytes for x in (X, Y))
    one_lane = 4 * _program.CAPACITY  # most of a small lane is its losses
    tight = run(settings=wide, max_bytes=workers * (batches + 5 * one_lane))
    (width,) = {call.width for call in calls}
    assert 2 <= width <= 5 and sum(call.first == 0 for call in calls) == math.ceil(24 / width)
    assert_same(whole, tight)
    with pytest.raises(ValueError, match=r"sweep.run: max_bytes must be at least \d+, .*got 100"):
        run(max_bytes=100)


def test_batches_may_be_a_function():
    xs, ys = jnp.asarray(X), jnp.asarray(Y)
    assert_same(run(), run(batches=lambda step: (xs[step % 4], ys[step % 4])))


def test_seeds():
    rates = {"learning_rate": [0.03, 0.1]}
    arguments = {"settings": rates, "evaluate": lambda p: loss_fn(p, (X[0], Y[0]))}
    found = run(params=starting, seeds=3, **arguments)
    assert found.scores.shape == (2, 3) and found.losses.shape == (2, 12)
    ended = {}
    for i, rate in enumerate(rates["learning_rate"]):
        losses = []
        for seed in range(3):
            start = starting(jax.random.key(seed))
            ended[i, seed], curve = alone(adaptax.adam(rate), start, 12)
            losses.append(curve)
            score = loss_fn(ended[i, seed], (X[0], Y[0]))
            np.testing.assert_allclose(found.scores[i, seed], score, 1e-5)
        np.testing.assert_allclose(found.losses[i], np.mean(losses, 0), 1e-5)
    np.testing.assert_allclose(found.score, found.scores.mean(1))
    best = found.best
    assert_close(best.params, ended[best.index, int(found.scores[best.index].argmin())])
    only = run(params=starting, seeds=[2], **arguments)
    np.testing.assert_allclose(only.scores[:, 0], found.scores[:, 2], 1e-6)


def test_other_leaves():
    """16 bits, integers, None, complex, nothing, and keys in a state."""
    params = {
        "bf16": jnp.ones(3, jnp.bfloat16),
        "int": jnp.arange(3),
        "none": None,
        "complex": jnp.ones(2, jnp.complex64),
        "empty": jnp.zeros((0, 4)),
    }

    def loss(p, batch):
        square = jnp.sum(jnp.abs(p["complex"]) ** 2) + jnp.sum(p["empty"])
        return jnp.sum(p["bf16"] * p["bf16"]).astype(jnp.float32) + square + 0 * batch

    def init(params):
        return jax.random.key(0)

    def update(updates, state, params=None):
        return updates, jax.random.split(state)[0]

    tx = adaptax.chain((init, update), adaptax.adam(0.1))
    plain = run(tx, RATES, loss, params, jnp.zeros(1), steps=8)
    halved = sweep.halving([4], keep=0.5)
    cut = run(tx, RATES, loss, params, jnp.zeros(1), steps=8, halving=halved, batch_size=2)
    best = cut.best.params
    assert_same_bits(best, plain.best.params)
    assert (best["bf16"].dtype, best["none"], best["empty"].shape) == (jnp.bfloat16, None, (0, 4))
    np.testing.assert_array_equal(best["int"], np.arange(3))
    assert abs(complex(best["complex"][0])) < 1


# Stopping


def test_what_diverges_is_frozen():
    rates = {"learning_rate": [0.1, 50.0, 3.0]}
    found = run(adaptax.sgd(0.1), rates, steps=200)
    assert found.status.tolist() == ["finished", "diverged", "diverged"]
    assert found.score[0] < 0.1 and np.all(found.score[1:] == np.inf)
    assert 0 < found.steps[1] < found.steps[2] < 200 == found.steps[0]
    for i in (1, 2):
        last = found.steps[i]
        assert np.isfinite(found.losses[i, :last]).all()
        assert not np.isfinite(found.losses[i, last:]).any()
        assert np.isnan(found.losses[i, last + 1 :]).all()
    assert found.order.tolist() == [0, 2, 1] and found.best.index == 0

    bounded = run(adaptax.sgd(0.1), rates, steps=200, bound=100.0)
    stop = int(bounded.steps[1])
    assert stop < found.steps[1]
    assert bounded.losses[1, stop] > 100 >= bounded.losses[1, :stop].max()

    only = run(adaptax.sgd(0.1), {"learning_rate": [50.0]}, steps=2000)
    assert only.status.tolist() == ["diverged"] and "1 diverged" in str(only)
    with pytest.raises(ValueError, match=r"Results.best: .* got 1 that all diverged"):
        _ = only.best


def test_frozen_parameters_are_those_before(calls):
    rates = {"learning_rate": [50.0, 0.1]}
    found = run(adaptax.sgd(0.1), rates, bound=100.0, batch_size=2)
    last = int(found.steps[0])
    before, _ = alone(adaptax.sgd(50.0), PARAMS, last)
    ended, _ = calls[-1].result
    assert ended.steps.tolist() == [last, 12]
    assert_close(jax.tree.map(lambda x: x[0], ended.params), before)


def test_a_score_that_is_not_finite_has_diverged():
    found = run(evaluate=lambda p: jnp.where(p["b"] > 0.25, jnp.nan, loss_fn(p, (X[0], Y[0]))))
    assert set(found.status) == {"finished", "diverged"}
    assert np.all(np.isinf(found.score) == (found.status == "diverged"))


def test_one_diverged_seed_is_enough():
    def start(key):
        return {"b": jnp.where(jax.random.key_data(key)[1] == 1, jnp.nan, 0.0), "w": jnp.zeros(3)}

    found = run(params=start, seeds=2)
    assert set(found.status) == {"diverged"}
    assert np.isfinite(found.scores[:, 0]).all() and np.isinf(found.scores[:, 1]).all()


REAL = {
    "Python": (lambda x: 1.5, False),
    "Python, 64 bits": (lambda x: 1.5, True),
    "numpy": (lambda x: np.float64(1.5), False),
    "16 bits": (lambda x: (0 * x + 1.5).astype(jnp.bfloat16), True),
}


@pytest.mark.parametrize(("make", "wide"), REAL.values(), ids=REAL.keys())
def test_a_loss_or_a_score_may_be_any_real_number(make, wide):
    with jax.enable_x64(wide):
        found = run(loss=lambda p, batch: make(p["b"]), evaluate=lambda p: make(p["b"]), steps=2)
        assert found.losses.dtype == (np.float64 if wide else np.float32)
    assert np.all(found.losses == 1.5) and np.all(found.score == 1.5)


LAST = 5


def breaking(p, batch):
    """A loss whose gradient is infinite where w[0] is 0 at one step, and which is finite."""
    step, x, y = batch
    root = jnp.sqrt(jnp.where(step == LAST, p["w"][0], 1.0))
    return jnp.mean((x @ p["w"] - y) ** 2) + root


def numbered(step):
    return step, jnp.asarray(X)[step % 4], jnp.asarray(Y)[step % 4]


BROKEN = {
    "losses": {},
    "a score": {"evaluate": lambda p: jnp.sum(p["b"]) + 2.0},
    "pieces": {"batch_size": 2},
    "seeds": {"seeds": 2, "params": lambda key: PARAMS},
    "devices": {"devices": jax.devices()[:2]},
    "a rung": {"steps": LAST + 4, "halving": sweep.halving([LAST + 1], keep=0.9)},
}


@pytest.mark.parametrize("arguments", BROKEN.values(), ids=BROKEN.keys())
def test_parameters_that_the_last_step_broke_have_diverged(arguments):
    rates = {"learning_rate": [0.0, 0.01, 0.0, 0.02]}
    arguments = {"loss": breaking, "batches": numbered, "steps": LAST + 1, **arguments}
    found = run(adaptax.sgd(0.1), rates, **arguments)
    assert found.status.tolist() == ["diverged", "finished"] * 2
    assert found.steps.tolist() == [LAST, arguments["steps"]] * 2
    assert found.best.index in (1, 3) and set(found.order[:2]) == {1, 3}
    assert np.isfinite(found.best.params["w"]).all()


def test_the_best_may_have_diverged_in_its_last_step():
    rates = {"learning_rate": [0.0] * 4}
    lost = run(adaptax.sgd(0.1), rates, loss=breaking, batches=numbered, steps=LAST + 1)
    assert lost.status.tolist() == ["diverged"] * 4
    assert_same_bits(lost.best.params, jax.tree.map(jnp.asarray, PARAMS))  # before that step
    assert np.isfinite(lost.best.score) and np.isfinite(lost.losses[:, LAST]).all()


def test_parameters_that_were_broken_before_have_no_score():
    def loss(p, batch):
        return jnp.mean(p["w"] ** 2)  # b does not count, and overflows

    tx = adaptax.chain(adaptax.add_decayed_weights(-1e30), adaptax.sgd(1.0))
    params = {**PARAMS, "b": np.ones((), np.float32)}
    found = run(tx, {"learning_rate": [1.0, 0.0]}, loss=loss, params=params, steps=6)
    assert found.status.tolist() == ["diverged", "finished"]
    assert found.score[0] == np.inf and np.isfinite(found.losses).all()


def test_the_best_may_be_one_that_was_stopped():
    def loss(p, batch):
        step, x, y = batch
        return jnp.where(step == 8, jnp.inf, 1.0) * loss_fn(p, (x, y))

    rates = {"learning_rate": [0.01, 0.05, 0.02, 0.04, 0.03]}
    halving = sweep.halving([3, 6], keep=0.5)
    found = run(adaptax.sgd(0.1), rates, loss=loss, batches=numbered, steps=12, halving=halving)
    assert sorted(found.steps) == [3, 3, 6, 8, 8]
    assert (found.status == "diverged").sum() == 2
    best = found.best
    assert found.status[best.index] == "stopped" and found.steps[best.index] == 6
    assert_close(best.params, alone(best.tx, PARAMS, 6)[0])


def test_halving_saves_the_work(calls):
    rates = {"learning_rate": np.geomspace(1e-4, 1e4, 16)}
    whole = run(adaptax.sgd(0.1), rates, steps=40, batch_size=16)
    calls.clear()
    halving = sweep.halving([5, 10, 20, 90], keep=0.5)
    found = run(adaptax.sgd(0.1), rates, steps=40, halving=halving, batch_size=16)
    work = sum(call.width * call.count for call in calls)
    assert work == 16 * 5 + 8 * 5 + 4 * 10 + 2 * 20
    assert {call.width for call in calls} == {16, 8, 4, 2}
    stopped = found.steps[found.status == "stopped"]
    assert (stopped == 5).sum() + (found.status == "diverged").sum() >= 8
    assert set(found.steps[found.status == "finished"]) == {40}
    assert found.best.index == whole.best.index
    assert_close(found.best.params, whole.best.params)
    for i, steps in enumerate(found.steps):
        np.testing.assert_allclose(found.losses[i, :steps], whole.losses[i, :steps], 1e-6)
        if found.status[i] == "stopped":
            tail = whole.losses[i, steps - math.ceil(0.1 * steps) : steps]
            np.testing.assert_allclose(found.score[i], tail.mean(), 1e-6)
    # Whoever is left at a rung was no worse there than whoever was stopped.
    at_five = found.losses[:, 4]
    assert at_five[found.steps > 5].max() <= at_five[found.steps == 5].min()
    assert found.order[0] == found.best.index and found.steps[found.order[1]] == 40

    scored = run(
        *(adaptax.sgd(0.1), rates),
        **{"steps": 40, "halving": halving, "params": starting, "seeds": 2, "batch_size": 5},
        evaluate=lambda p: loss_fn(p, (X[0], Y[0])),
    )
    assert (scored.status == "finished").sum() == 2
    assert scored.best.score == scored.score[scored.status == "finished"].min()


def test_all_may_diverge_before_the_end():
    halving = sweep.halving([50, 60])
    found = run(adaptax.sgd(0.1), {"learning_rate": [90.0, 50.0]}, steps=99, halving=halving)
    assert found.status.tolist() == ["diverged"] * 2


# Saved and resumed


def test_what_is_done_is_not_done_again(tmp_path, calls):
    arguments = {
        "directory": tmp_path / "new" / "sweep",
        "halving": sweep.halving([4], keep=0.6),
        "batch_size": 2,
        "params": starting,
    }
    plain = run(**(arguments | {"directory": None}))
    first = run(**arguments)
    assert sorted(p.name for p in arguments["directory"].iterdir()) == [
        ".lock",
        *(f"rung0-{i}.npz" for i in range(3)),
        *(f"rung1-{i}.npz" for i in range(2)),
        "sweep.json",
    ]
    (arguments["directory"] / "rung1-1.npz").unlink()
    for expected in ({4}, set()):
        calls.clear()
        again = run(**(arguments | {"batch_size": 5}))  # the pieces stay as they were
        assert {min(call.first, 4) for call in calls} == expected
        for one in (plain, first):
            np.testing.assert_array_equal(one.losses, again.losses)
            np.testing.assert_array_equal(one.scores, again.scores)
            assert one.status.tolist() == again.status.tolist()
            assert_same_bits(one.best.params, again.best.params)


OTHER = {
    "steps": {"steps": 13},
    "seeds": {"seeds": [1], "params": starting},
    "halving": {"halving": sweep.halving([3])},
    "bound": {"bound": 9.0},
    "settings": {"settings": {"learning_rate": [0.01, 0.03, 0.1, 0.3, 1.1]}},
    "tx": {"tx": adaptax.adam(0.1, b1=0.8)},
    "params": {"params": {"b": np.ones((), np.float32), "w": np.zeros(3, np.float32)}},
    "batches": {"batches": (X, Y + 1)},
    "loss_fn": {"loss": lambda p, batch: 2 * loss_fn(p, batch)},
    "evaluate": {"evaluate": lambda p: loss_fn(p, (X[0], Y[0]))},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    run(directory=directory, loss=loss_fn)
    return directory


@pytest.mark.parametrize("part", OTHER)
def test_another_request_is_refused(part, kept):
    pieces = {path: path.read_bytes() for path in kept.iterdir()}
    message = rf"sweep.run: directory must be new or .* another .*{part}.*Give another directory"
    with pytest.raises(ValueError, match=message):
        run(directory=kept, **OTHER[part])
    assert pieces == {path: path.read_bytes() for path in kept.iterdir()}


def test_data_that_a_function_closes_over_is_part_of_the_request(tmp_path):
    def loss(target):
        inner = jax.jit(lambda p: jnp.mean((p["w"] - target) ** 2))
        return lambda p, batch: inner(p) + 0 * batch[1][0]

    run(directory=tmp_path, loss=loss(np.arange(3, dtype=np.float32)))
    run(directory=tmp_path, loss=loss(np.arange(3, dtype=np.float32)))
    with pytest.raises(ValueError, match="loss_fn"):
        run(directory=tmp_path, loss=loss(np.array([0, 1, 3], np.float32)))


KILLED = """
import sys
sys.path[:0] = {paths!r}
import test_sweep

print("ready", flush=True)
test_sweep.long_run(sys.argv[1])
"""


def long_run(directory):
    halving = sweep.halving([3000], keep=0.5)
    return run(
        *(adaptax.adam(0.1), {"learning_rate": np.geomspace(1e-3, 1.0, 6)}),
        **{"steps": 6000, "directory": directory, "save_every": 0.0, "params": starting},
        **{"halving": halving, "batch_size": 3},
    )


@pytest.mark.parametrize("which", ["rung0-1", "rung1-0"])
def test_a_killed_run_goes_on(tmp_path, which, uninterrupted):
    tests = Path(__file__).parent
    code = textwrap.dedent(KILLED.format(paths=[str(tests), str(tests.parent)]))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        limit = time.monotonic() + 120
        while not (tmp_path / f"{which}.npz").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    there = {path.name for path in tmp_path.iterdir()}
    assert f"{which}.npz" in there and "rung1-1.npz" not in there
    resumed = long_run(tmp_path)
    np.testing.assert_array_equal(resumed.losses, uninterrupted.losses)
    np.testing.assert_array_equal(resumed.scores, uninterrupted.scores)
    assert resumed.status.tolist() == uninterrupted.status.tolist()
    assert_same_bits(resumed.best.params, uninterrupted.best.params)


@pytest.fixture(scope="module")
def uninterrupted():
    return long_run(None)


def test_half_a_file_is_not_a_piece(tmp_path):
    first = run(directory=tmp_path)
    os.rename(tmp_path / "rung0-0.npz", tmp_path / ".rung0-0.npz.part")  # killed while writing
    assert_same(first, run(directory=tmp_path), rtol=0)
    assert not list(tmp_path.glob(".*.part"))


# Files that are damaged, or of something else

ARRAYS = {"x": np.arange(4, dtype=np.float32), "lanes": np.arange(3), "span": np.array([0, 5])}
PART = {name: ARRAYS[name] for name in ("lanes", "span")}


def stored(directory, **request):
    return Store("sweep.run", directory, lambda: {"steps": "5", **request})


def test_a_bit_that_flips_anywhere_is_noticed(tmp_path):
    stored(tmp_path).save("rung0-0", ARRAYS)
    path = tmp_path / "rung0-0.npz"
    whole = path.read_bytes()
    unnoticed = 0
    places = range(0, len(whole), 7)
    for i in places:
        data = bytearray(whole)
        data[i] ^= 1 << (i % 8)
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = stored(tmp_path).load("rung0-0", PART)
        if found is None:
            (warning,) = caught
            assert str(warning.message).startswith(f"sweep.run: {path} is damaged, or was written")
            assert "are trained again" in str(warning.message)
        else:  # a date, or what else a zip file has beside its contents
            unnoticed += 1
            assert not caught
            for name, x in ARRAYS.items():
                np.testing.assert_array_equal(found[name], x)
    assert unnoticed < len(places) / 2


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def altered(path):
    """Another number in a file that is whole in its format."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        path.write_bytes(array_file(np.savez, **(arrays | {"losses": arrays["losses"] + 1})))
    else:
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"size": 3}))


DAMAGE = {
    "a bit": flipped,
    "a number": altered,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a piece\n"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "an array": lambda path: path.write_bytes(array_file(np.save, np.arange(3))),
    "no digest": lambda path: path.write_bytes(array_file(np.savez, **ARRAYS)),  # as once
}


def array_file(write, *arrays, **named):
    file = io.BytesIO()
    write(file, *arrays, **named)
    return file.getvalue()


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory):
    """A directory of three pieces, and the results."""
    directory = tmp_path_factory.mktemp("pieces")
    return directory, run(directory=directory, batch_size=2)


@pytest.mark.parametrize("name", ["rung0-1.npz", "sweep.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_damaged_is_made_again(damage, name, tmp_path, in_pieces, calls):
    directory, whole = in_pieces
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / name)
    text = rf"^sweep.run: {re.escape(str(tmp_path / name))} is damaged"
    with pytest.warns(UserWarning, match=text) as caught:
        again = run(directory=tmp_path, batch_size=2)
    assert len(caught) == 1
    assert sum(call.count for call in calls) == (12 if name.endswith("npz") else 0)
    assert_same(whole, again, rtol=0)
    calls.clear()
    run(directory=tmp_path)
    assert not calls


@pytest.mark.parametrize("change", [{"steps": "6"}, {"x": "1"}], ids=["other", "more"])
def test_a_piece_of_another_request_is_not_taken(change, tmp_path):
    stored(tmp_path, **change).save("rung0-0", ARRAYS)
    text = rf"{re.escape(str(tmp_path))}/rung0-0.npz is not a piece of this sweep; it is replaced"
    with pytest.warns(UserWarning, match=text):
        assert stored(tmp_path).load("rung0-0", PART) is None


@pytest.mark.parametrize(
    "part",
    [{"lanes": np.arange(4)}, {"lanes": np.arange(1, 4)}, {"span": np.array([0, 6])}, {"y": 1}],
)
def test_a_piece_of_other_lanes_or_steps_is_not_taken(part, tmp_path):
    stored(tmp_path).save("rung0-0", ARRAYS)
    with pytest.warns(UserWarning, match=r"rung0-0.npz is not a piece of this sweep"):
        assert stored(tmp_path).load("rung0-0", {**PART, **part}) is None
    assert stored(tmp_path).load("rung0-0", PART) is not None


def test_pieces_without_their_manifest_are_known_by_themselves(tmp_path, calls):
    first = run(directory=tmp_path, batch_size=2)
    for size, settings, taken in ((2, RATES, 3), (5, RATES, 0), (2, {"learning_rate": [0.5]}, 0)):
        (tmp_path / "sweep.json").unlink()
        calls.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = run(settings=settings, directory=tmp_path, batch_size=size)
        assert len(caught) == (0 if taken else 1)
        assert bool(calls) == (taken == 0)
        if settings is RATES:
            assert_same(first, found, rtol=1e-6)
        else:
            assert_same(run(settings=settings), found, rtol=0)


@pytest.mark.parametrize("version", [1, 3])
def test_a_sweep_of_another_version_is_refused(version, tmp_path):
    manifest = {"format": version, "size": 5, "request": {"steps": "12"}}
    if version > 1:
        manifest["digest"] = digest(*manifest.items())
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    (tmp_path / "rung0-0.npz").write_bytes(b"old")
    match = (
        rf"^sweep.run: directory must .* in format 2, got {re.escape(str(tmp_path))} with format"
    )
    with pytest.raises(
        ValueError, match=rf"{match} {version}, of another version of adaptax\. Give"
    ):
        run(directory=tmp_path)
    assert (tmp_path / "rung0-0.npz").read_bytes() == b"old"


def test_keys_are_part_of_the_request(tmp_path):
    def loss(key):
        return lambda p, batch: jnp.mean((p["w"] - jax.random.normal(key, (3,))) ** 2)

    for _ in range(2):
        run(directory=tmp_path, loss=loss(jax.random.key(0)))
    with pytest.raises(ValueError, match="loss_fn"):
        run(directory=tmp_path, loss=loss(jax.random.key(1)))


# Two in one directory

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on node")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told(tmp_path):
    match = (
        rf"^sweep.run: directory must not be in use, got {re.escape(str(tmp_path))}, in which a "
        r"sweep is running \(process 7 on node\)\. Wait until it ends, or give another directory\.$"
    )
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(RuntimeError, match=match):
            run(directory=tmp_path)
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    run(directory=tmp_path)  # what is killed holds nothing


def test_a_second_sweep_in_this_process_is_told(tmp_path):
    match = rf"\(process {os.getpid()} on "
    with claimed("sweep.run", tmp_path), pytest.raises(RuntimeError, match=match):
        run(directory=tmp_path)
    for _ in range(2):  # errors let go of it, too
        with pytest.raises(ValueError, match="another steps"):
            run(directory=tmp_path)
            run(directory=tmp_path, steps=13)
    run(directory=tmp_path)


def test_a_folder_that_can_only_be_read_has_its_results(tmp_path, monkeypatch):
    first = run(directory=tmp_path)

    def refused(path, mode="r", **rest):
        if mode != "r" and mode != "rb":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode, **rest)

    monkeypatch.setattr(_store, "open", refused, raising=False)
    assert_same(first, run(directory=tmp_path), rtol=0)
    with pytest.raises(PermissionError, match=re.escape(str(tmp_path / "new"))):
        run(directory=tmp_path / "new")


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_what_a_killed_process_left_is_removed(locks, tmp_path, monkeypatch):
    left = tmp_path / ".rung0-0.npz.1234.part"
    left.write_bytes(b"half")
    if not locks:
        monkeypatch.setattr(_store, "lock", lambda file, wait: None)
    run(directory=tmp_path)
    assert left.exists() is not locks  # without locks it may be one that is being written


def test_writes_at_once_are_whole_where_there_are_no_locks(tmp_path):
    errors = []

    def work(i):
        store = stored(tmp_path)
        try:
            for _ in range(10):
                store.save("rung0-0", {**ARRAYS, "x": np.full(20000, i)})
                found = store.load("rung0-0", PART)
                assert found is not None and len(set(found["x"])) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in tmp_path.iterdir()] == ["rung0-0.npz"]


@pytest.mark.parametrize("what", ["savez", "fsync"])
def test_a_write_that_fails_leaves_the_older_file(what, tmp_path, monkeypatch):
    store = stored(tmp_path)
    store.save("rung0-0", ARRAYS)
    before = (tmp_path / "rung0-0.npz").read_bytes()

    def full(file, *args, **arrays):
        if what == "savez":
            file.write(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((np, "savez") if what == "savez" else (os, "fsync")), full)
    with pytest.raises(OSError, match="No space left"):
        store.save("rung0-0", {**ARRAYS, "x": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["rung0-0.npz"]
    assert (tmp_path / "rung0-0.npz").read_bytes() == before


# Results


def test_the_table():
    found = run(adaptax.sgd(0.1), {"learning_rate": [0.1, 50.0, 0.01]}, steps=200)
    lines = str(found).splitlines()
    assert lines[0].split() == ["learning_rate", "score", "status", "steps"]
    assert [line.split()[0] for line in lines[1:4]] == ["0.1", "0.01", "50"]
    assert lines[3].split()[1:3] == ["inf", "diverged"]
    assert lines[4].startswith("3 settings: 2 finished, 1 diverged")
    assert list(found.columns) == ["learning_rate", "score", "status", "steps"]
    assert {len(column) for column in found.columns.values()} == {len(found)} == {3}
    assert repr(found) == "<Results of 3 settings of learning_rate>"
    many = run(settings={"learning_rate": np.geomspace(0.1, 1, 25)})
    assert str(many).splitlines()[-1].startswith("5 more. 25 settings: 25 finished")


def test_the_order():
    found = dataclasses.replace(
        run(),
        score=np.array([0.3, 0.1, np.inf, 0.2, 0.05]),
        steps=np.array([12, 12, 9, 6, 3]),
        status=np.array(["finished", "finished", "diverged", "stopped", "stopped"]),
    )
    assert found.order.tolist() == [1, 0, 3, 4, 2]
    assert found.best.setting == {"learning_rate": 0.03}


def labels(figure):
    return [(ax.get_xlabel(), ax.get_xscale(), ax.get_yscale()) for ax in figure.axes]


def test_figures(tmp_path):
    from matplotlib import image

    one = run(adaptax.sgd(0.1), {"learning_rate": [1e-3, 0.1, 50.0]}, steps=200)
    grid = {"learning_rate": [1e-3, 0.1, 50.0], "momentum": [0.0, 0.9]}
    two = run(adaptax.sgd(0.1, momentum=0.5), sweep.grid(grid), steps=200)
    rest = {"learning_rate": [1e-3, 0.1, 0.2], "b1": [0.8, 0.9, 0.7], "eps": [1e-8] * 3}
    halving = sweep.halving([5])
    three = run(settings=rest, halving=halving)
    lost = run(adaptax.sgd(0.1), {"learning_rate": [50.0, 60.0]}, steps=200)
    figures = [results.plot() for results in (one, two, three, lost)]
    assert labels(figures[0]) == [("learning_rate", "log", "log")]
    assert labels(figures[1])[0] == ("momentum", "linear", "linear")
    assert [x for x, *_ in labels(figures[2])] == ["learning_rate", "b1"]
    crosses = [line for line in figures[0].axes[0].lines if line.get_label() == "diverged"]
    assert crosses[0].get_xdata().tolist() == [50.0]
    values = figures[1].axes[0].images[0].get_array()
    assert values.shape == (3, 2) and values.mask.sum() == (two.status == "diverged").sum() >= 2
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
        assert image.imread(tmp_path / f"{i}.png")[..., :3].std() > 0.01


def test_plot_names_its_extra(monkeypatch):
    found = run()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'adaptax\[plot\]'"):
        found.plot()


def test_progress(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    run(progress=True, halving=sweep.halving([4]), batch_size=5)
    assert "5 settings" in terminal.getvalue() and "100%" in terminal.getvalue()
    monkeypatch.setattr(_progress, "find_spec", lambda name: None)
    run(progress=True)


# Bad input


def callable_rate(count):
    return 0.1


BAD = {
    "empty": (ValueError, r"settings must hold at least one", {"settings": {}}),
    "no values": (
        ValueError,
        r"sweep.run: learning_rate must hold at least one value .* got none. Give",
        {"settings": {"learning_rate": []}},
    ),
    "no mapping": (TypeError, r"settings must be a mapping .* got \[0.1\]", {"settings": [0.1]}),
    "unknown": (
        ValueError,
        r"sweep.run: there is no 'momentumm'; the numbers are learning_rate; b1",
        {"settings": {"momentumm": [0.1]}},
    ),
    "structure": (
        ValueError,
        r"sweep.run: momentum is None or structure here, .* numbers are learning_rate",
        {"tx": adaptax.sgd(0.1), "settings": {"momentum": [0.1, 0.9]}},
    ),
    "ambiguous": (
        ValueError,
        r"'learning_rate' is ambiguous: 0/learning_rate; 1/learning_rate",
        {"tx": adaptax.chain(adaptax.sgd(0.1), adaptax.sgd(0.1)), "settings": RATES},
    ),
    "twice": (
        ValueError,
        r"each number once, got 'b1' and 'b\[1\]', which both set b1",
        {"settings": {"b1": [0.5], "b[1]": [0.6]}},
    ),
    "no numbers": (
        ValueError,
        r"sweep.run: tx must be made by adaptax and have numbers, got .*Gradient",
        {"tx": (lambda p: (), lambda u, s, p=None: (u, s))},
    ),
    "not called": (TypeError, r"tx is the function adam itself; call it", {"tx": adaptax.adam}),
    "out of range": (
        ValueError,
        r"adam: b1 must lie in \[0, 1\), got 1.5",
        {"settings": {"b1": [0.5, 1.5, 0.9]}},
    ),
    "together": (
        ValueError,
        r"warmup_cosine_decay_schedule: decay_steps must lie in \(50, inf\)",
        {
            "tx": adaptax.adam(adaptax.warmup_cosine_decay_schedule(0.0, 1.0, 5, 90)),
            "settings": {"warmup_steps": [5, 50], "decay_steps": [90, 20]},
        },
    ),
    "nan": (
        ValueError,
        r"learning_rate must hold finite numbers, got nan at 1; inf at 2. Leave",
        {"settings": {"learning_rate": [0.1, np.nan, np.inf]}},
    ),
    "lengths": (
        ValueError,
        r"as many values for each number, got learning_rate has 2; b1 has 3. .*use grid",
        {"settings": {"learning_rate": [0.1, 0.2], "b1": [0.1, 0.2, 0.3]}},
    ),
    "matrix": (
        TypeError,
        r"learning_rate must be a sequence",
        {"settings": {"learning_rate": [[1]]}},
    ),
    "ragged": (TypeError, r"must be a sequence", {"settings": {"b1": [[1], [1, 2]]}}),
    "text": (TypeError, r"must be a sequence", {"settings": {"b1": ["high"]}}),
    "scalar": (TypeError, r"must be a sequence", {"settings": {"b1": 0.5}}),
    "schedules": (TypeError, r"must be a sequence", {"settings": {"b1": [callable_rate]}}),
    "zero steps": (ValueError, r"sweep.run: steps must lie in \[1, inf\), got 0", {"steps": 0}),
    "half steps": (TypeError, r"steps must be an integer, got 1.5", {"steps": 1.5}),
    "seeds": (ValueError, r"seeds must be one seed where params is a tree, got 3", {"seeds": 3}),
    "seed twice": (ValueError, r"seeds must lie in .*each once", {"seeds": [1, 1]}),
    "no seeds": (TypeError, r"seeds must be an integer, or a sequence", {"seeds": []}),
    "bound": (ValueError, r"bound must lie in \(-inf, inf\], got nan", {"bound": math.nan}),
    "batch_size": (ValueError, r"batch_size must lie in \[1, inf\)", {"batch_size": 0}),
    "save_every": (ValueError, r"save_every must lie in \[0, inf\)", {"save_every": -1}),
    "halving": (TypeError, r"halving must be what halving", {"halving": (3,)}),
    "loss": (TypeError, r"loss_fn must be a function", {"loss": 3}),
    "evaluate": (TypeError, r"evaluate must be a function", {"evaluate": 3}),
    "vector": (
        TypeError,
        r"loss_fn must return a real scalar, got float32\[3\]. Reduce it",
        {"loss": lambda p, batch: p["w"]},
    ),
    "score": (
        TypeError,
        r"evaluate must return a real scalar, got int32\[\]",
        {"evaluate": lambda p: jnp.int32(0)},
    ),
    "pair": (TypeError, r"got a tuple", {"loss": lambda p, batch: (p["b"], p["b"])}),
    "batches": (
        ValueError,
        r"share a leading axis of at least one batch; \[0\] has shape \(4, 16, 3\); \[1\]",
        {"batches": (X, Y[:3])},
    ),
    "no batch": (ValueError, r"at least one batch", {"batches": (X[:0], Y[:0])}),
    "a loader": (
        TypeError,
        r"batches must be a function, or a tree of arrays, got <list_iterator",
        {"batches": iter([X])},
    ),
    "params": (TypeError, r"params\['w'\] must be an array, got 'x'", {"params": {"w": "x"}}),
    "no params": (TypeError, r"params must be a function, or a tree of arrays", {"params": {}}),
    "no path": (TypeError, r"directory must be a path, or None, got 3 \(int\)", {"directory": 3}),
    "a file": (
        ValueError,
        r"sweep.run: directory must be a folder or new, got the file .*test_sweep.py",
        {"directory": __file__},
    ),
    "an integer loss": (
        TypeError,
        r"loss_fn must return a real scalar, got int32\[\]",
        {"loss": lambda p, batch: 1},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    kind, message, arguments = BAD[case]
    with pytest.raises(kind, match=message):
        run(**arguments)


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (ValueError, r"grid: settings must hold", ("grid", {})),
        (ValueError, r"grid: b1 must hold at least one", ("grid", {"b1": []})),
        (ValueError, r"log_range: low must lie in \(0, inf\)", ("log_range", 0, 1, 3)),
        (ValueError, r"log_range: high must lie in \(1, inf\)", ("log_range", 1, 1, 3)),
        (ValueError, r"log_range: count must lie in", ("log_range", 1, 2, 1)),
        (ValueError, r"uniform: high must lie in", ("uniform", 2, 1)),
        (TypeError, r"uniform: low must be a number", ("uniform", "a", 1)),
        (ValueError, r"log_uniform: low must lie", ("log_uniform", -1, 1)),
        (ValueError, r"choices: values must hold", ("choices", [])),
        (TypeError, r"draw: b1 must be a uniform", ("draw", {"b1": [0.1]}, 2, 0)),
        (ValueError, r"draw: key must lie", ("draw", {"b1": sweep.choices([1.0])}, 2, -1)),
        (ValueError, r"draw: count must lie", ("draw", {"b1": sweep.choices([1.0])}, 0, 0)),
        (TypeError, r"halving: rungs must be a sequence", ("halving", [])),
        (ValueError, r"rungs\[0\] must lie in", ("halving", [0, 1])),
        (ValueError, r"halving: rungs must lie in rising order", ("halving", [2, 2])),
        (ValueError, r"halving: keep must lie in \(0, 1\), got 1", ("halving", [2], 1)),
        (TypeError, r"halving: keep must be a number", ("halving", [2], True)),
    ],
)
def test_bad_settings(kind, message, call):
    name, *arguments = call
    with pytest.raises(kind, match=message):
        unchecked(getattr(sweep, name))(*arguments)
