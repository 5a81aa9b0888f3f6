"""snapshot, monitor and measure_with_ema: what is measured, and a state of one structure."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import assert_close, assert_same_bits, grads, optax_rules, params, skeleton

import adaptax
from adaptax.transforms._monitoring import (
    MonitorState,
    SnapshotState,
    measure_with_ema,
    monitor,
    snapshot,
)


class Ours:
    """Adaptax's names beside those of `optax`."""

    chain, sgd, clip_by_global_norm = adaptax.chain, adaptax.sgd, adaptax.clip_by_global_norm
    monitor, snapshot, measure_with_ema = monitor, snapshot, measure_with_ema
    tree = optax.tree


def is_long(updates: Any) -> Any:
    return optax.tree.norm(updates) > 2.0


def largest(updates: Any) -> Any:
    return jax.tree.map(lambda x: jnp.max(jnp.abs(x)), updates)


def monitored(lib: Any) -> Any:
    return lib.chain(
        lib.sgd(1.0, momentum=0.5),
        lib.monitor(
            {
                "norm": lib.tree.norm,
                "largest": largest,
                "often": lib.measure_with_ema(is_long, decay=0.75),
                "mean": lib.measure_with_ema(largest, 0.75, debias=False),
            }
        ),
        lib.snapshot("before", largest),
        lib.clip_by_global_norm(0.5),
    )


STEPS = [jax.tree.map(lambda g, i=i: g * (i - 1.0), grads()) for i in range(5)]
STRUCT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params())


def test_measurements_are_those_of_optax():
    ours, other = monitored(Ours), monitored(optax)
    state, other_state = ours.init(params()), other.init(params())
    for g in STEPS:
        u, state = ours.update(g, state, params())
        with optax_rules():
            wanted, other_state = other.update(g, other_state, params())
        assert_close(u, wanted, 1e-5)
        for name in ("norm", "largest", "often", "mean", "before"):
            got = optax.tree.get(state[1:3], name)
            assert_close(got, optax.tree.get(other_state[1:3], name), 1e-5)
        assert skeleton(state[1:3]) == skeleton(other_state[1:3])


def test_the_state_has_one_structure_and_can_be_scanned():
    tx = monitored(Ours)
    first = tx.init(params())
    assert all(not np.any(x) for x in jax.tree.leaves(first[1].measurements))
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *STEPS)
    last, _ = jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), first, stacked)
    state = first
    for g in STEPS:
        _, state = tx.update(g, state)
    assert_close(last, state, 1e-6)
    abstract = jax.eval_shape(tx.init, params())
    assert jax.tree.structure(abstract) == jax.tree.structure(last)
    assert [x.dtype for x in jax.tree.leaves(abstract)] == [x.dtype for x in jax.tree.leaves(last)]


def test_updates_pass_as_they_are():
    tx = adaptax.chain(snapshot("n", adaptax.global_norm), monitor({"n": adaptax.global_norm}))
    u, _ = tx.update(grads(), tx.init(params()))
    assert_same_bits(u, grads())


DTYPES = {
    "narrow": (jnp.bfloat16, jnp.bfloat16),
    "wide gradients": (jnp.bfloat16, jnp.float32),
    "narrow gradients": (jnp.float32, jnp.bfloat16),
    "complex": (jnp.complex64, jnp.complex64),
}


@pytest.mark.parametrize(("dtype", "given"), DTYPES.values(), ids=DTYPES.keys())
def test_dtypes_are_a_fixed_point(dtype, given):
    tx = adaptax.chain(
        snapshot("copy", lambda u: u),
        monitor({"copy": lambda u: u, "mean": measure_with_ema(lambda u: u, 0.5)}),
    )
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    state = tx.init(params(dtype))
    for _ in range(2):
        assert {x.dtype for x in jax.tree.leaves(state[0])} == {jnp.dtype(wide)}
        assert {x.dtype for x in jax.tree.leaves(state[1].measurements)} == {jnp.dtype(wide)}
        before = jax.tree.map(lambda x: x.dtype, state)
        _, state = tx.update(grads(given), state, params(dtype))
        assert jax.tree.map(lambda x: x.dtype, state) == before


def test_wider_gradients_leave_the_dtypes(x64):
    tx = adaptax.chain(snapshot("copy", lambda u: u), monitor({"copy": lambda u: u}))
    state = tx.init(params(jnp.float32))
    _, after = tx.update(grads(jnp.float64), state)
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("make", [lambda f: snapshot("n", f), lambda f: monitor({"n": f})])
def test_init_needs_only_shapes(make):
    tx = make(lambda u: {"norm": optax.tree.norm(u), "three": 3, "long": is_long(u)})
    wanted = jax.eval_shape(tx.init, params())
    assert jax.eval_shape(tx.init, STRUCT) == wanted
    state = tx.init(STRUCT)
    assert skeleton(state) == skeleton(wanted)
    after = tx.update(grads(), state)[1]
    assert skeleton(after) == skeleton(wanted)
    assert int(next(iter(after[0].values()))["three"]) == 3


def test_a_snapshot_begins_with_the_measure_of_the_parameters():
    state = snapshot("n", adaptax.global_norm).init(params())
    np.testing.assert_allclose(state.measurement["n"], adaptax.global_norm(params()))


