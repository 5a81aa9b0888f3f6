"""Parts of the parameters: masked, partition, and what is made of them."""

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
    inner_jits,
    optax_rules,
    params,
    skeleton,
    trajectory,
)

import adaptax
from adaptax import MaskedNode, MuonDimensionNumbers

MASK = {"b": False, "w": True}
MASKS: dict[str, Any] = {
    "tree": MASK,
    "function": lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree),
    "numpy bools": {"b": np.bool_(False), "w": np.bool_(True)},
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
STEPS = [jax.tree.map(lambda g, i=i: g / (i + 1), grads()) for i in range(3)]

INNER: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda lib: lib.sgd(0.1),
    "scale": lambda lib: lib.scale(-0.1),
    "trace": lambda lib: lib.trace(0.5),
    "adamw": lambda lib: lib.adamw(0.1, mask={"b": True, "w": True}),
    "global norm": lambda lib: lib.clip_by_global_norm(0.5),
    "chain": lambda lib: lib.chain(lib.clip_by_global_norm(0.5), lib.adam(0.1)),
}
inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER.keys())


# masked


@masks
@inner
def test_masked_is_that_of_optax(make, mask):
    ours = adaptax.masked(make(adaptax), mask)
    other = optax.masked(make(optax), mask)
    got, state = trajectory(ours, params(), STEPS)
    with optax_rules():
        wanted, other_state = trajectory(other, params(), STEPS)
    assert_close(got, wanted, 2e-4, 1e-6)
    assert skeleton(state) == skeleton(other_state)


@inner
def test_masked_leaves_pass_and_the_others_are_as_alone(make):
    tx = make(adaptax)
    only = {"w": params()["w"]}
    if "mask" in repr(tx):
        tx = adaptax.adamw(0.1)
    got, state = trajectory(adaptax.masked(tx, MASK), params(), STEPS)
    alone, _ = trajectory(tx, only, [{"w": g["w"]} for g in STEPS])
    for u, g, w in zip(got, STEPS, alone, strict=True):
        assert_same_bits(u["b"], g["b"])
        assert_same_bits(u["w"], w["w"])
    assert all(jnp.shape(x) != (3,) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("mask", [True, lambda tree: True], ids=["value", "function"])
def test_a_prefix_masks_all_leaves_below(mask):
    tx = adaptax.scale_by_adam()
    got, _ = trajectory(adaptax.masked(tx, mask), params(), STEPS)
    wanted, _ = trajectory(tx, params(), STEPS)
    assert_same_bits(got, wanted)
    deep = {"x": params(), "y": params()}
    u, _ = trajectory(adaptax.masked(adaptax.scale(2.0), {"x": True, "y": False}), deep, [deep])
    assert_close(u[0]["x"], jax.tree.map(lambda x: 2 * x, params()))
    assert_same_bits(u[0]["y"], params())


def test_nothing_selected_changes_nothing():
    tx = adaptax.masked(adaptax.adam(0.1), False)
    u, state = trajectory(tx, params(), [grads()])
    assert_same_bits(u[0], grads())
    assert sum(jnp.size(x) for x in jax.tree.leaves(state)) == 1  # the count


SEEING: dict[str, Callable[[Any], Any]] = {
    "masked": lambda mask: adaptax.masked(adaptax.scale_by_adam(), mask),
    "masked stateless": lambda mask: adaptax.masked(adaptax.scale(2.0), mask),
    "decay": lambda mask: adaptax.add_decayed_weights(0.1, mask),
    "adamw": lambda mask: adaptax.adamw(0.1, mask=mask),
}


@pytest.mark.parametrize("make", SEEING.values(), ids=SEEING.keys())
def test_a_mask_function_sees_the_parameters(make):
    seen = []

    def mask(tree: Any) -> Any:
        seen.append(tree)
        return True

    tx = make(mask)
    state = tx.init(params())
    seen.clear()
    tx.update(grads(), state, params())
    assert seen
    for tree in seen:
        assert_same_bits(tree, params(), "what the mask saw and the parameters")


NONES: dict[str, Callable[[], Any]] = {
    "masked stateful": lambda: adaptax.masked(adaptax.scale_by_adam(), not_none),
    "masked stateless": lambda: adaptax.masked(adaptax.scale(1.0), not_none),
    "decay": lambda: adaptax.add_decayed_weights(0.1, not_none),
    "partition": lambda: adaptax.partition(
        {"x": adaptax.scale_by_adam()}, lambda tree: jax.tree.map(lambda _: "x", tree)
    ),
    "muon": lambda: adaptax.muon(0.1),
}


def not_none(tree: Any) -> Any:
    """The mask that everybody writes; a None in the tree stays None."""
    return jax.tree.map(lambda x: True, tree)


@pytest.mark.parametrize("make", NONES.values(), ids=NONES.keys())
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_parameter_that_is_none_is_no_leaf(make, where):
    none = {"a": None} if where == "before" else {"z": None}
    p, g = params() | none, grads() | none
    got, state = trajectory(make(), p, [g])
    wanted, _ = trajectory(make(), params(), [grads()])
    assert got[0][next(iter(none))] is None
    assert_same_bits({k: got[0][k] for k in "bw"}, wanted[0])
    make().update(g, state, p)


@pytest.mark.parametrize("make", NONES.values(), ids=NONES.keys())
def test_a_gradient_that_is_none_leaves_the_state(make):
    tx = make()
    state = tx.init(params())
    u, after = tx.update({**grads(), "b": None}, state, params())
    assert u["b"] is None
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_masks_nest():
    tx = adaptax.masked(adaptax.masked(adaptax.trace(0.5), MASK), True)
    once = adaptax.masked(adaptax.trace(0.5), MASK)
    assert_same_bits(trajectory(tx, params(), STEPS)[0], trajectory(once, params(), STEPS)[0])
    other = optax.masked(optax.masked(optax.trace(0.5), MASK), True)
    assert skeleton(tx.init(params())) == skeleton(other.init(params()))


def test_masked_nodes_hold_nothing():
    assert jax.tree.leaves(MaskedNode()) == []
    assert MaskedNode() == MaskedNode()
    state = adaptax.masked(adaptax.trace(0.5), MASK).init(params())
    assert state.inner_state.trace["b"] == MaskedNode()


@masks
def test_masked_decay_stays_in_the_kernel_of_its_chain(mask):
    tx = adaptax.adamw(0.1, mask=mask)
    names = inner_jits(tx.update, grads(), tx.init(params()), params())
    assert sum("scale_by_adam" in name for name in names) == 2
    assert sum("add_decayed_weights" in name for name in names) == 2
    got, _ = trajectory(tx, params(), STEPS)
    decayed, _ = trajectory(adaptax.adamw(0.1), params(), STEPS)
    plain, _ = trajectory(adaptax.adam(0.1), params(), STEPS)
    assert_close([u["w"] for u in got], [u["w"] for u in decayed], 1e-6)
    assert_close([u["b"] for u in got], [u["b"] for u in plain], 1e-6)


def test_masked_works_under_jit_and_vmap():
    tx = adaptax.masked(adaptax.adam(0.1), MASK)
    wanted, _ = trajectory(tx, params(), [grads()])
    state = tx.init(params())
    assert_close(jax.jit(tx.update)(grads(), state, params())[0], wanted[0], 1e-6)
    stacked = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), grads())
    u = jax.vmap(lambda g: tx.update(g, state, params())[0])(stacked)
    assert_close(jax.tree.map(lambda x: x[0], u), wanted[0], 1e-6)


