"""Wrappers that should change nothing change nothing, around every optimizer of the catalogue."""

# pyright: reportArgumentType=false

import functools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import GRADS, assert_same_bits, grads, optax_rules, params, trajectory

import adaptax
from adaptax import telemetry
from adaptax.catalog import CATALOG

STEPS = [jax.tree.map(lambda g, i=i: jnp.asarray(g / np.float32(i)), GRADS) for i in (1, 2, 3)]


class Wrapper(NamedTuple):
    """A way to wrap a transformation that is an identity, and what is known of it."""

    name: str
    wrap: Callable[[Any], Any]
    inner: Callable[[Any], Any]  # the wrapped transformation's part of the state
    same_leaves: bool = True  # whether the inner transformation sees the parameters as they are


WRAPPERS = (
    Wrapper("masked", lambda tx: adaptax.masked(tx, True), lambda s: s.inner_state),
    Wrapper("masked_pattern", lambda tx: adaptax.masked(tx, "*"), lambda s: s.inner_state),
    Wrapper(
        "partition",
        lambda tx: adaptax.partition({"*": tx}),
        lambda s: s.inner_states["*"].inner_state,
    ),
    Wrapper(
        "selective_transform",
        lambda tx: adaptax.selective_transform(tx, freeze_mask=False),
        lambda s: s.inner_states["train"].inner_state,
    ),
    Wrapper("chain", lambda tx: adaptax.chain(tx), lambda s: s[0]),
    Wrapper("named_chain", lambda tx: adaptax.named_chain(("it", tx)), lambda s: s["it"]),
    Wrapper("adjustable", adaptax.adjustable, lambda s: s.inner_state),
    Wrapper("MultiSteps", lambda tx: adaptax.MultiSteps(tx, 1), lambda s: s.inner_opt_state),
    Wrapper(
        "MultiSteps_drop",
        lambda tx: adaptax.MultiSteps(tx, 1, nonfinite="drop"),
        lambda s: s.inner_opt_state,
    ),
    Wrapper("apply_every", lambda tx: adaptax.chain(adaptax.apply_every(1), tx), lambda s: s[1]),
    Wrapper("apply_if_finite", lambda tx: adaptax.apply_if_finite(tx, 3), lambda s: s.inner_state),
    Wrapper("guard", adaptax.guard, lambda s: s.inner_state),
    Wrapper(
        "guard_spikes", lambda tx: adaptax.guard(tx, max_deviation=50.0), lambda s: s.inner_state
    ),
    Wrapper(
        "conditionally_transform",
        lambda tx: adaptax.conditionally_transform(tx, always),
        lambda s: s.inner_state,
    ),
    Wrapper(
        "conditionally_mask",
        lambda tx: adaptax.conditionally_mask(tx, always),
        lambda s: s.inner_state,
    ),
    Wrapper(
        "dynamic_loss_scale",
        lambda tx: adaptax.dynamic_loss_scale(tx, 1.0, max_scale=1.0),
        lambda s: s.inner_state,
    ),
    Wrapper("ema_params", lambda tx: adaptax.ema_params(tx, 0.9), lambda s: s.inner_state),
    Wrapper("swa", adaptax.swa, lambda s: s.inner_state),
    Wrapper("probe", lambda tx: telemetry.probe(tx, every=2), lambda s: s.inner_state),
    Wrapper("layer_decay", lambda tx: adaptax.chain(tx, ONES), lambda s: s[0]),
    Wrapper(
        "path", lambda tx: adaptax.chain(tx, adaptax.scale_by_path({"*": 1.0})), lambda s: s[0]
    ),
)
ONES = adaptax.scale_by_layer_decay(1.0, ["b", "w"])
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.name)
entries = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)


def always(step: Any, **extra_args: Any) -> Any:
    return step >= 0


def make(entry: Any) -> Any:
    return entry.factory() if "tuning-free" in entry.tags else entry.factory(0.01)


@functools.cache
def unwrapped(tx: Any) -> Any:
    """What a transformation does by itself."""
    return trajectory(tx, params(), STEPS)


@pytest.mark.optimized
@entries
@wrappers
def test_around_an_optimizer_it_is_an_identity(wrapper, entry):
    tx = make(entry)
    wanted, state = unwrapped(tx)
    got, held = trajectory(wrapper.wrap(tx), params(), STEPS)
    assert_same_bits(got, wanted)
    assert_same_bits(wrapper.inner(held), state)


@pytest.mark.optimized
@wrappers
def test_in_16_bits_too(wrapper, dtype=jnp.bfloat16):
    p, steps = params(dtype), [jax.tree.map(lambda x: x.astype(dtype), g) for g in STEPS]
    wanted, state = trajectory(adaptax.adamw(0.01), p, steps)
    got, held = trajectory(wrapper.wrap(adaptax.adamw(0.01)), p, steps)
    assert_same_bits(got, wanted)
    assert_same_bits(wrapper.inner(held), state)


