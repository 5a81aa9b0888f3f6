"""Chains: what they compute, what they cost, who else may be in them."""

# pyright: reportArgumentType=false

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import (
    GRADS,
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
from adaptax import interop

MASK = {"b": False, "w": True}
SIZES = np.array([1, -1 / 2, 1 / 3, -1 / 4], np.float32)
STEPS = [jax.tree.map(lambda g, size=size: jnp.asarray(size * g), GRADS) for size in SIZES]

CHAINS: dict[str, list[Callable[[], Any]]] = {
    "leafwise": [
        lambda: adaptax.clip(0.5), lambda: adaptax.scale_by_adam(), lambda: adaptax.scale(-0.1)
    ],
    "norm first": [lambda: adaptax.clip_by_global_norm(1.0), lambda: adaptax.adamw(0.1)],
    "norm last": [lambda: adaptax.scale_by_rms(), lambda: adaptax.clip_by_global_norm(1.0)],
    "nested": [lambda: adaptax.chain(adaptax.chain(adaptax.ema(0.5)), adaptax.trace(0.5))],
    "whole trees": [
        lambda: adaptax.scale(2.0), lambda: adaptax.stateless(halved), lambda: adaptax.ema(0.5)
    ],
    "masked": [lambda: adaptax.masked(adaptax.ema(0.5), MASK), lambda: adaptax.scale(2.0)],
    "of optax": [
        lambda: optax.scale_by_adam(), lambda: adaptax.scale(-0.1), lambda: optax.trace(0.5)
    ],
    "one": [lambda: adaptax.adam(0.1)],
    "none": [],
}  # fmt: skip
chains = pytest.mark.parametrize("links", CHAINS.values(), ids=CHAINS.keys())


def halved(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda g: 0.5 * g, updates)


def rounded(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@chains
def test_a_chain_is_its_links_one_after_the_other(links):
    txs = [make() for make in links]
    tx = adaptax.chain(*txs)
    state, states, p = tx.init(params()), [t.init(params()) for t in txs], params()
    with optax_rules():
        for g in STEPS:
            u, state = tx.update(g, state, p)
            wanted = g
            for i, t in enumerate(txs):
                wanted, states[i] = t.update(wanted, states[i], p)
            assert_close(u, wanted, 1e-5, 1e-7)
            p = adaptax.apply_updates(p, u)
    assert_close(state, tuple(states), 1e-5, 1e-7)
    assert jax.tree.structure(state) == jax.tree.structure(tuple(states))


def test_the_state_of_a_nested_chain_nests_as_in_optax():
    def nested(lib):
        return lib.chain(
            lib.clip_by_global_norm(1.0),
            lib.chain(lib.scale_by_adam(), lib.chain(lib.add_decayed_weights(0.1), lib.scale(2.0))),
            lib.adamw(0.1, mask=MASK),
        )

    assert skeleton(nested(adaptax).init(params())) == skeleton(nested(optax).init(params()))


def test_the_state_of_a_named_chain_is_that_of_optax():
    def named(lib):
        return lib.named_chain(("z", lib.scale_by_adam()), ("a", lib.scale(-1.0)))

    tx = named(adaptax)
    state = tx.init(params())
    assert type(state) is OrderedDict and list(state) == ["z", "a"]
    assert skeleton(state) == skeleton(named(optax).init(params()))
    plain = adaptax.chain(adaptax.scale_by_adam(), adaptax.scale(-1.0))
    u, after = tx.update(grads(), state)
    wanted, wanted_state = plain.update(grads(), plain.init(params()))
    assert_same_bits(u, wanted)
    assert list(after) == ["z", "a"]
    assert_same_bits(tuple(after.values()), wanted_state)


# One kernel per leaf

ONE_KERNEL: dict[str, tuple[Any, int]] = {
    "adam": (adaptax.adam(0.1), 1),
    "adamw": (adaptax.adamw(0.1), 1),
    "adamw, masked decay": (adaptax.adamw(0.1, mask=MASK), 1),
    "lamb": (adaptax.lamb(0.1), 1),
    "adafactor": (adaptax.adafactor(0.1), 1),
    "rmsprop with all": (adaptax.rmsprop(0.1, centered=True, momentum=0.5, nesterov=True), 1),
    "clipped, nested": (adaptax.chain(adaptax.clip(1.0), adaptax.chain(adaptax.adamw(0.1))), 1),
    "scheduled": (adaptax.adamw(lambda count: 0.1), 1),
    "two with a whole tree between": (
        adaptax.chain(adaptax.adam(0.1), adaptax.stateless(halved), adaptax.adam(0.1)),
        2,
    ),
}


@pytest.mark.parametrize("tx, kernels", ONE_KERNEL.values(), ids=ONE_KERNEL.keys())
def test_neighbors_are_one_kernel_for_each_leaf(tx, kernels):
    p = {"b": jnp.ones(13), "w": jnp.ones((5, 7))}  # nothing else has these shapes
    vector, matrix = (
        inner_jits(tx.update, p, tx.init(p), p, entered_by=leaf.shape) for leaf in p.values()
    )
    assert vector == matrix
    assert len(vector) == kernels, vector


def test_a_global_norm_joins_with_what_follows():
    tx = adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adamw(0.1))
    names = inner_jits(tx.update, grads(), tx.init(params()), params())
    wanted = "clip_by_global_norm_scale_by_adam_add_decayed_weights_scale_by_learning_rate"
    assert [n for n in names if "scale_by_adam" in n or "clip" in n] == [wanted] * 2


@pytest.mark.parametrize(
    "tx",
    [adaptax.adamw(0.1), adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adam(0.1))],
    ids=["adamw", "clipped"],
)
def test_the_lowered_module_has_one_function_for_each_shape(tx):
    name = "scale_by_adam"
    p = {f"w{i}": jnp.ones((2, 3)) for i in range(6)} | {f"b{i}": jnp.ones(3) for i in range(4)}
    text = jax.jit(tx.update).lower(p, tx.init(p), p).as_text()
    functions = [s for s in text.splitlines() if "func.func private" in s and name in s]
    calls = [s for s in text.splitlines() if " call @" in s and name in s]
    assert len(functions) == 2, functions
    assert len(calls) == 10