# partition

LABELS: dict[str, Any] = {
    "tree": {"b": "slow", "w": "fast"},
    "function": lambda tree: {"b": "slow", "w": "fast"},
    "one label unused": {"b": "slow", "w": "slow"},
}


def parts(lib: Any, labels: Any) -> Any:
    return lib.partition({"fast": lib.sgd(0.5, 0.9), "slow": lib.adamw(0.1)}, labels)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_partition_is_that_of_optax(labels):
    got, state = trajectory(parts(adaptax, labels), params(), STEPS)
    with optax_rules():
        wanted, other = trajectory(parts(optax, labels), params(), STEPS)
    assert_close(got, wanted, 2e-4, 1e-6)
    assert skeleton(state) == skeleton(other)


def test_each_part_is_as_alone():
    got, _ = trajectory(parts(adaptax, LABELS["tree"]), params(), STEPS)
    for key, tx in {"b": adaptax.adamw(0.1), "w": adaptax.sgd(0.5, 0.9)}.items():
        alone, _ = trajectory(tx, {key: params()[key]}, [{key: g[key]} for g in STEPS])
        assert_same_bits([{key: u[key]} for u in got], alone)


def test_labels_may_be_a_prefix():
    deep = {"x": params(), "y": [params()["b"]]}
    tx = adaptax.partition({1: adaptax.scale(2.0), 2: adaptax.scale(3.0)}, {"x": 1, "y": 2})
    u, _ = trajectory(tx, deep, [deep])
    assert_close(u[0]["x"], jax.tree.map(lambda x: 2 * x, params()))
    assert_close(u[0]["y"], [3 * params()["b"]])
    whole = adaptax.partition({"all": adaptax.scale(2.0)}, "all")
    assert_close(trajectory(whole, deep, [deep])[0][0], jax.tree.map(lambda x: 2 * x, deep))


def test_a_global_norm_is_that_of_its_part():
    tx = adaptax.partition(
        {"clip": adaptax.clip_by_global_norm(0.5), "not": adaptax.identity()},
        {"b": "clip", "w": "not"},
    )
    u, _ = trajectory(tx, params(), [grads()])
    np.testing.assert_allclose(adaptax.global_norm(u[0]["b"]), 0.5, rtol=1e-6)
    assert_same_bits(u[0]["w"], grads()["w"])


def test_numbers_of_the_parts_are_leaves():
    def run(rate, g):
        tx = adaptax.partition(
            {"x": adaptax.scale(rate), "y": adaptax.scale(1.0)}, {"b": "x", "w": "y"}
        )
        return tx.update(g, tx.init(g))[0]

    u = jax.vmap(run, in_axes=(0, None))(jnp.array([2.0, 3.0]), grads())
    assert_same_bits(u["b"], jnp.stack([2 * grads()["b"], 3 * grads()["b"]]))


