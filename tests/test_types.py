"""The dtypes of a state are a fixed point, with 64 bits too; its counts do not wrap."""

# pyright: reportArgumentType=false

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    """An update, with float64 gradients, leaves the types of the state as they were."""
    p = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), dtype), params)
    g = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), p)
    state = jax.eval_shape(tx.init, p)
    _, after = jax.eval_shape(tx.update, g, state, p)
    assert types(after) == types(state)


@DTYPES
@cases(lambda case: case.abstract and (case.first or case.stores_otherwise))
def test_of_every_optimizer(case: Case, dtype: str, x64: None) -> None:
    scheduled = {"learning_rate": rate} if "learning_rate" in case.numbers else {}
    for tx in (case.make(), wide(case.make(**scheduled))):
        assert_types_stay(tx, case.params(), jnp.dtype(dtype))


ELSEWHERE = ("inject_hyperparams", "offload", "zero")  # of optax, or about devices
PLAIN = {w.name: w.wrap for w in (*WRAPPERS, *IN_PARTS)}
PLAIN |= {name: wrap for name, wrap in MORE.items() if name not in ELSEWHERE}
WAYS = PLAIN | {
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
    assert_types_stay(wide(wrap(adaptax.adam(rate))), p, jnp.dtype(dtype))


LAST = np.iinfo(np.int32).max


def full(state: Any) -> Any:
    """The state with all of its counts at the largest number."""
    return jax.tree.map(lambda x: jnp.full_like(x, LAST) if x.dtype == np.int32 else x, state)


def assert_counts_stay(tx: Any, p: Any) -> Any:
    """An update of full counts: none of them wraps."""
    updates, state = tx.update(p, full(tx.init(p)), p)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        assert x.dtype != np.int32 or np.all(x >= 0), f"{jax.tree_util.keystr(path)} is {x}"
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    return state


@cases(lambda case: case.first)
def test_full_counts_of_every_optimizer(case: Case) -> None:
    assert_counts_stay(case.make(), jax.tree.map(jnp.asarray, case.params_as(np.float32)))


NEVER_FULL = ("lookahead",)  # its count is below the period
COUNTING = {name: wrap for name, wrap in PLAIN.items() if name not in NEVER_FULL}


@pytest.mark.parametrize("wrap", COUNTING.values(), ids=COUNTING.keys())
def test_full_counts_of_every_wrapper(wrap):
    p = {"b": jnp.ones(3), "w": jnp.ones((4, 3))}
    assert_counts_stay(wrap(adaptax.adam(adaptax.linear_schedule(0.1, 0.2, LAST))), p)


def test_a_report_of_full_counts():
    tx = adaptax.guard(adaptax.sgd(0.1))
    report = adaptax.guard_report(full(tx.init(jnp.ones(3))))
    assert (int(report.steps), int(report.skipped)) == (LAST, LAST)