# Dtypes

ROUNDED_ONCE: dict[str, Any] = {
    "thirds": adaptax.chain(adaptax.scale(1 / 3), adaptax.scale(1 / 7), adaptax.scale(3.0)),
    "adamw": adaptax.adamw(0.1),
    "clipped": adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.scale(1 / 3)),
    "nested": adaptax.chain(adaptax.chain(adaptax.scale(1 / 3)), adaptax.chain(adaptax.scale(3.0))),
    "whole tree": adaptax.chain(
        adaptax.scale(1 / 3), adaptax.stateless(halved), adaptax.scale(3.0)
    ),
    "masked": adaptax.chain(
        adaptax.scale(1 / 3), adaptax.masked(adaptax.ema(0.5), MASK), adaptax.scale(3.0)
    ),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("tx", ROUNDED_ONCE.values(), ids=ROUNDED_ONCE.keys())
def test_links_of_16_bits_compute_in_float32_and_round_once(tx, dtype):
    g, p = grads(dtype), params(dtype)
    narrow, _ = trajectory(tx, p, [g] * 2)
    wide, _ = trajectory(tx, rounded(p, jnp.float32), [rounded(g, jnp.float32)] * 2)
    assert_same_bits(narrow, rounded(wide, dtype))


@chains
def test_updates_keep_the_dtype_of_the_gradients(links):
    g = {"b": grads(jnp.bfloat16)["b"], "w": grads()["w"]}
    p = {"b": params(jnp.bfloat16)["b"], "w": params()["w"]}
    with optax_rules():
        u, _ = trajectory(adaptax.chain(*(make() for make in links)), p, [g])
    assert jax.tree.map(lambda x: x.dtype, u[0]) == jax.tree.map(lambda x: x.dtype, g)


# Simple links


def test_identity_keeps_bits():
    g = {"x": jnp.array([1e-45, -0.0, jnp.nan, jnp.inf]), "y": None, "h": jnp.float16(65504)}
    u, state = adaptax.identity().update(g, adaptax.identity().init(g))
    assert_same_bits(u, g)
    assert state == adaptax.EmptyState()


def test_stateless_sees_whole_trees_and_params():
    tx = adaptax.stateless(lambda g, p: jax.tree.map(jnp.subtract, g, p) if p is not None else g)
    state = tx.init(params())
    assert state == adaptax.EmptyState()
    u, _ = tx.update(grads(), state, params())
    assert_same_bits(u, jax.tree.map(jnp.subtract, grads(), params()))
    u, _ = tx.update(grads(), state)
    assert_same_bits(u, grads())


# Extra arguments


