"""Updates that are added up before they pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._core import (
    ArrayTree,
    Count,
    Pair,
    Slot,
    _tree,
    compute_dtype,
    safe_increment,
    transformation,
    widen,
)
from ._step import checked


class ApplyEvery(NamedTuple):
    """The state of `apply_every`.

    Attributes:
        count: Updates seen in this window, int32 ().
        grad_acc: Their sum, like the parameters, float32 or wider.
    """

    count: Int[Array, ""]
    grad_acc: ArrayTree


@transformation
def apply_every(k: Count = 1) -> Pair:
    """Add up k updates, then let the sum pass; zeros in between.

    What stands before it in a chain still does its update at every micro-batch; to average
    gradients and then do one update, use `MultiSteps`. An update of NaN spoils the sum of its
    window and no other.

    Args:
        k: Updates in a window, >= 1.

    State: `ApplyEvery`.

    Raises:
        ValueError: k < 1.
    """

    def init(params: Any) -> ApplyEvery:
        return ApplyEvery(jnp.zeros((), jnp.int32), jax.tree.map(Slot().init, params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        state = checked("apply_every", ApplyEvery, state)
        first, last = state.count == 0, state.count >= k - 1
        beside = _tree.Beside("apply_every", "state.grad_acc", state.grad_acc)
        trees = _tree.Aligned("apply_every", updates, [beside])
        new, acc = [], []
        for g, a in zip(trees.leaves, trees.columns[0], strict=True):
            if g is not None and not _tree.is_float0(g):
                inexact = jnp.issubdtype(jnp.result_type(g), jnp.inexact)
                if not inexact or jnp.shape(g) != a.shape:
                    raise trees.explain()
                g, a = _sum(jnp.asarray(g), a, first, last)
            new.append(g)
            acc.append(a)
        count = jnp.where(last, 0, safe_increment(state.count))
        return trees.rebuild(new), ApplyEvery(count, trees.rebuild(acc))

    return Pair(init, update)


@jax.jit
def _sum(g: Any, acc: Any, first: Any, last: Any) -> tuple[Any, Any]:
    real = compute_dtype(g.dtype, acc.dtype)
    acc_wide = jnp.where(first, 0, widen(acc, real)) + widen(g, real)
    return jnp.where(last, acc_wide, 0).astype(g.dtype), acc_wide.astype(acc.dtype)
