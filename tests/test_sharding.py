"""Eight devices: where states lie, and the update the same on every mesh, whole or in parts."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case, cases
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_same_bits
from trees import assert_trees_close, gradients_like

import adaptax
from adaptax import lowbit, sharding
from adaptax.bench.aot import read

AXES = {
    "data": (("data",), (8,)),
    "data, tensor": (("data", "tensor"), (4, 2)),
    "data, fsdp, tensor": (("data", "fsdp", "tensor"), (2, 2, 2)),
}
SPECS = {
    "data": {"w": P("data"), "b": P(), "tall": P(None, "data")},
    "data, tensor": {"w": P("data", "tensor"), "b": P("tensor"), "tall": P("tensor")},
    "data, fsdp, tensor": {
        "w": P(("data", "fsdp"), "tensor"),
        "b": P("fsdp"),
        "tall": P("tensor", "fsdp"),
    },
}


@cache
def mesh_of(name: str, kind: AxisType = AxisType.Auto) -> Mesh:
    """The eight devices in one of the arrangements."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices; XLA_FLAGS was read before conftest.py set it")
    axes, shape = AXES[name]
    return Mesh(np.array(jax.devices()[:8]).reshape(shape), axes, (kind,) * len(axes))


def shardings_of(name: str, kind: AxisType = AxisType.Auto) -> dict[str, NamedSharding]:
    """The sharding of each parameter of `values` there."""
    return {k: NamedSharding(mesh_of(name, kind), spec) for k, spec in SPECS[name].items()}


def values(seed: int = 5) -> dict[str, np.ndarray]:
    """Two matrices and a vector that divide on each of the meshes."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (16, 8), "b": (8,), "tall": (8, 64)}
    return {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}


NO_FMA: Any = {"xla_backend_optimization_level": 0}
"""What LLVM contracts to a single rounding depends on how long its loops are."""


def two_steps(tx: Any, state: Any, params: Any, grads: Any) -> tuple[Any, str]:
    """Updates, state and parameters after two steps, and the compiled step's text."""

    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return updates, state, adaptax.apply_updates(params, updates)

    compiled = jax.jit(step).lower(grads, state, params).compile(NO_FMA)
    updates = None
    for _ in range(2):
        updates, state, params = compiled(grads, state, params)
    return (updates, state, params), compiled.as_text() or ""


def placed(name: str, specs: Any = None) -> tuple[Any, Any]:
    """Parameters and gradients on a mesh; by default whole on each device."""
    where = NamedSharding(mesh_of(name), P()) if specs is None else specs
    return jax.device_put(values(), where), jax.device_put(gradients_like(values()), where)


def replicated(tx: Any) -> Any:
    """What two steps make of them, whole on each device."""
    params, grads = placed("data")
    state = jax.device_put(tx.init(values()), NamedSharding(mesh_of("data"), P()))
    return two_steps(tx, state, params, grads)[0]


@cache
def of_case(name: str) -> Any:
    """That of a row of the table."""
    return replicated(next(case for case in CASES if case.name == name).make())


def assert_same(case: Case, got: Any, wanted: Any, where: str) -> None:
    """Bit for bit where each entry is treated by itself, else within the row's tolerance."""
    for name, a, b in zip(("updates", "state", "params"), got, wanted, strict=True):
        if case.elementwise:
            assert_same_bits(jax.device_get(a), jax.device_get(b), f"{case.name}, {where}: {name}")
        else:
            assert_trees_close(a, b, 4 * case.rtol32, f"{case.name}, {where}: {name}")


def collectives(text: str) -> dict[str, int]:
    """How many collectives of each kind a program has."""
    return dict(read(text).collectives)


# --- Where a state lies, and that it makes no difference


