"""Telemetry: measures against float64, the probe against the bare optimizer, files, figures."""

import builtins
import copy
import json
import pickle
import re
import resource
import shutil
import struct
import threading
import time
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from support import (
    GRADS,
    Traced,
    assert_close,
    assert_same_bits,
    grads,
    inner_jits,
    optax_rules,
    params,
    skeleton,
)

import adaptax
from adaptax import telemetry
from adaptax.telemetry import Sample, flat, history, latest, measure, probe
from adaptax.telemetry._sample import from_rows

NAN = float("nan")


def tree(seed: int, dtype: Any = jnp.float32) -> Any:
    """A tree of layers with a scalar."""
    rng = np.random.default_rng(seed)
    layer = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    made = {"layers": [layer, {"kernel": rng.normal(size=(3, 2))}], "scale": rng.normal()}
    if jnp.issubdtype(dtype, jnp.complexfloating):
        made = jax.tree.map(lambda x: x + 1j * rng.normal(size=np.shape(x)), made)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), made)


NAMES = ["layers/0/bias", "layers/0/kernel", "layers/1/kernel", "scale"]
GROUPS = {"kernels": "*/kernel", "zero": re.compile("layers/0/.*")}
MEMBERS = {"kernels": [1, 2], "zero": [0, 1], "total": [0, 1, 2, 3]}


def wide(x: Any) -> Any:
    kind = np.complex128 if jnp.iscomplexobj(x) else np.float64
    return np.asarray(x).astype(kind).ravel()


def entries(whole: Any) -> dict[str, Any]:
    """All entries of each row, in float64."""
    leaves = [wide(x) for x in jax.tree.leaves(whole)]
    rows = {name: [i] for i, name in enumerate(NAMES)} | MEMBERS
    return {name: np.concatenate([leaves[i] for i in of]) for name, of in rows.items()}


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.abs(x) ** 2)))


def oracle(u: Any, p: Any, g: Any, v: Any, slots: dict[str, Any]) -> dict[str, float]:
    """What `flat` returns, from float64 arithmetic over all entries at once."""
    out = {}
    u, p, g, v = map(entries, (u, p, g, v))
    of = {name: entries(slot) for name, slot in slots.items()}
    for name in u:
        row = {}
        for what, x in {"update": u[name], "param": p[name], "gradient": g[name]}.items():
            row |= {f"{what}_norm": np.linalg.norm(x), f"{what}_rms": rms(x)}
            row |= {f"{what}_max": np.abs(x).max(), f"{what}_nonfinite": 0}
        row["update_ratio"] = np.linalg.norm(u[name]) / np.linalg.norm(p[name])
        row["step_size"] = rms(u[name]) / rms(g[name])
        row["moment_step_size"] = rms(u[name]) / rms(of["mu"][name])
        row["sign_agreement"] = np.mean((np.conj(g[name]) * u[name]).real < 0)
        lengths = np.linalg.norm(u[name]) * np.linalg.norm(v[name])
        row["cosine"] = np.sum(np.conj(u[name]) * v[name]).real / lengths
        for slot, x in of.items():
            x = x[name]
            row |= {f"{slot}_rms": rms(x), f"{slot}_mean": x.real.mean()}
            row[f"{slot}_max"] = np.abs(x).max()
        out |= {f"{name}/{k}": float(x) for k, x in row.items()}
    return out


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64], ids=str)
def test_measures_are_those_of_float64(dtype):
    p, g, before = tree(1, dtype), tree(2, dtype), tree(3, dtype)
    tx = adaptax.scale_by_adam(0.5, 0.75)
    _, state = tx.update(before, tx.init(p), p)
    _, state = tx.update(g, state, p)
    u = jax.tree.map(lambda x: (-0.1 * x).astype(dtype), tree(4, dtype))
    sample = measure(u, p, state, gradients=g, previous=before, groups=GROUPS, step=7)
    got = flat(sample)
    wanted = oracle(u, p, g, before, {"mu": state.mu, "nu": state.nu})
    assert {k for k in got if "eps_fraction" not in k} == set(wanted)
    for key, value in wanted.items():
        np.testing.assert_allclose(got[key], value, 2e-6, 1e-7, err_msg=key)
    assert int(sample.step) == 7
    assert {x.dtype for x in sample.values.values()} == {jnp.dtype(jnp.float32)}
    assert sample.names == [*NAMES, "kernels", "zero", "total"]
    assert float(sample.of("zero")["update_norm"]) == got["zero/update_norm"]


def test_measures_in_float64(x64):
    g = tree(2, jnp.float64)
    sample = measure(g, g, gradients=g)
    np.testing.assert_allclose(flat(sample)["total/update_rms"], rms(entries(g)["total"]), 1e-14)
    assert sample.values["update_rms"].dtype == jnp.float64


def test_measuring_is_pure_and_can_be_jitted():
    tx = adaptax.chain(adaptax.clip(1.0), adaptax.adam(0.1))
    p, g = tree(1), tree(2)
    u, state = tx.update(g, tx.init(p), p)
    f = Traced(lambda u, p, s, g: measure(u, p, s, gradients=g, tx=tx, groups=["*/kernel"]))
    jitted = jax.jit(f)
    got = jitted(u, p, state, g)
    wanted = measure(u, p, state, gradients=g, tx=tx, groups=["*/kernel"])
    assert_close(got, wanted, 1e-6)
    assert got.names == wanted.names
    jitted(u, g, state, p)
    assert f.times == 1
    names = inner_jits(lambda: measure(params(), params()))
    assert names.count("stats_of") == 4


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_overflow_nor_underflow(scale):
    g = jax.tree.map(lambda x: x * jnp.float32(scale), tree(2))
    got = flat(measure(g, g, gradients=g, previous=g, groups=GROUPS))
    wanted = {name: np.linalg.norm(x) for name, x in entries(g).items()}
    for name, value in wanted.items():
        np.testing.assert_allclose(got[f"{name}/update_norm"], value, 1e-6)
        np.testing.assert_allclose(got[f"{name}/cosine"], 1.0, 1e-6)
        assert got[f"{name}/update_ratio"] == 1.0


