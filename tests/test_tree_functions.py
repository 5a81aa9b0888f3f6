"""The public tree functions: against optax, against numpy, and where optax is wrong."""

import dataclasses
import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr
from support import Traced, assert_same_bits, optax_rules
from trees import BFLOAT16, ZOO, as_jax, assert_close, assert_trees_close

import adaptax
from adaptax import TreeMismatchError, tree, tree_utils

FLOAT0 = np.zeros((3,), jax.dtypes.float0)
NAMES = [n for n in vars(optax.tree) if not n.startswith("_")]
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": BFLOAT16,
    "complex64": np.complex64,
}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())

# The names


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_optax(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(t, name)).parameters for t in (tree, optax.tree))
    assert list(ours) == list(theirs)
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert (mine.kind, mine.default) == (other.kind, other.default), mine


def test_the_older_names_are_the_same_functions() -> None:
    theirs = {n for n in vars(optax.tree_utils) if n.startswith("tree_")}
    theirs |= set(optax.tree_utils._deprecations)  # type: ignore[attr-defined]
    assert theirs | {"NamedTupleKey"} <= set(vars(tree_utils))
    for name in NAMES:
        assert getattr(tree_utils, f"tree_{name}") is getattr(tree, name)
    twos = {"a": jnp.full((4,), 2.0)}
    assert (tree_utils.tree_l1_norm(twos), tree_utils.tree_l2_norm(twos)) == (8, 4)
    assert tree_utils.tree_linf_norm(twos) == 2


# Random trees, against optax

SHAPES = [(), (3,), (2, 3), (0, 2)]
LEAF = st.tuples(st.sampled_from(SHAPES), st.integers(0, 9))
SKELETON = st.recursive(
    LEAF | st.none(),
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.lists(inner, max_size=2)
        | st.tuples(inner)
    ),
    max_leaves=5,
)


def _is_spec(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple)


def drawn(skeleton: Any, dtype: Any, salt: int) -> Any:
    """Arrays between 0.5 and 2 in magnitude in the places of a skeleton."""

    def array(spec: Any) -> jax.Array:
        shape, seed = spec
        rng = np.random.default_rng([seed, salt])
        x = rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x * np.exp(1j * rng.uniform(0, 6, shape))
        return jnp.asarray(np.asarray(x).astype(dtype))

    return jax.tree.map(array, skeleton, is_leaf=_is_spec)


Elementwise = Callable[[Any, Any, Any], Any]
ELEMENTWISE: dict[str, Elementwise] = {
    "add": lambda t, x, y: t.add(x, y),
    "add three": lambda t, x, y: t.add(x, y, x),
    "sub": lambda t, x, y: t.sub(x, y),
    "mul": lambda t, x, y: t.mul(x, y),
    "div": lambda t, x, y: t.div(x, y),
    "scale": lambda t, x, y: t.scale(-0.3, x),
    "add_scale": lambda t, x, y: t.add_scale(x, -0.3, y),
    "conj": lambda t, x, y: t.conj(x),
    "real": lambda t, x, y: t.real(x),
    "clip": lambda t, x, y: t.clip(t.real(x), -0.7, 0.9),
    "clip below": lambda t, x, y: t.clip(t.real(x), 0.1),
    "where": lambda t, x, y: t.where(jnp.array(False), x, y),
    "batch_shape": lambda t, x, y: t.batch_shape(x, (2, 1)),
    "zeros_like": lambda t, x, y: t.zeros_like(x),
    "ones_like": lambda t, x, y: t.ones_like(x, jnp.int32),
    "full_like": lambda t, x, y: t.full_like(x, 0.3),
    "cast": lambda t, x, y: t.cast(t.real(x), jnp.float16),
    "cast none": lambda t, x, y: t.cast(x, None),
    "cast_like": lambda t, x, y: t.cast_like(t.real(x), t.ones_like(x, jnp.float16)),
    "random_like": lambda t, x, y: t.random_like(jax.random.key(3), x),
    "split_key_like": lambda t, x, y: t.unwrap_random_key_data(
        t.split_key_like(jax.random.key(3), x)
    ),
}
few = settings(max_examples=8, deadline=None, derandomize=True)


