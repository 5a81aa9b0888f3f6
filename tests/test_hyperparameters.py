"""Hyperparameters in the state: as without, like optax's, read and set by name."""

# pyright: reportArgumentType=false, reportIndexIssue=false

import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import assert_close, assert_same_bits, grads, optax_rules, params, skeleton, trajectory

import adaptax
from adaptax import (
    adjustable,
    hyperparams,
    inject_hyperparams,
    learning_rate,
    set_hyperparams,
)
from adaptax._core import number_names, set_numbers
from adaptax.catalog import CATALOG

STEPS = [jax.tree.map(lambda g, i=i: g / (i + 1), grads()) for i in range(4)]
LINEAR = adaptax.linear_schedule(1.0, 0.0, 10)
GROUPED = adaptax.chain(
    adaptax.clip_by_global_norm(1.0),
    adaptax.partition({"b": adaptax.sgd(0.1, momentum=0.5), "*": adaptax.adamw(LINEAR)}),
)
entries = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)


def make(entry: Any) -> Any:
    return entry.factory() if "tuning-free" in entry.tags else entry.factory(0.01)


# As without


@pytest.mark.optimized
@entries
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_unchanged_hyperparameters_change_no_bit(entry, dtype):
    tx, p = make(entry), params(dtype)
    steps = [jax.tree.map(lambda x: x.astype(dtype), g) for g in STEPS]
    wanted, state = trajectory(tx, p, steps)
    got, held = trajectory(adjustable(tx), p, steps)
    assert_same_bits(got, wanted)
    assert_same_bits(held.inner_state, state)
    assert int(held.count) == len(steps)


@pytest.mark.optimized
def test_schedules_groups_and_chains_change_no_bit_either():
    wanted, _ = trajectory(GROUPED, params(), STEPS)
    got, state = trajectory(adjustable(GROUPED), params(), STEPS)
    assert_same_bits(got, wanted)
    assert float(state.hyperparams["1/*/learning_rate"]) == pytest.approx(0.7)  # in the last one


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, None])
def test_no_dtype_makes_one_of_b2_or_zero_of_eps(dtype):
    tx = inject_hyperparams(adaptax.adam, hyperparam_dtype=dtype)(1e-3)
    for p in (params(), params(jnp.bfloat16), params(jnp.float16)):
        state = tx.init(p)
        assert {x.dtype for x in state.hyperparams.values()} == {np.dtype(np.float32)}
        assert float(state.hyperparams["b2"]) == np.float32(0.999)
        zero = jax.tree.map(jnp.zeros_like, p)
        updates, _ = tx.update(zero, state, p)
        assert_close(updates, zero, 0, 0)


# Like optax's


@pytest.mark.parametrize(
    "call",
    [
        lambda lib, schedule: (lib.adam, {"learning_rate": 0.1}),
        lambda lib, schedule: (lib.adamw, {"learning_rate": schedule(0.1, 0.0, 10)}),
        lambda lib, schedule: (lib.sgd, {"learning_rate": schedule(0.1, 0.0, 10), "momentum": 0.9}),
        lambda lib, schedule: (lib.rmsprop, {"learning_rate": 0.1, "decay": 0.5}),
    ],
    ids=["adam", "adamw", "sgd", "rmsprop"],
)
def test_inject_hyperparams_is_that_of_optax(call):
    factory, arguments = call(adaptax, adaptax.linear_schedule)
    got, state = trajectory(inject_hyperparams(factory)(**arguments), params(), STEPS)
    factory, arguments = call(optax, optax.linear_schedule)
    with optax_rules():
        wanted, other = trajectory(optax.inject_hyperparams(factory)(**arguments), params(), STEPS)
    assert_close(got, wanted, 2e-4, 1e-6)
    names = set(other.hyperparams) - {"initial_scale"}
    assert names <= set(state.hyperparams)
    if factory is not optax.rmsprop:  # whose initial_scale is only there on request
        assert skeleton(state) == skeleton(other)
    for name in names:
        np.testing.assert_allclose(state.hyperparams[name], other.hyperparams[name], 1e-6)