@cases(lambda case: case.main)
def test_init_follows_the_parameters(case: Case) -> None:
    params, _ = placed("data, tensor", shardings_of("data, tensor"))
    state = case.make().init(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        p = params.get(getattr(path[-1], "key", None))
        if p is not None and leaf.shape == p.shape:
            where = f"{case.name}, state{jax.tree_util.keystr(path)} lies as {leaf.sharding}"
            assert leaf.sharding.is_equivalent_to(p.sharding, leaf.ndim), where


@pytest.mark.parametrize("name", AXES)
@cases(lambda case: case.main)
def test_a_step_on_a_mesh_is_the_step_on_one_device(case: Case, name: str) -> None:
    tx, places = case.make(), shardings_of(name)
    state_places = sharding.state_sharding(tx, values(), places)
    state = jax.device_put(tx.init(values()), state_places)
    got, text = two_steps(tx, state, *placed(name, places))
    assert_same(case, got, of_case(case.name), name)
    assert not (case.elementwise and collectives(text)), f"{case.name}: {collectives(text)}"
    sharding.check_placement(got[0], places)
    if case.elementwise:  # elsewhere the compiler chooses where results lie
        sharding.check_placement(got[1], state_places)


@cases(lambda case: case.main)
def test_shardings_that_are_types(case: Case) -> None:
    """A jitted init follows them, and the types of a step's results are those of its arguments."""
    mesh = mesh_of("data, tensor", AxisType.Explicit)
    places = shardings_of("data, tensor", AxisType.Explicit)
    tx = case.make()
    with jax.set_mesh(mesh):
        params, grads = (jax.device_put(x, places) for x in (values(), gradients_like(values())))
        where = sharding.state_sharding(tx, params)
        state = jax.jit(tx.init, out_shardings=where)(params)
        updates, after = jax.eval_shape(tx.update, grads, state, params)
    pairs = [(updates, params)] + ([(after, state)] if case.elementwise else [])
    for got, wanted in pairs:
        same = jax.tree.map(
            lambda x, y: jax.typeof(x).sharding == jax.typeof(y).sharding, got, wanted
        )
        assert all(jax.tree.leaves(same)), f"{case.name}: {same}"


@cases(lambda case: case.main and case.elementwise)
def test_inside_shard_map(case: Case) -> None:
    """Where each device calls update with its own part."""
    mesh = mesh_of("data, tensor")
    tx, specs = case.make(), SPECS["data, tensor"]
    state = tx.init(values())
    specs_on = shardings_of("data, tensor")
    places = sharding.state_sharding(tx, values(), specs_on)
    state_specs = jax.tree.map(lambda s: s.spec, places)
    step = jax.shard_map(
        tx.update,
        mesh=mesh,
        in_specs=(specs, state_specs, specs),
        out_specs=(specs, state_specs),
    )
    mapped = adaptax.GradientTransformation(tx.init, step)
    got, text = two_steps(mapped, jax.device_put(state, places), *placed("data, tensor", specs_on))
    assert_same_bits(jax.device_get(got), jax.device_get(of_case(case.name)), case.name)
    assert not collectives(text)


# --- The sharding of a state


def specs_of(tx: Any, params: Any, specs: Any, mesh: Any = None) -> dict[str, Any]:
    """The specs of a state by the paths of its arrays, without trailing None."""
    mesh = mesh or mesh_of("data, tensor")
    found = sharding.state_sharding(tx, params, specs, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): _short(s.spec) for p, s in leaves}


def _short(spec: Any) -> P:
    entries = list(spec)
    while entries and entries[-1] is None:
        entries.pop()
    return P(*entries)


@pytest.mark.parametrize("axis", [0, 1])
def test_sums_over_an_axis_of_a_square_matrix_keep_the_other(axis):
    """What the compiler's own types say that one step makes of them."""
    mesh = mesh_of("data, tensor", AxisType.Explicit)
    spec = P("data") if axis == 0 else P(None, "tensor")
    tx = adaptax.scale_by_factored_rms()
    with jax.set_mesh(mesh):
        params = jax.device_put({"w": jnp.zeros((256, 256))}, NamedSharding(mesh, spec))
        state = jax.device_put(tx.init(params), sharding.state_sharding(tx, params))
        _, after = jax.eval_shape(tx.update, params, state, params)
    got = [jax.typeof(x).sharding.spec for x in (state.v_row["w"], state.v_col["w"])]
    assert got == [jax.typeof(x).sharding.spec for x in (after.v_row["w"], after.v_col["w"])]
    assert {_short(s) for s in got} == {P(), P(spec[axis])}