@dtypes
def test_functions_of_each_leaf_are_those_of_optax(dtype: Any) -> None:
    @few
    @given(SKELETON)
    def run(skeleton: Any) -> None:
        with jax.enable_x64(dtype is np.float64):
            x, y = drawn(skeleton, dtype, 1), drawn(skeleton, dtype, 2)
            for name, call in ELEMENTWISE.items():
                got = call(tree, x, y)
                with optax_rules():
                    wanted = call(optax.tree, x, y)
                assert_same_bits(got, wanted, f"{name} of {x}")

    run()


REDUCTIONS: dict[str, Elementwise] = {
    "sum": lambda t, x, y: t.sum(x),
    "sum in pairs": lambda t, x, y: t.sum(x, True),
    "vdot": lambda t, x, y: t.vdot(x, y),
    "norm": lambda t, x, y: t.norm(x),
    "norm squared": lambda t, x, y: t.norm(x, squared=True),
    "norm 1": lambda t, x, y: t.norm(x, 1),
    "norm 1 squared": lambda t, x, y: t.norm(x, 1, True),
    "norm inf": lambda t, x, y: t.norm(x, np.inf) if t.size(x) else 0.0,  # optax: -inf
    "max": lambda t, x, y: t.max(t.real(x)),
    "min": lambda t, x, y: t.min(t.real(x)),
    "size": lambda t, x, y: t.size(x),
    "allclose": lambda t, x, y: t.allclose(x, y),
    "allclose itself": lambda t, x, y: t.allclose(x, t.scale(1 + 1e-6, x)),
}


@dtypes
def test_reductions_are_those_of_optax_in_float32_or_wider(dtype: Any) -> None:
    @few
    @given(SKELETON)
    def run(skeleton: Any) -> None:
        with jax.enable_x64(dtype is np.float64):
            x, y = drawn(skeleton, dtype, 1), drawn(skeleton, dtype, 2)
            # 16 bits are the one place where optax is wrong; its float32 is right.
            wide = [optax.tree.cast(z, np.float32) for z in (x, y)] if dtype is BFLOAT16 else [x, y]
            for name, call in REDUCTIONS.items():
                got = call(tree, x, y)
                with optax_rules():
                    wanted = call(optax.tree, *wide)
                where = f"{name} of {x}"
                assert np.shape(got) == (), where
                np.testing.assert_allclose(got, wanted, 2e-6, 1e-6, err_msg=where)
                if jax.tree.leaves(x) and name not in ("size", "max", "min"):
                    assert jnp.result_type(got).itemsize >= 4 or "allclose" in name, where

    run()


B = 0.97
AVERAGES: dict[str, Elementwise] = {
    "moment 1": lambda t, g, m: t.update_moment(g, m, B, 1),
    "moment 2": lambda t, g, m: t.update_moment(g, m, B, 2),
    "fast moment": lambda t, g, m: t.update_moment(g, m, 0.2, 3),
    "norm 2": lambda t, g, m: t.update_moment_per_elem_norm(g, m, B, 2),
    "norm 3": lambda t, g, m: t.update_moment_per_elem_norm(g, m, B, 3),
    "infinity": lambda t, g, m: t.update_infinity_moment(g, t.real(m), B, 1e-3),
    "traced decay": lambda t, g, m: t.update_moment(g, m, jnp.float32(B), 2),
    "correction": lambda t, g, m: t.bias_correction(m, B, jnp.int32(7)),
}


@dtypes
def test_averages_are_those_of_optax(dtype: Any) -> None:
    @few
    @given(SKELETON)
    def run(skeleton: Any) -> None:
        with jax.enable_x64(dtype is np.float64):
            g, m = drawn(skeleton, dtype, 1), drawn(skeleton, dtype, 2)
            for name, call in AVERAGES.items():
                got = call(tree, g, m)
                with optax_rules():
                    wide = np.float32 if dtype is BFLOAT16 else None
                    wanted = call(optax.tree, *(optax.tree.cast(z, wide) for z in (g, m)))
                assert jax.tree.structure(got) == jax.tree.structure(m)
                if name != "infinity":  # real also for complex gradients
                    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(
                        lambda x: x.dtype, m
                    )
                rtol = 2**-8 if dtype is BFLOAT16 else 1e-6 if "traced" in name else 4e-6
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                    size = 2.0 + float(np.max(np.abs(b), initial=0.0))  # averages can cancel
                    np.testing.assert_allclose(
                        np.asarray(a, np.complex128), b, rtol, rtol * size, err_msg=name
                    )

    run()


