"""The zoo: trees of every kind that a transformation must take, and helpers to walk them."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

BFLOAT16 = ml_dtypes.bfloat16


class Layer(NamedTuple):
    """A container of the user's own."""

    kernel: Any
    bias: Any


def _array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    size = int(np.prod(shape))
    values = 0.5 + np.cos(1.0 + np.arange(size, dtype=np.float64))
    return values.reshape(shape).astype(dtype)


ZOO: dict[str, Callable[[], Any]] = {
    "scalar": lambda: _array(),
    "single": lambda: _array(4, 3),
    "dict": lambda: {"w": _array(4, 3), "b": _array(3)},
    "nested": lambda: {"a": {"b": {"c": _array(3)}, "d": _array(4, 3)}, "e": (_array(),)},
    "named_tuple": lambda: Layer(_array(4, 3), _array(3)),
    "list": lambda: [_array(4, 3), [_array(3)], (_array(),)],
    "ordered": lambda: OrderedDict(z=_array(4, 3), a=_array(3)),
    "none_leaf": lambda: {"w": _array(4, 3), "frozen": None, "b": [None, _array(3)]},
    "empty": lambda: {},
    "empty_inside": lambda: {"w": _array(3), "nothing": {}, "none": []},
    "zero_size": lambda: {"w": _array(0, 3), "b": _array(3)},
    "mixed_dtypes": lambda: {
        "f32": _array(4, 3),
        "bf16": _array(3, dtype=BFLOAT16),
        "f16": _array(3, dtype=np.float16),
    },
    "many_small": lambda: [_array(3) + np.float32(i) for i in range(40)],
}
"""Trees of numpy arrays. All matrices are 4 by 3, so that kernels are shared."""


def as_jax(tree: Any) -> Any:
    """The tree with its numpy arrays as jax arrays."""
    return jax.tree.map(jnp.asarray, tree)


def gradients_like(tree: Any, seed: int = 0) -> Any:
    """Gradients of the tree's structure, shapes and dtypes, between 0.1 and 1 in magnitude."""
    rng = np.random.default_rng(seed)

    def gradient(x: Any) -> np.ndarray:
        magnitude = rng.uniform(0.1, 1.0, np.shape(x))
        return (magnitude * rng.choice([-1.0, 1.0], np.shape(x))).astype(x.dtype)

    return jax.tree.map(gradient, tree)


def paths(tree: Any) -> list[str]:
    """The key path of each leaf, None leaves left out."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def by_field(state: Any) -> dict[tuple[str, str], Any]:
    """The leaves of a state by field name and, within the field, parameter path.

    The field is the innermost named one, so chains, masks and partitions don't matter. A scalar
    that several links have, such as `count`, is listed once.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        at = max(i for i, k in enumerate(path) if isinstance(k, jax.tree_util.GetAttrKey))
        found[path[at].name, jax.tree_util.keystr(path[at + 1 :])] = leaf
    return found


def assert_leaves_equal(left: Any, right: Any, where: str = "") -> None:
    """The trees agree in structure, dtypes and every bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right), where
    pairs = zip(paths(left), jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    for path, a, b in pairs:
        assert a.dtype == b.dtype, f"{where}{path}: dtype {a.dtype} against {b.dtype}"
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=f"{where}{path}")


def size_of(x: Any) -> float:
    """The largest magnitude in an array; 0 if it has none."""
    x = np.asarray(x, np.float64)
    return float(np.max(np.abs(x))) if x.size else 0.0


def assert_close(actual: Any, wanted: Any, rtol: float, where: str, size: float = 0.0) -> None:
    """|actual - wanted| <= rtol max(|wanted|, size), entry by entry, and NaN nowhere.

    Args:
        actual: An array.
        wanted: The right one.
        rtol: The relative tolerance.
        where: What the message says beside the numbers.
        size: How large the numbers are that the array was computed from; 0 takes the largest
            of the array's own.
    """
    actual, wanted = (np.asarray(x, np.float64) for x in (actual, wanted))
    assert actual.shape == wanted.shape, f"{where}: {actual.shape} against {wanted.shape}"
    room = rtol * np.maximum(np.abs(wanted), size or size_of(wanted))
    if not np.all(np.abs(actual - wanted) <= room):
        off = float(np.max(np.abs(actual - wanted) / np.maximum(room / rtol, 1e-300)))
        raise AssertionError(
            f"{where}: off by {off:.2g} where {rtol:.2g} is allowed\n"
            f" actual {actual}\n wanted {wanted}"
        )


def assert_trees_close(actual: Any, wanted: Any, rtol: float, where: str) -> None:
    """`assert_close` for each leaf; the trees may be made of different classes."""
    mine, theirs = paths(actual), paths(wanted)
    assert mine == theirs, f"{where}: {mine} against {theirs}"
    for path, a, b in zip(mine, jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert_close(a, b, rtol, f"{where}{path}")
