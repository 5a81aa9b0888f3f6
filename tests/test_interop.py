"""Optax: states both ways, and extra arguments through its chains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import assert_close, assert_same_bits, grads, optax_rules, params, skeleton, trajectory

import adaptax
from adaptax.catalog import CATALOG
from adaptax.interop import as_optax, convert_state

MASK = {"b": False, "w": True}


def theirs(name: str) -> Any:
    return getattr(optax, name, None) or getattr(optax.contrib, name)


def label(tree: Any) -> Any:
    return {"b": "slow", "w": "fast"}


def composed(lib: Any) -> Any:
    return lib.chain(
        lib.clip_by_global_norm(1.0),
        lib.masked(lib.trace(0.5), MASK),
        lib.chain(lib.adamw(lambda count: 0.1, mask=MASK)),
        lib.partition({"slow": lib.sgd(0.1, 0.9), "fast": lib.adam(0.2)}, label),
    )


PAIRS: dict[str, tuple[Any, Any]] = {
    e.name: (e.factory(0.1), theirs(e.name)(0.1)) for e in CATALOG
} | {
    "composition": (composed(adaptax), composed(optax)),
    "scheduled": (
        adaptax.adam(adaptax.linear_schedule(1.0, 0.0, 10)),
        optax.adam(optax.linear_schedule(1.0, 0.0, 10)),
    ),
    "named": (
        adaptax.named_chain(("a", adaptax.ema(0.5)), ("b", adaptax.scale(2.0))),
        optax.named_chain(("a", optax.ema(0.5)), ("b", optax.scale(2.0))),
    ),
}
pairs = pytest.mark.parametrize("ours, other", PAIRS.values(), ids=PAIRS.keys())


@pairs
def test_states_are_those_of_optax(ours, other):
    with optax_rules():
        assert skeleton(ours.init(params())) == skeleton(other.init(params()))


@pairs
def test_a_state_goes_to_optax_and_back_bit_by_bit(ours, other):
    with optax_rules():
        _, state = trajectory(ours, params(), [grads()])
        there = convert_state(state, other.init(params()))
        assert jax.tree.structure(there) == jax.tree.structure(other.init(params()))
        assert_same_bits(jax.tree.leaves(there), jax.tree.leaves(state))
        back = convert_state(there, jax.eval_shape(ours.init, params()))
        assert_same_bits(back, state)
        other.update(grads(), there, params())
        ours.update(grads(), back, params())


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "lion", "adagrad"])
def test_training_goes_on_from_a_state_of_optax(name):
    ours, other = PAIRS[name]
    with optax_rules():
        _, state = trajectory(other, params(), [grads()] * 3)
        wanted, _ = other.update(grads(), state, params())
    got, _ = ours.update(grads(), convert_state(state, ours.init(params())), params())
    assert_close(got, wanted, 1e-4, 1e-7)


def test_moments_of_16_bits_are_widened():
    p = params(jnp.bfloat16)
    with optax_rules():
        _, state = trajectory(optax.adam(0.1), p, [grads(jnp.bfloat16)])
    like = adaptax.adam(0.1).init(p)
    got = convert_state(state, like)
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, like)
    assert_same_bits(got[0].mu, jax.tree.map(lambda x: x.astype(jnp.float32), state[0].mu))
    assert_same_bits(convert_state(got, state), state)


def test_states_that_do_not_fit_are_refused():
    state = optax.adam(0.1).init(params())
    with pytest.raises(adaptax.TreeMismatchError, match=r"^convert_state: state do not match like"):
        convert_state(state, adaptax.lion(0.1).init(params()))
    wrong = adaptax.adam(0.1).init({**params(), "b": jnp.ones(4)})
    with pytest.raises(adaptax.TreeMismatchError, match=r"\[0\]\.mu\['b'\] has shape \(3,\) again"):
        convert_state(state, wrong)


def test_as_optax_is_of_optax_and_computes_the_same():
    tx = adaptax.adamw(0.1)
    wrapped = as_optax(tx)
    assert isinstance(wrapped, optax.GradientTransformationExtraArgs)
    assert_same_bits(
        trajectory(optax.chain(wrapped), params(), [grads()] * 2)[0],
        trajectory(tx, params(), [grads()] * 2)[0],
    )
    assert as_optax(adaptax.adamw(0.1)) == wrapped
    assert hash(as_optax(adaptax.adamw(0.1))) == hash(wrapped)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.partition({"all": tx}, {"b": "all", "w": "all"}),
        lambda tx: optax.chain(optax.identity(), tx),
    ],
    ids=["masked", "apply_if_finite", "partition", "chain"],
)
def test_wrappers_of_optax_take_our_transformations(wrap):
    tx = adaptax.adamw(0.1)
    with optax_rules():
        got, _ = trajectory(wrap(as_optax(tx)), params(), [grads()] * 2)
    wanted, _ = trajectory(tx, params(), [grads()] * 2)
    assert_close(got, wanted, 1e-6)


def test_optax_multi_steps_accumulates_for_our_transformations():
    tx = optax.MultiSteps(as_optax(adaptax.sgd(1.0)), 2)
    with optax_rules():
        u, _ = trajectory(tx, params(), [grads(), grads()])
    np.testing.assert_array_equal(u[0]["b"], np.zeros(3))
    assert_close(u[1], jax.tree.map(jnp.negative, grads()), 1e-6)