def test_encoded_arrays_lie_as_their_parameter():
    tx = lowbit.store(
        adaptax.adam(1e-3), {"mu": lowbit.dynamic_int8(block=64), "nu": lowbit.uint8()}, min_size=0
    )
    params = {
        "even": jnp.zeros((8, 256)),
        "across": jnp.zeros((8, 96)),
        "short": jnp.zeros((8, 250)),
    }
    got = specs_of(tx, params, P("data", "tensor"))
    for name in params:
        for codes in (f"mu/{name}/codes", f"nu/{name}/codes"):
            assert got[f"inner_state/0/{codes}"] == P("data", "tensor")
        assert got[f"inner_state/0/nu/{name}/seed"] == P()
    scales = {name: got[f"inner_state/0/mu/{name}/scale"] for name in params}
    # A block of "across" crosses the two shards, and the last of "short" is no whole one.
    assert scales == {"even": P("data", "tensor"), "across": P("data"), "short": P("data")}


def test_wrappers_and_groups():
    inner = adaptax.chain(
        adaptax.clip_by_global_norm(1.0),
        adaptax.partition({"b": adaptax.sgd(0.1, momentum=0.9), "*": adaptax.adamw(1e-3)}),
    )
    tx = adaptax.guard(adaptax.MultiSteps(adaptax.ema_params(inner, 0.99), 2))
    got = specs_of(tx, values(), SPECS["data, tensor"])
    by_parameter = {k: {v for n, v in got.items() if n.endswith(f"/{k}")} for k in values()}
    assert by_parameter == {k: {_short(s)} for k, s in SPECS["data, tensor"].items()}
    rest = {v for n, v in got.items() if not n.endswith(tuple(f"/{k}" for k in values()))}
    assert rest == {P()}


def test_a_state_of_optax():
    import optax

    got = specs_of(optax.adamw(1e-3), values(), SPECS["data, tensor"])
    assert got["0/mu/w"] == got["0/nu/w"] == P("data", "tensor") and got["0/count"] == P()


def test_trees_of_every_kind():
    """None leaves, one array alone, nothing, empty arrays, scalars."""
    tx = adaptax.adam(1e-3)
    assert specs_of(tx, jnp.zeros((8, 4)), P("data"))["0/mu"] == P("data")
    odd = {"none": None, "empty": jnp.zeros((0, 4)), "scalar": jnp.zeros(()), "w": jnp.zeros(8)}
    got = specs_of(tx, odd, {"none": None, "empty": P("data"), "scalar": P(), "w": P("data")})
    assert got["0/mu/empty"] == got["0/nu/w"] == P("data") and got["0/mu/scalar"] == P()
    assert list(specs_of(tx, {}, P()).values()) == [P()]


def test_what_a_transformation_pins_itself_stays():
    place = NamedSharding(mesh_of("data, tensor"), P(None, "data"))

    def init(params: Any) -> Any:
        return jax.tree.map(
            lambda p: jax.lax.with_sharding_constraint(jnp.zeros_like(p), place), params
        )

    tx = adaptax.GradientTransformation(jax.jit(init), lambda g, s, p=None: (g, s))
    assert specs_of(tx, {"w": jnp.zeros((8, 8))}, P("data")) == {"w": P(None, "data")}


def test_shardings_of_the_arrays_themselves():
    places = shardings_of("data, tensor")
    params = jax.device_put(values(), places)
    tx = adaptax.adam(1e-3)
    assert sharding.state_sharding(tx, params) == sharding.state_sharding(tx, values(), places)
    alone = sharding.state_sharding(tx, jax.tree.map(jnp.asarray, values()), mesh=mesh_of("data"))
    assert {_short(s.spec) for s in jax.tree.leaves(alone)} == {P()}


