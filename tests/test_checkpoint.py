"""Checkpoints: what comes back, where it goes, and what a kill leaves."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint_worker as worker
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from cases import CASES
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_same_bits, optax_rules
from trees import ZOO, Layer, as_jax

import adaptax
from adaptax import checkpoint, lowbit
from adaptax.checkpoint import Checkpoints
from adaptax.lowbit import Encoded

SCHEDULE = adaptax.linear_schedule(1.0, 0.0, 10)
PARAMS = {"b": jnp.ones(3), "w": jnp.ones((4, 3))}


def filled(tree: Any, seed: int = 0) -> Any:
    """The tree with other numbers, no two arrays alike."""
    rng = np.random.default_rng(seed)

    def fill(x: Any) -> Any:
        x = np.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(x.shape).astype(x.dtype))
        return jnp.asarray(rng.integers(1, 100, x.shape).astype(x.dtype))

    return jax.tree.map(fill, tree)


def data(tree: Any) -> Any:
    """Keys as their numbers, so that bits can be compared."""
    leaves = jax.tree.leaves(tree)
    raw = [jax.random.key_data(x) if is_key(x) else x for x in leaves]
    return jax.tree.structure(tree).unflatten(raw)


def is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where one checkpoint goes."""
    return tmp_path / "checkpoint"


# --- What comes back


def test_the_state_of_every_optimizer_comes_back_bit_by_bit(path: Path) -> None:
    states = {
        c.name: filled(c.make().init(as_jax(c.params_as(np.float32)))) for c in CASES if c.main
    }
    checkpoint.save(path, states)
    for like in (states, shapes(states)):
        got, report = checkpoint.restore(path, like)
        assert_same_bits(got, states)
        assert report.exact
        assert len(report.rows) == len(jax.tree.leaves(states))
    assert len(states) >= 15


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_tree_comes_back(name: str, path: Path) -> None:
    tree = as_jax(ZOO[name]())
    checkpoint.save(path, tree)
    got, report = checkpoint.restore(path, shapes(tree))
    assert_same_bits(got, tree)
    assert report.exact


DTYPES = ["bool", "int4", "int8", "int32", "uint4", "uint8", "uint16", "uint32"]
DTYPES += ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32", "complex64"]


def test_every_dtype_and_number_comes_back(path: Path) -> None:
    odd = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 1e-40, 3.0])
    tree = {
        "jax": {d: jnp.asarray(np.array([1, 0, 2, 3]).astype(jnp.dtype(d))) for d in DTYPES},
        "nan": jnp.asarray(np.array([0x7FC01234, 0xFF800001], np.uint32).view(np.float32)),
        "odd": {d: odd.astype(d) for d in ("float32", "bfloat16", "float8_e5m2")},
        "numpy": {"wide": np.arange(3.0), "long": np.array([2**40]), "half": np.float16(2)},
        "python": {"int": 2**40, "float": 0.1, "bool": True, "complex": 1j},
        "keys": [jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 3)],
        "raw": jax.random.PRNGKey(3),
        "none": None,
        "nothing": {"zero": np.zeros((0, 3), np.float16), "list": [], "dict": {}},
        "no keys": jax.random.split(jax.random.key(0), 3)[:0],
        "float0": np.zeros(2, jax.dtypes.float0),
        1: {"a.b": jnp.ones(2), "c/d": {"": jnp.ones(1)}},
    }
    tree = {str(k): v for k, v in tree.items()} | {"ints": {3: jnp.ones(1), 20: jnp.zeros(1)}}
    checkpoint.save(path, tree)
    got, report = checkpoint.restore(path, tree)
    assert report.exact, report
    assert_same_bits(data(got), data(tree))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        assert type(x) is type(y)
    assert [str(jax.random.key_impl(k)) for k in got["keys"]] == ["threefry2x32", "rbg"]