# Numbers, where optax's are wrong


def test_sums_of_16_bits_neither_overflow_nor_stall() -> None:
    leaves = [jnp.ones((), jnp.bfloat16)] * 400  # optax: 256
    assert tree.sum(leaves) == tree.sum(leaves, True) == tree.vdot(leaves, leaves) == 400
    assert tree.norm(leaves, squared=True) == 400
    assert tree.norm(leaves[:300]) > 17  # optax: 16
    big = {"a": jnp.array([300.0, 300.0], jnp.float16)}
    assert tree.sum(big) == 600 and tree.vdot(big, big) == 180000
    assert_close(tree.norm(big), 300 * np.sqrt(2), 1e-6, "norm")
    assert tree.norm(big, squared=True) == 180000
    assert tree.norm([jnp.array([6e4], jnp.float16)] * 2, 1) == 1.2e5
    assert all(f(big).dtype == jnp.float32 for f in (tree.sum, tree.norm))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_norm_neither_overflows_nor_underflows(scale: float) -> None:
    x = {"a": jnp.array([3 * scale]), "b": jnp.array([4 * scale])}
    assert_close(tree.norm(x), 5 * scale, 1e-6, "norm")


def test_integers_are_summed_as_integers_and_have_float_norms() -> None:
    x = {"a": jnp.array([100, 100], jnp.int8), "b": jnp.array(True)}
    assert (tree.sum(x), tree.sum(x).dtype) == (201, jnp.int32)
    assert (tree.vdot(x, x), tree.max(x)) == (20001, 100)
    assert_close(tree.norm(x), np.sqrt(20001), 1e-6, "norm")
    assert tree.norm(x, 1).dtype == tree.norm(x, jnp.inf).dtype == jnp.float32
    assert tree.norm({"a": jnp.array([-128], jnp.int8)}, "infinity") == 128
    large = 2**24 + 1
    assert tree.max([jnp.array([large])]) == large  # optax: through float32
    mixed = {"a": jnp.array([1]), "b": jnp.array([0.5], jnp.bfloat16)}
    assert (tree.sum(mixed), tree.sum(mixed).dtype) == (1.5, jnp.float32)


def test_nan_and_inf_are_found() -> None:
    x = {"a": jnp.array([1.0, np.nan]), "b": jnp.array([np.inf])}
    for f in (tree.sum, tree.norm, tree.max, tree.min, lambda t: tree.norm(t, np.inf)):
        assert jnp.isnan(f(x))
    assert tree.norm({"b": x["b"]}) == np.inf
    assert not tree.allclose(x, x)
    assert tree.allclose(x, x, equal_nan=True)


def test_trees_without_entries() -> None:
    for empty in ({}, None, {"a": None}, {"a": jnp.zeros((0, 3))}):
        for f in (tree.sum, tree.norm, lambda t: tree.norm(t, 1), lambda t: tree.norm(t, "inf")):
            assert (f(empty), f(empty).dtype) == (0, jnp.float32)
        assert tree.vdot(empty, empty) == 0
        assert (tree.max(empty), tree.min(empty)) == (-np.inf, np.inf)
        assert (tree.size(empty), tree.dtype(empty)) == (0, jnp.float32)
        assert tree.allclose(empty, empty)
        assert jax.tree.leaves(tree.split_key_like(jax.random.key(0), {})) == []


@pytest.mark.parametrize("b", [0.999, 0.9999, 0.999999])
def test_averages_keep_their_digits(b: float) -> None:
    """A constant gradient, averaged and corrected, is itself; optax is off by 7e-3."""
    g = {"a": jnp.array([0.7, -3.0])}
    step = jax.jit(lambda m: tree.update_moment(g, m, b, 1))
    m = tree.zeros_like(g)
    for t in range(1, 41):
        m = step(m)
        corrected = tree.bias_correction(m, b, jnp.int32(t))
        assert_close(corrected["a"], g["a"], 2e-6, f"after {t} steps")


