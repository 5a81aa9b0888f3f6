"""Leaves by name: patterns, groups, masks and step sizes by pattern, freezing."""

# pyright: reportArgumentType=false, reportCallIssue=false

import dataclasses
import pickle
import re
from collections import OrderedDict
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import assert_close, assert_same_bits, optax_rules, trajectory
from trees import ZOO, Layer, as_jax, gradients_like

import adaptax
from adaptax import Stacked, by_path
from adaptax._core import matches


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    """A dataclass of the user's own."""

    kernel: Any
    value: Any


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Linear(3, 2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])


def model() -> Any:
    """A dict with an embedding, two blocks and a head."""
    rng = np.random.default_rng(3)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "embed": {"table": array(7, 4)},
        "blocks": [{"kernel": array(4, 4), "bias": array(4)} for _ in range(2)],
        "head": {"kernel": array(4, 2), "bias": array(2)},
    }


def steps(params: Any, n: int = 3) -> list[Any]:
    """Gradients of a model."""
    return [as_jax(gradients_like(params, seed)) for seed in range(n)]


# Names and patterns


@pytest.mark.parametrize(
    "pattern, hits",
    [
        ("*", "abcd"),
        ("w", "a"),
        ("*/w", "abc"),
        ("enc/*", "bc"),
        ("enc/?/w", "b"),
        ("enc/[0-3]/w", "b"),
        ("enc/{}/w", "bc"),
        ("*/w|*/bias", "abcd"),
        ("!*/w", "d"),
        ("!*/w|*/bias", ""),
        ("enc", ""),
        (re.compile(r"enc/\d+/w"), "bc"),
        (re.compile(r"enc"), ""),
        (re.compile(r".*bias"), "d"),
    ],
    ids=str,
)
def test_a_pattern_matches_whole_names(pattern, hits):
    names = {"a": "w", "b": "enc/0/w", "c": "enc/10/w", "d": "bias"}
    assert [k for k, name in names.items() if matches(pattern, name)] == list(hits)


@pytest.mark.parametrize(
    "tree, names",
    [
        (lambda: jnp.ones(2), [""]),
        (lambda: {}, []),
        (lambda: Layer(1.0, None), ["kernel", "bias"]),
        (lambda: {"a": [Layer(1.0, 2.0)]}, ["a/0/kernel", "a/0/bias"]),
        (lambda: OrderedDict(z=1.0, a=(2.0,)), ["z", "a/0"]),
        (lambda: [Block(1.0, 2.0)], ["0/kernel", "0/value"]),
        (
            lambda: nnx.state(Model(), nnx.Param),
            [
                f"{part}/{leaf}"
                for part in ("embed", "layers/0", "layers/1")
                for leaf in ("bias", "kernel")
            ],
        ),
        (
            lambda: equinox.nn.Linear(2, 2, key=jax.random.key(0)),
            ["weight", "bias"],
        ),
    ],
    ids=["root", "empty", "named_tuple", "nested", "ordered", "dataclass", "nnx", "equinox"],
)
def test_leaves_have_names(tree, names):
    assert adaptax.path_names(tree()) == names


def test_by_path_is_a_value_that_makes_a_tree():
    rules = by_path({"*/bias": False, re.compile(r"embed/.*"): False, "*": True})
    assert rules == by_path([*rules.rules]) and hash(rules) == hash(by_path([*rules.rules]))
    assert rules != by_path({"*": True})
    assert pickle.loads(pickle.dumps(rules)) == rules
    assert eval(repr(rules), {"by_path": by_path, "re": re}) == rules
    out = rules(model())
    assert out["embed"]["table"] is False and out["blocks"][1] == {"bias": False, "kernel": True}


# Groups

GROUPS = {"*/bias": adaptax.sgd(0.1, momentum=0.9), "embed/*": None, "*": adaptax.adamw(0.01)}
FORMS = {
    "mapping": GROUPS,
    "pairs": list(GROUPS.items()),
    "regular expressions": [
        (re.compile(r"(.*/)?bias"), GROUPS["*/bias"]),
        (re.compile(r"embed/.*"), adaptax.freeze()),
        (re.compile(r".*"), GROUPS["*"]),
    ],
}


@pytest.mark.parametrize("rules", FORMS.values(), ids=FORMS.keys())
def test_groups_by_pattern_are_groups_by_label(rules):
    params = model()
    labels = by_path({"*/bias": "b", "embed/*": "e", "*": "w"})
    named = {"b": GROUPS["*/bias"], "e": adaptax.set_to_zero(), "w": GROUPS["*"]}
    got, state = trajectory(adaptax.partition(rules), params, steps(params))
    wanted, other = trajectory(adaptax.partition(named, labels), params, steps(params))
    assert_same_bits(got, wanted)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(other))