# --- ZeRO


WHOLE = P()


def zero(tx: Any, name: str = "data", specs: Any = WHOLE, **options: Any) -> Any:
    """Split over all of the axis "data", small arrays too."""
    return sharding.zero(tx, specs, mesh_of(name), min_size=0, **options)


@cases(lambda case: case.main)
def test_a_step_in_parts_is_the_whole_step(case: Case) -> None:
    whole = NamedSharding(mesh_of("data"), P())
    tx = zero(case.make())
    state = jax.jit(tx.init)(jax.device_put(values(), whole))
    state_places = sharding.state_sharding(tx, values(), P(), mesh_of("data"))
    sharding.check_placement(state, state_places)
    got, text = two_steps(tx, state, *placed("data"))
    assert_same(case, got, of_case(case.name), "zero")
    sharding.check_placement(got, (whole_of(got[0], whole), state_places, whole_of(got[2], whole)))
    if case.elementwise:
        assert set(collectives(text)) <= {"all-gather"}, case.name
    arrays = sharding.placement(state).arrays
    assert all(8 * a.device_bytes == a.bytes for a in arrays if len(a.shape) == 2)


def whole_of(tree: Any, place: Any) -> Any:
    """The same sharding for each leaf."""
    return jax.tree.map(lambda _: place, tree)


@pytest.mark.parametrize("gradients", [False, True])
def test_beside_tensor_parallelism(gradients):
    specs = {"w": P(None, "tensor"), "b": P("tensor"), "tall": P("tensor")}
    places = {k: NamedSharding(mesh_of("data, tensor"), s) for k, s in specs.items()}
    tx = zero(adaptax.adamw(1e-2), "data, tensor", specs, gradients=gradients)
    state = jax.jit(tx.init)(jax.device_put(values(), places))
    got, text = two_steps(tx, state, *placed("data, tensor", places))
    assert_same_bits(jax.device_get(got), jax.device_get(replicated(adaptax.adamw(1e-2))))
    found = {k: _short(v.sharding.spec) for k, v in got[1][0].mu.items()}
    assert found == {
        "w": P("data", "tensor"),
        "b": P(("tensor", "data")),
        "tall": P("tensor", "data"),
    }
    assert collectives(text) == {"all-gather": 3}
    sharding.check_placement(got[2], places)


def test_padding_splits_what_divides_nowhere():
    """Also beside a tensor axis; the state inside has its own shapes, the stored one zeros."""
    params = {"odd": jnp.linspace(-1.0, 1.0, 29), "w": jnp.ones((5, 13)), "b": jnp.ones(3)}
    params = jax.device_put(params, NamedSharding(mesh_of("data"), P()))
    grads = jax.tree.map(jnp.cos, params)
    tx = adaptax.adamw(1e-2)
    padded = zero(tx, pad=True)
    (updates, state, _), text = two_steps(padded, jax.jit(padded.init)(params), params, grads)
    (wanted, plain, _), _ = two_steps(tx, tx.init(params), params, grads)
    assert_same_bits(jax.device_get(updates), jax.device_get(wanted))
    assert collectives(text) == {"all-gather": 2}
    mu = state[0].mu
    assert {k: v.shape for k, v in mu.items()} == {"odd": (32,), "w": (5, 16), "b": (3,)}
    assert _short(mu["w"].sharding.spec) == P(None, "data") and not np.any(mu["odd"][29:])
    np.testing.assert_array_equal(mu["w"][:, :13], plain[0].mu["w"])
    assert [a.whole for a in sharding.placement(mu).arrays] == [True, False, False]
    where = sharding.state_sharding(padded, params, P(), mesh_of("data"))
    sharding.check_placement(state, where)