def test_moments_keep_their_dtype_and_are_rounded_once() -> None:
    g = {"a": jnp.array([0.30078125], jnp.bfloat16)}
    m = {"a": jnp.array([1.0], jnp.bfloat16)}
    wanted = 0.9 * 1.0 + 0.1 * 0.30078125**2
    for gradient in (g, tree.cast(g, jnp.float32)):
        got = tree.update_moment(gradient, m, 0.9, 2)["a"]
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, jnp.array([wanted], jnp.bfloat16))
    half = {"a": jnp.array([1e4], jnp.float16)}
    assert jnp.isfinite(tree.update_moment(half, {"a": jnp.zeros(1)}, 0.9, 2)["a"]).all()


def test_moments_of_complex_gradients() -> None:
    g = {"a": jnp.array([3.0 + 4.0j])}
    nu = tree.update_moment_per_elem_norm(g, {"a": jnp.zeros(1)}, 0.9, 2)["a"]
    assert_close(nu, [2.5], 1e-6, "second moment")
    assert nu.dtype == jnp.float32
    odd = tree.update_moment_per_elem_norm(g, {"a": jnp.zeros(1)}, 0.9, 3)["a"]
    assert_close(odd, [12.5], 1e-6, "third moment")
    mu = tree.update_moment(g, {"a": jnp.zeros(1)}, 0.0, 1)["a"]
    np.testing.assert_array_equal(mu, g["a"])  # complex, not cut off
    top = tree.update_infinity_moment(g, {"a": jnp.array([7.0])}, 0.5, 0.5)["a"]
    assert_close(top, [5.5], 1e-6, "infinity moment")


def test_decays_are_operands_of_one_kernel() -> None:
    counted = Traced(lambda g, m, b: tree.update_moment(g, m, b, 2))
    step = jax.jit(counted)
    g, m = {"a": jnp.array([2.0])}, {"a": jnp.array([1.0])}
    for b in (0.1, 0.9):
        assert_close(step(g, m, b)["a"], [b + 4 * (1 - b)], 1e-6, f"b = {b}")
        assert_close(tree.update_moment(g, m, b, 2)["a"], [b + 4 * (1 - b)], 1e-6, f"b = {b}")
    assert counted.times == 1


# None, float0, and leaves that are no arrays


def test_none_and_float0_stay() -> None:
    x = {"a": None, "b": FLOAT0, "c": jnp.array([2.0])}
    full = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.array([3.0])}
    results = [
        tree.add(x, full), tree.sub(x, full), tree.mul(x, full), tree.div(x, full),
        tree.scale(2.0, x), tree.add_scale(x, 2.0, full), tree.conj(x), tree.real(x),
        tree.clip(x, 0.0, 1.0), tree.where(True, x, full), tree.batch_shape(x, (2,)),
        tree.zeros_like(x), tree.ones_like(x), tree.full_like(x, 2.0), tree.cast(x, jnp.float16),
        tree.cast_like(x, full), tree.random_like(jax.random.key(0), x),
    ]  # fmt: skip
    for i, got in enumerate(results):
        assert got["a"] is None and got["b"] is FLOAT0, i
        assert got["c"].dtype in (jnp.float32, jnp.float16), i
    assert (tree.sum(x), tree.norm(x), tree.vdot(x, full)) == (2, 2, 6)
    assert (tree.max(x), tree.dtype(x)) == (2, jnp.float32)
    assert tree.allclose(x, x)
    integers = {"b": jnp.array([1, 2, 3])}  # parameters stay where the gradient is float0
    assert_same_bits(tree.add_scale(integers, -0.1, {"b": FLOAT0}), integers)


def test_a_gradient_that_is_none_keeps_its_moment() -> None:
    g = {"a": None, "b": FLOAT0, "c": jnp.array([2.0])}
    m = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.array([3.0])}
    for got in (
        tree.update_moment(g, m, 0.9, 1),
        tree.update_moment_per_elem_norm(g, m, 0.9, 1),
        tree.update_infinity_moment(g, m, 0.9, 0.0),
    ):
        assert got["a"] is m["a"] and got["b"] is m["b"]
        assert 2 < got["c"] < 3


@pytest.mark.parametrize("name", ZOO)
def test_every_tree_of_the_zoo_is_taken(name: str) -> None:
    x = as_jax(ZOO[name]())
    zero = tree.sub(tree.add_scale(x, -1.0, x), tree.zeros_like(x))
    assert jax.tree.structure(zero) == jax.tree.structure(x)
    assert tree.max(zero) == (0 if tree.size(x) else -np.inf)
    m = tree.bias_correction(tree.update_moment(x, zero, 0.9, 1), 0.9, 1)
    assert tree.allclose(m, x, rtol=2**-7)
    assert tree.size(jax.eval_shape(lambda: x)) == tree.size(x)


