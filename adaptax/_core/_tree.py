"""Trees: walked together, with None leaves, and with errors that name paths."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _numerics


def _is_none(x: Any) -> bool:
    return x is None


def is_float0(x: Any) -> bool:
    """Whether x is jax's gradient of an integer: it says nothing and has no data."""
    return getattr(x, "dtype", None) == jax.dtypes.float0


def dtypes(tree: Any) -> list[Any]:
    """The dtype of each leaf, in the order of `Aligned.leaves`; None for None."""
    return [
        getattr(x, "dtype", None) or (None if x is None else jnp.result_type(x))
        for x in jax.tree.leaves(tree, is_leaf=_is_none)
    ]


class Aligned:
    """The updates' leaves, and beside them those of other trees of the same structure.

    Each other tree comes as (whose, its name, the tree), the first two for errors.
    Where an update is None, what the other trees have there is taken along as it is.
    """

    def __init__(self, where: str, updates: Any, others: Sequence[tuple[str, str, Any]]):
        self._where = where
        self._updates = updates
        self._others = others
        self.leaves, self._treedef = jax.tree.flatten(updates, is_leaf=_is_none)
        self.columns = [self._column(*other) for other in others]

    def _column(self, where: str, name: str, tree: Any) -> list[Any]:
        leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_none)
        if treedef == self._treedef:
            return leaves
        try:
            pieces = self._treedef.flatten_up_to(tree)
        except ValueError:
            raise self._mismatch(where, name, tree) from None
        for g, piece in zip(self.leaves, pieces, strict=True):
            if g is not None and not jax.tree_util.all_leaves([piece]):
                raise self._mismatch(where, name, tree)
        return pieces

    def _mismatch(self, where: str, name: str, tree: Any) -> Exception:
        return _checks.mismatch(where, "updates", self._updates, name, tree)

    def rebuild(self, leaves: list[Any]) -> Any:
        """A tree like the updates."""
        return self._treedef.unflatten(leaves)

    def explain(self) -> Exception:
        """What is wrong, after a kernel refused a leaf."""
        floating = [
            g is None or is_float0(g) or jnp.issubdtype(jnp.result_type(g), jnp.inexact)
            for g in self.leaves
        ]
        if not all(floating):
            return _checks.not_floating(self._where, "updates", self._updates)
        shapes = [jnp.shape(g) for g in self.leaves]
        for (where, name, tree), column in zip(self._others, self.columns, strict=True):
            shaped = zip(self.leaves, shapes, column, strict=True)
            if any(g is not None and jnp.shape(x) != shape for g, shape, x in shaped):
                return self._mismatch(where, name, tree)
        return _checks.LeafError(f"{self._where}: a rule changed the shape of an update.")


def paths(tree: Any) -> list[str]:
    """The key path of each leaf, None leaves included."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
    return [jax.tree_util.keystr(path) for path, _ in leaves]


def check_arrays(where: str, params: Any) -> None:
    """Refuse parameters that are not arrays (or numbers)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) and not isinstance(
            leaf, float | int | complex
        ):
            raise _checks.bad_leaf(where, path, leaf)


def check_state(where: str, link: Any, state: Any) -> Any:
    """The link's own state, taken out of its wrapping; refuse anything else."""
    if link.wrap is not None:
        if not isinstance(state, link.wrap):
            raise _checks.wrong_state(where, link.wrap.__name__, state)
        state = state.inner_state
    if not isinstance(state, link.state):
        raise _checks.wrong_state(where, link.state.__name__, state)
    return state


def round_to(tree: Any, wanted: Sequence[Any]) -> Any:
    """Cast each leaf to its dtype in `wanted` (as listed by `dtypes`)."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_none)
    return treedef.unflatten(
        x if x is None or dtype is None or x.dtype == dtype else x.astype(dtype)
        for x, dtype in zip(leaves, wanted, strict=True)
    )


def broadcast(where: str, prefix: Any, tree: Any, is_leaf: Any = None) -> list[Any]:
    """The prefix tree's leaf over each leaf of the tree (None leaves included)."""
    out: list[Any] = []

    def extend(value: Any, subtree: Any) -> None:
        out.extend([value] * len(jax.tree.leaves(subtree, is_leaf=_is_none)))

    try:
        jax.tree.map(extend, prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise _checks.bad_mask(where, str(error).splitlines()[0]) from None
    return out


def global_norm(updates: Any) -> Float[Array, ""]:
    """The 2-norm of all entries of a tree, √Σ|x|².

    Accumulated in float32 or wider; does not overflow or underflow where the result does not.
    An empty tree has norm 0.
    """
    return _numerics.norm([jnp.asarray(x) for x in jax.tree.leaves(updates) if not is_float0(x)])


def compute_dtype(tree: Any) -> Any:
    """The real dtype for numbers of the whole tree: float32, or wider if a leaf is."""
    every = (dtype for dtype in dtypes(tree) if dtype is not None)
    return _numerics.compute_dtype(*(d for d in every if jnp.issubdtype(d, jnp.inexact)))


def total(f: Any, updates: Any, *others: Any, where: str = "update") -> Any:
    """Σ f(g, ...) over the leaves that have a gradient; f returns a scalar, float32 or wider."""
    real = compute_dtype(updates)
    trees = Aligned(where, updates, [(where, "the other tree", tree) for tree in others])
    terms = [
        f(g, *rest).astype(real)
        for g, *rest in zip(trees.leaves, *trees.columns, strict=True)
        if g is not None and not is_float0(g)
    ]
    return sum(terms, jnp.zeros((), real))
