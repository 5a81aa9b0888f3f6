"""Adding updates to parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from . import _checks, _tree
from ._numerics import compute_dtype, mixing, widen


def apply_updates(params: Any, updates: Any) -> Any:
    """Add updates to parameters: p + u, in the wider dtype of the two, rounded once to p's.

    Where the two differ, floating dtypes are added in float32 or wider.

    Args:
        params: A tree of arrays.
        updates: A tree of the same structure and shapes. Where it is None (or jax's float0), the
            parameter stays as it is; a parameter that is None stays None.

    Returns:
        The new parameters, in the shapes and dtypes of the old.

    Raises:
        TreeMismatchError: Structures or shapes differ, or an integer parameter got an update
            that is not an integer; the message lists the paths.

    >>> apply_updates({"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.full(2, 0.5)})
    {'w': Array([1.5, 1.5], dtype=bfloat16)}
    """
    beside = _tree.Beside("apply_updates", "params", params, holes=True)
    trees = _tree.Aligned("apply_updates", updates, [beside])
    new = []
    for u, p in zip(trees.leaves, trees.columns[0], strict=True):
        if u is None or _tree.is_float0(u) or p is None:
            new.append(p)
            continue
        u, p = jnp.asarray(u), jnp.asarray(p)
        if u.shape != p.shape:
            raise trees.explain()
        if not (jnp.issubdtype(u.dtype, jnp.integer) or jnp.issubdtype(p.dtype, jnp.inexact)):
            raise _checks.not_floating("apply_updates", "params", params)
        new.append(jax.lax.add(u, p) if u.dtype == p.dtype else added(p, u))
    return trees.rebuild(new)


@jax.jit
def added(p: Any, u: Any) -> Any:
    """The new parameter: p + u in the wider dtype of the two, rounded once to p's."""
    if all(jnp.issubdtype(x.dtype, jnp.inexact) for x in (p, u)):
        real = compute_dtype(p.dtype, u.dtype)  # numpy knows no wider one of two 8-bit floats
        p_wide, u = widen(p, real), widen(u, real)
    else:
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.promote_types(p.dtype, u.dtype)
        p_wide, u = p.astype(wide), u.astype(wide)
    with mixing(p_wide, u):
        return (p_wide + u).astype(p.dtype)