def test_functions_trace_and_map() -> None:
    x = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3.0)}

    def everything(t: Any) -> Any:
        return tree.norm(t), tree.sum(t), tree.vdot(t, tree.scale(2.0, t)), tree.max(t)

    mapped = jax.jit(jax.vmap(everything))(x)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], x)
        assert_trees_close([m[i] for m in mapped], list(everything(one)), 1e-6, str(i))
    slope = jax.grad(lambda t: tree.norm(t))({"a": jnp.array([3.0, 4.0])})
    assert_close(slope["a"], [0.6, 0.8], 1e-6, "gradient of the norm")


def test_python_numbers_are_leaves() -> None:
    assert tree.add({"a": 1.0}, {"a": 2}) == {"a": 3.0}
    assert tree.size({"a": 1.0, "b": 2}) == 2
    assert tree.sum([1.0, 2.0]) == 3
    assert tree.cast({"a": 1}, jnp.float16)["a"].dtype == jnp.float16
    assert tree.cast_like([jnp.array([1.0])], [2])[0].dtype == jnp.float32


def test_typed_keys_pass_through_a_cast() -> None:
    state = {"key": jax.random.key(0), "mu": jnp.ones(2)}
    got = tree.cast(state, jnp.bfloat16)
    assert got["key"] is state["key"] and got["mu"].dtype == jnp.bfloat16
    plain = tree.unwrap_random_key_data(state)
    assert plain["key"].dtype == jnp.uint32


def test_random_leaves_differ_and_take_a_sampler() -> None:
    like = {"a": jnp.ones(4), "b": jax.ShapeDtypeStruct((4,), jnp.float32)}
    got = tree.random_like(jax.random.key(1), like)
    assert not np.any(np.asarray(got["a"]) == np.asarray(got["b"]))

    def sevens(key: Any, shape: Any, dtype: Any) -> Any:
        return jnp.full(shape, 7, dtype)

    got = tree.random_like(jax.random.key(1), like, sampler=sevens, dtype=jnp.int32)
    assert_same_bits(got, jax.tree.map(lambda x: jnp.full(4, 7, jnp.int32), like))


def test_random_leaves_take_the_sharding_of_theirs() -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        like = {"a": jax.device_put(jnp.ones((8, 2)), jax.P("x"))}
        got = tree.random_like(jax.random.key(1), like)
        assert jax.typeof(got["a"]).sharding.spec == jax.P("x", None)
        assert tree.zeros_like(like)["a"].sharding.is_equivalent_to(like["a"].sharding, 2)
        assert tree.vdot(like, like) == 16


# dtype

MIXED = {
    "a": jnp.ones(1, jnp.bfloat16),
    "b": jnp.ones(1, jnp.float32),
    "c": jnp.ones(1, jnp.bfloat16),
}


@pytest.mark.parametrize("handler", ["promote", "highest", "lowest"])
def test_the_dtype_of_a_mixed_tree(handler: str) -> None:
    mixes = [MIXED, {"a": jnp.ones(1, jnp.int8), "b": jnp.ones(1)}, {"a": 1.0}]
    for mixed in mixes:
        with optax_rules():
            assert tree.dtype(mixed, handler) == optax.tree.dtype(mixed, handler)


def test_a_dtype_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"bfloat16 at \['a'\]; float32 at \['b'\]\); give"):
        tree.dtype(MIXED)
    signs = {"a": jnp.ones(1, jnp.float16), "b": jnp.ones(1, jnp.bfloat16)}
    assert tree.dtype(signs, "promote") == jnp.float32
    for handler in ("highest", "lowest"):
        with pytest.raises(ValueError, match="no one of them"):
            tree.dtype(signs, handler)
    with pytest.raises(ValueError, match="one of None, 'promote', 'highest', 'lowest', got 'max'"):
        tree.dtype(MIXED, "max")


# Errors


