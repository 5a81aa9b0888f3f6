"""States of every kind go where states go: files, other libraries' boxes, numpy and back."""

# pyright: reportArgumentType=false

import copy
import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cases import CASES
from flax import nnx
from flax.training.train_state import TrainState
from support import assert_close, assert_same_bits, grads, params, trajectory
from test_formats import FORMATS
from test_wrappers import WRAPPERS

import adaptax
from adaptax import checkpoint, lowbit, telemetry
from adaptax._core import boxed_like, unboxed
from adaptax.interop import as_optax

ADAM = adaptax.adam(adaptax.linear_schedule(0.1, 0.0, 10))
SMALL = {"min_size": 1}


@dataclass(frozen=True, eq=False)
class Row:
    """A transformation, and the libraries that can't save what its state is made of."""

    tx: Any
    params: Any = None
    refused_by: tuple[str, ...] = ()  # for dtypes and containers that these libraries lack
    extra_args: Any = None

    @property
    def like(self) -> Any:
        """Parameters."""
        made = params() if self.params is None else self.params()
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), made)

    @functools.cached_property
    def start(self) -> Any:
        """A fresh state."""
        return self.tx.init(self.like)


def stored(codec: Any) -> Any:
    """Adam with a slot in this format."""
    slots = {"mu" if codec.signed else "nu": codec}
    if codec.root_of:
        slots["nu"] = lowbit.uint8()
    return lowbit.store(ADAM, slots, **SMALL)


def without_library(codec: Any) -> tuple[str, ...]:
    """Neither numpy's files nor TensorStore have all dtypes of few bits."""
    dtype = jnp.dtype(codec.dtype).name
    standard = ("int8", "uint8", "bfloat16")
    return (() if dtype in standard else ("equinox",)) + (("orbax",) if dtype == "uint4" else ())


def large() -> Any:
    """What the aliases keep in few bits."""
    return {"w": np.ones((64, 64), np.float32)}


def of_key(key: Any, rate: Any) -> Any:
    return adaptax.sgd(rate)


TABLE: dict[str, Row] = {
    **{case.name: Row(case.make(), case.params) for case in CASES if case.first},
    **{
        f"in {w.name}": Row(w.wrap(ADAM), refused_by=("flax",) if w.name == "named_chain" else ())
        for w in WRAPPERS
    },
    **{f"as {name}": Row(stored(c), None, without_library(c)) for name, c in FORMATS.items()},
    "in 8 bits": Row(lowbit.store(ADAM, {"mu": lowbit.int8("nu"), "nu": lowbit.uint8()}, **SMALL)),
    "rmsprop8bit": Row(lowbit.rmsprop8bit(0.1), large),
    "lion8bit": Row(lowbit.lion8bit(0.1), large),
    "adam4bit": Row(lowbit.adam4bit(0.1), large, ("equinox", "orbax")),
    "kahan": Row(adaptax.chain(ADAM, lowbit.kahan())),
    "ulp_correction": Row(adaptax.chain(ADAM, lowbit.ulp_correction())),
    "stochastic_rounding": Row(adaptax.chain(ADAM, lowbit.stochastic_rounding())),
    "master_weights": Row(lowbit.master_weights(ADAM)),
    "lookahead": Row(adaptax.lookahead(ADAM, 5, 0.5, slow_in_state=True)),
    "schedule_free": Row(adaptax.schedule_free(ADAM, 0.1)),
    "guarded average": Row(
        adaptax.ema_params(adaptax.guard(adaptax.adjustable(ADAM), max_deviation=6.0), 0.9)
    ),
    "two probes deep": Row(adaptax.chain(adaptax.clip(1.0), telemetry.probe(ADAM, 2, history=3))),
    "weighted steps": Row(
        adaptax.MultiSteps(ADAM, 2, weighted=True), extra_args={"weight": jnp.ones(())}
    ),
    "loss scale": Row(adaptax.dynamic_loss_scale(adaptax.adjustable(adaptax.sgd(0.1)))),
    "inject_hyperparams": Row(adaptax.inject_hyperparams(lambda rate: adaptax.sgd(rate))(0.1)),
    "a key": Row(
        adaptax.inject_hyperparams(of_key)(jax.random.key(0), 0.1), None, ("flax", "equinox")
    ),
}
rows = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())