def test_groups_by_label_are_those_of_optax():
    params = model()
    labels = by_path({"*/bias": "b", "*": "w"})
    make = lambda lib: lib.multi_transform(  # noqa: E731
        {"b": lib.sgd(0.1, momentum=0.9), "w": lib.adamw(0.01)}, labels
    )
    got, _ = trajectory(make(adaptax), params, steps(params))
    with optax_rules():
        wanted, _ = trajectory(make(optax), params, steps(params))
    assert_close(got, wanted, 2e-4, 1e-6)


@pytest.mark.parametrize(
    "params",
    [
        lambda: nnx.state(Model(), nnx.Param),
        lambda: equinox.filter(equinox.nn.MLP(2, 2, 3, 1, key=jax.random.key(0)), equinox.is_array),
        lambda: {"stack": Layer(jnp.ones((5, 2, 2)), jnp.ones((5, 2)))},
        lambda: [Block(jnp.ones(2), None), {"bias": jnp.ones(2)}],
    ],
    ids=["nnx", "equinox", "stacked", "dataclass"],
)
def test_groups_in_all_kinds_of_trees(params):
    params = params()
    tx = adaptax.partition({"*/bias": adaptax.scale(2.0), "*": adaptax.scale(3.0)})
    updates, _ = tx.update(params, tx.init(params), params)
    names = adaptax.path_names(params)
    factors = [2.0 if name.endswith("bias") else 3.0 for name in names]
    is_none = lambda x: x is None  # noqa: E731
    pairs = zip(
        jax.tree.leaves(updates, is_leaf=is_none),
        jax.tree.leaves(params, is_leaf=is_none),
        factors,
        strict=True,
    )
    for u, p, factor in pairs:
        assert (u is None and p is None) or np.array_equal(u, factor * p)
    assert {2.0, 3.0} == set(factors)


@pytest.mark.parametrize("tree", ZOO.values(), ids=ZOO.keys())
def test_one_group_is_the_transformation_itself(tree):
    params = as_jax(tree())
    tx = adaptax.adamw(0.1)
    got, _ = trajectory(adaptax.partition({"*": tx}), params, steps(params, 2))
    wanted, _ = trajectory(tx, params, steps(params, 2))
    assert_same_bits(got, wanted)


def test_patterns_inside_a_group_may_name_leaves_that_it_does_not_hold():
    params = model()
    inner = adaptax.adamw(0.1, mask="!*/bias")
    tx = adaptax.partition({"*/bias": adaptax.sgd(0.1), "*": inner})
    got, _ = trajectory(tx, params, steps(params))
    alone, _ = trajectory(adaptax.adamw(0.1), params, steps(params))
    for u, w in zip(got, alone, strict=True):
        assert_same_bits(u["head"]["kernel"], w["head"]["kernel"])
    nested = adaptax.masked(adaptax.partition({"embed/*": None, "*": adaptax.sgd(0.1)}), "!head/*")
    updates, _ = nested.update(params, nested.init(params), params)
    assert_same_bits(updates["head"], params["head"])
    assert not np.any(updates["embed"]["table"])