def test_trees_that_do_not_fit_are_an_error_with_paths() -> None:
    x, y = {"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.ones(2)}
    for call in (
        lambda: tree.add(x, y),
        lambda: tree.vdot(x, y),
        lambda: tree.allclose(x, y),
        lambda: tree.update_moment(x, y, 0.9, 1),
    ):
        with pytest.raises(TreeMismatchError, match=r"\['b'\] is not in") as error:
            call()
        assert error.value.paths == ("['b']",)
    with pytest.raises(TreeMismatchError, match=r"\['b'\] is an array against None"):
        tree.add(x, {**x, "b": None})
    with pytest.raises(TreeMismatchError, match=r"other_trees\[1\] at 1 of 2 leaves"):
        tree.add(x, x, x, y)
    with pytest.raises(TreeMismatchError, match=r"\['b'\]\['c'\] is not in tree_x"):
        tree.where(True, x, {**x, "b": {"c": jnp.ones(2)}})
    with pytest.raises(TreeMismatchError, match=r"\['b'\] has shape \(2,\) against \(1,\)"):
        tree.vdot(x, {**x, "b": jnp.ones(1)})


def test_an_unknown_norm_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"tree.norm: ord must be one of None, 1, 2, inf.*got 3"):
        tree.norm({"a": jnp.ones(2)}, ord=3)


# get, get_all_with_path, set


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Average:
    count: Any
    ema: Any


class Outer(NamedTuple):
    inner: Any
    count: Any


PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


def chained(lib: Any) -> Any:
    masked = lib.adamw(0.1, mask={"w": True, "b": False})
    return lib.chain(lib.clip_by_global_norm(1.0), lib.ema(0.9), masked)


@pytest.mark.parametrize("lib", [adaptax, optax], ids=["adaptax", "optax"])
@pytest.mark.parametrize("key", ["count", "mu", "w", "ScaleByAdamState", "EmptyState", "absent"])
def test_values_are_found_as_by_optax(lib: Any, key: str) -> None:
    state = chained(lib).init(PARAMS)
    got = tree.get_all_with_path(state, key)
    wanted = optax.tree.get_all_with_path(state, key)
    assert sorted(keystr(p) for p, _ in got) == sorted(keystr(p) for p, _ in wanted)
    wanted_at = {keystr(p): v for p, v in wanted}
    for path, value in got:
        assert value is wanted_at[keystr(path)]
    assert tree.get(state, "nu") is optax.tree.get(state, "nu")


def test_one_value_by_field_key_or_class() -> None:
    state = adaptax.chain(adaptax.trace(0.5), adaptax.adam(0.1)).init(PARAMS)
    assert tree.get(state, "mu") is state[1][0].mu
    assert tree.get(state, "ScaleByAdamState") is state[1][0]
    assert tree.get(state, "absent") is None
    assert tree.get(state, "absent", default=3) == 3
    named = adaptax.named_chain(("first", adaptax.trace(0.5))).init(PARAMS)
    assert isinstance(named, OrderedDict)
    assert tree.get(named, "first") is named["first"]


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "named tuple": lambda inner: Outer(inner, None),
    "dataclass": lambda inner: Average(None, inner),
    "dict": lambda inner: {"x": inner, "y": [1.0]},
    "ordered": lambda inner: OrderedDict(z=1.0, x=inner),
    "list": lambda inner: [1.0, [inner]],
    "tuple": lambda inner: (None, inner),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_searched_and_rebuilt(name: str) -> None:
    state = CONTAINERS[name]({"mu": 1.0})
    assert tree.get(state, "mu") == 1.0
    new = tree.set(state, mu=5.0)
    assert tree.get(new, "mu") == 5.0
    assert tree.get(state, "mu") == 1.0  # the old one is as it was
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_dataclasses_are_found_by_field_and_class() -> None:
    state = (Average(jnp.int32(3), {"w": 1.0}), {"n": 2})
    assert tree.get(state, "ema") == {"w": 1.0}
    assert tree.get(state, "Average") is state[0]
    ((path, _),) = tree.get_all_with_path(state, "count")
    assert path == (SequenceKey(0), GetAttrKey("count"))
    assert tree.set(state, ema=None, n=4) == (Average(state[0].count, None), {"n": 4})
    assert tree.set(state, Average="gone") == ("gone", {"n": 2})
    assert tree.get({7: "seven"}, 7) == "seven"


