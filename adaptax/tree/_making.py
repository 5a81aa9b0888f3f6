"""Trees made after others: in another dtype, filled, random."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import _checks
from .._core._tree import is_float0
from ._walk import walk


def _is_key(x: Any) -> bool:
    """Whether x is a typed random key, or an array of them."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def cast(tree: Any, dtype: Any) -> Any:
    """Each leaf in one dtype.

    Args:
        tree: A tree. Typed random keys stay as they are.
        dtype: The dtype; None changes nothing.
    """
    if dtype is None:
        return tree
    return walk("tree.cast", lambda x: x if _is_key(x) else _as(x, dtype), {"tree": tree})


def cast_like(tree: Any, other_tree: Any) -> Any:
    """Each leaf in the dtype that another tree has there.

    Args:
        tree: A tree.
        other_tree: A tree of the same structure; where it has a Python number, the leaf stays
            as it is.

    Raises:
        TreeMismatchError: The structures differ.
    """

    def like(x: Any, other: Any) -> Any:
        return _as(x, other.dtype) if hasattr(other, "dtype") else x

    return walk("tree.cast_like", like, {"tree": tree, "other_tree": other_tree})


def _as(x: Any, dtype: Any) -> Any:
    return x.astype(dtype) if hasattr(x, "astype") else jnp.asarray(x, dtype)


def dtype(tree: Any, mixed_dtype_handler: str | None = None) -> np.dtype:
    """The dtype of a tree; jax's default for one without leaves.

    Args:
        tree: A tree.
        mixed_dtype_handler: What leaves of several dtypes have in common: "promote" takes the
            dtype that jax promotes them to, "highest" and "lowest" the one of them that all others
            promote to, or that promotes to all others. None is for trees of one dtype.

    Raises:
        ValueError: The leaves have several dtypes and the handler is None; or it is "highest"
            or "lowest" and there is none, such as of int32 and uint32.

    >>> import adaptax, jax.numpy as jnp
    >>> params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    >>> str(adaptax.tree.dtype(params, "lowest"))
    'bfloat16'
    """
    found = {
        jax.tree_util.keystr(path): np.dtype(getattr(x, "dtype", None) or jnp.result_type(x))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if not is_float0(x)
    }
    if mixed_dtype_handler not in (None, "promote", "highest", "lowest"):
        wanted = "one of None, 'promote', 'highest', 'lowest'"
        raise _checks.out_of_range("tree.dtype", "mixed_dtype_handler", wanted, mixed_dtype_handler)
    every = list(dict.fromkeys(found.values())) or [jnp.result_type(float)]
    if len(every) == 1:
        return every[0]
    if mixed_dtype_handler is None:
        raise _several_dtypes(found, "give mixed_dtype_handler 'promote', 'highest' or 'lowest'")
    with jax.numpy_dtype_promotion("standard"):
        if mixed_dtype_handler == "promote":
            return functools.reduce(jnp.promote_types, every)
        for candidate in every:
            pairs = [(jnp.promote_types(candidate, other), other) for other in every]
            highest = mixed_dtype_handler == "highest"
            if all(p == (candidate if highest else other) for p, other in pairs):
                return candidate
    raise _several_dtypes(found, "no one of them is above or below all others; give 'promote'")


def _several_dtypes(found: dict[str, Any], problem: str) -> ValueError:
    first = {str(d): path for path, d in reversed(found.items())}
    listed = _checks.listed(f"{d} at {path or 'the root'}" for d, path in first.items())
    return ValueError(f"tree.dtype: the leaves have several dtypes ({listed}); {problem}.")


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """Zeros of each leaf's shape and dtype.

    Args:
        tree: A tree of arrays, or of their `jax.ShapeDtypeStruct`.
        dtype: Another dtype, for all leaves.
    """
    return walk("tree.zeros_like", lambda x: jnp.zeros_like(x, dtype=dtype), {"tree": tree})


def ones_like(tree: Any, dtype: Any = None) -> Any:
    """Ones of each leaf's shape and dtype.

    Args:
        tree: A tree of arrays, or of their `jax.ShapeDtypeStruct`.
        dtype: Another dtype, for all leaves.
    """
    return walk("tree.ones_like", lambda x: jnp.ones_like(x, dtype=dtype), {"tree": tree})


def full_like(tree: Any, fill_value: Any, dtype: Any = None) -> Any:
    """One number in each leaf's shape and dtype.

    Args:
        tree: A tree of arrays, or of their `jax.ShapeDtypeStruct`.
        fill_value: The number.
        dtype: Another dtype, for all leaves.
    """

    def full(x: Any) -> Any:
        return jnp.full_like(x, fill_value, dtype=dtype)

    return walk("tree.full_like", full, {"tree": tree})


def split_key_like(rng_key: Any, target_tree: Any) -> Any:
    """A random key for each leaf.

    Args:
        rng_key: The key that is split, typed or raw.
        target_tree: The tree whose structure the keys take.
    """
    treedef = jax.tree.structure(target_tree)
    return treedef.unflatten(jax.random.split(rng_key, treedef.num_leaves))


def random_like(
    rng_key: Any,
    target_tree: Any,
    sampler: Callable[..., Any] = jax.random.normal,
    dtype: Any = None,
) -> Any:
    """Random numbers of each leaf's shape and dtype; each leaf has its own key.

    Args:
        rng_key: A key, typed or raw.
        target_tree: A tree of arrays, or of their `jax.ShapeDtypeStruct`.
        sampler: `sampler(key, shape, dtype)`; one that takes `out_sharding` too is given the
            leaf's.
        dtype: Another dtype than the leaves', for all of them. The sampler must support it.

    >>> import adaptax, jax, jax.numpy as jnp
    >>> noise = adaptax.tree.random_like(jax.random.key(0), {"w": jnp.ones((2, 3))})
    >>> noise["w"].shape
    (2, 3)
    """
    sharded = "out_sharding" in inspect.signature(sampler).parameters

    def sample(x: Any, key: Any) -> Any:
        wanted = dtype or getattr(x, "dtype", None) or jnp.result_type(x)
        keywords = {"out_sharding": jax.typeof(x).sharding} if sharded else {}
        return sampler(key, jnp.shape(x), wanted, **keywords)

    keys = split_key_like(rng_key, target_tree)
    return walk("tree.random_like", sample, {"target_tree": target_tree, "keys": keys})


def unwrap_random_key_data(input_tree: Any) -> Any:
    """The tree with the integers behind its typed random keys, to compare or save.

    Args:
        input_tree: A tree; other leaves than typed keys stay as they are.
    """

    def unwrap(x: Any) -> Any:
        return jax.random.key_data(x) if _is_key(x) else x

    return walk("tree.unwrap_random_key_data", unwrap, {"input_tree": input_tree})