@pytest.mark.parametrize("scheduled", [False, True])
def test_factories_from_elsewhere(scheduled):
    rate: Any = optax.linear_schedule(0.1, 0.0, 10) if scheduled else 0.1
    tx = inject_hyperparams(optax.adam, static_args=("eps_root", "mu_dtype"))(rate, b1=0.8)
    with optax_rules():
        got, state = trajectory(tx, params(), STEPS)
        wanted, _ = trajectory(optax.adam(rate, b1=0.8), params(), STEPS)
    assert_close(got, wanted, 1e-4, 1e-6)
    assert "eps_root" not in state.hyperparams
    now = learning_rate(tx, state)
    assert float(now) == pytest.approx(0.06 if scheduled else 0.1)
    if not scheduled:
        state = set_hyperparams(tx, state, learning_rate=0.5, b1=0.0)
        assert float(state.hyperparams["learning_rate"]) == 0.5
    assert tx == inject_hyperparams(optax.adam, static_args=("eps_root", "mu_dtype"))(rate, b1=0.8)


def test_a_state_of_optax_can_be_read_and_set():
    tx = optax.chain(optax.inject_hyperparams(optax.adam)(0.1))
    ours = adaptax.chain(optax.inject_hyperparams(optax.adam)(0.1))
    state = ours.init(params())
    assert float(learning_rate(ours, state)) == pytest.approx(0.1)
    state = set_hyperparams(ours, state, {"0/learning_rate": 0.25})
    assert float(learning_rate(ours, state)) == 0.25
    with optax_rules():
        updates: Any = tx.update(grads(), state, params())[0]
    assert float(jnp.max(jnp.abs(updates["b"]))) == pytest.approx(0.25, rel=1e-3)


class Plateau:
    """A schedule with a state: halves the rate for as long as the loss is high."""

    def init(self) -> Any:
        return jnp.ones(())

    def update(self, state: Any, *, loss: Any, **extra_args: Any) -> Any:
        return jnp.where(loss > 1.0, 0.5 * state, state)

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        return state


@pytest.mark.parametrize("factory", [adaptax.sgd, optax.sgd], ids=["adaptax", "optax"])
def test_a_schedule_may_have_a_state_and_see_extra_arguments(factory):
    tx = adaptax.inject_stateful_hyperparams(factory)(Plateau())
    state, rates = tx.init(params()), []
    for loss in (0.5, 2.0, 2.0, 0.5):
        updates, state = tx.update(grads(), state, params(), loss=loss)
        rates.append(float(-updates["b"][0] / grads()["b"][0]))
    assert rates == [1.0, 1.0, 0.5, 0.25]


# A user's function


def own(learning_rate: Any) -> Any:
    return adaptax.chain(adaptax.scale_by_adam(), adaptax.scale(-learning_rate))


@pytest.mark.parametrize("function", [own, lambda learning_rate: optax.sgd(2 * learning_rate)])
def test_a_users_function_sees_numbers_never_schedules(function):
    tx = inject_hyperparams(function)(learning_rate=LINEAR)
    with optax_rules():
        got, state = trajectory(tx, params(), STEPS)
        wanted, other = trajectory(
            optax.inject_hyperparams(function)(learning_rate=LINEAR), params(), STEPS
        )
    assert_close(got, wanted, 1e-4, 1e-6)
    assert skeleton(state) == skeleton(other)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.7)  # in the last one
    assert float(learning_rate(tx, state)) == pytest.approx(0.6)
    assert adaptax.describe(tx, params()).leaves[0].gets


def test_a_stateful_schedule_of_a_users_function():
    tx = inject_hyperparams(own)(Plateau())
    state = tx.init(params())
    for loss in (2.0, 0.5):
        _, state = tx.update(grads(), state, params(), loss=loss)
    assert float(state.hyperparams["learning_rate"]) == 0.5


def scales(first: Any, /, *factors: Any, last: Any = 1.0, **more: Any) -> Any:
    return optax.chain(*(optax.scale(f) for f in (first, *factors, last, *more.values())))


def test_any_signature():
    tx = inject_hyperparams(scales)(2.0, 3.0, LINEAR, last=0.5, other=7.0)
    state = tx.init(params())
    assert list(state.hyperparams) == ["first", "factors/0", "factors/1", "last", "other"]
    for factor in (1.0, 0.9):
        updates, state = tx.update(grads(), state, params())
        assert_close(updates, jax.tree.map(lambda g, f=factor: 21 * f * g, grads()), 1e-6)
    state = set_hyperparams(tx, state, {"factors/0": 1.0}, other=1.0)
    updates, _ = tx.update(grads(), state, params())
    assert_close(updates, jax.tree.map(lambda g: 0.8 * g, grads()), 1e-6)
    assert tx == inject_hyperparams(scales)(2.0, 3.0, LINEAR, last=0.5, other=7.0)
    assert pickle.loads(pickle.dumps(tx)) == tx


