"""Leaves that are no ordinary floats: functions, text, PRNG keys, 8-bit floats, complex numbers."""

# pyright: reportArgumentType=false

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, cases
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from support import assert_same_bits, grads, params
from trees import as_jax, gradients_like

import adaptax
from adaptax import lowbit, sharding, telemetry

Wrap = Callable[[Any], Any]


def always(step: Any, **extra_args: Any) -> Any:
    return step >= 0


def every_leaf(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return functools.partial(jax.tree.map, f)


def before(link: Any) -> Wrap:
    return lambda tx: adaptax.chain(link, tx)


def after(link: Any) -> Wrap:
    return lambda tx: adaptax.chain(tx, link)


WRAPPERS: dict[str, Wrap] = {
    "masked": lambda tx: adaptax.masked(tx, True),
    "masked by shapes": lambda tx: adaptax.masked(tx, every_leaf(lambda x: x.ndim >= 0)),
    "masked by names": lambda tx: adaptax.masked(tx, "*"),
    "partition": lambda tx: adaptax.partition({"*": tx}),
    "partition by shapes": lambda tx: adaptax.partition(
        {True: tx}, every_leaf(lambda x: x.ndim >= 0)
    ),
    "selective_transform": lambda tx: adaptax.selective_transform(tx, freeze_mask=False),
    "clip_by_global_norm": before(adaptax.clip_by_global_norm(1.0)),
    "named_chain": lambda tx: adaptax.named_chain(("it", tx)),
    "adjustable": adaptax.adjustable,
    "inject_hyperparams": lambda tx: adaptax.inject_hyperparams(lambda rate: tx)(0.1),
    "with_extra_args_support": adaptax.with_extra_args_support,
    "MultiSteps": lambda tx: adaptax.MultiSteps(tx, 1),
    "MultiSteps, dropping": lambda tx: adaptax.MultiSteps(tx, 1, nonfinite="drop"),
    "apply_every": before(adaptax.apply_every(2)),
    "apply_if_finite": lambda tx: adaptax.apply_if_finite(tx, 2),
    "guard": lambda tx: adaptax.guard(tx, max_deviation=5.0),
    "conditionally_transform": lambda tx: adaptax.conditionally_transform(tx, always),
    "conditionally_mask": lambda tx: adaptax.conditionally_mask(tx, always),
    "dynamic_loss_scale": lambda tx: adaptax.dynamic_loss_scale(tx, 1.0),
    "ema_params": lambda tx: adaptax.ema_params(tx, 0.9),
    "swa": adaptax.swa,
    "lookahead": lambda tx: adaptax.lookahead(tx, 1, 0.5, True, slow_in_state=True),
    "schedule_free": lambda tx: adaptax.schedule_free(tx, 0.1),
    "flatten": adaptax.flatten,
    "monitor": before(adaptax.monitor({"norm": adaptax.global_norm})),
    "snapshot": before(adaptax.snapshot("norm", adaptax.global_norm)),
    "scale_by_path": after(adaptax.scale_by_path({"*": 1.0})),
    "scale_by_layer_decay": after(adaptax.scale_by_layer_decay(0.5, ["*"])),
    "trust ratio": before(adaptax.scale_by_trust_ratio()),
    "probe": telemetry.probe,
    "store": lambda tx: lowbit.store(tx, {"mu": lowbit.int8()}, min_size=0),
    "master_weights": lowbit.master_weights,
    "kahan": after(lowbit.kahan()),
    "ulp_correction": after(lowbit.ulp_correction()),
    "stochastic_rounding": after(lowbit.stochastic_rounding()),
    "zero": lambda tx: sharding.zero(tx, axis="x", mesh=Mesh(np.array(jax.devices()[:1]), ("x",))),
    "around optax's": before(optax.add_decayed_weights(0.1)),
    "in optax's": lambda tx: optax.chain(optax.clip(1.0), tx),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


OURS = {name: wrap for name, wrap in WRAPPERS.items() if "optax" not in name}


class Opaque:
    """Something that is not an array."""


THING = Opaque()


def model(arrays: Any, function: Any = jax.nn.relu, thing: Any = THING) -> Any:
    """Parameters as in an Equinox model: among arrays are functions, text and objects."""
    text = None if thing is None else "same"
    return {"arrays": arrays, "function": function, "more": [thing, text]}


def _takes_a_model(tx: Any, arrays: Any, gradients: Any) -> None:
    part, g = (model(tree, None, None) for tree in (arrays, gradients))
    whole = model(arrays)
    state = tx.init(part)
    wanted = tx.update(g, state, part)
    got = tx.update(g, state, whole)
    assert_same_bits(got, wanted)
    new = adaptax.apply_updates(whole, got[0])
    assert new["function"] is jax.nn.relu and new["more"] == [THING, "same"]
    assert_same_bits(new["arrays"], adaptax.apply_updates(part, wanted[0])["arrays"])


def _names_what_it_refuses(tx: Any, arrays: Any) -> None:
    where = r"parameters must be arrays, got .* at \['function'\]"
    with pytest.raises(TypeError, match=where):
        tx.init(model(arrays))


@wrappers
def test_wrappers_leave_alone_what_is_not_an_array(wrap: Wrap) -> None:
    tx = wrap(adaptax.adamw(0.1))
    _takes_a_model(tx, params(), grads())
    _names_what_it_refuses(tx, params())


@cases(lambda case: case.whole and not isinstance(case.options.get("weight_decay_mask"), dict))
def test_transformations_leave_alone_what_is_not_an_array(case: Case) -> None:
    arrays = case.params_as(np.float32)
    tx = case.make()
    _takes_a_model(tx, as_jax(arrays), as_jax(gradients_like(arrays)))
    _names_what_it_refuses(tx, as_jax(arrays))


def test_lookahead_takes_two_models():
    tx = adaptax.lookahead(adaptax.adam(0.1), 1, 0.5)
    both = adaptax.LookaheadParams.init_synced(model(params()))
    state = tx.init(adaptax.LookaheadParams.init_synced(model(params(), None, None)))
    updates, _ = tx.update(model(grads(), None, None), state, both)
    new = adaptax.apply_updates(both, updates)
    assert new.fast["function"] is jax.nn.relu and new.slow["more"] == [THING, "same"]
    assert_same_bits(new.fast["arrays"], new.slow["arrays"])


@pytest.mark.parametrize("leaf", [np.array(["a"]), np.array([THING], object), np.str_("a")])
def test_arrays_of_text_or_objects_are_no_parameters(leaf):
    with pytest.raises(TypeError, match=r"^adam: parameters must be arrays, got .* at \['x'\]"):
        adaptax.adam(0.1).init({"w": np.ones(2), "x": leaf})


# Families of dtypes: the parameter beside two ordinary ones, and its gradient

FLOAT0 = np.zeros((2,), jax.dtypes.float0)
LEAVES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "keys": lambda: (jax.random.split(jax.random.key(0), 2), None),
    "keys, float0": lambda: (jax.random.split(jax.random.key(0), 2), FLOAT0),
    "int4": lambda: (jnp.array([1, -2], jnp.int4), FLOAT0),
    "float8_e4m3fn": lambda: _floats(jnp.float8_e4m3fn),
    "complex64": lambda: _floats(jnp.complex64),
}
leaves = pytest.mark.parametrize("make", LEAVES.values(), ids=LEAVES.keys())


def _floats(dtype: Any) -> tuple[Any, Any]:
    return jnp.array([1.0, -2.0]).astype(dtype), jnp.array([0.5, 0.25]).astype(dtype)


def _described(tree: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in leaves]


@leaves
@pytest.mark.parametrize("wrap", OURS.values(), ids=OURS.keys())
def test_wrappers_take_leaves_of_every_family(wrap: Wrap, make: Any) -> None:
    """Abstractly: structures, shapes and dtypes stay what they are."""
    x, g = make()
    p, gradients = {**params(), "x": x}, {**grads(), "x": g}
    tx = wrap(adaptax.adamw(0.1))
    state = jax.eval_shape(tx.init, p)

    def step(state: Any) -> Any:
        updates, state = tx.update(gradients, state, p)
        new = adaptax.apply_updates(p, updates)
        return jax.tree.map(lambda u: None if u.dtype == FLOAT0.dtype else u, (state, new))

    after, new = jax.eval_shape(step, state)
    assert _described(after) == _described(state)
    assert _described(new) == _described(p)


@leaves
@cases(lambda case: case.main)
def test_optimizers_take_leaves_of_every_family(case: Case, make: Any) -> None:
    x, g = make()
    arrays = case.params_as(np.float32)
    p, gradients = {"p": as_jax(arrays), "x": x}, {"p": as_jax(gradients_like(arrays)), "x": g}
    tx = case.make()
    state = jax.eval_shape(tx.init, p)

    def step(state: Any) -> Any:
        updates, state = tx.update(gradients, state, p)
        return state, adaptax.apply_updates(p, updates)

    after, new = jax.eval_shape(step, state)
    assert _described(after) == _described(state)
    assert _described(new) == _described(p)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_8_bit_floats_are_computed_in_float32_and_rounded_once(dtype):
    x, g = (jnp.asarray([1.0, -2.0, 0.75]).astype(dtype) for _ in range(2))
    wide, g_wide = x.astype(jnp.float32), g.astype(jnp.float32)
    tx = adaptax.adamw(0.3)
    updates, state = tx.update(g, tx.init(x), x)
    wanted, wide_state = tx.update(g_wide, tx.init(wide), wide)
    assert_same_bits(state, wide_state)
    assert_same_bits(updates, wanted.astype(dtype))
    assert_same_bits(adaptax.apply_updates(x, wanted), (wide + wanted).astype(dtype))


@pytest.mark.parametrize("p", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("u", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"])
def test_apply_updates_adds_floats_in_float32(p, u):
    x, y = jnp.array([1.0, -1.5]).astype(p), jnp.array([0.25, 0.5]).astype(u)
    assert_same_bits(adaptax.apply_updates(x, y), jnp.array([1.25, -1.0]).astype(p))


def test_flatten_promotes_8_bit_floats():
    p = {"a": jnp.ones(2, jnp.float8_e4m3fn), "b": jnp.ones(2, jnp.bfloat16)}
    tx = adaptax.flatten(adaptax.trace(0.5))
    updates, _ = tx.update(p, tx.init(p), p)
    assert_same_bits(updates, p)


def test_clip_names_the_leaves_that_have_no_order():
    g = {"real": jnp.ones(2), "z": jnp.ones(2, jnp.complex64)}
    for tx in (adaptax.clip(1.0), adaptax.chain(adaptax.scale(2.0), adaptax.clip(1.0))):
        for update in (tx.update, jax.jit(tx.update)):
            with pytest.raises(
                adaptax.TreeMismatchError,
                match=r"^clip: complex numbers have no order, .* at \['z'\]\. clip_by_",
            ) as caught:
                update(g, tx.init(g))
            assert caught.value.paths == ("['z']",)
    only = adaptax.masked(adaptax.clip(1.0), {"real": True, "z": False})
    only.update(g, only.init(g))


@pytest.mark.parametrize("name", ["dynamic_int8", "companded_int8"])
def test_block_formats_on_meshes_with_explicit_axes_are_those_without(name):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    specs = {"rows": PartitionSpec("x", None), "columns": PartitionSpec(None, "x")}
    rng = np.random.default_rng(0)
    p = {k: jnp.asarray(rng.normal(size=(4, 520)), jnp.float32) for k in specs}
    tx = lowbit.store(adaptax.trace(0.9), {"trace": getattr(lowbit, name)()}, min_size=0)

    def run(p: Any) -> Any:
        _, state = jax.jit(tx.update)(p, tx.init(p))
        updates, state = jax.jit(tx.update)(p, state)
        return lowbit.decode_state(state).trace, updates

    wanted = run(p)
    with jax.set_mesh(mesh):
        placed = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in p.items()}
        got = run(placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert jax.typeof(got[0]["columns"]).sharding.spec == specs["columns"]