@jax.tree_util.register_static
class Static:
    """A node without leaves."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static)

    def __hash__(self) -> int:
        return 0


def test_a_list_keeps_its_order(path: Path) -> None:
    """Also with more than ten items, and one that has no leaves."""
    tree = [Static(), *(jnp.full((), i) for i in range(12))]
    checkpoint.save(path, {"list": tree})
    assert_same_bits(checkpoint.restore(path, {"list": shapes(tree)})[0]["list"], tree)


def test_dtypes_of_like_are_those_that_come_back(path: Path) -> None:
    tree = {"wide": jnp.array([1.0, 1 + 2**-9, 3e38]), "narrow": jnp.ones(2, jnp.bfloat16), "n": 5}
    tree |= {"short": jnp.int32(7), "up": jnp.ones(2, jnp.uint8)}
    checkpoint.save(path, tree)
    like = {
        "wide": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
        "narrow": np.zeros(2, np.float32),
        "n": jnp.zeros((), jnp.int8),
        "short": 0,
        "up": jnp.zeros(2, jnp.int16),
    }
    got, report = checkpoint.restore(path, like)
    assert_same_bits(got["wide"], tree["wide"].astype(jnp.bfloat16))
    assert isinstance(got["narrow"], np.ndarray) and got["narrow"].dtype == np.float32
    assert got["n"].dtype == jnp.int8 and int(got["n"]) == 5
    assert type(got["short"]) is int and got["short"] == 7
    assert report.of("cast") == ("n", "narrow", "up", "wide")
    assert "cast     wide (float32 to bfloat16)" in str(report)


def test_arrays_without_a_sharding_follow_those_with_one(path: Path) -> None:
    """Jax may place them; tied to a device, they could not be added to a sharded array."""
    checkpoint.save(path, {"count": jnp.ones(()), "w": jnp.ones(8)})
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    w = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    for count in (jnp.zeros(()), jax.ShapeDtypeStruct((), jnp.float32)):
        got, _ = checkpoint.restore(path, {"count": count, "w": w})
        assert not got["count"].committed
        assert got["w"].sharding == w.sharding
        jax.block_until_ready(got["w"] + got["count"])


# --- Orbax and optax


def optax_run() -> tuple[Any, Any]:
    """Parameters, and a state of optax after some steps."""
    params = {"layers": [{"w": jnp.ones((4, 3)), "b": None}], "norm": Layer(jnp.ones(3), None)}
    tx = composed(optax)
    with optax_rules():
        state = tx.init(params)
    return params, filled(state)


def composed(lib: Any) -> Any:
    return lib.chain(
        lib.clip_by_global_norm(1.0),
        lib.masked(lib.trace(0.5), lambda tree: jax.tree.map(lambda _: True, tree)),
        lib.adamw(lambda count: 0.1),
    )


def orbax_manager(path: Path, tree: Any) -> Path:
    with ocp.CheckpointManager(path) as manager:
        manager.save(7, args=ocp.args.StandardSave(tree))
    return path / "7"


def orbax_items(path: Path, tree: Any) -> Path:
    with ocp.CheckpointManager(path) as manager:
        items = {name: ocp.args.PyTreeSave(item) for name, item in tree.items()}
        manager.save(7, args=ocp.args.Composite(**items, notes=ocp.args.JsonSave({"a": 1})))
    return path / "7"


def orbax_alone(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, tree)
    return path


@pytest.mark.parametrize("written", [orbax_manager, orbax_items, orbax_alone])
def test_a_checkpoint_of_optax_goes_on_in_adaptax(written: Any, path: Path) -> None:
    params, state = optax_run()
    where = written(path, {"params": params, "state": state})
    tx = composed(adaptax)
    got, report = checkpoint.restore(
        where, {"params": params, "state": jax.eval_shape(tx.init, params)}
    )
    assert report.exact
    assert_same_bits(got["params"], params)
    assert_same_bits(jax.tree.leaves(got["state"]), jax.tree.leaves(state))
    assert jax.tree.structure(got["state"]) == jax.tree.structure(tx.init(params))


def test_optax_and_orbax_alone_read_what_adaptax_saved(path: Path) -> None:
    params, theirs = optax_run()
    state = filled(composed(adaptax).init(params))
    tree = {"params": params, "state": state, "key": jax.random.key(1)}
    with Checkpoints(path) as saves:
        saves.save(3, tree)
        with_us = saves.restore({"params": params, "state": theirs}, unused="drop").tree
    assert_same_bits(jax.tree.leaves(with_us["state"]), jax.tree.leaves(state))
    assert jax.tree.structure(with_us["state"]) == jax.tree.structure(theirs)

    like = {"params": params, "state": theirs, "key": tree["key"]}
    with ocp.CheckpointManager(path) as manager:
        with_orbax = manager.restore(3, args=ocp.args.StandardRestore(like))
    assert_same_bits(data(with_orbax["state"]), with_us["state"])
    assert_same_bits(data(with_orbax["key"]), data(tree["key"]))


def test_16_bit_moments_of_optax_become_float32(path: Path) -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    with optax_rules():
        state = filled(optax.adam(0.1).init(params))
    orbax_alone(path, state)
    got, report = checkpoint.restore(path, jax.eval_shape(adaptax.adam(0.1).init, params))
    assert got[0].nu["w"].dtype == jnp.float32
    np.testing.assert_array_equal(got[0].nu["w"], state[0].nu["w"].astype(jnp.float32))
    assert report.of("cast") == ("0/mu/w", "0/nu/w")


NAMES = [
    "",
    " ",
    ".",
    "..",
    "//",
    "/a",
    "a//b",
    "a.",
    "..b",
    "\0",
    "\n",
    "日本",
    "😀",
    "a" * 64_000,
]
NAMES += ["'", '"', "\\", "{", "%2F", ".zarray", "a/.zarray", "0", "None", "['a']", "*", "value"]


def test_every_name_that_is_not_refused_comes_back(path: Path) -> None:
    tree = {name: jnp.full(2, float(i)) for i, name in enumerate(NAMES)}
    with Checkpoints(path) as saves:
        saves.save(1, tree)
        got, report = saves.restore(shapes(tree))[1:]
    assert report.exact and not any(row.moved for row in report.rows)
    assert_same_bits(got, tree)


# --- Storage formats

WIDE = {"w": jnp.ones((8, 40)), "small": jnp.ones(2)}


def stored(mu: Any, nu: Any, **options: Any) -> Any:
    """Adam in two formats, in a chain; the small array stays as it is."""
    slots = {k: v for k, v in (("mu", mu), ("nu", nu)) if v is not None}
    return lowbit.store(adaptax.adam(0.1), slots, min_size=16, **options)


FORMATS = {
    "8 bit": stored(lowbit.int8("nu"), lowbit.uint8(middle=-20), seed=5),
    "4 bit": stored(lowbit.int4(), lowbit.uint4()),
    "rows": stored(lowbit.int8(), lowbit.bf16()),
    "fp8": stored(lowbit.fp8_e4m3(), lowbit.fp8_e5m2()),
    "blocks": stored(lowbit.dynamic_int8(block=16), lowbit.dynamic_uint8(block=32)),
    "beside float32": stored(lowbit.int8("nu"), None),
}
ADAM = adaptax.adam(0.1)


def wide_state() -> Any:
    state = filled(ADAM.init(WIDE))
    return jax.tree.map(
        lambda x: x, (state[0]._replace(nu=jax.tree.map(jnp.square, state[0].nu)), *state[1:])
    )


def all_encoded() -> dict[str, Any]:
    return {name: lowbit.encode_state(tx, wide_state(), WIDE) for name, tx in FORMATS.items()}


def test_encoded_arrays_come_back_in_their_format_bit_by_bit(path: Path) -> None:
    states = all_encoded()
    checkpoint.save(path, states)
    got, report = checkpoint.restore(path, shapes(states))
    assert report.exact, report
    assert_same_bits(got, states)


def test_encoded_arrays_are_decoded_as_decode_state_does(path: Path) -> None:
    states = all_encoded()
    checkpoint.save(path, states)
    got, report = checkpoint.restore(
        path, {name: jax.eval_shape(ADAM.init, WIDE) for name in states}
    )
    for name, state in states.items():
        assert_same_bits(got[name], lowbit.decode_state(state), name)
    assert len(report.of("decoded")) == 2 * len(states) - 1
    assert "(uint8(middle=-20) to float32)" in str(report)


def test_float32_is_encoded_as_encode_state_does(path: Path) -> None:
    states = all_encoded()
    checkpoint.save(path, {name: wide_state() for name in states})
    like = {name: tx.init(WIDE) for name, tx in FORMATS.items()}
    got, report = checkpoint.restore(path, like)
    for name, state in states.items():
        assert_same_bits(got[name], state, name)
    assert len(report.of("encoded")) == 2 * len(states) - 1
    with pytest.raises(ValueError, match=r"is to be encoded, for which like must be a state from"):
        checkpoint.restore(path, shapes(like))


@pytest.mark.parametrize("old, new", [("8 bit", "4 bit"), ("rows", "8 bit"), ("8 bit", "blocks")])
def test_one_format_becomes_another_by_way_of_float32(old: str, new: str, path: Path) -> None:
    state = lowbit.encode_state(FORMATS[old], wide_state(), WIDE)
    checkpoint.save(path, state)
    got, report = checkpoint.restore(path, jax.eval_shape(FORMATS[new].init, WIDE))
    wanted = lowbit.encode_state(FORMATS[new], lowbit.decode_state(state), WIDE)
    assert_same_bits(without_seeds(got), without_seeds(wanted))
    assert report.of("recoded") == ("inner_state/0/mu/w", "inner_state/0/nu/w")


def without_seeds(state: Any) -> Any:
    def drop(x: Any) -> Any:
        return Encoded(x.codes, x.scale, None, x.codec, x.kept) if isinstance(x, Encoded) else x

    return jax.tree.map(drop, state, is_leaf=lambda x: isinstance(x, Encoded))


def test_codes_relative_to_a_slot_that_changes_are_encoded_anew(path: Path) -> None:
    """First moments as codes beside second moments that lose digits."""
    state = lowbit.encode_state(FORMATS["beside float32"], wide_state(), WIDE)
    checkpoint.save(path, state)
    narrow = jax.tree.map(lambda x: x, FORMATS["8 bit"].init(WIDE))
    got, report = checkpoint.restore(path, narrow)
    assert report.of("recoded") == ("inner_state/0/mu/w",)
    assert report.of("encoded") == ("inner_state/0/nu/w",)
    before = lowbit.decode_state(state)[0].mu["w"]
    after = lowbit.decode_state(got)[0].mu["w"]
    size = np.abs(before)
    assert float(np.max(np.abs(after - before) / size)) < 0.1
    # Taken over, the codes would be off by the root of what the second moment is off by.
    kept = Encoded(state.inner_state[0].mu["w"].codes, None, None, lowbit.int8("nu"), jnp.float32)
    inner = got.inner_state[0]
    wrong = lowbit.decode_state(
        got._replace(inner_state=(inner._replace(mu={**inner.mu, "w": kept}),))
    )
    assert float(np.max(np.abs(wrong[0].mu["w"] - before) / size)) > 0.2


def test_the_count_of_rounding_goes_and_comes(path: Path) -> None:
    """Of a state without a count it starts anew, and is no leaf that anybody misses."""
    plain, small = (
        adaptax.rmsprop(0.1),
        lowbit.store(adaptax.rmsprop(0.1), {"nu": lowbit.uint8()}, min_size=1),
    )
    checkpoint.save(path, filled(plain.init(WIDE)))
    got, report = checkpoint.restore(path, small.init(WIDE))
    assert report.of("kept") == ("count",) and int(got.count) == 0
    got = got._replace(count=jnp.int32(9))
    again = path.with_name("again")
    checkpoint.save(again, got)
    back, report = checkpoint.restore(again, jax.eval_shape(plain.init, WIDE))
    assert report.of("dropped") == ("count",)
    assert_same_bits(back, lowbit.decode_state(got))


def test_a_format_of_ones_own(path: Path) -> None:
    mine = lowbit.store(ADAM, {"nu": Halved()}, min_size=16)
    state = lowbit.encode_state(mine, wide_state(), WIDE)
    checkpoint.save(path, state)
    assert_same_bits(checkpoint.restore(path, shapes(state))[0], state)
    assert_same_bits(
        checkpoint.restore(path, jax.eval_shape(ADAM.init, WIDE))[0], lowbit.decode_state(state)
    )


class Halved(lowbit.bf16):
    """A format that this module brings."""

    def decode(self, codes: Any, scale: Any) -> Any:
        return super().decode(codes, scale) / 2


# --- A changed optimizer


class Move(NamedTuple):
    """What is saved, what is restored, and from where it is to come.

    Attributes:
        old: The optimizer that is saved.
        new: The one that is restored.
        origins: Paths in the new state, or beginnings of them, and what they are in the old one;
            the longest that fits counts.
        kept: How many leaves are new.
        dropped: How many of the old ones have no place.
    """

    old: Any
    new: Any
    origins: dict[str, str]
    kept: int = 0
    dropped: int = 0


chain, clip, adam, sgd = adaptax.chain, adaptax.clip(1.0), adaptax.adam, adaptax.sgd
two = adaptax.partition({"b": adam(0.1), "*": adam(0.1)})
group = "inner_states/{}/inner_state/0"
MOVES = {
    "the same": Move(adam(SCHEDULE), adam(SCHEDULE), {"": ""}),
    "a link before": Move(
        chain(adaptax.scale_by_adam(), adaptax.scale_by_schedule(SCHEDULE)),
        chain(clip, adaptax.scale_by_adam(), adaptax.scale_by_schedule(SCHEDULE)),
        {"1": "0", "2": "1"},
    ),
    "a link less": Move(
        chain(clip, adaptax.scale_by_adam(), adaptax.scale_by_schedule(SCHEDULE)),
        chain(adaptax.scale_by_adam(), adaptax.scale_by_schedule(SCHEDULE)),
        {"0": "1", "1": "2"},
    ),
    "a chain in a chain": Move(adam(SCHEDULE), chain(clip, adam(SCHEDULE)), {"1/": ""}),
    "two alike, a link before": Move(
        chain(adaptax.trace(0.5), adaptax.trace(0.9)),
        chain(clip, adaptax.trace(0.5), adaptax.trace(0.9)),
        {"1": "0", "2": "1"},
    ),
    "which of two alike is gone, nobody knows": Move(
        chain(adaptax.trace(0.5), adaptax.trace(0.9)), adaptax.trace(0.5), {}, 2, 4
    ),
    "accumulation": Move(
        adam(SCHEDULE), adaptax.MultiSteps(adam(SCHEDULE), 4), {"inner_opt_state/": ""}, 4
    ),
    "a guard": Move(adam(SCHEDULE), adaptax.guard(adam(SCHEDULE)), {"inner_state/": ""}, 6),
    "no guard": Move(adaptax.guard(adam(SCHEDULE)), adam(SCHEDULE), {"": "inner_state/"}, 0, 6),
    "a mask": Move(adam(0.1), adaptax.masked(adam(0.1), "w"), {"inner_state/": ""}, 0, 2),
    "groups": Move(adam(0.1), two, {group.format("*"): "0", group.format("b"): "0"}),
    "a group of its own": Move(
        adam(0.1),
        adaptax.partition({"b": sgd(0.1, 0.9), "*": adam(0.1)}),
        {group.format("*"): "0"},
        1,
        2,
    ),
    "groups renamed": Move(
        two,
        adaptax.partition({"bias|b": adam(0.1), "*": adam(0.1)}),
        {group.format("*"): group.format("*"), group.format("bias|b"): group.format("b")},
    ),
    "more of a state": Move(adam(SCHEDULE), adaptax.amsgrad(SCHEDULE), {"": ""}, 2),
    "less of a state": Move(adaptax.amsgrad(SCHEDULE), adam(SCHEDULE), {"": ""}, 0, 2),
    "more of a state, and a link before": Move(
        adam(SCHEDULE), chain(clip, adaptax.amsgrad(SCHEDULE)), {"1/": ""}, 2
    ),
    "second moments are not first ones": Move(
        adaptax.scale_by_rms(), adaptax.scale_by_adam(), {"nu": "nu"}, 3
    ),
    "the count of another state is not taken": Move(
        adaptax.scale_by_schedule(SCHEDULE), adaptax.ema(0.5), {}, 3, 1
    ),
    "to optax": Move(
        chain(clip, adam(SCHEDULE)), optax.chain(optax.adam(lambda _: 0.1)), {"0": "1"}
    ),
}


def origin(name: str, origins: dict[str, str]) -> str:
    """The path in the old state; empty if there is none."""
    fits = [start for start in origins if name.startswith(start)]
    if not fits:
        return ""
    start = max(fits, key=len)
    return origins[start] + name[len(start) :]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any, Any]]:
    """The old state, the fresh new one, and what is restored; all are saved at once."""
    at = tmp_path_factory.mktemp("moves")
    old = {name: filled(move.old.init(PARAMS), i) for i, (name, move) in enumerate(MOVES.items())}
    for i, state in enumerate(old.values()):
        checkpoint.save(at / str(i), {"params": PARAMS, "state": state})

    def restored(name: str) -> Any:
        with optax_rules():
            fresh = filled(MOVES[name].new.init(PARAMS), 1000)
        like = {"params": PARAMS, "state": fresh}
        where = at / str(list(MOVES).index(name))
        options = {"missing": "keep", "unused": "drop"}
        return old[name], fresh, *checkpoint.restore(where, like, **options)

    return restored


@pytest.mark.parametrize("name", MOVES)
def test_a_changed_optimizer_finds_its_state(name: str, moved: Any) -> None:
    old, fresh, got, report = moved(name)
    move = MOVES[name]
    values = by_name(old)
    for path, x in by_name(got["state"]).items():
        source = origin(path, move.origins)
        wanted = values[source] if source in values else by_name(fresh)[path]
        assert_same_bits(x, wanted, f"{name}: {path} from {source or 'init'}")
    assert len(report.of("kept")) == move.kept, report
    assert len(report.of("dropped")) == move.dropped, report
    assert report.of("restored")[:2] == ("params/b", "params/w")


def by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def test_states_with_names_of_the_users_keep_apart(path: Path) -> None:
    """Two networks of one shape, whose optimizers both get a link and another format."""
    new = chain(clip, lowbit.store(adam(SCHEDULE), {"mu": lowbit.bf16()}, min_size=1))
    tree = {"disc": filled(adam(SCHEDULE).init(PARAMS), 1), "gen": filled(ADAM.init(PARAMS), 2)}
    checkpoint.save(path, tree | {"gen": filled(adam(SCHEDULE).init(PARAMS), 2)})
    like = {name: new.init(PARAMS) for name in ("disc", "gen")}
    _, report = checkpoint.restore(path, like)
    sources = {row.name: row.source for row in report.rows}
    for name in like:
        assert sources[f"{name}/1/count"] == f"{name}/0/count"
        assert sources[f"{name}/1/inner_state/0/mu/w"] == f"{name}/0/mu/w"
        assert sources[f"{name}/1/inner_state/1/count"] == f"{name}/1/count"


def test_parameters_may_have_the_names_of_fields(path: Path) -> None:
    params = {"count": jnp.ones(()), "nu": {"mu": jnp.ones(3)}, "mu": Layer(jnp.ones(2), None)}
    state = filled(ADAM.init(params))
    checkpoint.save(path, state)
    got, report = checkpoint.restore(path, jax.eval_shape(chain(clip, ADAM).init, params))
    assert report.exact
    assert_same_bits(got[1], state)


def test_fields_of_parameters_are_not_fields_of_states(path: Path) -> None:
    """Second moments of a `Layer` are no momentum of one."""
    params = Layer(jnp.ones((4, 3)), jnp.ones(3))
    checkpoint.save(path, filled(adaptax.scale_by_rms().init(params)))
    fresh = adaptax.trace(0.5).init(params)
    got, report = checkpoint.restore(path, fresh, missing="keep", unused="drop")
    assert report.of("kept") == ("trace/kernel", "trace/bias")
    assert_same_bits(got, fresh)


def test_one_state_of_a_chain_is_restored(path: Path) -> None:
    state = filled(chain(clip, adaptax.scale_by_adam()).init(PARAMS))
    checkpoint.save(path, {"state": state})
    got, report = checkpoint.restore(path, jax.eval_shape(adaptax.scale_by_adam().init, PARAMS))
    assert report.exact
    assert_same_bits(got, state[1])


class Net(nnx.Module):
    """One layer, whose parameters are in boxes."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(8, 4, rngs=rngs)


