"""Scalars of whole trees, accumulated in float32 or wider."""

import builtins
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num, Shaped

from .._core import _checks, _numerics, _tree, abs_sq, compute_dtype, widen
from .._core._tree import is_float0
from ._walk import walk


def sum(tree: Any, associative_reduction: bool = False) -> Num[Array, ""]:
    """The sum of all entries of all leaves.

    Args:
        tree: A tree.
        associative_reduction: Add the leaves' sums in pairs, then pairs of pairs, instead of one
            after the other.

    Returns:
        A scalar: float32 or wider, or complex; an integer if all leaves are. 0 for a tree without
        entries.

    >>> import adaptax, jax.numpy as jnp
    >>> adaptax.tree.sum([jnp.full(3, 300.0, jnp.float16)] * 100)
    Array(90000., dtype=float32)
    """
    return _added([_sum(x) for x in _arrays(tree)], associative_reduction)


def vdot(tree_x: Any, tree_y: Any) -> Num[Array, ""]:
    """The inner product of two trees, Σ x̄·y over all entries.

    Args:
        tree_x: A tree; complex entries are conjugated.
        tree_y: A tree of the same structure and shapes.

    Returns:
        A scalar: float32 or wider, or complex; an integer if all leaves are.

    Raises:
        TreeMismatchError: Structures or shapes differ.
    """
    pairs: list[tuple[Any, Any]] = []
    trees = {"tree_x": tree_x, "tree_y": tree_y}
    walk("tree.vdot", lambda x, y: pairs.append((jnp.asarray(x), jnp.asarray(y))), trees)
    if any(x.shape != y.shape for x, y in pairs):
        raise _checks.mismatch("tree.vdot", "tree_x", tree_x, "tree_y", tree_y)
    return _added([_vdot(x, y) for x, y in pairs])


def norm(tree: Any, ord: int | str | float | None = None, squared: bool = False) -> Num[Array, ""]:
    """A norm of all entries of a tree together.

    Args:
        tree: A tree.
        ord: 2 or None for √Σ|x|², 1 for Σ|x|, infinity (also "inf", "infinity") for max |x|.
        squared: The norm's square.

    Returns:
        A real scalar, float32 or wider; 0 for a tree without entries. The 2-norm does not overflow
        or underflow where the result does not.

    Raises:
        ValueError: Another order.

    >>> import adaptax, jax.numpy as jnp
    >>> adaptax.tree.norm({"a": jnp.array([3e30]), "b": jnp.array([4e30])})
    Array(5.e+30, dtype=float32)
    """
    arrays = _arrays(tree)
    if ord in (None, 2):
        if squared:
            return _added([_sum_of_squares(x) for x in arrays])
        floating = [x if jnp.issubdtype(x.dtype, jnp.inexact) else _float(x) for x in arrays]
        return _numerics.norm(floating)
    if ord == 1:
        result = _added([_sum_of_magnitudes(x) for x in arrays])
    elif ord in (math.inf, "inf", "infinity"):
        result = _folded([_peak(x) for x in arrays if x.size], _largest, 0.0)
    else:
        raise _checks.out_of_range("tree.norm", "ord", "one of None, 1, 2, inf, 'inf'", ord)
    return result**2 if squared else result


def max(tree: Any) -> Shaped[Array, ""]:
    """The largest entry of all leaves.

    Args:
        tree: A tree of real arrays.

    Returns:
        A scalar in the dtype that the leaves promote to; NaN if an entry is, -inf for a tree
        without entries.
    """
    return _folded([jnp.max(x) for x in _arrays(tree) if x.size], _largest, -math.inf)


def min(tree: Any) -> Shaped[Array, ""]:
    """The smallest entry of all leaves.

    Args:
        tree: A tree of real arrays.

    Returns:
        A scalar in the dtype that the leaves promote to; NaN if an entry is, inf for a tree
        without entries.
    """
    return _folded([jnp.min(x) for x in _arrays(tree) if x.size], _smallest, math.inf)


def size(tree: Any) -> int:
    """The number of entries of all leaves.

    Args:
        tree: A tree of arrays, or of their `jax.ShapeDtypeStruct`.
    """
    return builtins.sum(math.prod(np.shape(x)) for x in jax.tree.leaves(tree))


def allclose(
    a: Any, b: Any, rtol: Any = 1e-05, atol: Any = 1e-08, equal_nan: bool = False
) -> Bool[Array, ""]:
    """Whether |a - b| <= atol + rtol·|b| for all entries.

    Args:
        a: A tree.
        b: A tree of the same structure.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        equal_nan: Whether NaN is close to NaN.

    Returns:
        A bool; true for trees without entries.

    Raises:
        TreeMismatchError: The structures differ.
    """

    def close(x: Any, y: Any) -> Any:
        wide = _tree.compute_dtype((x, y))
        x, y = widen(x, wide), widen(y, wide)
        with _numerics.mixing(x, y):
            return jnp.allclose(x, y, rtol, atol, equal_nan)

    compared = walk("tree.allclose", close, {"a": a, "b": b})
    found = [x for x in jax.tree.leaves(compared) if not is_float0(x)]
    return functools.reduce(operator.and_, found, jnp.array(True))


_largest = functools.partial(functools.reduce, jnp.maximum)
_smallest = functools.partial(functools.reduce, jnp.minimum)


def _arrays(tree: Any) -> list[Any]:
    return [jnp.asarray(x) for x in jax.tree.leaves(tree) if not is_float0(x)]


def _float(x: Any) -> Any:
    """Float32 or wider, or complex."""
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return widen(x, compute_dtype(*[x.dtype] * inexact))


def _wide(x: Any) -> Any:
    """Float32 or wider, or complex; an integer stays one, of 32 bits or more."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return _float(x)
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)


# One kernel for all leaves of a shape: a kernel for a whole tree takes seconds to compile.


@jax.jit
def _sum(x: Any) -> Any:
    return jnp.sum(_wide(x))


@jax.jit
def _vdot(x: Any, y: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # y may have another dtype
        return jnp.sum(jnp.conj(_wide(x)) * _wide(y))


@jax.jit
def _sum_of_squares(x: Any) -> Any:
    return jnp.sum(abs_sq(_float(x)))


@jax.jit
def _sum_of_magnitudes(x: Any) -> Any:
    return jnp.sum(jnp.abs(_float(x)))


@jax.jit
def _peak(x: Any) -> Any:
    return jnp.max(jnp.abs(_float(x)))


def _added(terms: list[Any], associative: bool = False) -> Any:
    reduce: Any = jax.tree.reduce_associative if associative else jax.tree.reduce
    return _folded(terms, functools.partial(reduce, operator.add), 0.0)


def _folded(scalars: list[Any], fold: Callable[[list[Any]], Any], of_none: float) -> Any:
    """The fold of scalars in the dtype that they promote to."""
    if not scalars:
        return jnp.array(of_none, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # leaves of several dtypes have one sum
        dtype = functools.reduce(jnp.promote_types, {x.dtype for x in scalars})
    return fold([x if x.dtype == dtype else x.astype(dtype) for x in scalars])