def filled(state: Any) -> Any:
    """The state with other numbers in each array."""
    rng = np.random.default_rng(3)

    def other(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return jnp.asarray(np.asarray(rng.integers(0, 2, x.shape)).astype(x.dtype))

    return jax.tree.map(other, state)


def data(state: Any) -> Any:
    """The state with the data of keys."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


def by_flax(state: Any, like: Any) -> Any:
    return flax.serialization.from_bytes(like, flax.serialization.to_bytes(state))


def by_equinox(state: Any, like: Any) -> Any:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, like)


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "pickle": lambda state, like: pickle.loads(pickle.dumps(state)),
    "deepcopy": lambda state, like: copy.deepcopy(state),
    "flax": by_flax,
    "equinox": by_equinox,
}


@rows
def test_every_state_survives_every_way_to_save_it(row):
    like = row.start
    state = filled(like)
    for name, way in WAYS.items():
        if name in row.refused_by:
            with pytest.raises(Exception):  # noqa: B017  whatever that library raises
                way(state, like)
        else:
            assert_same_bits(data(way(state, like)), data(state), name)


def test_orbax_saves_every_state(tmp_path: Path):
    likes = {k: row.start for k, row in TABLE.items() if "orbax" not in row.refused_by}
    states = {name: filled(state) for name, state in likes.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "all", states)
        checkpointer.wait_until_finished()
        got = checkpointer.restore(tmp_path / "all", likes)
    for name, state in states.items():
        assert_same_bits(data(got[name]), data(state), name)


def test_a_state_made_before_flax_is_imported_is_saved_too():
    """Nothing is registered with Flax."""
    assert not flax.serialization.is_serializable(lowbit.Encoded)


def test_an_empty_array_that_is_no_longer_in_the_state_is_not_missed(tmp_path: Path):
    like = adaptax.guard(ADAM).init(params())
    saved = filled(like)._replace(norms=jnp.zeros(0))
    checkpoint.save(tmp_path / "old", saved)
    got, report = checkpoint.restore(tmp_path / "old", like)
    assert_same_bits(got, saved._replace(norms=None))
    assert ("norms", "dropped") in [(row.name, row.outcome) for row in report.rows]


@rows
def test_an_unjitted_step_takes_numpy_arrays(row):
    p, state, extra = row.like, row.start, row.extra_args or {}
    wanted = row.tx.update(p, state, p, **extra)
    keys = any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
    g, s, q = jax.tree.map(np.asarray, (p, state if not keys else (), p))
    assert_same_bits(data(row.tx.update(g, state if keys else s, q, **extra)), data(wanted))


# In the boxes of nnx.Optimizer


class Model(nnx.Module):
    def __init__(self) -> None:
        self.b, self.w = (nnx.Param(params()[name]) for name in ("b", "w"))


READERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "learning_rate": lambda tx, state, p: adaptax.learning_rate(tx, state),
    "hyperparams": lambda tx, state, p: adaptax.hyperparams(tx, state),
    "set_hyperparams": lambda tx, state, p: adaptax.set_hyperparams(tx, state, {"*_rate": 0.5}),
    "eval_params": lambda tx, state, p: adaptax.eval_params(state, p),
    "schedule_free": lambda tx, state, p: adaptax.schedule_free_eval_params(state, p),
    "guard_report": lambda tx, state, p: adaptax.guard_report(state),
    "loss_scale": lambda tx, state, p: adaptax.loss_scale(state),
    "latest": lambda tx, state, p: telemetry.latest(state),
    "history": lambda tx, state, p: telemetry.history(state),
    "measure": lambda tx, state, p: telemetry.measure(p, p, state, tx=tx),
    "describe": lambda tx, state, p: adaptax.describe(tx, p),
    "report": lambda tx, state, p: lowbit.report(tx, p),
    "decode_state": lambda tx, state, p: lowbit.decode_state(state),
    "get": lambda tx, state, p: adaptax.tree.get(state, "loss_scale"),
    "get_all": lambda tx, state, p: adaptax.tree.get_all_with_path(state, "nu"),
    "set": lambda tx, state, p: adaptax.tree.set(state, count=np.int32(7)),
}


READ = {
    "learning_rate": "in guard",
    "hyperparams": "in adjustable",
    "set_hyperparams": "loss scale",
    "eval_params": "guarded average",
    "schedule_free": "schedule_free",
    "guard_report": "guarded average",
    "loss_scale": "loss scale",
    "latest": "two probes deep",
    "history": "two probes deep",
    "measure": "in 8 bits",
    "describe": "in 8 bits",
    "report": "in 8 bits",
    "decode_state": "in 8 bits",
    "get": "loss scale",
    "get_all": "in 8 bits",
    "set": "in partition",
}
BOXED = [k for k, r in TABLE.items() if r.params is None and k != "a key"]


@pytest.mark.parametrize("name", BOXED)
def test_what_is_in_the_boxes_is_the_state(name):
    tx = TABLE[name].tx
    state = tx.init(nnx.as_pure(nnx.state(Model(), nnx.Param)))
    boxed = nnx.Optimizer(Model(), tx, wrt=nnx.Param).opt_state
    assert jax.tree.structure(boxed) != jax.tree.structure(state)
    assert_same_bits(unboxed(boxed), state)
    assert_same_bits(boxed_like(boxed, state), boxed)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_boxes_as_it_reads_the_state(reader):
    tx, read = TABLE[READ[reader]].tx, READERS[reader]
    model = nnx.state(Model(), nnx.Param)
    boxed = nnx.Optimizer(Model(), tx, wrt=nnx.Param).opt_state
    got = unboxed(read(tx, boxed, model))
    wanted = read(tx, unboxed(boxed), nnx.as_pure(model))
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert str(got) == str(wanted)


def loss(model: Model) -> Any:
    return jnp.sum(jnp.tanh(jnp.ones(4) @ model.w + model.b) ** 2)


TRAINED = ["guarded average", "two probes deep", "in 8 bits", "as uint4", "in partition"]


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_nnx_is_training(name):
    tx, model, p = TABLE[name].tx, Model(), nnx.as_pure(nnx.state(Model(), nnx.Param))
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(p)
    for _ in range(2):
        g = nnx.grad(loss)(model)
        optimizer.update(model, g)
        updates, state = tx.update(nnx.as_pure(nnx.state(g)), state, p)
        p = adaptax.apply_updates(p, updates)
    assert_same_bits(nnx.as_pure(nnx.state(model, nnx.Param)), p)
    assert_same_bits(unboxed(optimizer.opt_state), state)


def test_what_is_set_goes_back_into_the_optimizer():
    tx = adaptax.adjustable(adaptax.sgd(0.1))
    model = Model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for changed in (
        adaptax.set_hyperparams(tx, optimizer.opt_state, learning_rate=0.5),
        adaptax.tree.set(optimizer.opt_state, learning_rate=jnp.array(0.5)),
    ):
        assert jax.tree.structure(changed) == jax.tree.structure(optimizer.opt_state)
        optimizer.opt_state = changed
        before, g = model.b[...], nnx.grad(loss)(model)
        optimizer.update(model, g)
        assert_close(model.b[...], before - 0.5 * g.b[...], 1e-6)
        assert float(adaptax.learning_rate(tx, optimizer.opt_state)) == 0.5
        optimizer.opt_state = adaptax.set_hyperparams(tx, optimizer.opt_state, learning_rate=0.1)


def test_averages_go_back_into_the_model():
    tx, model = adaptax.ema_params(adaptax.sgd(0.1), 0.5), Model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss)(model))
    now = nnx.state(model, nnx.Param)
    average = adaptax.eval_params(optimizer.opt_state, now)
    assert jax.tree.structure(average) == jax.tree.structure(now)
    nnx.update(model, average)
    assert_same_bits(model.w[...], unboxed(optimizer.opt_state).average["w"])


@pytest.mark.parametrize("number", [jnp.array(0.1), np.array(0.1), np.float32(0.1)])
def test_a_transformation_of_arrays_goes_into_flax(number):
    for tx in (
        adaptax.adamw(number),
        adaptax.adamw(adaptax.constant_schedule(number), b1=number),
        adaptax.chain(adaptax.clip(number), adaptax.partition({"*": adaptax.sgd(number)})),
        adaptax.inject_hyperparams(adaptax.adam)(number),
        adaptax.inject_hyperparams(of_key)(jax.random.key(0), number),
    ):
        optimizer = nnx.Optimizer(Model(), tx, wrt=nnx.Param)
        assert optimizer.tx == tx
        hash(tx)  # Flax's TrainState holds it as a static field


def test_a_train_state_with_an_equal_transformation_is_not_traced_again():
    traced = []

    @jax.jit
    def step(state: Any, g: Any) -> Any:
        traced.append(0)
        return state.apply_gradients(grads=g)

    for _ in range(2):
        tx = adaptax.adamw(jnp.array(0.1), weight_decay=np.float32(0.5))
        state = step(TrainState.create(apply_fn=loss, params=params(), tx=tx), grads())
        assert len(traced) == 1 and int(state.step) == 1


def test_stacked_and_learned_numbers_go_into_flax_as_a_pair_of_optax():
    learned = jax.tree.map(jnp.asarray, adaptax.sgd(0.5))
    model = Model()
    optimizer = nnx.Optimizer(model, as_optax(learned), wrt=nnx.Param)
    before, g = model.b[...], nnx.grad(loss)(model)
    optimizer.update(model, g)
    assert_close(model.b[...], before - 0.5 * g.b[...], 1e-6)
    updates, _ = trajectory(learned, params(), [grads()])
    assert_close(updates[0], jax.tree.map(lambda g: -0.5 * g, grads()))