def test_zero_where_shardings_are_types():
    mesh = mesh_of("data", AxisType.Explicit)
    tx = sharding.zero(adaptax.adamw(1e-2), min_size=0)
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, P())
        params, grads = (jax.device_put(x, whole) for x in (values(), gradients_like(values())))
        got, text = two_steps(tx, jax.jit(tx.init)(params), params, grads)
    assert_same_bits(jax.device_get(got), jax.device_get(replicated(adaptax.adamw(1e-2))))
    assert collectives(text) == {"all-gather": 3}
    assert _short(jax.typeof(got[1][0].mu["w"]).sharding.spec) == P("data")
    assert _short(jax.typeof(got[0]["w"]).sharding.spec) == P()


def test_sums_of_micro_batches_are_split():
    plain = adaptax.MultiSteps(adaptax.adam(1e-2), 2)
    tx = zero(plain, gradients=True)
    got, _ = two_steps(tx, jax.jit(tx.init)(placed("data")[0]), *placed("data"))
    assert_same_bits(jax.device_get(got), jax.device_get(replicated(plain)))
    assert all(not a.whole for a in sharding.placement(got[1].acc_grads).arrays)


def test_odd_leaves_in_parts():
    """None, nothing, empty, a scalar, 16 bits; and no gradient where there is a parameter."""
    params: Any = {
        "none": [None, {}],
        "empty": jnp.zeros((0, 8)),
        "scalar": jnp.ones(()),
        "half": jnp.ones((8, 2), jnp.bfloat16),
        "w": jnp.ones((8, 4)),
        "frozen": jnp.ones(8),
    }
    grads = {**jax.tree.map(lambda p: 0.5 * p, params), "frozen": None}
    plain = adaptax.adam(1e-2)
    for gradients in (False, True):
        tx = zero(plain, gradients=gradients)
        updates, state = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
        wanted, other = jax.jit(plain.update)(grads, plain.init(params), params)
        assert_trees_close((updates, state), (wanted, other), 1e-6, "odd leaves")
        assert updates["frozen"] is None and updates["half"].dtype == jnp.bfloat16
        assert not sharding.placement(state[0].mu["w"]).arrays[0].whole
        sharding.check_placement(updates["w"], NamedSharding(mesh_of("data"), P()))
    empty = zero(plain)
    assert empty.update({}, empty.init({}), {})[0] == {}


def test_encoded_state_in_parts():
    """Random numbers come from an entry's index in the whole array."""
    plain = lowbit.store(adaptax.rmsprop(1e-2), {"nu": lowbit.uint8()}, min_size=0)
    tx = zero(plain)
    got, _ = two_steps(tx, jax.jit(tx.init)(placed("data")[0]), *placed("data"))
    wanted = replicated(plain)
    assert_same_bits(jax.device_get(got[1]), jax.device_get(wanted[1]))
    # XLA's 1/√x may round otherwise in a loop of another length.
    assert_trees_close(got, wanted, 1e-6, "in parts")
    codes = got[1].inner_state[0].nu["w"].codes
    assert codes.dtype == jnp.uint8 and not sharding.placement(codes).arrays[0].whole


def test_matrices_are_shared_out():
    """Eight matrices on eight devices: each does one, an eighth of the arithmetic, or less than
    a quarter with what is not a multiplication of matrices."""
    tx = adaptax.muon(1e-2, adam_learning_rate=1e-2)
    layers = {f"layer{i}": jnp.eye(32) + 0.1 * i for i in range(7)}
    params = {**layers, "stack": jnp.ones((2, 8, 16)), "b": jnp.ones(8)}
    numbers = {
        k: adaptax.MuonDimensionNumbers(-2, -1) if v.ndim > 1 else None for k, v in params.items()
    }
    tx = adaptax.muon(1e-2, muon_weight_dimension_numbers=numbers)
    split = zero(tx)
    grads = jax.tree.map(jnp.sin, params)
    flops, results = [], []
    for each in (tx, split):
        step = jax.jit(each.update).lower(grads, each.init(params), params).compile()
        flops.append((step.cost_analysis() or {})["flops"])
        results.append(step(grads, jax.jit(each.init)(params), params))
    assert_trees_close(results[1], results[0], 1e-4, "muon")
    assert flops[1] < flops[0] / 4


