"""A new state can be donated together with the parameters: no memory is shared."""

# pyright: reportArgumentType=false

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, cases
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import optax_rules
from test_shard_map import WRAPPERS as IN_PARTS
from test_wrappers import WRAPPERS

import adaptax
from adaptax import checkpoint, interop, lowbit, sharding, telemetry


def addresses(tree: Any) -> Iterator[tuple[str, int]]:
    """Where the data of each array begin, on each device."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(x, jax.Array):
            for shard in x.addressable_shards:
                yield jax.tree_util.keystr(path), shard.data.unsafe_buffer_pointer()


def assert_apart(**trees: Any) -> None:
    """No two arrays have the same memory."""
    seen: dict[int, str] = {}
    for name, tree in trees.items():
        for path, address in addresses(tree):
            assert address not in seen, f"{name}{path} is {seen[address]}"
            seen[address] = f"{name}{path}"


def with_arrays(tx: Any) -> Any:
    """The transformation with an array of its own for each number, float32."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tx)


def parameters() -> Any:
    """A matrix, a vector, an array without entries, whole numbers and a key."""
    p = {"w": jnp.ones((4, 3)), "b": jnp.ones(3), "e": jnp.zeros((0, 3)), "i": jnp.arange(3)}
    return {**p, "key": jax.random.key(1)}


def gradients() -> Any:
    return {**jax.tree.map(jnp.ones_like, parameters()), "i": None, "key": None}


@cases(lambda case: case.abstract or case.first)
def test_the_state_of_every_optimizer(case: Case) -> None:
    p = jax.tree.map(jnp.asarray, case.params_as(np.float32))
    tx = with_arrays(case.make())
    assert_apart(numbers=tx, params=p, state=tx.init(p))


def identity(tree: Any) -> Any:
    return tree


def constant(count: Any) -> Any:
    return RATE


RATE = jnp.array(0.5)
ARRAY = jnp.array(0.25)
MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
INJECTED = {"learning_rate": ARRAY, "b1": ARRAY, "b2": constant}
MORE: dict[str, Callable[[Any], Any]] = {
    "lookahead": lambda tx: adaptax.lookahead(tx, 2, 0.5, slow_in_state=True),
    "kahan": lambda tx: adaptax.chain(tx, lowbit.kahan()),
    "measures": lambda tx: adaptax.chain(
        adaptax.snapshot("all", identity),
        adaptax.monitor({"norm": adaptax.measure_with_ema(adaptax.global_norm, 0.9)}),
        tx,
    ),
    "offload": lambda tx: sharding.offload(tx, min_size=0),
    "zero": lambda tx: sharding.zero(tx, PartitionSpec(), MESH, min_size=0),
    "inject_hyperparams": lambda tx: adaptax.inject_hyperparams(optax.adam)(**INJECTED),
    "a constant": lambda tx: adaptax.adjustable(adaptax.sgd(adaptax.constant_schedule(0.5))),
    "everything": lambda tx: adaptax.guard(
        adaptax.MultiSteps(
            telemetry.probe(
                adaptax.ema_params(
                    adaptax.dynamic_loss_scale(adaptax.apply_if_finite(adaptax.adjustable(tx), 2)),
                    0.9,
                )
            ),
            2,
            nonfinite="drop",
            should_skip_update_fn=adaptax.skip_not_finite,
        ),
        max_deviation=6.0,
    ),
}
WAYS = {
    **{w.name: w.wrap for w in WRAPPERS if w.name != "layer_decay"},  # it knows its leaves
    **{w.name: w.wrap for w in IN_PARTS},
    **MORE,
}
ways = pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS.keys())


@ways
def test_the_state_of_every_wrapper(wrap):
    p, tx = parameters(), with_arrays(wrap(adaptax.adam(0.1)))
    given = {"numbers": tx, "params": p, "more": (RATE, ARRAY)}
    with optax_rules():
        assert_apart(**given, state=tx.init(p))
        assert_apart(**given, state=jax.jit(tx.init)(p))


def test_parameters_on_several_devices():
    tx = adaptax.chain(adaptax.prodigy(), adaptax.ema_params(adaptax.adam(0.1), 0.9))
    for spec in (PartitionSpec("data"), PartitionSpec()):
        p = jax.device_put(jnp.ones((4, 3)), NamedSharding(MESH, spec))
        state = tx.init(p)
        assert_apart(params=p, state=state)
        assert state[0].params0.sharding == p.sharding


def test_arrays_of_numpy_are_copied():
    memory = np.zeros(65, np.float32)
    p = memory[(-memory.ctypes.data % 64) // 4 :][:32]  # jax takes over what is aligned so
    state = adaptax.prodigy().init({"w": p})
    p[:] = 1.0
    assert not np.any(state.params0["w"])


def test_a_step_that_takes_both():
    p, g, tx = parameters(), gradients(), MORE["everything"](adaptax.prodigy())
    state = tx.init(p)

    def step(p: Any, state: Any) -> Any:
        updates, state = tx.update(g, state, p)
        return adaptax.apply_updates(p, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        p, state = jitted(p, state)
    assert_apart(params=p, state=state)
    p, state = step(p, state)  # and not jitted
    assert_apart(params=p, state=state)
    p, state = jitted(p, state)
    assert int(state.accepted) == 5


def test_states_that_are_made_otherwise(tmp_path):
    p = {"w": jnp.ones((64, 64)), "b": jnp.ones(3)}
    wide, small = adaptax.adamw(adaptax.linear_schedule(0.1, 0.0, 9)), lowbit.adam8bit(0.1)
    state = wide.init(p)
    assert_apart(params=p, state=lowbit.encode_state(small, adaptax.adam(0.1).init(p), p))
    assert_apart(params=p, state=lowbit.decode_state(small.init(p)))
    assert_apart(params=p, state=adaptax.tree.set(state, count=jnp.zeros((), jnp.int32)))
    with optax_rules():
        theirs = optax.adafactor(0.1, weight_decay_rate=lambda count: 0.1).init(p)
    ours = adaptax.adafactor(0.1, weight_decay_rate=lambda count: 0.1).init(p)
    assert_apart(params=p, state=interop.convert_state(theirs, ours))
    checkpoint.save(tmp_path / "it", (p, state))
    p, state = checkpoint.restore(tmp_path / "it", (p, state))
    assert_apart(params=p, state=state)


def test_hyperparameters_that_are_set():
    p, value = jnp.ones(3), jnp.array(0.5)
    tx = adaptax.adjustable(adaptax.chain(adaptax.adam(0.1), adaptax.sgd(0.1)))
    state = adaptax.set_hyperparams(tx, tx.init(p), {"*learning_rate": value})
    assert_apart(value=value, params=p, state=state)