def test_what_is_not_finite_is_counted():
    g = {"a": jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf]), "b": jnp.array([3.0, 4.0])}
    p = {"a": jnp.ones(4), "b": jnp.array([jnp.inf, 1.0])}
    got = flat(measure(p, p, gradients=g))
    assert (got["a/gradient_nonfinite"], got["b/gradient_nonfinite"]) == (3, 0)
    assert got["total/gradient_nonfinite"] == 3
    assert got["b/param_nonfinite"] == got["total/update_nonfinite"] == 1
    assert np.isnan(got["a/gradient_norm"]) and np.isnan(got["total/gradient_norm"])
    assert got["b/gradient_norm"] == 5.0
    assert got["b/param_norm"] == np.inf


HOLES = {
    "none": None,
    "float0": np.zeros(3, jax.dtypes.float0),
    "masked": adaptax.MaskedNode(),
}


@pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES.keys())
def test_leaves_that_are_not_there(hole):
    p = {"n": jnp.arange(3), "none": None, "w": jnp.array([3.0, 4.0])}
    masked = isinstance(hole, adaptax.MaskedNode)
    p = p | {"n": hole} if masked else p
    g = {"n": hole, "none": None, "w": jnp.array([0.6, 0.8])}
    sample = measure(g, p, gradients=g)
    assert sample.names == ["w", "total"]
    np.testing.assert_allclose(sample.of("total")["update_ratio"], 0.2, 1e-6)
    state = probe(adaptax.sgd(0.1)).init(p)
    assert list(state.samples.leaves) == ["w"]


def test_a_leaf_without_a_gradient_has_a_row_of_its_parameter():
    p = {"frozen": jnp.ones(4), "w": jnp.array([3.0, 4.0])}
    got = flat(measure({**p, "frozen": None}, p, groups={"f": "frozen"}))
    assert got["frozen/param_norm"] == got["f/param_norm"] == 2.0
    for name in ("frozen/update_norm", "f/update_rms", "w/gradient_norm", "w/sign_agreement"):
        assert np.isnan(got[name])
    assert got["w/update_norm"] == got["total/update_norm"] == 5.0


@pytest.mark.parametrize("empty", [{}, None, [], {"x": None}], ids=str)
def test_empty_trees(empty):
    sample = measure(empty, empty, gradients=empty)
    assert sample.names == ["total"]
    assert all(np.isnan(x) for x in flat(sample).values())
    tx = probe(adaptax.adam(0.1))
    _, state = tx.update(empty, tx.init(empty), empty)
    assert int(latest(state).step) == 0


def test_leaves_without_entries():
    p = {"x": jnp.zeros((0, 3)), "w": jnp.ones(4)}
    got = flat(measure(p, p, gradients=p))
    assert got["x/update_norm"] == got["x/param_rms"] == got["x/gradient_max"] == 0.0
    assert np.isnan(got["x/update_ratio"]) and np.isnan(got["x/sign_agreement"])
    assert got["total/update_rms"] == 1.0


def test_ratios_without_parameters():
    p = {"zero": jnp.zeros(2)}
    u = {"zero": jnp.ones(2)}
    assert flat(measure(u, p))["zero/update_ratio"] == np.inf
    got = flat(measure(u, None))
    assert np.isnan(got["zero/update_ratio"]) and got["zero/update_rms"] == 1.0


def test_a_tree_of_one_leaf():
    got = flat(measure(jnp.ones(4), jnp.ones(4)))
    assert got["update_norm"] == got["total/update_norm"] == 2.0


def test_agreement_of_signs_is_over_the_entries_with_a_gradient():
    g = jnp.array([1.0, -1.0, 2.0, 0.0, 1e-30])
    u = jnp.array([-1.0, -1.0, 0.0, 5.0, -1e-30])
    assert flat(measure(u, g, gradients=g))["total/sign_agreement"] == 0.5
    turned = jnp.array([1 + 1j, 1j])
    got = flat(measure(jnp.array([-1 - 0.5j, 1j]), turned, gradients=turned))
    assert got["total/sign_agreement"] == 0.5


# the slots of states


def slots(tx: Any, **options: Any) -> dict[str, float]:
    p, g = tree(1), tree(2)
    with optax_rules():
        u, state = jax.jit(tx.update)(g, tx.init(p), p)
        return flat(measure(u, p, state, gradients=g, **options))


MASK = {"layers": [{"kernel": True, "bias": False}, {"kernel": True}], "scale": False}
LABELS = jax.tree.map(lambda m: "mu" if m else "trace", MASK)
SLOTS: dict[str, Any] = {
    "adam": (lambda lib: lib.adam(0.1), {"mu", "nu"}),
    "sgd": (lambda lib: lib.sgd(0.1, momentum=0.9), {"trace"}),
    "plain": (lambda lib: lib.sgd(0.1), set()),
    "chain": (lambda lib: lib.chain(lib.trace(0.5), lib.scale_by_rms()), {"trace", "nu"}),
    "twice": (lambda lib: lib.chain(lib.ema(0.5), lib.ema(0.9)), {"0.ema", "1.ema"}),
    "masked": (lambda lib: lib.masked(lib.scale_by_adam(), MASK), {"mu", "nu"}),
    "partition": (
        lambda lib: lib.partition(
            {"mu": lib.adam(0.1), "trace": lib.sgd(0.1, momentum=0.9)}, LABELS
        ),
        {"mu", "nu", "trace"},
    ),
    "parts": (
        lambda lib: lib.partition({"mu": lib.adam(0.1), "trace": lib.adam(0.2)}, LABELS),
        {"mu", "nu"},
    ),
    "hyperparameters": (lambda lib: lib.inject_hyperparams(lib.adam)(0.1), {"mu", "nu"}),
}


