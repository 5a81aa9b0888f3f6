"""Optax: states both ways, its class for ours and ours for its, extra arguments through chains."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
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
def test_training_goes_on_from_a_state_of_optax_and_back(ours, other):
    with optax_rules():
        _, there = trajectory(other, params(), [grads()] * 2)
        here = convert_state(there, jax.eval_shape(ours.init, params()))
        assert_same_bits(jax.tree.leaves(here), jax.tree.leaves(there))
        got, here = ours.update(grads(), here, params())
        wanted, there = other.update(grads(), there, params())
        assert_close(got, wanted, 2e-4, 1e-6)
        back = convert_state(here, there)
        assert jax.tree.structure(back) == jax.tree.structure(there)
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(here))
        got, _ = other.update(grads(), back, params())
        wanted, _ = ours.update(grads(), here, params())
        assert_close(got, wanted, 2e-4, 1e-6)


def wrapped(lib: Any, contrib: Any) -> dict[str, Any]:
    """What else has a state, in either library."""
    adam = lib.adam(0.1)

    def rate(count: Any) -> Any:
        return 0.1

    return {
        "adafactor": lib.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
        "add_decayed_weights": lib.add_decayed_weights(rate, MASK),
        "apply_every": lib.apply_every(2),
        "apply_if_finite": lib.apply_if_finite(adam, 3),
        "conditionally_mask": lib.conditionally_mask(adam, lambda step: step < 3),
        "conditionally_transform": lib.conditionally_transform(adam, lambda step: step < 3),
        "flatten": lib.flatten(adam),
        "freeze": lib.freeze(MASK),
        "inject_hyperparams": lib.inject_hyperparams(lib.adam)(rate),
        "measure_with_ema": lib.measure_with_ema(lambda u: jnp.ones(()), 0.9),
        "MultiSteps": lib.MultiSteps(adam, 2),
        "rmsprop": lib.rmsprop(rate, bias_correction=True, centered=True, momentum=0.5),
        "schedule_free": contrib.schedule_free(adam, 0.1),
        "schedule_free_adamw": contrib.schedule_free_adamw(0.1),
        "selective_transform": lib.selective_transform(adam, freeze_mask=MASK),
        "snapshot": lib.snapshot("x", lambda u: jnp.ones(())),
    }


WRAPPED = wrapped(adaptax, adaptax), wrapped(optax, optax.contrib)


@pytest.mark.parametrize("name", WRAPPED[0])
def test_states_of_wrappers_go_to_optax_and_back(name):
    ours, other = (jax.eval_shape(made[name].init, params()) for made in WRAPPED)
    assert skeleton(ours) == skeleton(other)
    rng = np.random.default_rng(0)
    there = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), x.dtype), other)
    here = convert_state(there, ours)
    assert jax.tree.structure(here) == jax.tree.structure(ours)
    assert_same_bits(convert_state(here, other), there)


def test_a_count_that_optax_does_not_have_is_that_of_the_rest():
    def composed(lib: Any) -> Any:
        scaled = {"scale_decay_by_rate": True} if lib is adaptax else {}  # its decay has a count
        factored = lib.adafactor(lambda count: 0.1, weight_decay_rate=0.1, **scaled)
        return lib.named_chain(
            ("some", lib.masked(lib.trace(0.5), MASK)),
            ("all", lib.partition({"slow": factored, "fast": lib.sgd(0.1)}, label)),
        )

    ours, other = (composed(lib) for lib in (adaptax, optax))
    like = ours.init(params())
    with optax_rules():
        there = jax.tree.map(lambda x: x + np.asarray(3, x.dtype), other.init(params()))
    here = convert_state(there, like)
    assert jax.tree.structure(here) == jax.tree.structure(like)
    counts = [int(x) for x in jax.tree.leaves(here) if x.dtype == jnp.int32]
    assert counts == [3, 3, 3]
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(here)]
    assert len(set(buffers)) == len(buffers)
    assert_same_bits(convert_state(here, there), there)
    for counts_differ in (here, there):
        slow = counts_differ["all"].inner_states["slow"]
        first = slow.inner_state[0]._replace(count=jnp.array(4, jnp.int32))
        inner = slow._replace(inner_state=(first, *slow.inner_state[1:]))
        counts_differ["all"].inner_states["slow"] = inner
    assert_same_bits(convert_state(here, there), there)  # it is left out all the same
    with pytest.raises(adaptax.TreeMismatchError, match=r"\[4\]\.count is not in state"):
        convert_state(there, like)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_a_file_of_an_optax_state_is_read_into_ours(entry):
    ours, other = PAIRS[entry.name]
    rng = np.random.default_rng(0)
    with optax_rules():
        there, like = (jax.eval_shape(tx.init, params()) for tx in (other, ours))
    there = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), x.dtype), there)
    here = serialization.from_bytes(like, serialization.to_bytes(there))
    assert_same_bits(here, convert_state(there, like))


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


# Of one class

OURS: dict[str, Any] = {
    "adam": adaptax.adam(0.1),
    "chain": adaptax.chain(adaptax.clip(1.0), adaptax.adam(adaptax.linear_schedule(0.1, 0.0, 9))),
    "MultiSteps": adaptax.MultiSteps(adaptax.sgd(0.1), 2),
    "of optax inside": adaptax.chain(optax.scale(2.0), adaptax.sgd(0.1)),
    "own functions": adaptax.GradientTransformation(len, divmod),
}
ours = pytest.mark.parametrize("tx", OURS.values(), ids=OURS.keys())


@ours
def test_ours_are_of_the_classes_of_optax(tx):
    assert isinstance(tx, optax.GradientTransformation)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert isinstance(tx, adaptax.GradientTransformation)
    assert type(jax.tree.map(lambda x: x, tx)) is type(tx)


def test_those_of_optax_are_of_ours():
    for tx in (optax.adam(0.1), optax.scale(1.0), optax.lbfgs()):
        assert isinstance(tx, adaptax.GradientTransformation)
        assert not isinstance(tx, adaptax.MultiStepsTransformation)
    for other in ((len, abs), None, optax.adam, optax.EmptyState()):
        assert not isinstance(other, adaptax.GradientTransformation)
    assert not isinstance(adaptax.adam(0.1), adaptax.MultiStepsTransformation)


@pytest.mark.parametrize("name", [name for name in OURS if "optax" not in name])
@pytest.mark.parametrize(
    "way",
    [
        copy.copy,
        copy.deepcopy,
        lambda tx: pickle.loads(pickle.dumps(tx)),
        lambda tx: pickle.loads(pickle.dumps(tx, protocol=0)),
        lambda tx: pickle._loads(pickle._dumps(tx)),  # type: ignore[attr-defined]  Python's own
        lambda tx: cloudpickle.loads(cloudpickle.dumps(tx)),
        lambda tx: tx._replace(init=tx.init),
    ],
    ids=["copy", "deepcopy", "pickle", "protocol 0", "in Python", "cloudpickle", "replace"],
)
def test_the_class_does_not_confuse_what_copies(name, way):
    tx = OURS[name]
    assert way(tx) == tx and type(way(tx)) is type(tx)


def test_optax_may_be_imported_later_and_is_not_by_adaptax():
    code = """
