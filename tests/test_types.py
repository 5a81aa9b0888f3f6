"""The dtypes of a state are a fixed point: with 64 bits, and whatever gradients and rates are."""

# pyright: reportArgumentType=false

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import Case, cases
from test_donation import MORE
from test_shard_map import WRAPPERS as IN_PARTS
from test_wrappers import WRAPPERS

import adaptax

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])


def rate(count: Any) -> Any:
    """A schedule of a user's that returns 64 bits."""
    return jnp.asarray(0.1, jnp.float64)


def wide(tx: Any) -> Any:
    """The transformation with a float64 array for each number."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tx)


def types(tree: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), x.shape, x.dtype, x.weak_type) for path, x in leaves]


def assert_types_stay(tx: Any, params: Any, dtype: Any) -> None:
    """Two updates, with float64 gradients, leave the types of the state as they were."""
    p = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), dtype), params)
    g = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), p)
    state = jax.eval_shape(tx.init, p)
    wanted = types(state)
    for _ in range(2):
        _, state = jax.eval_shape(tx.update, g, state, p)
        assert types(state) == wanted


@DTYPES
@cases(lambda case: case.abstract)
def test_of_every_optimizer(case: Case, dtype: str, x64: None) -> None:
    ways = [case.make(), wide(case.make())]
    ways += [case.make(learning_rate=rate)] if "learning_rate" in case.numbers else []
    for tx in ways:
        assert_types_stay(tx, case.params(), jnp.dtype(dtype))


WAYS = {w.name: w.wrap for w in (*WRAPPERS, *IN_PARTS)}
WAYS |= {name: wrap for name, wrap in MORE.items() if name not in ("zero", "offload")}
WAYS |= {
    "ema_params of a schedule": lambda tx: adaptax.ema_params(tx, rate, debias=False, start=2),
    "schedule_free of a schedule": lambda tx: adaptax.schedule_free(tx, rate),
    "schedule_free in 16 bits": lambda tx: adaptax.schedule_free(tx, rate, state_dtype="bfloat16"),
    "windows of a schedule": lambda tx: adaptax.MultiSteps(tx, rate),
    "measures of a schedule": lambda tx: adaptax.monitor(
        {"norm": adaptax.measure_with_ema(adaptax.global_norm, rate)}
    ),
    "scales of schedules": lambda tx: adaptax.chain(
        tx, adaptax.scale_by_schedule(rate), adaptax.add_decayed_weights(rate)
    ),
    "a schedule in the state": lambda tx: adaptax.adjustable(adaptax.adam(rate, rate)),
}


@DTYPES
@pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS.keys())
def test_of_every_wrapper(wrap, dtype, x64):
    p = {"b": jnp.zeros(3), "w": jnp.zeros((4, 3))}
    for tx in (wrap(adaptax.adam(rate)), wide(wrap(adaptax.adam(0.1)))):
        assert_types_stay(tx, p, jnp.dtype(dtype))
