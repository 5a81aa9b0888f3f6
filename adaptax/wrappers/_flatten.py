"""All parameters as one vector."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._core import Pair, Transform, _tree, lands, node_of, transformation


@transformation
def flatten(inner: Transform) -> Pair:
    """Give a transformation all leaves as one vector, instead of many small arrays.

    For transformations that treat each entry by itself, or the tree as a whole: what looks at
    shapes, names or single leaves (masks, Adafactor, Muon, LAMB) sees one vector.

    The vector has the dtype that the leaves promote to (one complex leaf makes it complex, and
    8-bit floats count as bfloat16 beside others); updates return in their own dtypes. A tree
    without arrays is an empty float32 vector. None, jax's float0, integer parameters and PRNG keys
    are not part of the vector.

    Args:
        inner: The transformation.

    The state is the inner one's, of the vector.

    Raises:
        ValueError: At `update`, if a floating parameter has None as its gradient: the vector
            cannot leave its entries out.
    """
    node = node_of(inner)

    def init(params: Any) -> Any:
        return node.init(_vector(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if params is not None:
            beside = _tree.Beside("flatten", "params", params, holes=True)
            trees = _tree.Aligned("flatten", updates, [beside])
            for path, g, p in zip(
                _tree.paths(updates), trees.leaves, trees.columns[0], strict=True
            ):
                if g is None and _tree.is_inexact(p):
                    raise _no_gradient(path)
        vector, state = node.update(
            _vector(updates), state, None if params is None else _vector(params), **extra_args
        )
        return _unflattened(vector, updates, lands(node)), state

    return Pair(init, update, lambda state: {"": (inner, state)})


def _no_gradient(path: str) -> ValueError:
    """A leaf of the vector is missing."""
    return ValueError(
        f"flatten: the gradient at {path or 'the root'} is None, but its parameter is part of the "
        "vector; give zeros, or mask the parameter outside of flatten."
    )


def _vector(tree: Any) -> Any:
    arrays = [jnp.asarray(x) for x in jax.tree.leaves(tree) if _tree.is_inexact(x)]
    if not arrays:
        return jnp.zeros(0, jnp.float32)
    dtypes = {x.dtype for x in arrays}
    if len(dtypes) > 1:  # jax promotes floats of less than 16 bits to nothing
        dtypes = {jnp.bfloat16 if jnp.finfo(d).bits < 16 else d for d in dtypes}
    with jax.numpy_dtype_promotion("standard"):  # dtypes are mixed on purpose
        dtype = jnp.result_type(*dtypes)
    return jnp.concatenate([x.reshape(-1).astype(dtype) for x in arrays])


def _unflattened(vector: Any, tree: Any, lands: bool) -> Any:
    """The tree's leaves, in their dtypes (where they land: in the vector's), from the vector."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_tree.is_none)
    new, at = [], 0
    for x in leaves:
        if not _tree.is_inexact(x):
            new.append(x)
            continue
        piece = vector[at : at + math.prod(jnp.shape(x))].reshape(jnp.shape(x))
        at += math.prod(jnp.shape(x))
        real = not jnp.iscomplexobj(x) and jnp.iscomplexobj(piece)
        piece = piece.real if real else piece
        new.append(piece if lands else piece.astype(jnp.result_type(x)))
    return treedef.unflatten(new)