BOXED = {
    "adam": adam(SCHEDULE),
    "encoded": lowbit.store(adam(SCHEDULE), {"mu": lowbit.int8("nu")}, min_size=1),
    "accumulated": adaptax.MultiSteps(chain(clip, adam(SCHEDULE)), 2),
}


def kept_by_nnx(tx: Any) -> tuple[Any, Any, Any]:
    """A state as `nnx.Optimizer` keeps it, of boxed parameters, and of bare ones."""
    net = Net(nnx.Rngs(0))
    params = nnx.state(net, nnx.Param)
    states = nnx.Optimizer(net, tx, wrt=nnx.Param).opt_state, tx.init(params)
    return *states, tx.init(nnx.to_pure_dict(params))


@pytest.mark.parametrize("name", BOXED)
def test_states_in_boxes_are_those_without(name: str, path: Path) -> None:
    """Saved in one form, they are restored in each."""
    states = [filled(state, i) for i, state in enumerate(kept_by_nnx(BOXED[name]))]
    for i, saved in enumerate(states):
        checkpoint.save(path / str(i), {"state": saved})
        for like in states:
            got, report = checkpoint.restore(path / str(i), {"state": shapes(like)})
            assert report.exact, report
            assert jax.tree.structure(got["state"]) == jax.tree.structure(like)
            assert_same_bits(jax.tree.leaves(got), jax.tree.leaves(saved))