def test_paths_name_the_class() -> None:
    state = Outer({"count": 1}, 2)
    found = tree.get_all_with_path(state, "count")
    key = tree.NamedTupleKey
    assert found == [
        ((key("Outer", "inner"), DictKey("count")), 1),
        ((key("Outer", "count"),), 2),
    ]
    assert keystr(found[1][0]) == "Outer.count"


def test_filtering_chooses() -> None:
    def of_adam(path: Any, value: Any) -> bool:
        return any(getattr(k, "tuple_name", "") == "ScaleByAdamState" for k in path)

    state = adaptax.chain(adaptax.ema(0.9), adaptax.adam(0.1)).init(PARAMS)
    assert tree.get(state, "count", filtering=of_adam) is state[1][0].count
    new = tree.set(state, of_adam, count=9)
    assert (new[0].count, new[1][0].count) == (0, 9)
    assert [c for _, c in tree.get_all_with_path(tree.set(state, count=9), "count")] == [9, 9]
    assert_same_bits(new, optax.tree.set(state, of_adam, count=9))


def test_a_number_of_a_transformation_is_found_and_set() -> None:
    tx = adaptax.chain(adaptax.clip(1.0), adaptax.adamw(0.1, b2=0.99))
    assert tree.get(tx, "b2") == 0.99
    assert tree.set(tx, b2=0.9) == adaptax.chain(adaptax.clip(1.0), adaptax.adamw(0.1, b2=0.9))


def test_ambiguous_and_absent_names_are_errors_that_say_what_there_is() -> None:
    state = adaptax.chain(adaptax.ema(0.9), adaptax.adam(0.1)).init(PARAMS)
    with pytest.raises(KeyError, match=r"'count' is the name of 2 values: \[0\]EmaState.count; "):
        tree.get(state, "count")
    with pytest.raises(KeyError, match="no 'nope'; the names are 'EmaState', 'count', 'ema', 'b'"):
        tree.set(state, count=1, nope=2)
    with pytest.raises(KeyError, match="filtering leaves no value of the name 'mu'"):
        tree.set(state, lambda path, value: False, mu=1)
    with pytest.raises(KeyError, match="the names are none"):
        tree.set([1.0], mu=1)
    with pytest.raises(KeyError, match="and 11 more"):
        tree.set({f"layer{i}": i for i in range(31)}, mu=1)


# map_params


def marked(tx: Any, params: Any) -> Any:
    """A state whose leaves are the paths of their parameters, and "other" elsewhere."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = treedef.unflatten(keystr(path) for path, _ in leaves)
    return tree.map_params(
        tx, lambda _, name: name, tx.init(params), names, transform_non_params=lambda _: "other"
    )


def assert_marked(state: Any) -> None:
    """Below the innermost field of a class lies a parameter's path, or nothing."""
    for path, mark in jax.tree_util.tree_leaves_with_path(state):
        at = max(i for i, k in enumerate(path) if isinstance(k, GetAttrKey))
        assert mark == (keystr(path[at + 1 :]) or "other"), keystr(path)


@cases()
def test_parameters_are_mapped_in_every_state(case: Case) -> None:
    assert_marked(marked(case.make(), as_jax(case.params_as(np.float32))))


@cases(lambda case: case.in_optax)
def test_parameters_are_mapped_in_every_state_of_optax(case: Case) -> None:
    name = case.factory.__name__
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    with optax_rules():
        tx = make(**case.numbers, **case.options)
        params = as_jax(case.params_as(np.float32))
        assert_marked(marked(tx, params))


MASK = {"b": False, "w": True}
COMPOSED: dict[str, Callable[[Any], Any]] = {
    "chain": lambda lib: lib.chain(lib.ema(0.9), lib.adam(0.1)),
    "named_chain": lambda lib: lib.named_chain(("x", lib.ema(0.9)), ("y", lib.adam(0.1))),
    "masked": lambda lib: lib.masked(lib.adam(0.1), MASK),
    "masked by function": lambda lib: lib.masked(lib.adam(0.1), lambda p: MASK),
    "masked in a chain": lambda lib: lib.chain(lib.trace(0.5), lib.adamw(0.1, mask=MASK)),
    "masked twice": lambda lib: lib.masked(lib.masked(lib.trace(0.5), MASK), MASK),
    "partition": lambda lib: lib.partition(
        {"x": lib.adam(0.1), "y": lib.trace(0.5)}, {"b": "x", "w": "y"}
    ),
    "partition by function": lambda lib: lib.partition(
        {"x": lib.adam(0.1), "y": lib.trace(0.5)}, lambda p: {"b": "x", "w": "y"}
    ),
    "ours in theirs": lambda lib: optax.chain(lib.masked(lib.adam(0.1), MASK), lib.trace(0.9)),
    "theirs in ours": lambda lib: adaptax.chain(optax.masked(optax.adam(0.1), MASK), lib.ema(0.9)),
}