def by_loss() -> optax.GradientTransformationExtraArgs:
    """A transformation of optax that needs `value`."""

    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda g: value * g, updates), state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), update)


def strict(updates, state, params=None):
    """An update that takes no extra arguments."""
    return updates, state


PASSING: dict[str, Callable[[Any], Any]] = {
    "chain": lambda tx: adaptax.chain(adaptax.clip(10.0), tx, adaptax.scale(1.0)),
    "nested": lambda tx: adaptax.chain(adaptax.chain(tx)),
    "named": lambda tx: adaptax.named_chain(("one", tx)),
    "masked": lambda tx: adaptax.masked(tx, True),
    "partition": lambda tx: adaptax.partition({"all": tx}, "all"),
    "beside one that takes none": lambda tx: adaptax.chain(
        optax.GradientTransformation(lambda params: (), strict), tx
    ),
    "with_extra_args_support": adaptax.with_extra_args_support,
    "in optax": lambda tx: optax.chain(interop.as_optax(adaptax.chain(tx)), optax.scale(1.0)),
    "optax's wrapper": lambda tx: adaptax.chain(optax.with_extra_args_support(tx)),
}


@pytest.mark.parametrize("wrap", PASSING.values(), ids=PASSING.keys())
def test_extra_arguments_reach_what_takes_them(wrap):
    tx = wrap(by_loss())
    u, state = trajectory(tx, params(), [grads()], value=2.0, other="ignored")
    assert_same_bits(u[0], jax.tree.map(lambda g: 2.0 * g, grads()))
    assert jax.tree.leaves(state) == [1]


def test_missing_extra_arguments_are_missed():
    tx = adaptax.chain(adaptax.clip(1.0), by_loss())
    with pytest.raises(TypeError, match="value"):
        tx.update(grads(), tx.init(params()))


def test_extra_arguments_that_nobody_takes_are_dropped():
    for tx in (adaptax.adamw(0.1), adaptax.scale_by_adam(), adaptax.prodigy()):
        u, _ = trajectory(tx, params(), [grads()], value=1.0, grad_fn=None)
        wanted, _ = trajectory(tx, params(), [grads()])
        assert_same_bits(u, wanted)


def test_reduce_on_plateau_works_in_a_chain():
    def plateau() -> Any:
        return optax.contrib.reduce_on_plateau(factor=0.5, patience=1, accumulation_size=1)

    ours = adaptax.chain(adaptax.sgd(1.0), plateau())
    theirs = optax.chain(optax.sgd(1.0), plateau())
    with optax_rules():
        states = [tx.init(params()) for tx in (ours, theirs)]
        for value in (1.0, 1.0, 1.0, 1.0):
            u, states[0] = ours.update(grads(), states[0], params(), value=jnp.array(value))
            v, states[1] = theirs.update(grads(), states[1], params(), value=jnp.array(value))
            assert_same_bits(u, v)
    assert abs(u["w"][0, 0]) < abs(grads()["w"][0, 0])


@pytest.mark.parametrize(
    "tx",
    [
        adaptax.chain(optax.clip_by_global_norm(1.0), adaptax.adam(0.1), optax.identity()),
        optax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adam(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), adaptax.chain(adaptax.adam(0.1))),
        adaptax.chain(optax.chain(adaptax.clip_by_global_norm(1.0), optax.adam(0.1))),
        optax.masked(adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adam(0.1)), True),
    ],
    ids=["optax in ours", "ours in optax", "chain in optax", "and back", "masked by optax"],
)  # fmt: skip
def test_chains_of_both_libraries_mix(tx):
    wanted, _ = trajectory(
        adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adam(0.1)), params(), STEPS
    )
    with optax_rules():
        got, _ = trajectory(tx, params(), STEPS)
        jitted, _ = trajectory(
            optax.GradientTransformation(tx.init, jax.jit(tx.update)), params(), STEPS
        )
    assert_close(got, wanted, 2e-4, 1e-6)
    assert_close(jitted, wanted, 2e-4, 1e-6)


# Norms