def test_states_in_boxes_may_change(path: Path) -> None:
    """By a link, by a storage format; their own optimizer then takes them."""
    old = filled(kept_by_nnx(BOXED["adam"])[0])
    checkpoint.save(path, old)
    new: Any = chain(clip, BOXED["adam"])
    more = nnx.Optimizer(Net(nnx.Rngs(0)), new, wrt=nnx.Param)
    state, report = checkpoint.restore(path, shapes(more.opt_state))
    assert report.exact
    more.opt_state = state
    assert_same_bits(more.opt_state[1][0].mu["layer"]["bias"][...], old[0].mu["layer"]["bias"][...])
    state, report = checkpoint.restore(path, kept_by_nnx(BOXED["encoded"])[0])
    names = tuple(f"inner_state/0/mu/layer/{name}" for name in ("bias", "kernel"))
    assert report.of("encoded") == names
    other = old[0]._replace(mu={"layer": {"bias": jnp.ones(5)}})
    message = r"Of another shape: 0/mu/layer/bias has .* Only in [^:]*: 0/mu/layer/kernel/value\."
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(path, (other, *old[1:]))


def test_names_that_are_numbers_are_names(path: Path) -> None:
    """An ensemble in a dict; its keys are sorted as text in jax, as numbers nowhere."""
    tree = {str(i): filled(ADAM.init(PARAMS), i) for i in range(11)}
    checkpoint.save(path, tree)
    got, report = checkpoint.restore(path, shapes(tree))
    assert_same_bits(got, tree)
    assert not any(row.moved for row in report.rows)