def test_what_is_static_of_any_signature():
    tx = inject_hyperparams(scales, static_args=("factors", "other"))(2.0, 3.0, other=7.0)
    assert list(tx.init(params()).hyperparams) == ["first", "last"]

    def of_optax(rate: Any, **more: Any) -> Any:
        return optax.sgd(rate, **more)

    tx = inject_hyperparams(of_optax, static_args="nesterov")(2.0, momentum=0.9, nesterov=True)
    with optax_rules():
        got, state = trajectory(tx, params(), STEPS)
        wanted, _ = trajectory(optax.sgd(2.0, momentum=0.9, nesterov=True), params(), STEPS)
    assert_close(got, wanted, 1e-5)
    assert list(state.hyperparams) == ["rate", "momentum"]


class Mask(eqx.Module):
    """A tree that can be called, as Equinox's layers can."""

    b: Any
    w: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("it is a tree")


def test_a_tree_that_can_be_called_is_no_schedule():
    def masked(rate: Any, mask: Any, dtype: Any) -> Any:
        assert isinstance(mask, Mask) and dtype is jnp.float32
        return optax.masked(optax.sgd(rate), {"b": mask.b, "w": mask.w})

    tx = inject_hyperparams(masked)(0.5, Mask(True, False), jnp.float32)
    state = tx.init(params())
    assert list(state.hyperparams) == ["rate"]
    updates, _ = tx.update(grads(), state, params())
    assert_close(updates, {"b": -0.5 * grads()["b"], "w": grads()["w"]})


def jitter(key: Any, scale: Any) -> Any:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        now, after = jax.random.split(state)
        return jax.tree.map(lambda g: g + scale * jax.random.normal(now, g.shape), updates), after

    return adaptax.GradientTransformation(lambda params: key, update)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_a_key_is_passed_on(make_key):
    tx = inject_hyperparams(jitter)(key=make_key(0), scale=0.5)
    state = tx.init(params())
    got, _ = jax.jit(tx.update)(grads(), state, params())
    wanted, _ = jitter(make_key(0), 0.5).update(grads(), make_key(0))
    assert_close(got, wanted, 1e-6)
    assert skeleton(state) == skeleton(
        optax.inject_hyperparams(jitter)(key=make_key(0), scale=0.5).init(params())
    )
    assert tx == inject_hyperparams(jitter)(key=make_key(0), scale=0.5)
    assert tx != inject_hyperparams(jitter)(key=make_key(1), scale=0.5)
    assert hash(tx) == hash(inject_hyperparams(jitter)(key=make_key(0), scale=0.5))
    assert "jitter" in repr(tx)
    changed = set_hyperparams(tx, state, key=make_key(1))
    assert (changed.hyperparams["key"] == make_key(1)).all()
    assert float(hyperparams(tx, changed)["scale"]) == 0.5


def test_what_is_injected_can_be_donated():
    for array in (jnp.array([0.5, 0.25]), jax.random.key(0)):
        tx = inject_hyperparams(lambda array: adaptax.identity())(array)
        kept = tx.init(params()).hyperparams["array"]
        assert kept is not array
        pointers = [x.unsafe_buffer_pointer() for x in map(np_free, (kept, array))]
        assert len(set(pointers)) == 2