TYPO = {"*/bais": None, "*": adaptax.sgd(0.1)}
ERRORS: list[tuple[str, Any, Any, str]] = [
    ("uncovered", lambda: adaptax.partition({"*/bias": None}).init(model()), ValueError,
     r"^partition: no pattern of \['\*/bias'\] matches blocks/0/kernel; blocks/1/kernel; "
     r"embed/table; head/kernel\. A last pattern"),
    ("typo", lambda: adaptax.partition(TYPO).init(model()), ValueError,
     r"^partition: the pattern '\*/bais' matches no leaf; the names are blocks/0/bias; .* 2 more"),
    ("never first", lambda: adaptax.partition({"*": None, "embed/*": None}).init(model()),
     ValueError, r"^partition: the pattern 'embed/\*' gets no leaf: .*embed/table to '\*'\. Put"),
    ("number as pattern", lambda: adaptax.partition({1: None}), TypeError,
     r"^partition: transforms must be a mapping of path patterns, or pairs .* got \(1, "),
    ("pattern of bytes", lambda: adaptax.partition([(re.compile(b"x"), None)]), TypeError,
     r"^partition: transforms must be a mapping of path patterns"),
    ("pattern twice", lambda: adaptax.partition([("*", None), ("*", None)]), ValueError,
     r"^partition: names must be unique, got '\*'"),
    ("no rules", lambda: adaptax.partition({}), TypeError,
     r"^partition: transforms must be a mapping of path patterns"),
    ("number as transformation", lambda: adaptax.partition({"*": 1.0}), TypeError,
     r"^partition: transforms\['\*'\] must be a transformation"),
    ("mask typo", lambda: adaptax.adamw(0.1, mask="!*/bais").init(model()), ValueError,
     r"the pattern '!\*/bais' matches no leaf"),
    ("frozen typo", lambda: adaptax.freeze("emb/*").init(model()), ValueError,
     r"the pattern 'emb/\*' matches no leaf; the names are blocks/0/bias; "),
    ("list as value", lambda: by_path({"*": []}), TypeError,
     r"^by_path: rules must be patterns with hashable values"),
    ("numbers", lambda: by_path([("*", 1), ("x",)]), TypeError,
     r"by_path"),
    ("factor", lambda: adaptax.scale_by_path({"*": "1"}), TypeError,
     r"^scale_by_path: factors\['\*'\] must be a number or a schedule, got '1'"),
    ("uncovered factor", lambda: update(adaptax.scale_by_path({"head/*": 1.0})), ValueError,
     r"^scale_by_path: no pattern of \['head/\*'\] matches blocks/0/bias"),
    ("uncovered layer", lambda: update(adaptax.scale_by_layer_decay(0.5, ["head/*"])), ValueError,
     r"^scale_by_layer_decay: no pattern of"),
    ("uneven stack", lambda: update(adaptax.scale_by_layer_decay(0.5, [Stacked("*")])), ValueError,
     r"^scale_by_layer_decay: the leaves of the stacked layers '\*' must have one leading size; "),
    ("negative decay", lambda: adaptax.scale_by_layer_decay(-0.5, ["*"]), ValueError,
     r"^scale_by_layer_decay: decay must lie in"),
    ("layers as text", lambda: adaptax.scale_by_layer_decay(0.5, "blocks/{}/*"), TypeError,
     r"^scale_by_layer_decay: layers must be a sequence of path patterns"),
    ("layer a number", lambda: adaptax.scale_by_layer_decay(0.5, [0]), TypeError,
     r"^scale_by_layer_decay: layers must be a sequence of path patterns"),
]  # fmt: skip


def update(tx: Any) -> Any:
    """One update of the model."""
    return tx.update(model(), tx.init(model()), model())


