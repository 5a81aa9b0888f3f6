"""Inside `jax.shard_map`, where each device has its part of the parameters and gradients."""

# pyright: reportArgumentType=false

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

import adaptax
from adaptax import MultiSteps, lowbit, telemetry
from adaptax._core._manual import each_alone

P = PartitionSpec
ROWS = 4
SPECS = {"gain": P(), "w": P("d")}  # a parameter on both devices, and one in parts
GRAD_SPECS = {"gain": P(None), "w": P(None, "d")}  # with an axis of steps


@dataclass(frozen=True)
class Wrapper:
    """A transformation around another that keeps something about the whole.

    Attributes:
        name: What the test is called by.
        wrap: Makes it around `adam`.
        decides: Whether a decision depends on the gradients: it is tried without types, too.
        norms: The fields in which, without types, the largest norm of a device stands.
        exact: Whether the numbers are those without `shard_map`; dither differs by the shard.
        init_inside: Whether a state may be made inside `shard_map`.
    """

    name: str
    wrap: Callable[[Any], Any]
    decides: bool = False
    norms: tuple[str, ...] = ()
    exact: bool = True
    init_inside: bool = True


def even(step: Any) -> Any:
    return step % 2 == 0


def small(step: Any, *, value: Any) -> Any:
    return value < 1.0


LARGE = partial(adaptax.skip_large_updates, max_squared_norm=100.0)
EIGHT = {"mu": lowbit.int8(root_of="nu"), "nu": lowbit.uint8()}
FOUR = {"mu": lowbit.int4(root_of="nu"), "nu": lowbit.uint4()}
WRAPPERS = (
    Wrapper("MultiSteps", lambda tx: MultiSteps(tx, 2), decides=True),
    Wrapper("MultiSteps, drop", lambda tx: MultiSteps(tx, 2, nonfinite="drop"), decides=True),
    Wrapper(
        "MultiSteps, skip_not_finite",
        lambda tx: MultiSteps(tx, 2, should_skip_update_fn=adaptax.skip_not_finite),
        decides=True,
    ),
    Wrapper(
        "MultiSteps, skip_large_updates",
        lambda tx: MultiSteps(tx, 2, should_skip_update_fn=LARGE),
        decides=True,
        norms=("norm_squared",),
    ),
    Wrapper("apply_every", lambda tx: adaptax.chain(adaptax.apply_every(2), tx)),
    Wrapper("apply_if_finite", lambda tx: adaptax.apply_if_finite(tx, 1), decides=True),
    Wrapper("guard", adaptax.guard, decides=True, norms=("norm",)),
    Wrapper(
        "guard, spikes",
        lambda tx: adaptax.guard(tx, max_deviation=2.0, window=5),
        decides=True,
        norms=("norm", "norms"),
    ),
    Wrapper("conditionally_transform", lambda tx: adaptax.conditionally_transform(tx, even)),
    Wrapper("conditionally_mask", lambda tx: adaptax.conditionally_mask(tx, even)),
    Wrapper("dynamic_loss_scale", lambda tx: adaptax.dynamic_loss_scale(tx, 8.0, 2), decides=True),
    Wrapper("ema_params", lambda tx: adaptax.ema_params(tx, 0.9)),
    Wrapper("ema_params, every", lambda tx: adaptax.ema_params(tx, 0.9, start=2, every=2)),
    Wrapper("swa", lambda tx: adaptax.swa(tx, 3)),
    Wrapper("lookahead", lambda tx: adaptax.lookahead(tx, 2, 0.5, True, slow_in_state=True)),
    Wrapper("schedule_free", lambda tx: adaptax.schedule_free(tx, 0.1)),
    Wrapper("adjustable", adaptax.adjustable),
    Wrapper("probe", lambda tx: telemetry.probe(tx, 2, history=3)),
    Wrapper("partition", lambda tx: adaptax.partition({"w": tx, "*": adaptax.sgd(0.1)})),
    Wrapper("clip_by_global_norm", lambda tx: adaptax.chain(adaptax.clip_by_global_norm(0.5), tx)),
    Wrapper("prodigy", lambda tx: adaptax.prodigy(), decides=True, norms=("numerator_weighted",)),
    Wrapper("8 bits", lambda tx: lowbit.store(tx, EIGHT, min_size=0), exact=False),
    Wrapper(
        "4 bits", lambda tx: lowbit.store(tx, FOUR, min_size=0), exact=False, init_inside=False
    ),
    Wrapper("stochastic_rounding", lambda tx: adaptax.chain(tx, lowbit.stochastic_rounding())),
    Wrapper("master_weights", lowbit.master_weights),
    Wrapper(
        "nested",
        lambda tx: adaptax.guard(
            MultiSteps(adaptax.ema_params(adaptax.apply_if_finite(tx, 2), 0.9), 2)
        ),
    ),
)
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.name)


@cache
def mesh() -> Mesh:
    return jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@cache
def data() -> tuple[Any, Any]:
    """Parameters, and the gradients of some steps: one is NaN on one device, one large there."""
    rng = np.random.default_rng(3)
    p = {"gain": rng.normal(size=3), "w": rng.normal(size=(ROWS, 3))}
    p = jax.tree.map(lambda x: x.astype(np.float32), p)
    g = jax.tree.map(lambda x: rng.normal(size=(6, *x.shape)).astype(np.float32), p)
    g["w"][2, 3, 1] = np.nan
    g["w"][4, 0] = 30.0
    return p, g