@pytest.mark.parametrize(("make", "names"), SLOTS.values(), ids=SLOTS.keys())
@pytest.mark.parametrize("lib", [adaptax, optax], ids=["adaptax", "optax"])
def test_slots_are_found_by_name(make, names, lib):
    got = slots(make(lib))
    found = {key.split("/")[-1].removesuffix("_rms") for key in got if key.endswith("_rms")}
    assert found - {"gradient", "update", "param"} == names


def test_a_slot_has_the_leaves_that_it_is_for():
    got = slots(adaptax.masked(adaptax.scale_by_adam(), MASK))
    assert np.isnan(got["scale/mu_rms"]) and got["layers/1/kernel/mu_rms"] > 0
    got = slots(SLOTS["partition"][0](adaptax))
    assert np.isnan(got["scale/mu_rms"]) and np.isnan(got["layers/1/kernel/trace_rms"])
    for name in NAMES:  # the moment is mu here, trace there
        moment = got[f"{name}/mu_rms"] if np.isnan(got[f"{name}/trace_rms"]) else NAN
        moment = got[f"{name}/trace_rms"] if np.isnan(moment) else moment
        wanted = got[f"{name}/update_rms"] / moment
        np.testing.assert_allclose(got[f"{name}/moment_step_size"], wanted, 1e-6)


def test_factored_moments_are_not_of_the_parameters_shape():
    got = slots(adaptax.adafactor(0.1, min_dim_size_to_factor=3))
    assert np.isnan(got["layers/0/kernel/v_rms"]) and got["layers/0/bias/v_rms"] > 0


# what eps dominates

# ν̂ is g² after one step of each of these.
TINY = [1e-9, 1e-6, -1e-3, 2.0, 0.0]
EPS: dict[str, Any] = {
    "found": (lambda: adaptax.adam(0.1, eps=1e-4), {}, 0.6),
    "default": (lambda: adaptax.adam(0.1), {}, 0.4),
    "inside the root": (lambda: adaptax.adam(0.1, eps=0.0, eps_root=1e-4), {}, 0.8),
    "rms": (lambda: adaptax.rmsprop(0.1, decay=0.0, eps=1e-10), {}, 0.6),
    "given": (lambda: adaptax.adam(0.1), {"eps": 1e-2}, 0.8),
    "chain": (lambda: adaptax.chain(adaptax.clip(5.0), adaptax.adamw(0.1, eps=1e-5)), {}, 0.6),
    "masked": (lambda: adaptax.masked(adaptax.adam(0.1, eps=1e-5), True), {}, 0.6),
    "partition": (lambda: adaptax.partition({"*": adaptax.adam(0.1, eps=1e-5)}), {}, 0.6),
    "not a square": (lambda: adaptax.adamax(0.1, eps=1e-5), {}, NAN),
    "adjustable": (lambda: adaptax.adjustable(adaptax.adam(0.1, eps=1e-5)), {}, 0.6),
    "optax, given": (lambda: optax.adam(0.1, b2=0.0), {"eps": 1e-5, "tx": None}, 0.6),
    "optax, in the state": (
        lambda: optax.inject_hyperparams(optax.adam)(0.1, eps=1e-5),
        {"tx": None},
        0.6,
    ),
    "optax, not known": (lambda: optax.adam(0.1), {"tx": None}, NAN),
    "no moment": (lambda: adaptax.sgd(0.1, momentum=0.5), {"eps": 1.0}, NAN),
}


@pytest.mark.parametrize(("make", "options", "wanted"), EPS.values(), ids=EPS.keys())
def test_the_fraction_of_entries_that_eps_dominates(make, options, wanted):
    tx = make()
    g = {"w": jnp.array(TINY)}
    with optax_rules():
        u, state = tx.update(g, tx.init(g), g)
        got = flat(measure(u, g, state, **({"tx": tx} | options)))
    np.testing.assert_allclose(got["w/eps_fraction"], wanted, 1e-6)
    np.testing.assert_allclose(got["total/eps_fraction"], wanted, 1e-6)


def test_eps_is_the_one_that_is_set_now():
    tx = adaptax.adjustable(adaptax.chain(adaptax.clip(5.0), adaptax.adam(0.1, eps=1e-5)))
    g = {"w": jnp.array(TINY)}
    state = adaptax.set_hyperparams(tx, tx.init(g), eps=1e-2)
    u, state = tx.update(g, state, g)
    np.testing.assert_allclose(flat(measure(u, g, state, tx=tx))["w/eps_fraction"], 0.8, 1e-6)


# the probe

STEPS = [jax.tree.map(lambda g, i=i: jnp.asarray(g * np.float32(i - 3.5)), GRADS) for i in range(7)]
# A transformation, and whether XLA rounds it alike with a conditional beside it.
INNER: dict[str, Any] = {
    "adam": (lambda: adaptax.adam(0.1), True),
    "chain": (
        lambda: adaptax.chain(adaptax.clip_by_global_norm(0.5), adaptax.adamw(0.1)),
        True,
    ),
    "optax": (lambda: optax.adam(0.1), False),
}


def trained(tx: Any, jit: bool = True) -> Any:
    """The updates and the states of some steps."""
    update = jax.jit(tx.update) if jit else tx.update
    state, out = tx.init(params()), []
    for g in STEPS:
        u, state = update(g, state, params())
        out.append((u, state))
    return out