def test_counts_of_groups_that_are_merged_must_be_equal(path: Path) -> None:
    state = two.init(PARAMS)
    for i, other in enumerate((0, 5)):
        inner = dict(state.inner_states)
        masked = inner["b"]
        adam_state = masked.inner_state[0]._replace(count=jnp.int32(other))
        inner["b"] = masked._replace(inner_state=(adam_state, *masked.inner_state[1:]))
        checkpoint.save(path.with_name(str(i)), state._replace(inner_states=inner))
    like = jax.eval_shape(adam(0.1).init, PARAMS)
    got, _ = checkpoint.restore(path.with_name("0"), like, unused="drop")
    assert int(got[0].count) == 0
    message = r"restore: 0/count belongs to states that are merged, and .* is 5; .* is 0\. Restore"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(path.with_name("1"), like, unused="drop")


def test_parameters_are_found_by_their_path_only(path: Path) -> None:
    """Second moments have the parameters' names and shapes."""
    checkpoint.save(path, {"state": adaptax.rmsprop(0.1).init(PARAMS)})
    with pytest.raises(adaptax.TreeMismatchError, match=r"Not in the checkpoint .*: b; w\."):
        checkpoint.restore(path, PARAMS)


def test_parameters_alone_are_restored(path: Path) -> None:
    checkpoint.save(path, {"params": filled(PARAMS), "state": ADAM.init(PARAMS)})
    with pytest.raises(ValueError, match=r'Only in the checkpoint \(unused="drop".*state/0/count'):
        checkpoint.restore(path, {"params": PARAMS})
    got, report = checkpoint.restore(path, {"params": PARAMS}, unused="drop")
    assert_same_bits(got["params"], filled(PARAMS))
    assert report.of("dropped")[0] == "state/0/count" and not report.exact


def test_a_long_report_is_cut(path: Path) -> None:
    checkpoint.save(path, [jnp.zeros(())] * 30)
    _, report = checkpoint.restore(path, [jnp.zeros((), jnp.bfloat16)] * 30)
    lines = str(report).splitlines()
    assert lines[0] == "30 leaves: 30 cast"
    assert lines[-1] == "cast     and 10 more" and len(lines) == 22


# --- Meshes


def mesh_of(*shape: int) -> Mesh:
    n = int(np.prod(shape))
    return Mesh(np.array(jax.devices()[:n]).reshape(shape), ("data", "model")[: len(shape)])


def laid(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Where each leaf lies; what has no parameter's shape lies everywhere."""

    def of(x: Any) -> NamedSharding:
        spec = specs.get(jnp.shape(x), P())
        return NamedSharding(mesh, spec)

    return jax.tree.map(of, tree)


MESHES = {
    "turned": (mesh_of, (2, 4), {(8, 16): P("model", "data")}),
    "fewer": (mesh_of, (2,), {(8, 16): P(None, "data")}),
    "one": (mesh_of, (1,), {}),
}


@pytest.mark.parametrize("to", MESHES)
def test_a_state_goes_onto_another_mesh(to: str, path: Path) -> None:
    params = filled({"w": jnp.ones((8, 16)), "b": jnp.ones(2)})
    tx = lowbit.store(chain(clip, ADAM), {"nu": lowbit.uint8()}, min_size=16)
    tree = {
        "params": params,
        "state": tx.init(params),
        "keys": jax.random.split(jax.random.key(0), 8),
    }
    tree["key"] = jax.random.key(1)
    placed = jax.device_put(tree, laid(tree, mesh_of(4, 2), {(8, 16): P("data", "model")}))
    checkpoint.save(path, placed)
    make, shape, specs = MESHES[to]
    wanted = laid(tree, make(*shape), specs)
    structs = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, wanted
    )
    by_like, _ = checkpoint.restore(path, structs)
    by_argument, report = checkpoint.restore(path, shapes(tree), shardings=wanted)
    assert report.exact
    for got in (by_like, by_argument):
        assert_same_bits(data(got), data(tree))
        for x, sharding in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
    # Decoded and encoded on the way.
    plain = jax.eval_shape(chain(clip, ADAM).init, params)
    got, report = checkpoint.restore(
        path,
        {"state": plain},
        shardings={"state": laid(plain, make(*shape), specs)},
        unused="drop",
    )
    assert report.of("decoded") == ("state/1/0/nu/w",)
    nu = got["state"][1][0].nu["w"]
    assert_same_bits(nu, lowbit.decode_state(tree["state"])[1][0].nu["w"])
    assert nu.sharding.is_equivalent_to(wanted["params"]["w"], 2)
    again = path.with_name("again")
    checkpoint.save(again, got)
    like = {"state": tx.init(params)}
    got, report = checkpoint.restore(again, like, shardings={"state": wanted["state"]})
    assert report.of("encoded") == ("state/inner_state/1/0/nu/w",)
    codes = got["state"].inner_state[1][0].nu["w"].codes
    assert codes.sharding.is_equivalent_to(wanted["params"]["w"], 2)


def test_shardings_may_be_one_or_a_prefix(path: Path) -> None:
    tree = {"a": {"x": jnp.ones(8), "y": jnp.ones((8, 2))}, "b": jnp.ones(())}
    checkpoint.save(path, tree)
    everywhere, split = NamedSharding(mesh_of(4), P()), NamedSharding(mesh_of(4), P("data"))
    got, _ = checkpoint.restore(path, tree, shardings=everywhere)
    assert all(x.sharding == everywhere for x in jax.tree.leaves(got))
    got, _ = checkpoint.restore(path, tree, shardings={"a": split, "b": None})
    assert got["a"]["x"].sharding == got["a"]["y"].sharding == split
    assert not got["b"].committed
    got, _ = checkpoint.restore(
        path, tree | {"n": jnp.zeros(8)}, shardings=everywhere, missing="keep"
    )
    assert got["n"].sharding == everywhere


def test_shapes_on_explicit_axes_are_restored_onto_the_mesh(path: Path) -> None:
    mesh = jax.make_mesh((4,), ("data",))
    assert all(kind == AxisType.Explicit for kind in mesh.axis_types)
    x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("data")))
    checkpoint.save(path, x)
    like = jax.eval_shape(lambda: x)
    with jax.set_mesh(mesh):
        got, _ = checkpoint.restore(path, like)
    assert got.sharding == x.sharding
    assert_same_bits(got, x)
    with pytest.raises(
        ValueError, match=r"restore: the shapes of like lie on AbstractMesh.*set_mesh"
    ):
        checkpoint.restore(path, like)