def np_free(x: Any) -> Any:
    """The array, of a key its data."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


# Read and set


def test_hyperparams_by_name_as_the_next_update_uses_them():
    state = GROUPED.init(params())
    for i in range(3):
        now = hyperparams(GROUPED, state)
        assert list(now) == [
            "0/max_norm", "1/b/learning_rate", "1/b/momentum", "1/*/learning_rate", "1/*/b1",
            "1/*/b2", "1/*/eps", "1/*/eps_root", "1/*/weight_decay",
        ]  # fmt: skip
        assert float(now["1/*/learning_rate"]) == pytest.approx(1 - i / 10)
        assert now["1/b/momentum"] == 0.5
        _, state = GROUPED.update(grads(), state, params())


@entries
def test_the_learning_rate_now_is_one_call(entry):
    rate = adaptax.linear_schedule(0.5, 0.0, 5)
    tx = entry.factory(rate)
    state = tx.init(params())
    for i in range(3):
        assert float(learning_rate(tx, state)) == pytest.approx(float(rate(i)))
        _, state = tx.update(grads(), state, params())
    assert float(jax.jit(lambda s: learning_rate(tx, s))(state)) == pytest.approx(float(rate(3)))
    assert float(learning_rate(tx, state)) != 0.5


def test_the_rate_through_wrappers():
    for tx in (
        adaptax.masked(adaptax.adam(LINEAR), "w"),
        adaptax.named_chain(("clip", adaptax.clip(1.0)), ("adam", adaptax.adam(LINEAR))),
        adaptax.selective_transform(adaptax.adam(LINEAR), freeze_mask="b"),
        adjustable(adaptax.chain(adaptax.clip(1.0), adaptax.adam(LINEAR))),
    ):
        state = tx.init(params())
        _, state = tx.update(grads(), state, params())
        assert float(learning_rate(tx, state)) == pytest.approx(0.9), tx


def test_setting_a_number_is_having_made_it_so():
    tx = adjustable(adaptax.chain(adaptax.clip(1.0), adaptax.adamw(0.1)))
    _, state = trajectory(tx, params(), STEPS[:2])
    before = jax.tree.map(np.array, state)
    changed = set_hyperparams(tx, state, {"learning_rate": 0.01, "1/b2": 0.9}, weight_decay=0.5)
    assert_same_bits(state, before, "the old state")
    updates, _ = tx.update(STEPS[2], changed, params())
    other = adaptax.chain(adaptax.clip(1.0), adaptax.adamw(0.01, b2=0.9, weight_decay=0.5))
    wanted, _ = other.update(STEPS[2], state.inner_state, params())
    assert_close(updates, wanted, 1e-5)
    for name, value in (("1/learning_rate", 0.01), ("1/b2", 0.9), ("0/max_delta", 1.0)):
        assert float(hyperparams(tx, changed)[name]) == np.float32(value)


def test_setting_by_glob_in_groups_and_inside_jit():
    tx = adaptax.partition({"b": adjustable(adaptax.sgd(0.1)), "*": adjustable(adaptax.adam(0.1))})
    state = jax.jit(lambda s, x: set_hyperparams(tx, s, {"*learning_rate": x}))(
        tx.init(params()), 0.5
    )
    assert float(hyperparams(tx, state)["b/learning_rate"]) == 0.5
    assert float(hyperparams(tx, state)["*/learning_rate"]) == 0.5
    state = set_hyperparams(tx, state, {"b/learning_rate": 0.25})
    updates, _ = tx.update(grads(), state, params())
    assert_same_bits(updates["b"], -0.25 * grads()["b"])


def test_by_hand_as_with_optax():
    tx = inject_hyperparams(adaptax.sgd)(0.1)
    state = tx.init(params())
    state.hyperparams["learning_rate"] = 0.5
    updates, state = tx.update(grads(), state, params())
    assert_same_bits(updates, jax.tree.map(lambda g: -0.5 * g, grads()))
    assert state.hyperparams["learning_rate"].dtype == jnp.float32


def test_a_new_number_does_not_compile_again_and_rates_can_be_mapped():
    tx = adjustable(adaptax.adam(0.1))
    update = jax.jit(tx.update)
    state = tx.init(params())
    for rate in (0.1, 0.2, 0.3):
        updates, _ = update(grads(), set_hyperparams(tx, state, learning_rate=rate), params())
    assert update._cache_size() == 1  # type: ignore[attr-defined]
    rates = jnp.array([0.1, 0.2])
    many = jax.vmap(
        lambda rate: tx.update(grads(), set_hyperparams(tx, state, learning_rate=rate), params())[0]
    )(rates)
    assert_close(many["w"][1], jax.tree.map(lambda x: x * (0.2 / 0.3), updates["w"]), 1e-5)


def test_adjustable_is_a_value_and_its_state_a_fixed_point():
    tx = adjustable(GROUPED, static_args=("0/max_norm",))
    assert tx == adjustable(GROUPED, static_args=("0/max_norm",)) and hash(tx) == hash(tx)
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert eval(repr(tx), dict(vars(adaptax))) == tx
    abstract = jax.eval_shape(tx.init, params())
    assert "0/max_norm" not in abstract.hyperparams
    state = tx.init(params())
    after = tx.update(grads(), state, params())[1]
    types = lambda s: jax.tree.map(lambda x: (jnp.shape(x), x.dtype), s)  # noqa: E731
    assert types(abstract) == types(state) == types(after)
    assert jax.tree.leaves(tx) == jax.tree.leaves(GROUPED)


# Names


def test_every_number_has_a_name():
    schedule = adaptax.join_schedules([LINEAR, adaptax.constant_schedule(0.5)], [5])
    tx = adaptax.chain(adaptax.adam(schedule), adaptax.named_chain(("a", adaptax.muon(0.1))))
    names = number_names(tx)
    assert len(names) == len(set(names)) == len(jax.tree.leaves(tx))
    assert "0/learning_rate/schedules/0/init_value" in names and "1/a/ns_coeffs/2" in names
    for entry in CATALOG:
        tx = make(entry)
        assert len(number_names(tx)) == len(jax.tree.leaves(tx))


def test_set_numbers_by_name():
    tx = set_numbers(GROUPED, {"momentum": 0.75, "*/learning_rate/init_value": 0.5, "0/*": 2.0})
    assert tx == adaptax.chain(
        adaptax.clip_by_global_norm(2.0),
        adaptax.partition(
            {
                "b": adaptax.sgd(0.1, momentum=0.75),
                "*": adaptax.adamw(adaptax.linear_schedule(0.5, 0.0, 10)),
            }
        ),
    )


# Errors

ADAM = adjustable(adaptax.adam(0.1))
SCHEDULED = adjustable(adaptax.adam(LINEAR))


def setting(tx: Any, **values: Any) -> Any:
    return lambda: set_hyperparams(tx, tx.init(params()), **values)


ERRORS: list[tuple[str, Any, Any, str]] = [
    ("unknown", setting(ADAM, b3=0.5), ValueError,
     r"^set_hyperparams: there is no 'b3'; the numbers are learning_rate; b1; b2; eps; eps_root"),
    ("out of range", setting(ADAM, b2=1.0), ValueError, r"^adam: b2 must lie in \[0, 1\), got 1"),
    ("text", setting(ADAM, b2="0.9"), TypeError, r"^adam: b2 must be a number"),
    ("schedule", setting(ADAM, learning_rate=LINEAR), TypeError,
     r"^set_hyperparams: learning_rate must be a number, got linear_schedule"),
    ("several for one", setting(ADAM, b1=jnp.array([0.5, 0.6])), TypeError,
     r"^set_hyperparams: b1 must be a number or an array of shape \(\)"),
    ("scheduled", setting(SCHEDULED, learning_rate=0.5), ValueError,
     r"^set_hyperparams: learning_rate follows a schedule; to set it by hand, make it a number"),
    ("not in the state", setting(adaptax.adam(0.1), b1=0.5), ValueError,
     r"^set_hyperparams: b1 is not in the state but fixed .*adaptax\.adjustable"),
    ("no rate", lambda: learning_rate(adaptax.clip(1.0), None), ValueError,
     r"^learning_rate: there is no 'learning_rate'; the numbers are max_delta"),
    ("no count", lambda: learning_rate(adaptax.adam(LINEAR), ()), TypeError,
     r"^adam: learning_rate is a schedule, and what is given as the state of adam keeps no step "),
    ("optax's", lambda: adjustable(optax.adam(0.1)), TypeError,
     r"^adjustable: inner must be a transformation of adaptax; inject_hyperparams\(factory\)"),
    ("static name", lambda: inject_hyperparams(adaptax.adam, "b3"), ValueError,
     r"^inject_hyperparams: there is no 'b3'"),
    ("number for a key", setting(inject_hyperparams(jitter)(jax.random.key(0), 0.5), key=1.0),
     TypeError, r"^set_hyperparams: key must be a PRNG key, got 1\.0"),
    ("torch's name", setting(ADAM, lr=0.5), ValueError,
     r"^set_hyperparams: there is no 'lr'; here it is learning_rate; the numbers are"),
    ("no transformation", lambda: inject_hyperparams(lambda rate: rate)(0.1), TypeError,
     r"^inject_hyperparams: what <lambda> returns must be a transformation .*, got 0\.1"),
    ("static name of no argument", lambda: inject_hyperparams(own, "rate"), ValueError,
     r"^inject_hyperparams: there is no 'rate'"),
    ("not a transformation", lambda: learning_rate(adaptax.adam, ()), TypeError,
     r"^learning_rate: tx is the function adam itself; call it"),
    ("another state", lambda: ADAM.update(grads(), adaptax.adam(0.1).init(params())), TypeError,
     r"^adjustable: the second argument of update must be its state, InjectStatefulHyper"),
    ("None is structure", lambda: set_numbers(adaptax.sgd(0.1), {"momentum": 0.9}), ValueError,
     r"^set_numbers: momentum is None or structure here, not a number; the numbers are learning"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, match", [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