@pytest.mark.parametrize(
    "tree, wanted",
    [
        ({}, 0.0),
        (None, 0.0),
        ({"a": None, "b": jnp.zeros((0, 3))}, 0.0),
        ([jnp.zeros(3)], 0.0),
        (jnp.array([3.0, -4.0]), 5.0),
        (jnp.array([3.0 + 4.0j, 12.0j]), 13.0),
        ([jnp.array([1e30]), jnp.array(1e30)], np.sqrt(2) * 1e30),
        ([jnp.array([1e-30]), jnp.array(1e-30)], np.sqrt(2) * 1e-30),
        (jnp.array([300.0, 300.0], jnp.float16), np.sqrt(2) * 300),
        (jnp.full(3, 1e38, jnp.bfloat16), np.sqrt(3) * 1e38),
        ([jnp.ones((), jnp.bfloat16)] * 300, np.sqrt(300)),
        ([jnp.ones(999), jnp.array(jnp.inf)], np.inf),
        ([jnp.ones(3), jnp.array(jnp.nan)], np.nan),
        ([jnp.array(jnp.inf), jnp.array(jnp.nan)], np.nan),
        ([1.0, 2.0, 2.0], 3.0),
        ([np.zeros(2, jax.dtypes.float0), jnp.ones(1)], 1.0),
    ],
    ids=[
        "no leaves", "None", "nothing in the leaves", "zeros", "plain", "complex", "large", "small",
        "float16", "large bfloat16", "300 bfloat16 leaves", "inf", "nan", "inf and nan",
        "numbers", "float0",
    ],
)  # fmt: skip
def test_global_norm(tree, wanted):
    got = adaptax.global_norm(tree)
    assert got.shape == () and got.dtype == jnp.float32
    # bfloat16 has 1e38 to 3 digits.
    np.testing.assert_allclose(got, wanted, rtol=1e-2 if wanted > 1.5e38 else 1e-6)


def test_global_norm_of_float64_is_float64(x64):
    got = adaptax.global_norm([jnp.array([1e200, 1e200]), jnp.ones(1, jnp.float32)])
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, np.sqrt(2) * 1e200, rtol=1e-15)


@pytest.mark.parametrize("max_norm", [0.0, 1e-30, 1.0, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_clip_by_global_norm_bounds_the_norm(scale, max_norm):
    g = jax.tree.map(lambda x: jnp.float32(scale) * x, grads())
    norm = float(adaptax.global_norm(g))
    u, _ = trajectory(adaptax.clip_by_global_norm(max_norm), g, [g])
    if norm <= max_norm:
        assert_same_bits(u[0], g)
    else:
        # The factor may be as small as 1e-38.
        np.testing.assert_allclose(adaptax.global_norm(u), max_norm, 1e-5, 1e-38 * norm)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(u))


def test_gradients_that_are_not_finite_stay_so_when_clipped():
    g = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.ones(2)}
    u, _ = trajectory(adaptax.clip_by_global_norm(1.0), g, [g])
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(u))


# apply_updates


@pytest.mark.parametrize(
    "p_dtype, u_dtype",
    [
        (p, u)
        for p in ("bfloat16", "float16", "float32")
        for u in ("bfloat16", "float16", "float32")
    ],
)
def test_apply_updates_adds_in_the_wider_dtype_and_rounds_once(p_dtype, u_dtype):
    rng = np.random.default_rng(0)
    p = {"w": jnp.array(rng.normal(size=1000), p_dtype)}
    u = {"w": jnp.array(1e-2 * rng.normal(size=1000), u_dtype)}
    got = adaptax.apply_updates(p, u)
    assert got["w"].dtype == p_dtype
    wanted = (p["w"].astype(jnp.float32) + u["w"].astype(jnp.float32)).astype(p_dtype)
    assert_same_bits(got, {"w": wanted})


def test_apply_updates_leaves_what_has_no_update():
    p = {"a": jnp.ones(2), "b": None, "c": jnp.arange(2), "d": {}}
    u = {"a": None, "b": None, "c": np.zeros(2, jax.dtypes.float0), "d": {}}
    assert_same_bits(adaptax.apply_updates(p, u), p)
    assert adaptax.apply_updates({"a": None}, {"a": jnp.ones(2)}) == {"a": None}


def test_apply_updates_takes_numbers_and_integers():
    assert float(adaptax.apply_updates(1.0, 2.0)) == 3.0
    got = adaptax.apply_updates({"n": jnp.arange(3)}, {"n": jnp.ones(3, jnp.int32)})
    assert_same_bits(got, {"n": jnp.arange(1, 4)})


def test_apply_updates_takes_other_containers_of_the_same_kind():
    with contextlib.suppress(ImportError):
        from flax.core import FrozenDict

        p, u = FrozenDict(params()), FrozenDict(grads())
        assert isinstance(adaptax.apply_updates(p, u), FrozenDict)
    assert adaptax.apply_updates((), ()) == ()