@pytest.mark.parametrize("lib", [adaptax, optax], ids=["adaptax", "optax"])
@pytest.mark.parametrize("name", COMPOSED)
def test_parameters_are_mapped_in_compositions(name: str, lib: Any) -> None:
    tx = COMPOSED[name](lib)
    assert_marked(marked(tx, PARAMS))
    name_of = lambda x: type(x).__name__  # noqa: E731
    theirs = optax.tree_map_params(tx, name_of, tx.init(PARAMS), is_leaf=_is_masked)
    ours = tree.map_params(tx, name_of, tx.init(PARAMS), is_leaf=_is_masked)
    assert ours == theirs


def _is_masked(x: Any) -> bool:
    return type(x).__name__ == "MaskedNode"


def test_a_leaf_that_is_masked_is_seen_if_asked_for() -> None:
    tx = adaptax.masked(adaptax.trace(0.5), MASK)
    seen = tree.map_params(tx, lambda x: type(x).__name__, tx.init(PARAMS), is_leaf=_is_masked)
    assert seen.inner_state.trace["b"] == "MaskedNode"
    kept = tree.map_params(tx, jnp.shape, tx.init(PARAMS))
    assert kept.inner_state.trace == {"b": adaptax.MaskedNode(), "w": (2, 3)}


def test_the_placeholder_without_optax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "optax.tree_utils._state_utils")
    for name in ("chain", "masked in a chain", "partition"):
        assert_marked(marked(COMPOSED[name](adaptax), PARAMS))


def test_states_of_shapes_and_traced_states_are_mapped() -> None:
    tx = adaptax.chain(adaptax.prodigy(1.0), adaptax.masked(adaptax.ema(0.5), MASK))
    shapes = jax.eval_shape(tx.init, PARAMS)
    specs = tree.map_params(tx, lambda x: x.shape, shapes, transform_non_params=lambda x: ())
    assert specs[0].exp_avg == {"b": (3,), "w": (2, 3)}
    assert specs[0].estim_lr == ()
    double = jax.jit(lambda s: tree.map_params(tx.init, lambda x: 2 * x, s))(tx.init(PARAMS))
    assert_same_bits(double[0].params0, tree.scale(2.0, PARAMS))
    assert double[0].count == 0


def test_parameters_that_are_none_or_absent() -> None:
    tx = adaptax.adam(0.1)
    state = tx.init({"a": None, "w": jnp.ones(2)})
    got = tree.map_params(tx, lambda x, s: s, state, {"a": None, "w": "w"})
    assert got[0].mu == {"a": None, "w": "w"}
    assert tree.map_params(tx, jnp.shape, tx.init({}))[0].mu == {}


def test_the_state_of_another_transformation_is_an_error() -> None:
    state = adaptax.adam(0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"state must be one of sgd\(learning_rate=0.1, momentum"):
        tree.map_params(adaptax.sgd(0.1, 0.9), lambda x: x, state)

    def fails(x: Any) -> Any:
        raise ValueError("my own")

    with pytest.raises(ValueError, match=r"^my own$"):
        tree.map_params(adaptax.adam(0.1), fails, state)


def test_map_params_places_a_state() -> None:
    """What it is for: the shardings of a state from those of the parameters."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    put = functools.partial(jax.sharding.NamedSharding, mesh)
    params = {"w": jnp.ones((8, 2)), "b": jnp.ones(2)}
    specs = {"w": put(jax.P("x")), "b": put(jax.P())}
    tx = adaptax.adamw(0.1)
    state = tx.init(params)
    wanted = tree.map_params(
        tx, lambda _, s: s, state, specs, transform_non_params=lambda _: put(jax.P())
    )
    placed = jax.device_put(state, wanted)
    assert placed[0].mu["w"].sharding == specs["w"]
    assert placed[0].count.sharding == put(jax.P())