@wrappers
def test_around_one_of_optax(wrapper):
    if wrapper.name == "adjustable":
        pytest.skip("optax's transformations have no numbers to hold; inject_hyperparams does")
    with optax_rules():
        wanted, state = trajectory(optax.adamw(0.01), params(), STEPS)
        got, held = trajectory(wrapper.wrap(optax.adamw(0.01)), params(), STEPS)
    # Its own jit rounds otherwise than its un-jitted operations do.
    for one, other in ((got, wanted), (wrapper.inner(held), state)):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, 1e-6)


@wrappers
def test_it_is_a_value(wrapper):
    tx = wrapper.wrap(adaptax.adam(0.01))
    assert tx == wrapper.wrap(adaptax.adam(0.01)) and hash(tx) == hash(
        wrapper.wrap(adaptax.adam(0.01))
    )
    assert tx != wrapper.wrap(adaptax.adam(0.02))
    again = pickle.loads(pickle.dumps(tx))
    assert again == tx and type(again) is type(tx)
    assert 0.01 in jax.tree.leaves(tx)
    assert 0.02 in jax.tree.leaves(jax.tree.map(lambda x: 2 * x, tx))


@wrappers
def test_jit_scan_and_abstract_states_agree(wrapper):
    tx = wrapper.wrap(adaptax.adamw(0.01))
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *STEPS)
    wanted, last = trajectory(tx, params(), STEPS)

    @jax.jit
    def run(state: Any, stacked: Any) -> Any:
        def step(state: Any, g: Any) -> Any:
            updates, state = tx.update(g, state, params())
            return state, updates

        return jax.lax.scan(step, state, stacked)

    state = tx.init(params())
    abstract = jax.eval_shape(tx.init, params())
    types = lambda s: jax.tree.map(lambda x: (jnp.shape(x), x.dtype), s)  # noqa: E731
    assert types(abstract) == types(state) == types(last)
    got_last, got = run(state, stacked)
    for one, other in ((got, jax.tree.map(lambda *u: jnp.stack(u), *wanted)), (got_last, last)):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, 1e-5, 1e-7)


@wrappers
def test_new_numbers_do_not_trace_again_and_can_be_mapped(wrapper):
    @jax.jit
    def update(tx: Any) -> Any:
        return tx.update(grads(), tx.init(params()), params())[0]

    rates = (0.01, 0.02)
    alone = [update(wrapper.wrap(adaptax.adamw(rate))) for rate in rates]
    assert update._cache_size() == 1  # type: ignore[attr-defined]
    made = [wrapper.wrap(adaptax.adamw(rate)) for rate in rates]
    many = jax.vmap(update)(jax.tree.map(lambda *x: jnp.asarray(x), *made))
    for i, one in enumerate(alone):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, 1e-5, 1e-8)


@wrappers
def test_names_of_its_inside_are_found(wrapper):
    tx = wrapper.wrap(adaptax.adam(adaptax.linear_schedule(1.0, 0.0, 10)))
    state = tx.init(params())
    _, state = tx.update(grads(), state, params())
    assert float(adaptax.learning_rate(tx, state)) == pytest.approx(0.9)
    described = adaptax.describe(tx, params())
    assert all("adam(learning_rate=linear_schedule" in leaf.gets for leaf in described.leaves)
    slots = {"mu", "nu"}
    assert all(slots <= {*leaf.slots} for leaf in described.leaves)


@wrappers
@pytest.mark.parametrize("tree", [{}, {"w": jnp.ones((0, 3)), "n": None}], ids=["empty", "holes"])
def test_trees_without_entries(wrapper, tree):
    if wrapper.name == "layer_decay" and tree:
        tree = {"b": jnp.ones(0), "w": None}
    tx = wrapper.wrap(adaptax.adamw(0.01))
    updates, state = tx.update(tree, tx.init(tree), tree)
    assert_same_bits(updates, tree)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(tree))


def test_nested_masks_and_groups():
    """Masks in groups in masks: each leaf gets what the innermost says, the others nothing."""
    p = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    inner = adaptax.partition(
        {"a": adaptax.scale(2.0), "b": adaptax.masked(adaptax.scale(3.0), "b")}
    )
    tx = adaptax.chain(
        adaptax.masked(adaptax.chain(inner, adaptax.masked(adaptax.scale(5.0), "a")), "!c"),
        adaptax.guard(adaptax.freeze("c")),
    )
    updates, _ = tx.update(p, tx.init(p), p)
    assert {k: float(u[0]) for k, u in updates.items()} == {"a": 10.0, "b": 3.0, "c": 0.0}