def test_split_makes_fully_sharded_parameters():
    params = {
        "w": jnp.ones((64, 128)),
        "stack": jnp.ones((3, 64, 64)),
        "b": jnp.ones(64),
        "odd": jnp.ones((99, 99)),
    }
    mesh = mesh_of("data, tensor")
    given = {"w": P(None, "tensor"), "stack": P(), "b": P(), "odd": P()}
    got = sharding.split(params, given, mesh)
    specs = {k: _short(s.spec) for k, s in got.items()}
    assert specs == {"w": P("data", "tensor"), "stack": P(None, "data"), "b": P(), "odd": P()}
    again = sharding.split(params, got, mesh)
    assert {k: _short(s.spec) for k, s in again.items()} == specs
    both = sharding.split({"w": params["w"]}, P(), mesh, axis=("data", "tensor"))
    assert _short(both["w"].spec) == P(None, ("data", "tensor"))


# --- On the host


to_the_host = pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2), reason="XLA moves nothing to a CPU's host memory"
)


@to_the_host
def test_state_on_the_host():
    tx, plain = sharding.offload(adaptax.adam(1e-2), min_size=10), adaptax.adam(1e-2)
    params = NamedSharding(mesh_of("data"), P())
    where = sharding.state_sharding(tx, values(), params)
    step = jax.jit(
        tx.update,
        donate_argnums=1,
        in_shardings=(params, where, params),
        out_shardings=(params, where),
    )
    state, other = jax.device_put(tx.init(values()), where), plain.init(values())
    updates = wanted = None
    for _ in range(2):
        updates, state = step(gradients_like(values()), state, values())
        wanted, other = jax.jit(plain.update)(gradients_like(values()), other, values())
    assert_trees_close((updates, state), (wanted, other), 1e-6, "offload")
    kinds = {k: v.sharding.memory_kind for k, v in state[0].mu.items()}
    assert kinds == {"w": "pinned_host", "tall": "pinned_host", "b": "device"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(updates)} == {"device"}


@to_the_host
def test_the_part_of_a_device_on_the_host():
    tx = sharding.offload(zero(adaptax.adam(1e-2)), min_size=10)
    where = sharding.state_sharding(tx, values(), P(), mesh_of("data"))
    assert where[0].mu["w"].memory_kind == "pinned_host" and _short(where[0].mu["w"].spec) == P(
        "data"
    )
    state = jax.jit(tx.init)(values())
    _, state = jax.jit(tx.update)(gradients_like(values()), state, values())
    sharding.check_placement(state, where)
    assert "(host)" in str(sharding.placement(state))


def test_a_device_without_host_memory_is_refused():
    from types import SimpleNamespace

    from adaptax.sharding._offload import check_host_memory

    device = SimpleNamespace(addressable_memories=lambda: [SimpleNamespace(kind="device")])
    with pytest.raises(
        ValueError, match=r"has no memory of the kind 'pinned_host', only \['device'\]"
    ):
        check_host_memory(device)


# --- What lies where