@pytest.mark.optimized
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("make", "alike"), INNER.values(), ids=INNER.keys())
def test_a_probe_changes_nothing(make, alike, jit):
    with optax_rules():
        bare, probed = trained(make(), jit), trained(probe(make(), 2), jit)
    for (u, state), (v, with_samples) in zip(bare, probed, strict=True):
        assert_close([u, state], [v, with_samples.inner_state], 1e-6)
        if alike or not jit:
            assert_same_bits([u, state], [v, with_samples.inner_state])


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_probe_measures_every_few_steps(jit):
    inner = adaptax.adam(0.1)
    tx = probe(inner, 3, groups=["*w"], history=2)
    bare, steps = trained(inner), trained(tx, jit)
    wanted = [
        measure(u, params(), s, gradients=g, tx=inner, groups=["*w"], step=i)
        for i, ((u, s), g) in enumerate(zip(bare, STEPS, strict=True))
    ]
    for i, (_, state) in enumerate(steps):
        due = i // 3 * 3
        assert_close(latest(state), wanted[due], 1e-6)
        assert int(state.count) == i + 1
        kept = history(state)
        assert [int(s.step) for s in kept] == [j for j in (0, 3, 6) if j <= i][-2:]
        assert_close(kept[-1], latest(state), 1e-7)
    assert jax.tree.structure(tx.init(params())) == jax.tree.structure(steps[-1][1])


def test_the_state_can_be_scanned_donated_and_found():
    tx = adaptax.chain(adaptax.clip(1.0), probe(adaptax.adam(0.1), 2, history=8))
    first = tx.init(params())
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *STEPS)

    def run(state: Any) -> Any:
        def step(state: Any, g: Any) -> Any:
            _, state = tx.update(g, state, params())
            return state, latest(state)

        return jax.lax.scan(step, state, stacked)

    wanted = [state for _, state in trained(tx)][-1]
    last, samples = jax.jit(run, donate_argnums=0)(first)
    assert [int(s.step) for s in history(last)] == [0, 2, 4, 6]
    assert_close(history(last), history(wanted), 1e-6)
    assert samples.step.tolist() == [0, 0, 2, 2, 4, 4, 6]
    assert_close(jax.tree.map(lambda x: x[-1], samples), latest(last), 1e-7)


def test_a_state_without_a_sample():
    state = probe(adaptax.adam(0.1)).init(params())
    assert int(latest(state).step) == -1
    assert history(state) == []
    assert all(np.isnan(x) for x in flat(latest(state)).values())


def test_the_state_of_a_probe_is_a_fixed_point_of_any_update():
    for dtype in (jnp.bfloat16, jnp.complex64):
        tx = probe(adaptax.adam(0.1), 1)
        state = tx.init(params(dtype))
        u, after = tx.update(grads(dtype), state)  # without parameters
        assert skeleton(after) == skeleton(state)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
        assert np.isnan(flat(latest(after))["total/param_norm"])
        assert {x.dtype for x in jax.tree.leaves(u)} == {jnp.dtype(dtype)}
    struct = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params())
    assert skeleton(probe(adaptax.adam(0.1)).init(struct)) == skeleton(
        jax.eval_shape(probe(adaptax.adam(0.1)).init, params())
    )


def test_it_is_traced_once_and_works_under_vmap():
    tx = probe(adaptax.adam(0.1), 2)
    f = Traced(tx.update)
    update = jax.jit(f)
    state = tx.init(params())
    for g in STEPS:
        _, state = update(g, state, params())
    assert f.times == 1
    rates = jnp.array([0.1, 0.2])

    def step(rate: Any) -> Any:
        tx = probe(adaptax.adam(rate), 2)
        return tx.update(STEPS[0], tx.init(params()), params())

    _, states = jax.jit(jax.vmap(step))(rates)
    both = latest(states).of("total")["update_rms"]
    np.testing.assert_allclose(both[1] / both[0], 2.0, 1e-5)


def test_it_works_inside_of_others():
    tx = adaptax.partition({"b": probe(adaptax.sgd(0.1), 1), "*": adaptax.adam(0.1)})
    _, state = tx.update(grads(), tx.init(params()), params())
    assert latest(state).names == ["b", "total"]
    np.testing.assert_allclose(latest(state).of("b")["step_size"], 0.1, 1e-6)
    assert adaptax.learning_rate(probe(adaptax.adam(0.25)), None) == 0.25


def test_a_probe_is_a_value():
    def make(rate: float, groups: Any = None) -> Any:
        return probe(adaptax.adam(rate), 10, groups=groups)

    tx = make(0.1, ["*/kernel"])
    assert tx == make(0.1, ["*/kernel"]) == pickle.loads(pickle.dumps(tx)) == copy.deepcopy(tx)
    assert hash(tx) == hash(make(0.1, ["*/kernel"]))
    assert tx != make(0.1) != make(0.2)
    assert repr(make(0.1)) == "probe(inner=adam(learning_rate=0.1), every=10)"
    assert len(jax.tree.leaves(tx)) == len(jax.tree.leaves(adaptax.adam(0.1)))


# errors