@pytest.mark.parametrize(
    "shape, spec",
    [
        ((6,), P("data")),  # not a multiple
        ((), P("data")),  # not as many axes
        ((), P(None)),
        ((8,), P(None, "data")),
        ((8, 8), P("data", None, None)),
    ],
)
@pytest.mark.parametrize("kind", ["array", "number", "key", "encoded"])
def test_shardings_that_do_not_fit_are_refused(
    kind: str, shape: Any, spec: Any, path: Path
) -> None:
    """Before anything is read: the checkpoint is sound, and not called damaged."""
    x: Any = {
        "array": lambda: jnp.ones(shape),
        "number": lambda: np.ones(shape),
        "key": lambda: jax.random.wrap_key_data(jnp.zeros((*shape, 2), jnp.uint32)),
        "encoded": lambda: Encoded(
            jnp.ones(shape, jnp.uint8), None, jnp.uint32(1), lowbit.uint8(), np.dtype("float32")
        ),
    }[kind]()
    with Checkpoints(path) as saves:
        saves.save(1, {"b": jnp.ones(8), "a": x})
    sharding = NamedSharding(mesh_of(4), spec)
    message = rf"restore: the sharding of a does not fit its shape {re.escape(str(shape))}: "
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoints(path).restore({"b": jnp.ones(8), "a": x}, shardings={"a": sharding, "b": None})
    assert type(caught.value) is ValueError


def test_shardings_that_are_none_are_refused(path: Path) -> None:
    tree = {"a": jnp.ones(6), "b": jnp.ones(())}
    checkpoint.save(path, tree)
    split = NamedSharding(mesh_of(4), P("data"))
    with pytest.raises(
        TypeError, match=r"shardings must be a jax.sharding.Sharding.*got P.*'data'"
    ):
        checkpoint.restore(path, tree, shardings=P("data"))
    with pytest.raises(TypeError, match=r"structure of like \(or a prefix of it\); "):
        checkpoint.restore(path, tree, shardings={"a": split})


# --- A series


def test_the_latest_steps_are_kept(path: Path) -> None:
    tree = {"x": jnp.zeros(2)}
    with Checkpoints(path, keep=2) as saves:
        assert saves.steps == () and saves.latest is None and not path.exists()
        for step in (1, 5, np.int64(10), jnp.int32(200)):
            saves.save(step, {"x": jnp.full(2, float(step))})
        assert saves.steps == (10, 200) and saves.latest == 200
        step, got, report = saves.restore(tree)
        assert (step, float(got["x"][0]), report.exact) == (200, 200.0, True)
        assert float(saves.restore(tree, step=10).tree["x"][0]) == 10.0
        saves.delete(200)
        assert saves.restore(tree).step == 10
        saves.save(11, tree)
    assert sorted(os.listdir(path)) == ["10", "11"]
    with Checkpoints(path, keep=None, background=False) as saves:
        for step in range(12, 16):
            saves.save(step, tree)
        assert sorted(os.listdir(path), key=int) == [str(i) for i in range(10, 16)]


@pytest.mark.parametrize("background", [True, False])
def test_what_is_saved_may_be_overwritten_at_once(background: bool, path: Path) -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, y = jnp.zeros((256, 1024)), np.zeros((256, 1024))
    with Checkpoints(path, keep=None, background=background) as saves:
        for i in range(4):
            saves.save(i, {"x": x, "y": y})
            for _ in range(3):
                x = step(x)
                y += 1
        for i in range(4):
            got = saves.restore({"x": x, "y": y}, step=i).tree
            assert np.unique(got["x"]) == np.unique(got["y"]) == 3 * i


