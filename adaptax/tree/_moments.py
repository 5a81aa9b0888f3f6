"""Exponential averages of trees, in float32 or wider, rounded once to the stored dtype."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .._core import Decay, _tree, abs_sq, average, debias, widen
from .._core._numerics import mixing
from ._walk import walk


def update_moment(updates: Any, moments: Any, decay: Any, order: int | float) -> Any:
    r"""One step of an average of powers: :math:`m := b\, m + (1 - b)\, g^k`.

    Args:
        updates: g, a tree. Where it is None (or jax's float0), m stays as it is.
        moments: m, a tree of the same structure; the result has its dtypes (or their complex
            counterparts, where the power is complex and m is not).
        decay: b, in [0, 1). A Python number enters as 1 - b of the double.
        order: k, a Python number.

    Raises:
        TreeMismatchError: The structures differ.
    """
    return _average("tree.update_moment", updates, moments, decay, order, False)


def update_moment_per_elem_norm(updates: Any, moments: Any, decay: Any, order: int | float) -> Any:
    r"""One step of an average of powers of magnitudes: :math:`m := b\, m + (1 - b)\, |g|^k`.

    For complex g; the power of a real g is :math:`g^k`, as in `update_moment`.

    Args:
        updates: g, a tree. Where it is None (or jax's float0), m stays as it is.
        moments: m, a tree of the same structure; the result has its dtypes.
        decay: b, in [0, 1). A Python number enters as 1 - b of the double.
        order: k, a Python number.

    Raises:
        TreeMismatchError: The structures differ.
    """
    where = "tree.update_moment_per_elem_norm"
    return _average(where, updates, moments, decay, order, True)


def update_infinity_moment(updates: Any, moments: Any, decay: Any, eps: Any) -> Any:
    r"""One step of a decaying maximum: :math:`m := \max(b\, m, |g| + \varepsilon)`.

    Args:
        updates: g, a tree. Where it is None (or jax's float0), m stays as it is.
        moments: m >= 0, a tree of the same structure; the result has its dtypes.
        decay: b, in [0, 1).
        eps: ε, in the unit of g.

    Raises:
        TreeMismatchError: The structures differ.
    """
    decay = Decay.of(decay)
    trees = {"updates": updates, "moments": moments}
    step = lambda g, m: _maximum(g, m, decay, eps)  # noqa: E731
    return walk("tree.update_infinity_moment", step, trees, stays="moments")


def bias_correction(moment: Any, decay: Any, count: Any) -> Any:
    r"""An average that began at zero, divided by its weight: :math:`m / (1 - b^t)`.

    Args:
        moment: m, a tree; the result has its dtypes.
        decay: b, in [0, 1). A Python number enters as log b of the double.
        count: t >= 1, the number of steps averaged.

    >>> import adaptax, jax.numpy as jnp
    >>> adaptax.tree.bias_correction({"mu": jnp.array([1e-6])}, 0.999999, 1)
    {'mu': Array([1.], dtype=float32)}
    """
    decay = Decay.of(decay)
    return walk("tree.bias_correction", lambda m: _debias(m, decay, count), {"moment": moment})


def _average(
    where: str, updates: Any, moments: Any, decay: Any, order: int | float, magnitude: bool
) -> Any:
    decay = Decay.of(decay)
    step = lambda g, m: _moment(g, m, decay, order, magnitude)  # noqa: E731
    return walk(where, step, {"updates": updates, "moments": moments}, stays="moments")


# One kernel for all leaves of a shape. The decay comes in as 1 - b and log b: a Python number that
# goes into a jitted function is rounded there.


@functools.partial(jax.jit, static_argnames=("order", "magnitude"))
def _moment(g: Any, m: Any, decay: Decay, order: int | float, magnitude: bool) -> Any:
    wide = _tree.compute_dtype((g, m))
    x, mean, decay = widen(g, wide), widen(m, wide), _in(wide, decay)
    with mixing(x, mean):
        if magnitude and jnp.iscomplexobj(x):
            half = order / 2
            power = abs_sq(x) ** (int(half) if half == int(half) else half)
        else:
            power = x**order
        return _stored(average(power, mean, decay), m)


@jax.jit
def _maximum(g: Any, m: Any, decay: Decay, eps: Any) -> Any:
    wide = _tree.compute_dtype((g, m))
    old = jnp.real(widen(m, wide))
    new = jnp.abs(widen(g, wide)) + widen(eps, wide)
    return _stored(jnp.maximum(new, _in(wide, decay).value * old), m)


@jax.jit
def _debias(m: Any, decay: Decay, count: Any) -> Any:
    wide = _tree.compute_dtype(m)
    with mixing(m):
        return _stored(debias(widen(m, wide), _in(wide, decay), widen(count, wide)), m)


def _in(wide: Any, decay: Decay) -> Decay:
    return jax.tree.map(lambda x: widen(x, wide), decay)


def _stored(new: Any, old: Any) -> Any:
    """In the dtype of the old, but never less than complex or floating."""
    dtype = jnp.result_type(old)
    loses = jnp.iscomplexobj(new) and not jnp.issubdtype(dtype, jnp.complexfloating)
    return new if loses or not jnp.issubdtype(dtype, jnp.inexact) else new.astype(dtype)