ERRORS: dict[str, Any] = {
    "structure": (lambda: measure({"a": jnp.ones(2)}, params()), "measure: updates do not match"),
    "shape": (lambda: measure(jnp.ones(2), jnp.ones(3)), r"has shape \(2,\) against \(3,\)"),
    "gradients": (lambda: measure(params(), params(), gradients={}), "do not match gradients"),
    "groups": (lambda: measure(params(), params(), groups=3), "measure: groups must be path pat"),
    "names": (lambda: measure(params(), params(), groups={1: "*"}), "measure: groups must be"),
    "no match": (lambda: measure(params(), params(), groups=["x"]), "'x' matches no leaf"),
    "twice": (lambda: measure(params(), params(), groups={"b": "w"}), "got 'b' more than once"),
    "total": (lambda: probe(adaptax.sgd(1.0)).init({"total": 1.0}), "probe: names must be unique"),
    "every": (lambda: probe(adaptax.sgd(1.0), 0), r"probe: every must lie in \[1, inf\)"),
    "history": (lambda: probe(adaptax.sgd(1.0), history=0), r"history must lie in \[1, inf\)"),
    "eps": (lambda: probe(adaptax.sgd(1.0), eps=-1.0), r"eps must lie in \[0, inf\)"),
    "inner": (lambda: probe(adaptax.adam), "probe: inner is the function adam itself"),
    "state": (
        lambda: probe(adaptax.sgd(1.0)).update(grads(), (), params()),
        "probe: the second argument of update must be its state, ProbeState",
    ),
    "other tree": (
        lambda: probe(adaptax.sgd(1.0)).update(
            {"x": jnp.ones(1)}, probe(adaptax.sgd(1.0)).init(params())
        ),
        "probe: the second argument of update must be its state, that of the same parameters",
    ),
    "none": (
        lambda: latest(adaptax.sgd(1.0).init(params())),
        r"^latest: state must hold a ProbeState, got a tuple without one\. Samples are taken by tx "
        r"= telemetry\.probe\(tx\): make the state with its init, and give the state that its",
    ),
    "nothing": (lambda: history(None), r"^history: state must hold a Probe.*, got a NoneType with"),
    "a transformation": (
        lambda: latest(probe(adaptax.sgd(1.0))),
        r"^latest: state must hold a ProbeState, got a GradientTransformation without one",
    ),
    "several": (
        lambda: history([probe(adaptax.sgd(1.0)).init({})] * 2),
        r"^history: state must hold one ProbeState, got a list with 2\. Give the part of the state",
    ),
    "stacked": (
        lambda: flat(probe(adaptax.sgd(1.0)).init(params()).samples),
        "flat: sample must be one sample",
    ),
    "suffix": (lambda: telemetry.read("x.txt"), r"read: path must be one of the names"),
    "no samples": (lambda: telemetry.plot_norms([]), r"plot_norms: samples must lie in \[1, inf\)"),
}