def run(tx: Any, p: Any, gradients: Any, state: Any = None) -> tuple[Any, Any]:
    """The last state and the updates of all steps."""

    def step(carry: Any, g: Any) -> Any:
        updates, state = tx.update(g, carry[1], carry[0])
        return (adaptax.apply_updates(carry[0], updates), state), updates

    start = tx.init(p) if state is None else state
    (_, state), updates = jax.lax.scan(step, (p, start), gradients)
    return state, updates


def spec_of(x: Any) -> PartitionSpec:
    return P("d") if x.shape[:1] == (ROWS,) else P()


@cache
def alone(wrapper: Wrapper) -> Any:
    """What it does on one device."""
    return jax.jit(partial(run, wrapper.wrap(adaptax.adam(0.1))))(*data())


def on_two(wrapper: Wrapper, check_vma: bool) -> Any:
    tx = wrapper.wrap(adaptax.adam(0.1))
    specs = jax.tree.map(spec_of, jax.eval_shape(tx.init, data()[0]))
    state = () if wrapper.init_inside else (tx.init(data()[0]),)
    mapped = jax.shard_map(
        partial(run, tx),
        mesh=mesh(),
        in_specs=(SPECS, GRAD_SPECS, *[specs] * len(state)),
        out_specs=(specs, GRAD_SPECS),
        check_vma=check_vma,
    )
    return jax.jit(mapped)(*data(), *state)


def assert_as_alone(got: Any, wrapper: Wrapper, leave_out: tuple[str, ...] = ()) -> None:
    """Numbers as on one device; what both devices have is the same on both."""
    wanted = jax.tree.leaves(alone(wrapper))
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), wanted, strict=True):
        name = jax.tree_util.keystr(path)
        if x.sharding.is_fully_replicated:
            first, second = (np.asarray(shard.data) for shard in x.addressable_shards)
            assert first.tobytes() == second.tobytes(), f"{name}: {first} and {second}"
        whole = jnp.issubdtype(x.dtype, jnp.integer) and not x.ndim
        if (wrapper.exact or whole) and not any(field in name for field in leave_out):
            np.testing.assert_allclose(x, y, 1e-5, 1e-6, err_msg=name)


@wrappers
def test_both_devices_do_what_one_does(wrapper):
    assert_as_alone(on_two(wrapper, check_vma=True), wrapper)


@pytest.mark.parametrize(
    "wrapper", [w for w in WRAPPERS if w.decides], ids=lambda wrapper: wrapper.name
)
def test_decisions_are_the_same_where_types_do_not_say_what_varies(wrapper):
    assert_as_alone(on_two(wrapper, check_vma=False), wrapper, wrapper.norms)


def test_an_answer_of_one_device_is_that_of_all():
    """A condition of the user's, of a loss that each device has for its part of the batch."""
    tx = adaptax.conditionally_mask(adaptax.sgd(1.0), small, forward_extra_args=True)

    def step(g: Any, value: Any) -> Any:
        return tx.update(g, tx.init(g), g, value=value[0])[0]

    for check_vma in (True, False):
        specs = {"in_specs": P("d"), "out_specs": P("d"), "check_vma": check_vma}
        mapped = jax.jit(jax.shard_map(step, mesh=mesh(), **specs))
        got = [mapped(jnp.ones(2), jnp.array(values)) for values in ([0.0, 0.0], [0.0, 2.0])]
        np.testing.assert_array_equal(got, [[-1.0, -1.0], [0.0, 0.0]])


def decisions(over_devices: Callable[[Any], Any]) -> list[int]:
    """How many steps each of two models has skipped, one on each device, of which one has a NaN."""
    tx = adaptax.guard(adaptax.sgd(0.1))

    def one(p: Any, state: Any, g: Any) -> Any:
        return tx.update(g, state, p)[1].not_finite

    p, g = jnp.ones(2), jnp.array([1.0, np.nan])
    return over_devices(one)(p, jax.vmap(tx.init)(p), g).tolist()


def test_models_of_their_own_decide_for_themselves():
    def mapped(f: Any, check_vma: bool) -> Any:
        specs = {"in_specs": P("d"), "out_specs": P("d"), "check_vma": check_vma}
        return jax.jit(jax.shard_map(f, mesh=mesh(), **specs))

    assert decisions(lambda f: mapped(jax.vmap(f), True)) == [0, 1]  # their counters vary, too
    assert decisions(lambda f: mapped(jax.vmap(f), False)) == [1, 1]  # nothing says so
    assert decisions(lambda f: mapped(each_alone(jax.vmap(f)), False)) == [0, 1]
    assert decisions(lambda f: jax.pmap(f, devices=jax.devices()[:2])) == [0, 1]


def test_a_norm_of_parts_neither_overflows_nor_underflows():
    tx = adaptax.clip_by_global_norm(1.0)

    def clipped(g: Any) -> Any:
        return tx.update(g, tx.init(g))[0]

    mapped = jax.jit(jax.shard_map(clipped, mesh=mesh(), in_specs=P("d"), out_specs=P("d")))
    for g in ([3e38, 3e38], [1e-25, 1e25], [1e-30, 1e-30], [0.0, 3.0], [0.0, 0.0], [np.inf, 1.0]):
        g = np.array(g, np.float32)
        np.testing.assert_allclose(mapped(g), clipped(g), 1e-6, err_msg=str(g))
    assert np.isnan(mapped(np.array([np.nan, 1.0], np.float32))).any()

    def slope(f: Any) -> Any:
        return jax.jit(jax.grad(lambda g: f(g)[1]))(jnp.array([3.0, 4.0]))

    np.testing.assert_allclose(slope(mapped), slope(clipped), 1e-5)
