"""Averages by hand: one step of one, as a function of two trees."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._core import ArrayTree, _checks, _manual, _tree, compute_dtype, widen
from ._shared import side_by_side, toward


@jax.jit
def _moved(new: Any, old: Any, step_size: Any) -> Any:
    if not _tree.is_inexact(old):
        return jnp.array(new)
    real = compute_dtype(*(x.dtype for x in (new, old) if _tree.is_inexact(x)))
    wide = toward(widen(new, real), widen(old, real), jnp.asarray(step_size, real))
    return wide.astype(old.dtype)


def incremental_update(new_tensors: ArrayTree, old_tensors: ArrayTree, step_size: Any) -> ArrayTree:
    r"""One step of an exponential average of trees, :math:`s\, x + (1 - s)\, m`.

    Computed in float32 or wider as :math:`m + s (x - m)`, and rounded once. Integer leaves of
    the result are those of the new tree.

    Args:
        new_tensors: x, a tree of arrays; None leaves the old value as it is.
        old_tensors: m, a tree of the same structure and shapes.
        step_size: s, a number in [0, 1].

    Returns:
        A tree in the dtypes of ``old_tensors``.

    Raises:
        TreeMismatchError: Structures or shapes differ.

    >>> import jax.numpy as jnp
    >>> incremental_update({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, 0.25)
    {'w': Array([0.25, 0.25], dtype=float32)}
    """
    trees = {"new_tensors": new_tensors, "old_tensors": old_tensors}
    (new, old), structure = side_by_side("incremental_update", trees)
    return structure.unflatten(
        o if n is None or o is None else _moved(jnp.asarray(n), jnp.asarray(o), step_size)
        for n, o in zip(new, old, strict=True)
    )


@jax.jit
def _replaced(due: Any, new: Any, old: Any) -> Any:
    return _manual.cond(
        due, lambda: [n.astype(o.dtype) for n, o in zip(new, old, strict=True)], lambda: old
    )


def periodic_update(
    new_tensors: ArrayTree, old_tensors: ArrayTree, steps: Any, update_period: Any
) -> ArrayTree:
    """The new tree in every so many steps, else the old one: a target network's update.

    Args:
        new_tensors: A tree of arrays; None leaves the old value as it is.
        old_tensors: A tree of the same structure and shapes.
        steps: The number of steps done, a whole number, perhaps traced.
        update_period: A whole number >= 1; the new tree is taken where it divides ``steps``.

    Returns:
        A tree in the dtypes of ``old_tensors``.

    Raises:
        TreeMismatchError: Structures or shapes differ.
        ValueError: ``update_period`` is concrete and below 1.
    """
    if not isinstance(update_period, Tracer) and not update_period >= 1:
        raise _checks.out_of_range("periodic_update", "update_period", "[1, inf)", update_period)
    trees = {"new_tensors": new_tensors, "old_tensors": old_tensors}
    (new, old), structure = side_by_side("periodic_update", trees)
    here = [i for i, n in enumerate(new) if n is not None and old[i] is not None]
    due = jnp.asarray(steps) % jnp.asarray(update_period) == 0
    taken = _replaced(due, *([jnp.asarray(column[i]) for i in here] for column in (new, old)))
    for i, leaf in zip(here, taken, strict=True):
        old[i] = leaf
    return structure.unflatten(old)