import sys
import adaptax
early = adaptax.adam(0.1)
assert isinstance(early, adaptax.GradientTransformation)
assert early.__class__ is adaptax.GradientTransformation
assert "optax" not in sys.modules
import optax
assert isinstance(early, optax.GradientTransformationExtraArgs)
assert isinstance(optax.adam(0.1), adaptax.GradientTransformation)
"""
    root = Path(adaptax.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def scaled_by_value() -> Any:
    """A transformation that multiplies by an extra argument."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
        return jax.tree.map(lambda g: g * value, updates), state

    return adaptax.GradientTransformation(lambda params: adaptax.EmptyState(), update)


def composed_with(tx: Any) -> Any:
    return adaptax.chain(adaptax.identity(), tx)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.identity(), tx),
        lambda tx: optax.named_chain(("it", tx)),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.partition({"all": tx}, {"b": "all", "w": "all"}),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(composed_with(tx)),
        lambda tx: optax.with_extra_args_support(tx),
    ],
    ids=["chain", "named_chain", "masked", "partition", "apply_if_finite", "nested", "support"],
)
def test_extra_arguments_reach_ours_in_chains_of_optax(wrap):
    with optax_rules():
        got, _ = trajectory(wrap(scaled_by_value()), params(), [grads()], value=3.0)
    assert_close(got[0], jax.tree.map(lambda g: 3 * g, grads()))
