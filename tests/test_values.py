"""A transformation is a value: the call that makes it."""

# pyright: reportArgumentType=false

import copy
import dataclasses
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import (
    GRADS,
    Traced,
    assert_close,
    assert_same_bits,
    changed,
    compilations,
    grads,
    inner_jits,
    params,
    trajectory,
)

import adaptax
from adaptax.catalog import CATALOG

FACTORIES = {e.name: e.factory for e in CATALOG} | {
    e.transform.__name__: e.transform for e in CATALOG if e.transform is not None
}
WARM = functools.partial(adaptax.warmup_cosine_decay_schedule, 0.0, 1.0, 10, 100)
MASK = {"b": False, "w": True}


def arguments(factory: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a call needs, besides its defaults."""
    signature = inspect.signature(factory, eval_str=True).parameters
    return {"learning_rate": 0.25} if "learning_rate" in signature else {}


def one_argument_changed() -> list[Any]:
    rows = []
    for name, factory in FACTORIES.items():
        for parameter in inspect.signature(factory, eval_str=True).parameters.values():
            value = changed(parameter)
            if value is not parameter.empty:
                rows.append(
                    pytest.param(factory, parameter.name, value, id=f"{name}-{parameter.name}")
                )
    return rows


COMPOSED: dict[str, Callable[[], Any]] = {
    "chain": lambda: adaptax.chain(adaptax.clip(1.0), adaptax.adam(1e-3)),
    "nested chain": lambda: adaptax.chain(adaptax.chain(adaptax.adam(1e-3)), adaptax.ema(0.5)),
    "empty chain": lambda: adaptax.chain(),
    "named chain": lambda: adaptax.named_chain(
        ("clip", adaptax.clip_by_global_norm(1.0)), ("adam", adaptax.adam(1e-3, nesterov=True))
    ),
    "masked": lambda: adaptax.masked(adaptax.adam(1e-3), {"b": False, "w": True}),
    "mask of a prefix": lambda: adaptax.adamw(1e-3, mask=True),
    "mask of numpy bools": lambda: adaptax.adamw(1e-3, mask=(np.bool_(True), np.bool_(False))),
    "partition": lambda: adaptax.partition(
        {"fast": adaptax.sgd(1.0), "slow": adaptax.adam(1e-3)}, {"b": "fast", "w": "slow"}
    ),
    "schedule": lambda: adaptax.adam(adaptax.linear_schedule(1.0, 0.0, 100)),
    "scheduled decay": lambda: adaptax.adamw(WARM(), weight_decay=adaptax.constant_schedule(0.1)),
    "joined schedules": lambda: adaptax.sgd(
        adaptax.join_schedules([adaptax.linear_schedule(0.0, 1.0, 5), 0.5], [5])
    ),
    "piecewise": lambda: adaptax.sgd(adaptax.piecewise_constant_schedule(1.0, {10: 0.5, 5: 0.1})),
    "array": lambda: adaptax.adam(jnp.array(0.1, jnp.float32)),
    "array in a tuple": lambda: adaptax.prodigy(betas=(jnp.array(0.5, jnp.float32), 0.999)),
    "stacked": lambda: adaptax.adam(jnp.array([0.1, 0.2], jnp.float32)),
    "stacked in a tuple": lambda: adaptax.prodigy(betas=(jnp.array([0.5, 0.75]), 0.999)),
    "integer array": lambda: adaptax.sgd(jnp.array(1)),
    "muon": lambda: adaptax.muon(
        1e-3,
        "dion",
        muon_weight_dimension_numbers={"b": None, "w": adaptax.MuonDimensionNumbers(1, 0)},
    ),
    "adafactor": lambda: adaptax.adafactor(1e-3, weight_decay_rate=0.1, weight_decay_mask=MASK),
    "extra args": lambda: adaptax.with_extra_args_support(adaptax.sgd(1.0)),
}
composed = pytest.mark.parametrize("make", COMPOSED.values(), ids=COMPOSED.keys())
changes = pytest.mark.parametrize("factory, name, value", one_argument_changed())


# Equality, hash, copies, spelling


@changes
def test_equal_calls_are_equal_and_others_are_not(factory, name, value):
    base = arguments(factory)
    one, again = (factory(**{**base, name: value}) for _ in range(2))
    assert one == again
    assert hash(one) == hash(again)
    assert len({one, again}) == 1
    assert one != factory(**base), f"{name} does not count"


@changes
def test_a_value_survives_pickle_copy_and_repr(factory, name, value):
    tx = factory(**{**arguments(factory), name: value})
    for way, other in {
        "pickle": pickle.loads(pickle.dumps(tx)),
        "deepcopy": copy.deepcopy(tx),
        "copy": copy.copy(tx),
        "repr": eval(repr(tx), vars(adaptax) | {"jnp": jnp}),
    }.items():
        assert other == tx, f"{way}: {other!r} is not {tx!r}"
        assert hash(other) == hash(tx), way
        assert isinstance(other, adaptax.GradientTransformation), way


@composed
def test_a_composition_is_a_value(make):
    tx = make()
    assert tx == make()
    assert hash(tx) == hash(make())
    for other in (pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)):
        assert other == tx
        assert hash(other) == hash(tx)


@composed
def test_repr_of_a_composition_makes_it_again(make):
    text = repr(make())
    assert eval(text, vars(adaptax) | {"jnp": jnp, "np": np}) == make(), text


def test_repr_shows_what_was_given_and_not_the_defaults():
    assert repr(adaptax.adam(1e-3)) == "adam(learning_rate=0.001)"
    assert (
        repr(adaptax.adam(1e-3, 0.9, nesterov=True)) == "adam(learning_rate=0.001, nesterov=True)"
    )
    assert repr(adaptax.adam(1e-3).update) == "adam(learning_rate=0.001).update"


def test_repr_shows_every_dtype(x64):
    tx = adaptax.adam(1e-3, mu_dtype=jnp.float64)
    assert repr(tx) == "adam(learning_rate=0.001, mu_dtype='float64')"


def test_other_factories_with_the_same_arguments_differ():
    assert adaptax.adam(1e-3) != adaptax.adamax(1e-3)
    assert adaptax.adam(1e-3, nesterov=True) != adaptax.nadam(1e-3)
    assert adaptax.chain(adaptax.adam(1e-3)) != adaptax.adam(1e-3)
    assert adaptax.chain(adaptax.clip(1.0), adaptax.scale(1.0)) != adaptax.chain(
        adaptax.scale(1.0), adaptax.clip(1.0)
    )
    assert adaptax.adam(1e-3) != "adam(learning_rate=0.001)"


def test_spellings_of_one_call_are_equal():
    assert adaptax.adam(1e-3, 0.9) == adaptax.adam(learning_rate=1e-3, b1=0.9)
    assert adaptax.sgd(1) == adaptax.sgd(1.0) == adaptax.sgd(np.float64(1.0))
    assert adaptax.sgd(1.0, nesterov=np.bool_(True)) == adaptax.sgd(1.0, nesterov=True)
    assert adaptax.muon(1e-3, "standard") == adaptax.muon(1e-3)
    assert adaptax.muon(1e-3, [3.4445, -4.7750, 2.0315]) == adaptax.muon(1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")], ids=repr)
def test_a_dtype_may_be_named(dtype):
    assert adaptax.adam(1e-3, mu_dtype=dtype) == adaptax.adam(1e-3, mu_dtype=jnp.bfloat16)


def test_the_order_of_keys_in_a_mask_does_not_matter():
    one = adaptax.adamw(1e-3, mask={"b": False, "w": True})
    other = adaptax.adamw(1e-3, mask={"w": True, "b": False})
    assert one == other
    assert hash(one) == hash(other)


def test_masks_that_differ_in_a_leaf_differ():
    assert adaptax.adamw(1e-3, mask=MASK) != adaptax.adamw(1e-3, mask={"b": True, "w": True})
    assert adaptax.adamw(1e-3, mask=True) != adaptax.adamw(1e-3)
    assert adaptax.adamw(1e-3, mask=True) != adaptax.adamw(1e-3, mask=(True,))


def test_arrays_compare_by_dtype_shape_and_bits():
    one = adaptax.sgd(jnp.array([0.5]))
    assert one == adaptax.sgd(jnp.array([0.5]))
    assert one != adaptax.sgd(jnp.array([0.25]))
    assert one != adaptax.sgd(jnp.array([[0.5]]))
    assert one != adaptax.sgd(jnp.array([0.5], jnp.bfloat16))
    assert one != adaptax.sgd(0.5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_an_array_of_one_number_is_that_number(dtype):
    one = adaptax.chain(adaptax.sgd(jnp.array(2, dtype)), adaptax.scale(np.ones((), np.float32)))
    assert one == adaptax.chain(adaptax.sgd(2.0), adaptax.scale(1.0))
    assert [type(leaf) for leaf in jax.tree.leaves(one)] == [float, float]


def test_an_unhashable_callable_is_a_schedule_too():
    @dataclasses.dataclass
    class Steps:  # a dataclass with == has no hash
        size: float

        def __call__(self, count):
            return self.size

    tx = adaptax.sgd(Steps(0.5))
    u, _ = tx.update(grads(), tx.init(params()))
    assert_same_bits(u, jax.tree.map(lambda g: -0.5 * g, grads()))


# The pytree


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())
def test_leaves_are_the_numeric_arguments_each_once(factory):
    numbers: dict[str, Any] = {}
    for parameter in inspect.signature(factory, eval_str=True).parameters.values():
        default, fresh = parameter.default, 0.5 + len(numbers) / 128
        if not factory.kinds[parameter.name].numeric:
            continue
        if isinstance(default, tuple):
            numbers[parameter.name] = tuple(fresh + i / 4096 for i in range(len(default)))
        elif isinstance(default, float | int) or "learning_rate" in parameter.name:
            numbers[parameter.name] = fresh
    tx = factory(**numbers)
    assert sorted(jax.tree.leaves(tx)) == sorted(jax.tree.leaves(numbers))
    paths = {p[0].name for p, _ in jax.tree_util.tree_leaves_with_path(tx)}
    assert paths == set(numbers)


@changes
def test_structure_is_not_a_leaf(factory, name, value):
    tx = factory(**{**arguments(factory), name: value})
    for path, leaf in jax.tree_util.tree_leaves_with_path(tx):
        assert type(leaf) is float, f"{jax.tree_util.keystr(path)} is {leaf!r}"


@composed
def test_leaves_of_a_composition_are_numbers(make):
    for path, leaf in jax.tree_util.tree_leaves_with_path(make()):
        number = isinstance(leaf, float | jax.Array)
        assert number, f"{jax.tree_util.keystr(path)} is {leaf!r}"


def test_leaves_of_compositions_are_those_of_their_parts():
    linear = adaptax.linear_schedule(1.0, 0.25, 100)
    tx = adaptax.chain(adaptax.clip(3.0), adaptax.sgd(linear, momentum=0.5))
    assert sorted(jax.tree.leaves(tx)) == [0.0, 0.25, 0.5, 1.0, 3.0, 100.0]
    assert jax.tree.leaves(adaptax.masked(adaptax.scale(2.0), MASK)) == [2.0]
    two = adaptax.partition({"x": adaptax.scale(2.0), "y": adaptax.scale(3.0)}, {"b": "x"})
    assert jax.tree.leaves(two) == [2.0, 3.0]
    assert jax.tree.leaves(adaptax.named_chain(("one", adaptax.scale(2.0)))) == [2.0]
    assert jax.tree.leaves(adaptax.adam(lambda count: 0.1, b1=0.5)) == [0.5, 0.999, 1e-8, 0.0]
    assert jax.tree.leaves(adaptax.prodigy(betas=(0.5, 0.75)))[1:3] == [0.5, 0.75]


@pytest.mark.parametrize(
    "tx, wanted",
    [
        (adaptax.adam(1.0), [".learning_rate", ".b1", ".b2", ".eps", ".eps_root"]),
        (adaptax.chain(adaptax.scale(1.0)), [".transforms[0].step_size"]),
        (
            adaptax.partition({"x": adaptax.scale(1.0)}, "x"),
            [".transforms['x'].step_size"],
        ),
        (adaptax.masked(adaptax.scale(1.0), True), [".inner.step_size"]),
        (adaptax.sgd(adaptax.constant_schedule(1.0)), [".learning_rate.value"]),
    ],
    ids=["adam", "chain", "partition", "masked", "schedule"],
)
def test_key_paths_carry_the_names_of_arguments(tx, wanted):
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tx)]
    assert sorted(paths) == sorted(wanted)


@composed
@pytest.mark.parametrize(
    "leaf",
    [
        None,
        object(),
        3,
        "text",
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.sharding.PartitionSpec(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_any_leaves_may_stand_in_a_value(make, leaf):
    tx = make()
    other = jax.tree.map(lambda _: leaf, tx)
    assert isinstance(other, adaptax.GradientTransformation)
    if leaf is not None:
        assert jax.tree.structure(other) == jax.tree.structure(tx)
        assert all(x is leaf for x in jax.tree.leaves(other))
    assert other == jax.tree.map(lambda _: leaf, make())
    assert hash(other) == hash(jax.tree.map(lambda _: leaf, make()))
    assert isinstance(repr(other), str)


@composed
def test_flatten_and_unflatten_return_an_equal_value(make):
    leaves, treedef = jax.tree.flatten(make())
    assert treedef.unflatten(leaves) == make()
    assert treedef == jax.tree.structure(make())
    assert hash(treedef) == hash(jax.tree.structure(make()))


def test_values_of_other_structure_have_other_treedefs():
    structure = jax.tree.structure
    assert structure(adaptax.adam(1e-3)) == structure(adaptax.adam(1e-1, b1=0.5))
    assert structure(adaptax.adam(1e-3)) != structure(adaptax.adam(1e-3, nesterov=True))
    assert structure(adaptax.adam(1e-3)) != structure(adaptax.amsgrad(1e-3))
    assert structure(adaptax.adam(1e-3)) != structure(adaptax.adam(1e-3, mu_dtype=jnp.bfloat16))


# Use with jax


entries = pytest.mark.parametrize("entry", CATALOG, ids=lambda e: e.name)


@entries
def test_new_numbers_in_an_argument_do_not_retrace(entry):
    traced = Traced(lambda tx, g, p: tx.update(g, tx.init(p), p))
    jitted = jax.jit(traced)
    for rate in (0.5, 0.25, 0.0):
        jitted.eval_shape(entry.factory(rate), grads(), params())
    assert traced.times == 1


@entries
def test_an_equal_static_argument_does_not_retrace(entry):
    traced = Traced(lambda tx, g, p: tx.update(g, tx.init(p), p))
    jitted = jax.jit(traced, static_argnums=0)
    for _ in range(2):
        jitted.eval_shape(entry.factory(0.5), grads(), params())
    assert traced.times == 1
    jitted.eval_shape(entry.factory(0.25), grads(), params())
    assert traced.times == 2


@entries
def test_new_numbers_outside_jit_do_not_recompile(entry):
    def step(rate: float) -> None:
        tx = entry.factory(rate)
        tx.update(grads(), tx.init(params()), params())

    step(0.5)
    with compilations() as events:
        step(0.25)
    assert len(events) == 0


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "muon"])
def test_numbers_in_an_argument_are_the_numbers_used(name):
    tx = FACTORIES[name](0.25)
    got = jax.jit(lambda tx, g, p: tx.update(g, tx.init(p), p)[0])(tx, grads(), params())
    wanted, _ = tx.update(grads(), tx.init(params()), params())
    assert_close(got, wanted, 1e-3, 1e-5)


def test_equal_transformations_share_a_jitted_update():
    tx = adaptax.adamw(1e-3)
    state = tx.init(params())
    jax.jit(tx.update)(grads(), state, params())
    with compilations() as events:
        jax.jit(adaptax.adamw(1e-3).update)(grads(), state, params())
    assert len(events) == 0
    with compilations() as events:
        jax.jit(adaptax.adamw(1e-2).update)(grads(), state, params())
    assert len(events) > 0


def test_a_static_field_of_a_dataclass_does_not_retrace_for_an_equal_value():
    @functools.partial(
        jax.tree_util.register_dataclass, data_fields=["params", "state"], meta_fields=["tx"]
    )
    @dataclasses.dataclass
    class Training:
        params: Any
        state: Any
        tx: Any

    def step(training):
        u, state = training.tx.update(grads(), training.state, training.params)
        return dataclasses.replace(
            training, params=adaptax.apply_updates(training.params, u), state=state
        )

    traced = Traced(step)
    jitted = jax.jit(traced)
    for _ in range(2):
        tx = adaptax.adamw(WARM())
        jitted.eval_shape(jitted.eval_shape(Training(params(), tx.init(params()), tx)))
    assert traced.times == 1


def test_flax_train_state_does_not_retrace_for_an_equal_value():
    train_state = pytest.importorskip("flax.training.train_state")
    traced = Traced(lambda state, g: state.apply_gradients(grads=g))
    jitted = jax.jit(traced)

    def apply(params, x):
        return x

    for _ in range(2):
        state = train_state.TrainState.create(
            apply_fn=apply, params=params(), tx=adaptax.adamw(1e-3)
        )
        state = jitted(state, grads())
        state = jitted(state, grads())
    assert traced.times == 1
    u, _ = trajectory(adaptax.adamw(1e-3), params(), [grads()])
    first = train_state.TrainState.create(apply_fn=apply, params=params(), tx=adaptax.adamw(1e-3))
    after = first.apply_gradients(grads=grads()).params
    assert_close(after, adaptax.apply_updates(params(), u[0]), 1e-6)


def test_stacked_values_map_like_a_loop():
    rates = [0.1, 0.2, 0.3]
    txs = [adaptax.adamw(r, b1=0.5 + r, weight_decay=r) for r in rates]
    stacked = jax.tree.map(lambda *xs: jnp.array(xs), *txs)

    def run(tx, p):
        return trajectory(tx, p, [grads()] * 3)[0][-1]

    mapped = jax.vmap(run, in_axes=(0, None))(stacked, params())
    for i, tx in enumerate(txs):
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), run(tx, params()), 1e-5)


def test_in_axes_may_be_a_value_of_the_same_structure():
    tx = adaptax.sgd(jnp.array([1.0, 2.0]), momentum=0.5)
    axes = adaptax.sgd(0, momentum=0)
    axes = jax.tree.unflatten(jax.tree.structure(tx), [None, 0])
    order = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tx)]
    axes = jax.tree.unflatten(
        jax.tree.structure(tx), [0 if name == ".learning_rate" else None for name in order]
    )
    u = jax.vmap(lambda tx, g: tx.update(g, tx.init(g))[0], in_axes=(axes, None))(tx, grads())
    assert_same_bits(u, jax.tree.map(lambda g: jnp.stack([-g, -2 * g]), grads()))


def test_the_loss_after_a_step_has_a_gradient_in_the_hyperparameters():
    def loss_after(tx):
        u, _ = tx.update(grads(), tx.init(grads()))
        return sum(jnp.sum(x) for x in jax.tree.leaves(u))

    slopes = jax.grad(loss_after)(adaptax.sgd(0.1))
    assert isinstance(slopes, adaptax.GradientTransformation)
    wanted = -sum(np.sum(x) for x in GRADS.values())
    np.testing.assert_allclose(jax.tree.leaves(slopes), [wanted], rtol=1e-6)


def test_traced_numbers_may_be_arguments_of_a_factory():
    @jax.jit
    def step(rate, b1):
        tx = adaptax.adam(rate, b1=b1)
        return tx.update(grads(), tx.init(params()))[0]

    tx = adaptax.adam(0.5, b1=0.25)
    assert_close(step(0.5, 0.25), tx.update(grads(), tx.init(params()))[0], 1e-6)


TRACED_USES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "jit": lambda tx, g, p: jax.jit(tx.update)(g, tx.init(p), p),
    "eval_shape": lambda tx, g, p: (jax.eval_shape(tx.init, p), tx.update(g, tx.init(p), p))[1],
    "cond": lambda tx, g, p: jax.lax.cond(
        jnp.asarray(True), tx.update, lambda g, s, p: (g, s), g, tx.init(p), p
    ),
    "checkpoint": lambda tx, g, p: jax.checkpoint(tx.update)(g, tx.init(p), p),
    "repr": lambda tx, g, p: (repr(tx), tx.update(g, tx.init(p), p))[1],
    "equality": lambda tx, g, p: (tx == adaptax.adamw(0.5), tx.update(g, tx.init(p), p))[1],
}


@pytest.mark.parametrize("use", TRACED_USES.values(), ids=TRACED_USES.keys())
def test_the_functions_of_a_traced_value_go_where_functions_go(use):
    tx = adaptax.adamw(0.5)
    got = jax.eval_shape(use, tx, grads(), params())
    wanted = jax.eval_shape(tx.update, grads(), tx.init(params()), params())
    assert got == wanted


LEAKING: dict[str, Callable[[], Any]] = {e.name: functools.partial(e.factory, 0.5) for e in CATALOG}
LEAKING |= {
    "schedule": lambda: adaptax.adamw(WARM(), mask=MASK),
    "clipped": lambda: adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adam(0.5)),
    "masked": lambda: adaptax.masked(adaptax.adam(0.5), MASK),
    "partition": lambda: adaptax.partition(
        {"x": adaptax.sgd(0.5, 0.5), "y": adaptax.adam(0.5)}, {"b": "x", "w": "y"}
    ),
}


@pytest.mark.parametrize("make", LEAKING.values(), ids=LEAKING.keys())
def test_no_tracer_leaks_from_a_scan_into_its_function(make):
    def train(tx, p, state):
        def body(carry, _):  # the first to use tx
            p, state = carry
            u, state = tx.update(grads(), state, p)
            return (adaptax.apply_updates(p, u), state), None

        (p, state), _ = jax.lax.scan(body, (p, state), length=2)
        return tx.update(grads(), state, p)[0]

    state = make().init(params())
    with jax.checking_leaks():
        updates = jax.eval_shape(train, make(), params(), state)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params())


def test_equal_values_share_their_kernels():
    names = inner_jits(adaptax.adam(1e-3).update, grads(), adaptax.adam(1e-3).init(params()))
    again = inner_jits(adaptax.adam(1e-1).update, grads(), adaptax.adam(1e-1).init(params()))
    assert names == again


# Pairs of plain functions


def test_a_value_unpacks_into_its_two_functions():
    init, update = adaptax.sgd(0.5)
    u, _ = update(grads(), init(params()))
    assert_same_bits(u, jax.tree.map(lambda g: -0.5 * g, grads()))
    tx = adaptax.sgd(0.5)
    assert (init, update) == tx
    assert tx[0] == tx.init and tx[1] == tx.update
    assert tx.init != tx.update
    assert init.__name__ == "sgd_init"


def own(factor: float) -> adaptax.GradientTransformation:
    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: factor * g, updates), state + 1

    return adaptax.GradientTransformation(init, update)


def test_a_pair_of_your_own_compares_by_identity():
    one = own(2.0)
    assert one == one
    assert one == adaptax.GradientTransformation(one.init, one.update)
    assert one != own(2.0)
    assert one != adaptax.sgd(1.0)
    assert adaptax.sgd(1.0) != one
    assert len({one, one, own(2.0)}) == 2
    assert jax.tree.leaves(one) == []
    assert "GradientTransformation(init=" in repr(one)
    leaves, treedef = jax.tree.flatten(one)
    assert treedef.unflatten(leaves) == one
    assert jax.tree.structure(own(2.0)) != treedef


USES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda tx: tx,
    "chain": lambda tx: adaptax.chain(tx, adaptax.identity()),
    "named_chain": lambda tx: adaptax.named_chain(("own", tx)),
    "masked": lambda tx: adaptax.masked(tx, True),
    "partition": lambda tx: adaptax.partition({"all": tx}, "all"),
    "with_extra_args_support": adaptax.with_extra_args_support,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_pair_of_your_own_works_everywhere(use):
    tx = use(own(2.0))
    u, state = trajectory(tx, params(), [grads()] * 2)
    assert_same_bits(u[1], jax.tree.map(lambda g: 2 * g, grads()))
    assert jax.tree.leaves(state) == [2]
    static = jax.jit(lambda tx, g: tx.update(g, tx.init(g))[0], static_argnums=0)
    assert_same_bits(static(tx, grads()), u[0])
    argument = jax.jit(lambda tx, g: tx.update(g, tx.init(g))[0])
    assert_same_bits(argument(tx, grads()), u[0])