def test_a_table_of_bytes():
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(3)}
    tx = sharding.zero(adaptax.adam(1e-3), P(), mesh_of("data"))
    state = jax.eval_shape(tx.init, params)
    table = sharding.placement(state, sharding.state_sharding(tx, params, P(), mesh_of("data")))
    assert table.bytes == 4 + 2 * 4 * (64 * 64 + 3)
    assert table.device_bytes == 4 + 2 * 4 * (64 * 64 // 8 + 3)
    assert table.whole_bytes == 4 + 2 * 4 * 3
    lines = str(table).splitlines()
    assert lines[1].split() == ["0/mu/w", "float32[64,64]", "data,", "-", "16,384", "2,048"]
    assert lines[-1].endswith("a device holds 4,124 (12.6%), 28 of them whole")
    many = sharding.placement({f"w{i:02}": jnp.ones(2) for i in range(50)})
    assert "and 10 smaller ones" in str(many) and len(many.arrays) == 50
    assert sharding.placement({}).bytes == 0 and "0 bytes in 0 arrays" in str(
        sharding.placement({})
    )


def test_a_constraint_without_effect_is_found():
    places = shardings_of("data, tensor")
    right = jax.device_put(values(), places)
    sharding.check_placement(right, places)
    wrong = {**right, "w": jax.device_put(values()["w"], NamedSharding(mesh_of("data"), P()))}
    with pytest.raises(
        ValueError, match=r"1 of 3 arrays are elsewhere: w should lie as .*'tensor'"
    ):
        sharding.check_placement(wrong, places)
    with pytest.raises(ValueError, match="b should lie as"):
        sharding.check_placement(values(), places)


# --- Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tx, p: sharding.state_sharding(tx, p), "the sharding of b has no mesh: give mesh="),
        (lambda tx, p: sharding.state_sharding(tx, p, P("data")), "has no mesh"),
        (
            lambda tx, p: sharding.state_sharding(
                tx, p, P("data", "tensor"), mesh_of("data, tensor")
            ),
            r"the spec of b has 2 entries.*shape \(8,\) has 1 axes",
        ),
        (
            lambda tx, p: sharding.state_sharding(
                tx, {"w": jnp.ones(9)}, P("data"), mesh_of("data")
            ),
            r"w of shape \(9,\) does not divide as .*'data'.* says on the mesh",
        ),
        (
            lambda tx, p: sharding.split(p, P(), mesh_of("data"), axis="model"),
            r"split: axis must be one of \['data'\] \(the mesh's\), got 'model'",
        ),
        (
            lambda tx, p: sharding.zero(tx, P(), mesh_of("data"), axis="fsdp").init(p),
            r"zero: axis must be one of \['data'\]",
        ),
        (
            lambda tx, p: sharding.split(
                p, shardings_of("data") | {"b": shardings_of("data, tensor")["b"]}
            ),
            "the parameters must lie on one mesh",
        ),
        (
            lambda tx, p: sharding.zero(tx).init(jax.device_put(p, shardings_of("data"))),
            "zero: tall lies as .* not known inside jax.jit: give param_shardings",
        ),
        (
            lambda tx, p: zero(tx, pad=True).update(p, tx.init({"w": jnp.ones((3, 3))}), p),
            "zero: the second argument of update must be its state",
        ),
        (
            lambda tx, p: zero(tx, pad=True).update(
                {"w": jnp.ones(29)}, tx.init({"w": jnp.ones(30)}), {"w": jnp.ones(29)}
            ),
            r"must have the shape \(29,\), or padded \(32,\), got \(30,\)",
        ),
        (
            lambda tx, p: sharding.zero(
                tx, P(), mesh_of("data", AxisType.Explicit), pad=True, min_size=0
            ).init({"w": jnp.ones(29)}),
            r"pad is not possible on a mesh with explicit axes.*w of shape \(29,\)",
        ),
        (lambda tx, p: sharding.placement(p), "placement: b has no sharding: give shardings"),
        (lambda tx, p: sharding.placement(p, {"w": None}), "shardings do not match the tree"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(adaptax.adam(1e-3), values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda tx: sharding.state_sharding(tx, values(), {"w": 1, "b": 2, "tall": 3}),
            "state_sharding: param_shardings must be a sharding or PartitionSpec for each",
        ),
        (
            lambda tx: sharding.zero(tx, axis=3),
            "zero: axis must be the name of a mesh axis, or several",
        ),
        (
            lambda tx: sharding.state_sharding(adaptax.adam, values(), P()),
            "the function adam itself",
        ),
        (
            lambda tx: sharding.state_sharding(tx, values(), {"w": P()}, mesh_of("data")),
            "with the parameters' structure",
        ),
    ],
)
def test_arguments_of_a_wrong_kind(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(adaptax.adam(1e-3))