@pytest.mark.parametrize("gradient", ["none", "float0"])
def test_what_is_not_trained_is_none_for_a_measure(gradient):
    whole = {**params(), "n": jnp.arange(3)}
    none = None if gradient == "none" else np.zeros(3, jax.dtypes.float0)
    g = {**grads(), "n": none}
    tx = monitor({"copy": lambda u: u, "mean": measure_with_ema(largest, 0.5)})
    tx = adaptax.chain(tx, snapshot("copy", lambda u: u))
    state = tx.init(whole)
    u, after = tx.update(g, state, whole)
    assert u["n"] is none
    assert after[1].measurement["copy"]["n"] is None
    assert skeleton(after) == skeleton(state)
    assert_same_bits({k: after[0].measurements["copy"][k] for k in "bw"}, grads())


def test_nothing_to_measure():
    tx = monitor({"norm": adaptax.global_norm, "mean": measure_with_ema(adaptax.global_norm, 0.5)})
    for tree in ({}, {"x": jnp.zeros((0, 3))}):
        u, state = tx.update(tree, tx.init(tree))
        assert_same_bits(u, tree)
        assert float(state.measurements["norm"]) == 0.0
    tx = monitor({})
    assert tx.update(grads(), tx.init(params()))[1] == MonitorState({}, ())


def test_nan_is_measured():
    tx = snapshot("norm", adaptax.global_norm)
    g = {**grads(), "b": jnp.full(3, jnp.nan)}
    assert jnp.isnan(tx.update(g, tx.init(params()))[1].measurement["norm"])


def test_extra_arguments_reach_a_measure():
    def update(updates: Any, state: Any, params: Any = None, *, value: Any = 0.0) -> Any:
        return value * jnp.ones(()), state

    tx = monitor({"value": adaptax.GradientTransformation(lambda p: (), update)})
    _, state = tx.update(grads(), tx.init(params()), params(), value=jnp.float32(2.0), other=1)
    assert float(state.measurements["value"]) == 2.0


def test_they_are_values():
    def make(decay: float) -> Any:
        measures = {"x": adaptax.global_norm, "y": measure_with_ema(adaptax.global_norm, decay)}
        return adaptax.chain(snapshot("x", adaptax.global_norm), monitor(measures))

    tx = make(0.5)
    assert tx == make(0.5) == pickle.loads(pickle.dumps(tx)) == copy.deepcopy(tx)
    assert hash(tx) == hash(make(0.5))
    assert tx != make(0.75)
    assert snapshot("x", largest) != snapshot("y", largest) != snapshot("y", is_long)
    assert jax.tree.leaves(tx) == [0.5]
    again = jax.tree.unflatten(jax.tree.structure(tx), [0.75])
    assert again == make(0.75)


def test_the_decay_can_be_traced_and_scheduled():
    def run(decay: Any) -> Any:
        tx = monitor({"mean": measure_with_ema(adaptax.global_norm, decay)})
        state = tx.init(params())
        for g in STEPS[2:]:
            _, state = tx.update(g, state)
        return state.measurements["mean"]

    both = jax.vmap(run)(jnp.array([0.25, 0.5]))
    assert_close(list(both), [run(0.25), run(0.5)], 1e-6)
    assert_close(run(lambda count: jnp.float32(0.5)), run(0.5), 1e-6)


def test_the_measures_are_its_parts():
    from adaptax._core import node_of

    tx = monitored(Ours)
    state = tx.init(params())
    inside = node_of(node_of(tx).parts(state)["1"][0]).parts(state[1])  # type: ignore[attr-defined]
    assert list(inside) == ["norm", "largest", "often", "mean"]
    assert_same_bits(inside["mean"][1], state[1].measure_states[3])
    assert node_of(monitored(Ours)).parts(None)["1"][1] is None  # type: ignore[attr-defined]


def test_errors():
    with pytest.raises(TypeError, match="monitor: measures must be a mapping of names"):
        monitor([adaptax.global_norm])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"monitor: measures\['x'\] must be a transformation"):
        monitor({"x": 3})
    with pytest.raises(ValueError, match=r"measure_with_ema: decay must lie in \[0, 1\)"):
        measure_with_ema(largest, 1.0)
    with pytest.raises(TypeError, match="snapshot: the second argument of update must be"):
        snapshot("x", largest).update(grads(), ())
    with pytest.raises(TypeError, match=r"MonitorState of \['x'\]"):
        monitor({"x": largest}).update(grads(), SnapshotState({}))
    with pytest.raises(TypeError, match="measure_with_ema: the second argument"):
        measure_with_ema(largest, 0.5).update(grads(), ())
    tx = snapshot("copy", lambda u: u)
    less = {"b": grads()["b"]}
    with pytest.raises(adaptax.TreeMismatchError, match="those in the state at 1 of 2 leaves"):
        tx.update(less, tx.init(params()))
    tx = monitor({"copy": lambda u: u})
    wider = {**grads(), "b": jnp.ones(4)}
    with pytest.raises(adaptax.TreeMismatchError, match=r"has shape \(4,\) against \(3,\)"):
        tx.update(wider, tx.init(params()))