def test_reading_changes_nothing(path: Path) -> None:
    """So an evaluation does not remove what a run is writing."""
    tree = {"x": jnp.zeros(2)}
    with Checkpoints(path) as saves:
        saves.save(1, tree)
    (path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(path) as saves:
        assert saves.steps == (1,)
        saves.restore(tree)
        assert (path / "2.orbax-checkpoint-tmp").exists()
        saves.save(3, tree)
    assert sorted(os.listdir(path)) == ["1", "3"]


def test_an_error_changes_nothing(path: Path) -> None:
    with Checkpoints(path) as saves:
        with pytest.raises(TypeError):
            saves.save(1, {"x": "text"})
        assert not path.exists()
        saves.save(1, {"x": jnp.zeros(2)})
        saves.wait()
        before = sorted(str(p) for p in path.rglob("*"))
        for step, tree in ((1, {}), (0, {}), (2, {"x": object()})):
            with pytest.raises((TypeError, ValueError)):
                saves.save(step, tree)
        assert sorted(str(p) for p in path.rglob("*")) == before


# --- Errors


def test_bad_arguments_are_refused(path: Path) -> None:
    for keep in (0, -1, True, 2.5):
        with pytest.raises(
            ValueError, match=r"Checkpoints: keep must lie in \[1, inf\), or be None"
        ):
            Checkpoints(path, keep=keep)
    saves, tree = Checkpoints(path), {"x": jnp.zeros(2)}
    with pytest.raises(TypeError, match=r"save: step must be an integer, got 1.5 \(float\)"):
        saves.save(1.5, tree)
    with pytest.raises(TypeError, match=r"save: step must be an integer, got True"):
        saves.save(True, tree)
    with pytest.raises(ValueError, match=r"save: step must lie in \[0, inf\), got -1"):
        saves.save(-1, tree)
    with pytest.raises(ValueError, match=r"restore: missing must be one of .*'keep'\), got 'drop'"):
        saves.restore(tree, missing="drop")
    with pytest.raises(ValueError, match=r"restore: unused must be one of .*'drop'\), got 'keep'"):
        saves.restore(tree, unused="keep")


class Key(NamedTuple):
    """A key of a dict that is no text."""

    number: int

    def __str__(self) -> str:
        return "key"


def test_leaves_that_can_not_be_written_are_refused(path: Path) -> None:
    saves = Checkpoints(path)
    with pytest.raises(TypeError, match=r"save: the leaf a/0 must be an array, a key or a number"):
        saves.save(0, {"a": ["text"]})
    with pytest.raises(TypeError, match=r"save: the leaf a must be an array, a key or a number"):
        saves.save(0, {"a": np.array(["text"])})
    with pytest.raises(TypeError, match=r"save: the leaf a must be an array, a key or a number"):
        saves.save(0, {"a": np.zeros(2, np.longdouble)})
    with pytest.raises(ValueError, match=r"save: a is 9223372036854775808, which int64 can't hold"):
        saves.save(0, {"a": 2**63})
    with pytest.raises(
        ValueError, match=r"save: the leaves a/b; a.b have one name in Orbax's files"
    ):
        saves.save(0, {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
    for name, problem in {
        "a\ud800": r"leaf 'x/a\\ud800' has characters that UTF-8 has no code for; rename it",
        "a" * 65_000: r"leaf 'x/aaa.* has 65003 bytes, and Orbax's files take 65000; rename it",
    }.items():
        with pytest.raises(ValueError, match=f"save: the name of the {problem}"):
            saves.save(0, {"x": {name: jnp.ones(1)}})
    for one, other in (("w", "w/"), ("", "/")):
        with pytest.raises(ValueError, match=rf"save: the leaves {one or '.*'}; {other} have one"):
            saves.save(0, {one: jnp.ones(1), other: jnp.ones(1)})
    with pytest.raises(ValueError, match=r"save: the leaves key; key have one name"):
        saves.save(0, {Key(1): jnp.ones(1), Key(2): jnp.ones(1)})
    with pytest.raises(TypeError, match=r"save: the arrays are traced; call it outside jax.jit"):
        jax.jit(lambda x: saves.save(0, {"a": x}))(jnp.ones(1))
    saves.save(0, {"a": jnp.ones(1)})
    with pytest.raises(TypeError, match=r"restore: the leaf a must be an array, a key or a number"):
        saves.restore({"a": "text"})
    with pytest.raises(TypeError, match=r"restore: the arrays are traced"):
        jax.jit(lambda x: saves.restore({"a": x}).tree)(jnp.ones(1))
    saves.close()


def test_all_that_does_not_match_is_said_at_once(path: Path) -> None:
    tree = {"a": jnp.ones(3), "b": jnp.ones(2), "c": jnp.int32(300), "k": jax.random.key(0), "u": 1}
    checkpoint.save(path, tree)
    like = {
        "a": jnp.ones(4),
        "b": jnp.ones(2, jnp.int32),
        "k": jax.random.key(0, impl="rbg"),
        "n": jnp.ones(2),
    }
    message = (
        r"restore: .*checkpoint does not fit like\. Of another shape: a has shape \(4,\) against "
        r"\(3,\); k has shape .*\. Of another kind: b is int32 against float32\. Not in the "
        r'checkpoint \(missing="keep" keeps what like has there\): n\. Only in the checkpoint '
        r'\(unused="drop" leaves it out\): c; u\.'
    )
    with pytest.raises(adaptax.TreeMismatchError, match=message) as caught:
        checkpoint.restore(path, like)
    assert caught.value.paths == ("a", "k", "b", "n", "c", "u")
    with pytest.raises(ValueError, match=r"n has no value in like"):
        checkpoint.restore(
            path, {"n": jax.ShapeDtypeStruct((2,), jnp.float32)}, missing="keep", unused="drop"
        )
    with pytest.raises(ValueError, match=r"restore: c is 300, which int8 can't hold"):
        checkpoint.restore(path, {"c": jnp.int8(0)}, unused="drop")
    with pytest.raises(ValueError, match=r"a is float32 against int32; b is uint8 against int32"):
        many = {"a": jnp.arange(3), "b": jnp.arange(2)}
        checkpoint.save(path.with_name("integers"), many)
        like = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.uint8)}
        checkpoint.restore(path.with_name("integers"), like)
    with pytest.raises(ValueError, match=r"b is a key of threefry2x32 against float32"):
        checkpoint.restore(path, {"b": jax.random.key(0)}, unused="drop")


def test_an_unknown_format_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = lowbit.encode_state(FORMATS["8 bit"], wide_state(), WIDE)
    checkpoint.save(path, state)
    monkeypatch.setattr("adaptax.checkpoint._file.codec_of", lambda _: None)
    with pytest.raises(ValueError, match=r"0/mu/w is in the format int8, unknown here: import its"):
        checkpoint.restore(path, jax.eval_shape(ADAM.init, WIDE))


def test_codes_of_another_version_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = lowbit.encode_state(FORMATS["8 bit"], wide_state(), WIDE)
    with monkeypatch.context() as older:
        older.setattr(lowbit._window.Window, "version", 1)
        checkpoint.save(path, state)
    message = r"0/mu/w is in version 1 of the codes of int8, which this adaptax does not have: deco"
    for like in (state, jax.eval_shape(ADAM.init, WIDE)):
        with pytest.raises(ValueError, match=message):
            checkpoint.restore(path, like)


def test_codes_without_what_they_are_relative_to(path: Path) -> None:
    """They come back as they are, but cannot be decoded, nor can numbers be encoded."""
    state = lowbit.encode_state(FORMATS["8 bit"], wide_state(), WIDE)
    codes, numbers = {"mu": state.inner_state[0].mu["w"]}, {"mu": jnp.ones((8, 40))}
    checkpoint.save(path, codes)
    assert_same_bits(checkpoint.restore(path, codes)[0], codes)
    message = r"mu is in int8\(root_of='nu'\), and the checkpoint has no such slot beside it"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(path, numbers)
    checkpoint.save(path.with_name("numbers"), numbers)
    message = r"mu is to be in int8\(root_of='nu'\), and like has no such slot beside it"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(path.with_name("numbers"), codes)


def test_what_is_not_there_is_an_error(path: Path, tmp_path: Path) -> None:
    tree = {"x": jnp.zeros(2)}
    saves = Checkpoints(path)
    with pytest.raises(
        FileNotFoundError, match=r"restore: there is no checkpoint in .*/checkpoint"
    ):
        saves.restore(tree)
    with pytest.raises(FileNotFoundError, match=r"restore: .*nowhere does not exist"):
        checkpoint.restore(tmp_path / "nowhere", tree)
    saves.save(4, tree)
    with pytest.raises(FileNotFoundError, match=r"restore: there is no step 3; the steps are 4\."):
        saves.restore(tree, step=3)
    with pytest.raises(FileNotFoundError, match=r"delete: there is no step 3; the steps are 4\."):
        saves.delete(3)
    with pytest.raises(
        ValueError, match=r"the step must be after the latest one, 4, got 4\. To go"
    ):
        saves.save(4, tree)
    with pytest.raises(FileExistsError, match=r"save: there is something at .*4 already"):
        checkpoint.save(path / "4", tree)
    with pytest.raises(
        ValueError, match=r"restore: .*/checkpoint holds the steps 4; use Checkpoints"
    ):
        checkpoint.restore(path, tree)
    saves.close()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        NotADirectoryError, match=r"Checkpoints: the directory must be one.*is a file"
    ):
        Checkpoints(file)
    with pytest.raises(NotADirectoryError, match=r"restore: the directory must be one.*is a file"):
        checkpoint.restore(file, tree)