# muon


def stack() -> Any:
    rng = np.random.default_rng(1)
    return {
        "b": jnp.array(rng.normal(size=4), jnp.float32),
        "s": jnp.array(rng.normal(size=(3, 4, 6)), jnp.float32),
        "w": jnp.array(rng.normal(size=(6, 4)), jnp.float32),
    }


SINGLE = [stack()] * 2


def close_matrices(got: Any, wanted: Any) -> None:
    """Newton-Schulz magnifies rounding."""
    assert_close(got, wanted, 2e-3, 2e-4)


def test_vectors_take_adamw_and_matrices_muon():
    tx = adaptax.muon(0.1, weight_decay=0.2, adam_b1=0.5, adam_b2=0.75, adam_weight_decay=0.3)
    state = tx.init(stack())
    assert set(state.inner_states) == {"muon", "adam"}
    got, _ = trajectory(tx, stack(), SINGLE)
    adamw = adaptax.adamw(0.1, 0.5, 0.75, weight_decay=0.3, nesterov=True)
    rest = {k: v for k, v in stack().items() if k != "w"}
    wanted, _ = trajectory(adamw, rest, [rest] * 2)
    assert_same_bits([{k: u[k] for k in rest} for u in got], wanted)
    matrix = adaptax.chain(
        adaptax.scale_by_muon(),
        adaptax.scale_by_shape(),
        adaptax.add_decayed_weights(0.2),
        adaptax.scale_by_learning_rate(0.1),
    )
    alone, _ = trajectory(matrix, {"w": stack()["w"]}, [{"w": stack()["w"]}] * 2)
    close_matrices([{"w": u["w"]} for u in got], alone)


@pytest.mark.parametrize("as_function", [False, True], ids=["tree", "function"])
def test_dimension_numbers_say_which_axes_make_matrices(as_function):
    numbers = {"b": None, "s": MuonDimensionNumbers(1, 2), "w": None}
    given = (lambda tree: numbers) if as_function else numbers
    got, state = trajectory(adaptax.muon(0.1, muon_weight_dimension_numbers=given), stack(), SINGLE)
    assert state.inner_states["muon"].inner_state[0].mu["w"] == MaskedNode()
    assert state.inner_states["adam"].inner_state[0].mu["s"] == MaskedNode()
    for i in range(3):
        one, _ = trajectory(adaptax.muon(0.1), stack()["s"][i], [stack()["s"][i]] * 2)
        close_matrices([u["s"][i] for u in got], one)


def test_axes_may_come_in_any_order_and_in_groups():
    x = stack()["s"]
    tx = adaptax.scale_by_muon(weight_dimension_numbers=MuonDimensionNumbers(2, 0))
    (got,), _ = trajectory(tx, x, [x])
    (wanted,), _ = trajectory(adaptax.scale_by_muon(), x[:, 0].T, [x[:, 0].T])
    close_matrices(got[:, 0].T, wanted)
    tx = adaptax.scale_by_muon(weight_dimension_numbers=MuonDimensionNumbers((0, 1), -1))
    (got,), _ = trajectory(tx, x, [x])
    flat = x.reshape(12, 6)
    (wanted,), _ = trajectory(adaptax.scale_by_muon(), flat, [flat])
    close_matrices(got.reshape(12, 6), wanted)


MUONS: dict[str, dict[str, Any]] = {
    "default": {},
    "all numbers": {
        "ns_steps": 3, "beta": 0.8, "weight_decay": 0.1, "adam_b1": 0.5, "adam_weight_decay": 0.2,
        "adam_learning_rate": 0.3, "consistent_rms": 0.2,
    },
    "dion": {"ns_coeffs": "dion"},
    "no nesterov": {"nesterov": False},
    "adaptive": {"adaptive": True},
    "masked decay": {"weight_decay": 0.1, "weight_decay_mask": {"b": True, "s": True, "w": False}},
}  # fmt: skip


@pytest.mark.parametrize("options", MUONS.values(), ids=MUONS.keys())
def test_muon_is_that_of_optax(options):
    got, state = trajectory(adaptax.muon(0.1, **options), stack(), SINGLE)
    with optax_rules():
        wanted, other = trajectory(optax.contrib.muon(0.1, **options), stack(), SINGLE)
    close_matrices(got, wanted)
    assert skeleton(state) == skeleton(other)


def test_muon_with_dimension_numbers_is_that_of_optax():
    def muon(lib: Any) -> Any:
        numbers = {
            "b": None,
            "s": lib.MuonDimensionNumbers(1, 2),
            "w": lib.MuonDimensionNumbers(1, 0),
        }
        return lib.muon(0.1, muon_weight_dimension_numbers=lambda tree: numbers)

    got, state = trajectory(muon(adaptax), stack(), SINGLE)
    with optax_rules():
        wanted, other = trajectory(muon(optax.contrib), stack(), SINGLE)
    close_matrices(got, wanted)
    assert skeleton(state) == skeleton(other)