@pytest.mark.parametrize(("call", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_say_what_to_do(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


# files and figures


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Samples with groups, infinite and missing values."""
    p = {"zero": jnp.zeros(2), "none": jnp.ones(2), 'odd, "name"': jnp.ones(3)}
    tx = probe(adaptax.adam(0.1), 1, history=4, groups={"all": "*"})
    state = tx.init(p)
    for scale in (1.0, jnp.inf, 0.5):
        g = {**jax.tree.map(lambda x, c=scale: x + c, p), "none": None}
        _, state = tx.update(g, state, p)
    return history(state)


def sink_of(kind: str, folder: Any, append: bool = False) -> Any:
    """A sink to a file."""
    if kind == "csv":
        return telemetry.CSVSink(folder / "deep" / "run.csv", append)
    return telemetry.JSONLSink(folder / "run.jsonl", append)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_gives_back_what_was_written(kind, samples, tmp_path):
    with sink_of(kind, tmp_path) as sink:
        for i, sample in enumerate(samples):
            sink(10 * i, sample)
            written = telemetry.read(sink.path)  # while it is open: the process may be killed
            assert [int(s.step) for s in written] == [10 * j for j in range(i + 1)]
            assert written[i].names == sample.names
            np.testing.assert_equal(flat(written[i]), flat(sample))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_that_was_cut_can_be_read_and_goes_on(kind, samples, tmp_path):
    with sink_of(kind, tmp_path) as sink:
        for i in range(2):
            sink(i, samples[i])
    whole = sink.path.read_bytes()
    sink.path.write_bytes(whole[:-20])
    assert [int(s.step) for s in telemetry.read(sink.path)] == [0]
    with sink_of(kind, tmp_path, append=True) as sink:
        sink(1, samples[1])
        sink(2, samples[2])
    np.testing.assert_equal(
        [flat(s) for s in telemetry.read(sink.path)], [flat(s) for s in samples]
    )
    with sink_of(kind, tmp_path) as sink:
        assert telemetry.read(sink.path) == []


def test_files_are_what_others_can_read(samples, tmp_path):
    made = {kind: sink_of(kind, tmp_path) for kind in ("csv", "jsonl")}
    for sink in made.values():
        with sink:
            sink(5, samples[0])
    table = made["csv"].path.read_text().splitlines()
    assert table[0].startswith("step,kind,name,eps_fraction,gradient_max")
    assert [line.split(",")[1] for line in table[1:]] == ["leaf", "leaf", "leaf", "group", "total"]

    def refused(constant: str) -> Any:
        raise AssertionError(constant)

    record = json.loads(made["jsonl"].path.read_text(), parse_constant=refused)
    assert record["step"] == 5
    assert record["leaf"]["zero"]["update_ratio"] == "inf"
    assert record["leaf"]["none"]["update_norm"] is None
    assert record["total"]["update_norm"] == flat(samples[0])["total/update_norm"]


def named(*names: str, step: int = 0, groups: Any = ()) -> Sample:
    """A sample of leaves of some names."""
    leaves = {name: {"norm": float(i), "rms": NAN} for i, name in enumerate(names)}
    return from_rows(step, leaves, {g: {"norm": 1.5, "rms": 2.0} for g in groups}, leaves[names[0]])


def assert_reads(path: Any, wanted: list[Sample]) -> None:
    got = telemetry.read(path)
    assert [int(s.step) for s in got] == [int(s.step) for s in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert (one.leaves, one.groups) == (other.leaves, other.groups)
        np.testing.assert_equal(flat(one), flat(other))


both = pytest.mark.parametrize("kind", ["csv", "jsonl"])
ODD = ["", "\r", "\n", "a\r\nb", '"', 'a"\n,"b', ",", " ", "\0", "\x1a", "\ud800", "\ud83d\ude00"]
ODD += ["\U0001f600", "\u2028\x85", "ä/ö", "step,kind,name", "0,total,x", "nan", "leaf", "group"]


@both
@pytest.mark.parametrize("name", [*ODD, None], ids=[*map(ascii, ODD), "all"])
def test_any_name_is_read_as_it_was(kind, name, tmp_path):
    names = ODD if name is None else [name]
    given = [named(*names, step=i, groups=[f"{n}*" for n in names]) for i in range(2)]
    with sink_of(kind, tmp_path) as sink:
        for sample in given:
            sink(sample.step, sample)
    assert_reads(sink.path, given)


@both
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    names=st.lists(st.text(st.characters(), max_size=6), min_size=1, max_size=4, unique=True)
)
def test_any_names_are_read_as_they_were(kind, tmp_path_factory, names):
    sample = named(*names)
    with sink_of(kind, tmp_path_factory.getbasetemp() / "names") as sink:
        sink(0, sample)
    assert_reads(sink.path, [sample])


@both
def test_a_file_may_be_cut_anywhere(kind, tmp_path):
    given = [named('a"\n,b', "ä", "w", step=i, groups=["g\n1,x"]) for i in range(4)]
    with sink_of(kind, tmp_path) as sink:
        ends = [0]
        for sample in given:
            sink(sample.step, sample)
            ends.append(sink.path.stat().st_size)
    whole = sink.path.read_bytes()
    for cut in (*range(ends[1] + 2), *range(ends[1] + 2, ends[2], 5), ends[2]):
        sink.path.write_bytes(whole[:cut])
        done = 2 if cut == ends[2] else int(cut >= ends[1])
        assert_reads(sink.path, given[:done])
        with sink_of(kind, tmp_path, append=True) as again:
            again(3, given[3])
        assert_reads(sink.path, [*given[:done], given[3]])


class Fails:
    """A file on a full disk: it takes some bytes, and then no more."""

    def __init__(self, file: Any, room: int, cut: bool):
        self.file, self.room, self.cut = file, room, cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken, self.room = self.file.write(data[: self.room]), 0
        return taken

    def truncate(self, size: int) -> None:
        if not self.cut:
            raise OSError(5, "Input/output error")
        self.file.truncate(size)


@both
@pytest.mark.parametrize("cut", [True, False], ids=["cut at once", "cut later"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("room", [0, 1, 30, 50])
def test_a_write_that_fails_writes_nothing(room, first, cut, kind, tmp_path):
    given = [named("a\nb", "w", step=i) for i in range(4)]
    with sink_of(kind, tmp_path) as sink:
        if not first:
            sink(0, given[0])
        file, size = sink._file, sink.path.stat().st_size
        sink._file = Fails(file, room, cut)
        with pytest.raises(OSError, match="No space left"):
            sink(1, given[1])
        sink._file = file
        assert sink.path.stat().st_size == size + (0 if cut else room)
        assert_reads(sink.path, given[: 0 if first else 1])
        for i in (2, 3):
            sink(i, given[i])
    assert_reads(sink.path, given[2:] if first else [given[0], *given[2:]])


@both
def test_a_disk_that_is_full_for_a_while(kind, tmp_path):
    """A limit of the system on the sizes of files: some of a sample is written, then none."""
    given = [named("a\nb", "w", step=i) for i in range(30)]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = []
    with sink_of(kind, tmp_path) as sink:
        for i, sample in enumerate(given):
            size = 333 if i < 10 else 30 * 999
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
            try:
                sink(i, sample)
            except OSError:
                failed.append(i)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert 0 < failed[0] < failed[-1] == 9
    assert_reads(sink.path, [sample for i, sample in enumerate(given) if i not in failed])


def renamed(path: Any) -> None:
    path.rename(path.with_name("old"))


def replaced(path: Any) -> None:
    other = path.with_name("other")
    other.write_bytes(b"")
    other.rename(path)


MOVES: dict[str, Any] = {
    "deleted": lambda path: path.unlink(),
    "deleted with its folder": lambda path: shutil.rmtree(path.parent),
    "renamed": renamed,
    "replaced": replaced,
    "emptied": lambda path: path.write_bytes(b""),
}


@both
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_file_that_is_gone_is_made_again(move, kind, tmp_path):
    given = [named("w", step=i) for i in range(4)]
    with sink_of(kind, tmp_path / "folder") as sink:
        sink(0, given[0])
        move(sink.path)
        sink(1, given[1])
        sink(2, given[2])
        assert_reads(sink.path, given[1:3])
        move(sink.path)
        sink(3, given[3])
    assert_reads(sink.path, given[3:])


class Slow:
    """A file that takes a few bytes at a time, and lets others go first."""

    def __init__(self, file: Any):
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        time.sleep(1e-5)
        return self.file.write(data[:40])


@both
@pytest.mark.parametrize("count", [1, 3])
def test_several_threads_append_to_one_file(count, kind, tmp_path):
    sinks = [sink_of(kind, tmp_path, append=True) for _ in range(count)]  # before there is a header
    for sink in sinks:
        sink._file = Slow(sink._file)

    def work(i: int) -> None:
        for step in range(12):
            sinks[i % count](100 * i + step, named("a\nb", "w"))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sink in sinks:
        sink.close()
    steps = [int(s.step) for s in telemetry.read(sinks[0].path)]
    assert sorted(steps) == [100 * i + step for i in range(3) for step in range(12)]
    assert sinks[0].path.read_bytes().count(b"step,kind") == (1 if kind == "csv" else 0)


def test_a_header_that_older_versions_wrote_twice_is_passed_over(tmp_path):
    with sink_of("csv", tmp_path) as sink:
        sink(0, named("w"))
    sink.path.write_bytes(2 * sink.path.read_bytes())
    assert_reads(sink.path, [named("w")] * 2)


FOREIGN = {
    "text": b"some notes, without an end",
    "a table": b"epoch,loss\n1,0.5\n",
    "of the other": {"csv": b'{"step": 0}\n', "jsonl": b"step,kind,name,norm,rms\n"},
    "bytes": bytes(range(256)),
}


@both
@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_the_file_of_something_else_stays_as_it_is(content, kind, tmp_path):
    content = content[kind] if isinstance(content, dict) else content
    sink = sink_of(kind, tmp_path, append=True)
    sink.path.write_bytes(content)
    with sink, pytest.raises(ValueError, match=rf"^{type(sink).__name__}: path must be new or a f"):
        sink(0, named("w"))
    assert sink.path.read_bytes() == content


def test_a_table_refuses_other_columns(samples, tmp_path):
    path = tmp_path / "run.csv"
    with telemetry.CSVSink(path) as sink:
        sink(0, samples[0])
    before = path.read_bytes()
    other = measure(params(), params(), previous=params())
    match = (
        rf"^CSVSink: the measures of a sample must be the columns of {re.escape(str(path))}: "
        r"cosine is not in the file; mu_max is not in the sample; .*Give a new file\.$"
    )
    with (
        telemetry.CSVSink(path, append=True) as sink,
        pytest.raises(ValueError, match=match),
    ):
        sink(1, other)
    assert path.read_bytes() == before


def line_of(kind: str, number: int, old: bytes, new: bytes) -> Any:
    """Damage: something in one line is something else."""

    def damage(data: bytes) -> bytes:
        lines = data.split(b"\n")
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new, 1)
        return b"\n".join(lines)

    return kind, damage, number


DAMAGED: dict[str, Any] = {
    "header": line_of("csv", 1, b"step", b"stop"),
    "kind": line_of("csv", 2, b"leaf", b"loaf"),
    "step": line_of("csv", 3, b"0,", b"x,"),
    "number": line_of("csv", 3, b"0.0", b"0.z"),
    "columns": line_of("csv", 4, b",", b""),
    "quotes": line_of("csv", 2, b"w", b'"w'),
    "bytes": line_of("csv", 4, b"0", b"\xff"),
    "no object": line_of("jsonl", 2, b'{"step": 1', b'["step", 1'),
    "half": line_of("jsonl", 1, b'{"step": 0', b""),
    "no total": line_of("jsonl", 1, b"total", b"tatol"),
    "no rows": line_of("jsonl", 1, b'"leaf": {"w": {"norm": 0.0, "rms": null}}', b'"leaf": 3'),
    "a measure": line_of("jsonl", 2, b"norm", b"form"),
    "a number": line_of("jsonl", 2, b"0.0", b'"z"'),
    "UTF-8": line_of("jsonl", 2, b"w", b"\xff"),
    "a list": ("jsonl", lambda data: b"[]\n" + data, 1),
}


@pytest.mark.parametrize(("kind", "damage", "line"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_before_the_end_is_named(kind, damage, line, tmp_path):
    with sink_of(kind, tmp_path) as sink:
        for step in range(3):
            sink(step, named("w", step=step))
    sink.path.write_bytes(damage(sink.path.read_bytes()))
    match = rf"^read: line {line} of {re.escape(str(sink.path))} is damaged: .*\. Remove the lines"
    with pytest.raises(ValueError, match=match):
        telemetry.read(sink.path)


def test_a_table_with_an_open_quote_is_not_cut(tmp_path):
    with sink_of("csv", tmp_path) as sink:
        for step in range(3):
            sink(step, named("w"))
    broken = sink.path.read_bytes().replace(b"w", b'"w', 1)
    sink.path.write_bytes(broken)
    with (
        sink_of("csv", tmp_path, append=True) as sink,
        pytest.raises(ValueError, match=r"^CSVSink: line 2 of .*run.csv is damaged"),
    ):
        sink(3, named("w"))
    assert sink.path.read_bytes() == broken


@pytest.mark.parametrize("kind", ["csv", "jsonl", "tensorboard"])
def test_a_sink_that_is_closed_says_so(kind, tmp_path):
    make = telemetry.TensorBoardSink if kind == "tensorboard" else lambda path: sink_of(kind, path)
    with make(tmp_path) as sink:
        sink.close()
    with pytest.raises(
        ValueError, match=rf"^{type(sink).__name__}: the sink of .* is closed\. Make"
    ):
        sink(0, named("w"))


def test_a_dict_sink_keeps_records(samples):
    with telemetry.DictSink() as sink:
        sink(jnp.int32(3), samples[0])
    np.testing.assert_equal(sink.records, [{"step": 3, **flat(samples[0])}])


def events(path: Any) -> dict[str, dict[int, float]]:
    """The scalars of a TensorBoard event file, read by its format."""
    from tensorboardX.proto import event_pb2

    found: dict[str, dict[int, float]] = {}
    parse = vars(event_pb2)["Event"].FromString  # protobuf makes the class when it is imported
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = parse(data[at + 12 : at + 12 + length])
        at += length + 16
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_reads_the_scalars(tmp_path):
    tx = probe(adaptax.adam(0.1), 1, history=3)
    kept = history(trained(tx)[-1][1])
    with telemetry.TensorBoardSink(tmp_path) as sink:
        for sample in kept[:-1]:
            sink(sample.step, sample)
        (path,) = tmp_path.iterdir()
        assert set(events(path)["w/update_ratio"]) == {4, 5}  # flushed
        sink(kept[-1].step, kept[-1])
    found = events(path)
    wanted = {k: v for k, v in flat(kept[-1]).items() if not np.isnan(v)}
    assert {tag: of[6] for tag, of in found.items()} == pytest.approx(wanted)


def test_tensorboard_begins_another_file_after_one_that_is_gone(tmp_path):
    with telemetry.TensorBoardSink(tmp_path / "run") as sink:
        for step, move in enumerate([lambda: None, (tmp_path / "run").iterdir, lambda: None]):
            for path in move() or ():
                path.unlink()
            sink(step, named("w"))
        (path,) = (tmp_path / "run").iterdir()
        assert set(events(path)["w/norm"]) == {1, 2}
        shutil.rmtree(tmp_path / "run")
        sink(3, named("w"))
    (path,) = (tmp_path / "run").iterdir()
    assert set(events(path)["w/norm"]) == {3}


@pytest.mark.parametrize("what", ["write", "flush"])
def test_tensorboard_begins_another_file_after_a_write_that_failed(what, tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with telemetry.TensorBoardSink(tmp_path) as sink:
        sink(0, named("w"))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(RecordWriter, what, full)
            sink(1, named("w"))
        for step in range(2, 40):
            sink(step, named("w"))
    first, second = sorted(map(events, tmp_path.iterdir()), key=lambda found: len(found["w/norm"]))
    assert 0 in first["w/norm"] and set(second["w/norm"]) == set(range(2, 40))


def test_tensorboard_takes_any_name(tmp_path):
    with telemetry.TensorBoardSink(tmp_path) as sink:
        sink(0, named(*ODD))
    (path,) = tmp_path.iterdir()
    wanted = {f"{n}/norm" if n else "norm": i for i, n in enumerate(ODD)} | {"total/norm": 0}
    wanted = {n.encode("utf-8", "backslashreplace").decode(): x for n, x in wanted.items()}
    assert {name: of[0] for name, of in events(path).items()} == wanted


@pytest.mark.parametrize("package", ["tensorboardX", "matplotlib.figure"])
def test_a_missing_package_is_named(package, monkeypatch, samples, tmp_path):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"needs {package.split('.')[0]}: pip install"):
        if package == "tensorboardX":
            telemetry.TensorBoardSink(tmp_path)
        else:
            telemetry.plot_norms(samples)


def layered() -> list[Sample]:
    """Leaves whose ratios are known: 1e-5, 1e-3, 1 and none, over four steps."""
    p = {f"layers/{i}": jnp.ones(2) for i in (0, 2, 10)} | {"frozen": jnp.ones(2)}
    ratios = {"layers/0": 1e-5, "layers/2": 1e-3, "layers/10": 1.0}
    u = {name: jnp.full(2, c) for name, c in ratios.items()} | {"frozen": None}
    return [measure(u, p, step=10 * i) for i in range(4)]


def test_the_heat_map_shows_each_leaf_and_step(tmp_path):
    figure = telemetry.plot_update_ratios(layered(), tmp_path / "ratios.png")
    ax, bar = figure.axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["frozen", "layers/0", "layers/2", "layers/10"]
    mesh = ax.collections[0]
    colors = mesh.get_array()
    assert colors.shape == (4, 4)
    assert colors.mask[0].all() and not colors.mask[1:].any()
    np.testing.assert_allclose(colors[1:, 0], [1e-5, 1e-3, 1.0], 1e-6)
    red, green, blue = np.array([mesh.to_rgba(x)[:3] for x in (1e-5, 1e-3, 1.0)])
    assert red[2] > red[0] and blue[0] > blue[2] and green.min() > 0.9  # blue, white, red
    assert sorted(line.get_ydata()[0] for line in bar.lines if len(line.get_xdata()) == 2)[
        :2
    ] == pytest.approx([1e-4, 1e-2])
    assert (tmp_path / "ratios.png").stat().st_size > 5000
    some = telemetry.plot_update_ratios(layered(), leaves="layers/*")
    assert len(some.axes[0].get_yticks()) == 3
    with pytest.raises(ValueError, match="plot_update_ratios: the pattern 'x' matches no leaf"):
        telemetry.plot_update_ratios(layered(), leaves="x")


def test_curves_of_norms_and_leaves(samples, tmp_path):
    figure = telemetry.plot_norms(samples, tmp_path / "norms.png", name="all")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["update"], [s.of("all")["update_norm"] for s in samples])
    assert set(lines) == {"gradient", "update", "param"}
    figure = telemetry.plot_leaves(layered(), "param_rms", tmp_path / "leaves.png", log=False)
    assert [line.get_label() for line in figure.axes[0].lines][-1] == "layers/10"
    assert all((line.get_ydata() == 1).all() for line in figure.axes[0].lines)
    assert all((tmp_path / f"{n}.png").stat().st_size > 5000 for n in ("norms", "leaves"))
    with pytest.raises(ValueError, match="plot_leaves: measure must be one of 'eps_fraction'"):
        telemetry.plot_leaves(layered(), "x")
    with pytest.raises(ValueError, match="plot_norms: the pattern 'x' matches no leaf"):
        telemetry.plot_norms(layered(), name="x")


def test_figures_can_be_drawn_from_files_and_scans(samples, tmp_path):
    with telemetry.JSONLSink(tmp_path / "run.jsonl") as sink:
        for sample in layered():
            sink(sample.step, sample)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layered())
    for given in (sink.path, str(sink.path), stacked, layered()[0]):
        mesh = telemetry.plot_update_ratios(given).axes[0].collections[0]
        np.testing.assert_allclose(mesh.get_array()[2], 1e-3, 1e-6)