def test_a_later_format_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptax.checkpoint._file.VERSION", 2)
    checkpoint.save(path, {"x": jnp.zeros(2)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"was written by a later version of adaptax; update it"):
        checkpoint.restore(path, {"x": jnp.zeros(2)})


def test_without_orbax_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    wanted = r"needs orbax-checkpoint: pip install 'adaptax\[checkpoint\]'"
    for name, call in {
        "Checkpoints": lambda: Checkpoints(path),
        "save": lambda: checkpoint.save(path, {}),
        "restore": lambda: checkpoint.restore(path, {}),
    }.items():
        with pytest.raises(ImportError, match=f"{name} {wanted}"):
            call()


def test_what_fails_in_the_background_is_raised_by_the_next_call(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    tree = {"x": jnp.zeros((64, 64))}
    with Checkpoints(path) as saves:
        saves.save(1, tree)
        saves.wait()
        monkeypatch.setattr("os.rename", full)
        saves.save(2, tree)
        with pytest.raises(OSError, match="the disk is full"):
            saves.wait()
        monkeypatch.undo()
        assert saves.restore(tree).step == 1
        saves.save(3, tree)
    with Checkpoints(path) as saves:
        saves.save(4, tree)
    assert sorted(os.listdir(path)) == ["1", "3", "4"]


# --- Killed


class Forks:
    """A process that forks others, from which they can be killed."""

    def __init__(self, logs: Path):
        self._logs, self._count = logs, 0
        here = Path(worker.__file__).parents[1]  # this adaptax, not an installed one
        environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="", PYTHONPATH=str(here))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def _say(self, text: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._line()

    def run(self, job: str, *arguments: Any, kill_after: float | None = None) -> tuple[int, Any]:
        """Run a job; its exit status and the lines that it printed.

        Args:
            job: Its name.
            arguments: What it is given.
            kill_after: The seconds after its first report when it is killed.
        """
        self._count += 1
        log = self._logs / f"{self._count}.txt"
        pid = int(self._say(json.dumps([job, str(log), *arguments])))
        if kill_after is not None:
            self._wait_for_report(log)
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        status = int(self._say(""))
        return status, log.read_text().splitlines()

    @contextmanager
    def running(self, job: str, *arguments: Any) -> Iterator[Callable[[], bool]]:
        """Whether a job still runs; it has begun, and is waited for at the end."""
        self._count += 1
        log = self._logs / f"{self._count}.txt"
        pid = int(self._say(json.dumps([job, str(log), *arguments])))
        self._wait_for_report(log)
        yield lambda: "ended" not in log.read_text()
        status = int(self._say(""))
        assert status == 0, (pid, log.read_text())

    @staticmethod
    def _wait_for_report(log: Path) -> None:
        deadline = time.monotonic() + 60
        while not (log.exists() and REPORT.search(log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)

    def close(self) -> None:
        self._process.communicate(timeout=20)


REPORT = re.compile(r"^saved \d+$|Traceback", re.M)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


DEATHS = ["at random", "commit", "retiring", "removal", "at random"]


def test_a_kill_amid_a_save_harms_no_step(forks: Forks, path: Path) -> None:
    """Ten times: in the background or not, at random or at the worst moments."""
    rng, last, unfinished, half_deleted = random.Random(1), -1, 0, 0
    for how in DEATHS:
        for background in (True, False):
            if how == "at random":
                kill = {"kill_after": rng.uniform(0.0, 0.15)}
                status, lines = forks.run("saver", str(path), background, "", **kill)
            else:
                status, lines = forks.run("saver", str(path), background, how)
            assert status == -signal.SIGKILL, lines
            names = os.listdir(path)
            unfinished += sum(worker.TMP in name for name in names)
            half_deleted += ".deleted" in names
            saves = Checkpoints(path)
            reported = [int(line.split()[1]) for line in lines if REPORT.match(line)]
            assert saves.latest is not None and saves.latest >= max([last, *reported])
            assert len(saves.steps) in (1, 2, 3)  # the third is there until it is retired
            last = saves.latest
            for step in saves.steps:
                assert_same_bits(
                    saves.restore(worker.blank(), step=step).tree, worker.content(step)
                )
            assert saves.restore(worker.blank()).step == last
    assert unfinished >= 2 and half_deleted >= 2, "no kill came amid a save"
    with Checkpoints(path, keep=2) as saves:
        saves.save(last + 1, worker.content(last + 1))
    assert sorted(os.listdir(path), key=int) == [str(last), str(last + 1)]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_reader_beside_a_writer_sees_no_damage(keep: int, forks: Forks, path: Path) -> None:
    """While the steps that it reads are removed."""
    like, seen = worker.small(0), set()
    with forks.running("rewriter", str(path), keep, 1.5) as runs:
        while runs():
            step, tree, report = Checkpoints(path).restore(like)
            assert report.verified
            assert_same_bits(tree, worker.small(step))
            saves = Checkpoints(path)
            assert saves.latest is not None and saves.steps
            try:  # by its path, as of a moment ago
                assert checkpoint.restore(path / str(step), like)[1].verified
            except FileNotFoundError:
                assert step not in saves.steps
            seen.add(step)
    assert len(seen) >= 5, seen


@pytest.mark.parametrize("how", ["removed", "full"])
def test_a_process_whose_saves_fail_says_so_and_ends(how: str, forks: Forks, path: Path) -> None:
    """Its directories are removed while it writes; or the disk is full."""
    status, lines = forks.run("failing", str(path), how)
    assert status == 0, lines[-20:]
    assert re.fullmatch(r"saved 90 after( (OSError|ValueError|FileNotFoundError)){4}", lines[-1])
    saves = Checkpoints(path)
    assert saves.latest == 90
    assert_same_bits(saves.restore(worker.small(0)).tree, worker.small(90))
    assert all(name.isdecimal() for name in os.listdir(path)), "what failed is left"


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that is not killed; compiled programs are left beside it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    status, lines = forks.run("trainer", str(run), str(run.parent), STEPS, 0.0, False)
    assert status == 0, lines
    return run


STEPS = 24


@pytest.mark.parametrize("background, kills", [(True, (0.1, 0.2)), (False, (0.1,))])
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    background: bool, kills: tuple[float, ...], whole: Path, forks: Forks, path: Path
) -> None:
    """8-bit state, bfloat16 parameters rounded by chance, a schedule, data drawn from a key."""
    arguments = (str(path), str(whole.parent), STEPS)
    starts = []
    for kill_after in (*kills, None):
        pause = 0.0 if kill_after is None else 0.02
        status, lines = forks.run("trainer", *arguments, pause, background, kill_after=kill_after)
        assert status == (0 if kill_after is None else -signal.SIGKILL), lines
        starts.append(lines[0])
    assert starts[0] == "at 0" and "at 0" not in starts[1:] and f"at {STEPS}" not in starts, starts
    assert path.with_suffix(".json").read_text() == whole.with_suffix(".json").read_text()