@pytest.mark.parametrize("call, error, match", [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        out = call()
        jax.block_until_ready(update(out) if isinstance(out, tuple) and callable(out[0]) else out)


# Masks


@pytest.mark.parametrize(
    "pattern, bools",
    [
        ("!*/bias", by_path({"*/bias": False, "*": True})),
        (re.compile(r"head/.*"), by_path({"head/*": True, "*": False})),
        ("embed/*|head/kernel", by_path({"embed/*": True, "head/kernel": True, "*": False})),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [lambda m: adaptax.adamw(0.1, weight_decay=0.5, mask=m),
                                  lambda m: adaptax.masked(adaptax.adam(0.1), m),
                                  adaptax.freeze])  # fmt: skip
def test_a_mask_by_pattern_is_the_mask_by_bools(make, pattern, bools):
    params = model()
    got, state = trajectory(make(pattern), params, steps(params))
    wanted, other = trajectory(make(bools), params, steps(params))
    tree, last = trajectory(make(bools(params)), params, steps(params))
    assert_same_bits((got, state), (wanted, other))
    assert_same_bits((got, state), (tree, last))


# Freezing


def loss(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["frozen"])
    return jnp.sum(jnp.square(hidden @ params["trained"]))


FREEZERS = {
    "partition": adaptax.partition({"frozen": None, "*": adaptax.adamw(0.1)}),
    "freeze in a partition": adaptax.partition(
        {"frozen": adaptax.freeze(), "*": adaptax.adam(0.1)}
    ),
    "selective_transform": adaptax.selective_transform(adaptax.adam(0.1), freeze_mask="frozen"),
    "labels": adaptax.partition(
        {"a": adaptax.rmsprop(0.1), "z": adaptax.set_to_zero()}, {"frozen": "z", "trained": "a"}
    ),
}


@pytest.mark.parametrize("tx", FREEZERS.values(), ids=FREEZERS.keys())
def test_frozen_leaves_cost_no_state_and_no_compute(tx):
    params = {"frozen": jnp.ones((7, 11)), "trained": jnp.ones((11, 5))}

    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return adaptax.apply_updates(params, updates), state

    state = tx.init(params)
    assert all(jnp.shape(leaf) != (7, 11) for leaf in jax.tree.leaves(state))
    text = jax.jit(step).lower(params, state, jnp.ones((3, 7))).compile().as_text()
    made = re.findall(r"= f32\[7,11\]\S* (\w[\w-]*)\(", text)
    assert set(made) <= {"parameter", "copy", "bitcast", "get-tuple-element"}, made
    # The same search finds the work where nothing is frozen.
    bare = adaptax.adam(0.1)
    tx = bare
    text = jax.jit(step).lower(params, bare.init(params), jnp.ones((3, 7))).compile().as_text()
    made = re.findall(r"= f32\[7,11\]\S* (\w[\w-]*)\(", text)
    assert not set(made) <= {"parameter", "copy", "bitcast", "get-tuple-element"}


def test_freeze_passes_the_others_unchanged():
    params = model()
    updates, _ = update(adaptax.freeze("embed/*"))
    assert_same_bits(updates["head"], params["head"])
    assert not np.any(updates["embed"]["table"])
    assert not np.any(jax.tree.leaves(update(adaptax.freeze())[0])[0])


@pytest.mark.parametrize("mask", [{"frozen": True, "trained": False}, True, False], ids=str)
def test_selective_transform_is_that_of_optax(mask):
    params = {"frozen": jnp.ones((2, 3)), "trained": jnp.ones(3)}
    if isinstance(mask, bool):
        params = params["trained"]
    make = lambda lib: lib.transforms.selective_transform(  # noqa: E731
        lib.adam(0.1), freeze_mask=mask
    )
    ours = adaptax.selective_transform(adaptax.adam(0.1), freeze_mask=mask)
    got, state = trajectory(ours, params, [params] * 2)
    with optax_rules():
        wanted, other = trajectory(make(optax), params, [params] * 2)
    assert_close(got, wanted, 1e-5)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(other))


# Step sizes


def test_factors_by_pattern():
    params = model()
    tx = adaptax.chain(adaptax.adamw(0.1), adaptax.scale_by_path({"embed/*": 0.25, "*": 1.0}))
    got, _ = trajectory(tx, params, steps(params))
    plain, _ = trajectory(adaptax.adamw(0.1), params, steps(params))
    for u, w in zip(got, plain, strict=True):
        assert_same_bits(u["head"], w["head"])
        assert_close(u["embed"], jax.tree.map(lambda x: 0.25 * x, w["embed"]), 1e-6)


def test_factors_may_be_schedules_and_are_numbers_of_the_transformation():
    schedule = adaptax.linear_schedule(1.0, 0.0, 10)
    tx = adaptax.scale_by_path({"head/*": schedule, "*": 2.0})
    assert jax.tree.leaves(tx) == [1.0, 0.0, 10.0, 0.0, 2.0]
    assert pickle.loads(pickle.dumps(tx)) == tx and eval(repr(tx), vars(adaptax)) == tx
    got, state = trajectory(tx, model(), [model()] * 3)
    assert int(state.count) == 3
    assert_close(got[2]["head"], jax.tree.map(lambda x: 0.8 * x, model()["head"]), 1e-6)
    assert_close(got[2]["embed"], jax.tree.map(lambda x: 2.0 * x, model()["embed"]), 1e-6)
    plain = adaptax.scale_by_path({"head/*": 0.5, "*": 2.0})
    stacked = jax.tree.map(lambda x: jnp.asarray([x, 3.0]), plain)
    out = jax.vmap(lambda tx: tx.update(model(), tx.init(model()))[0])(stacked)
    assert_close(
        out["head"]["bias"], jnp.outer(jnp.array([0.5, 3.0]), model()["head"]["bias"]), 1e-6
    )


def test_layer_decay():
    params = {**model(), "scanned": {"kernel": jnp.ones((3, 2, 2)), "scale": jnp.ones(3)}}
    layers = ["embed/*", "blocks/{}/*", Stacked("scanned/*"), "head/*"]
    tx = adaptax.scale_by_layer_decay(0.5, layers)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    depth = {"embed": 6, "head": 0}
    for name, above in depth.items():
        for u in jax.tree.leaves(updates[name]):
            np.testing.assert_array_equal(u, np.float32(0.5) ** above)
    for i, above in enumerate((5, 4)):
        for u in jax.tree.leaves(updates["blocks"][i]):
            np.testing.assert_array_equal(u, np.float32(0.5) ** above)
    for u in jax.tree.leaves(updates["scanned"]):
        for layer, above in enumerate((3, 2, 1)):
            np.testing.assert_array_equal(u[layer], np.full_like(u[layer], 0.5**above))
    assert pickle.loads(pickle.dumps(tx)) == tx and jax.tree.leaves(tx) == [0.5]


def test_layer_decay_of_one_is_the_identity():
    params = model()
    tx = adaptax.scale_by_layer_decay(1.0, ["embed/*", "blocks/{}/*", "head/*"])
    got, _ = trajectory(tx, params, steps(params))
    assert_same_bits(got, steps(params))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_step_sizes_keep_the_dtype(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), model())
    params["blocks"] = [{"bias": jnp.ones((3, 2), dtype)}]
    for tx in (
        adaptax.scale_by_path({"*": 0.5}),
        adaptax.scale_by_layer_decay(0.5, [Stacked("blocks/*/bias"), "*"]),
    ):
        updates, _ = tx.update(params, tx.init(params), params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {np.dtype(dtype)}
