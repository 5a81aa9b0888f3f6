"""Trees: walked together, with None leaves, and with errors that name paths."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _numerics


class MaskedNode(NamedTuple):
    """Stands in a tree where a leaf is masked out; it holds nothing."""


def is_none(x: Any) -> bool:
    """Whether x is None, which is a leaf here."""
    return x is None


def is_hole(x: Any) -> bool:
    """Whether x stands where there is no array: None or masked out."""
    return x is None or isinstance(x, MaskedNode)


def is_function(x: Any) -> bool:
    """Whether x is a function of a tree, where a tree may be given instead.

    A pytree that can be called, such as an Equinox module, is a tree, unless all of its leaves are
    functions (as those of a wrapped function are).
    """
    if isinstance(x, jax.tree_util.Partial):
        return True
    return callable(x) and all(map(callable, jax.tree.leaves(x)))


def _is_array(x: Any) -> bool:
    return (hasattr(x, "dtype") and hasattr(x, "shape")) or isinstance(x, float | int | complex)


def is_float0(x: Any) -> bool:
    """Whether x is jax's gradient of an integer: it says nothing and has no data."""
    return getattr(x, "dtype", None) == jax.dtypes.float0


def is_inexact(x: Any) -> bool:
    """Whether x is an array (or a number) that is floating or complex, not a hole in a tree."""
    if is_hole(x) or is_float0(x):
        return False
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def dtypes(tree: Any) -> list[Any]:
    """The dtype of each leaf, in the order of `Aligned.leaves`; None for None."""
    return [
        getattr(x, "dtype", None) or (None if x is None else jnp.result_type(x))
        for x in jax.tree.leaves(tree, is_leaf=is_none)
    ]


class Beside(NamedTuple):
    """A tree that should have the structure of the updates."""

    where: str  # whose, for errors
    name: str
    tree: Any
    shape: Callable[[Any], Any] = jnp.shape  # the shape of its leaf for an update
    holes: bool = False  # whether it may have None where there is an update


class Aligned:
    """The updates' leaves, and beside them those of other trees of the same structure.

    Where an update is None, what the other trees have there is taken along as it is.
    """

    def __init__(self, where: str, updates: Any, others: Sequence[Beside]):
        self._where = where
        self._updates = updates
        self._others = others
        self.leaves, self._treedef = jax.tree.flatten(updates, is_leaf=is_none)
        self.columns = [self._column(other) for other in others]

    def _column(self, other: Beside) -> list[Any]:
        pieces, treedef = jax.tree.flatten(other.tree, is_leaf=is_none)
        if treedef == self._treedef and not any(x is None for x in pieces):
            return pieces
        if treedef != self._treedef:
            try:
                pieces = self._treedef.flatten_up_to(other.tree)
            except ValueError:
                raise self._mismatch(other) from None
        for g, piece in zip(self.leaves, pieces, strict=True):
            fits = g is None or (piece is None and other.holes) or _is_array(piece)
            if not fits:
                raise self._mismatch(other)
        return pieces

    def _mismatch(self, other: Beside) -> Exception:
        return _checks.mismatch(other.where, "updates", self._updates, other.name, other.tree)

    def rebuild(self, leaves: list[Any]) -> Any:
        """A tree like the updates."""
        return self._treedef.unflatten(leaves)

    def explain(self) -> Exception:
        """What is wrong, after a kernel refused a leaf."""
        if not all(_is_trainable(g) for g in self.leaves):
            return _checks.not_floating(self._where, "updates", self._updates)
        for other, column in zip(self._others, self.columns, strict=True):
            differing = {}
            for path, g, x in zip(paths(self._updates), self.leaves, column, strict=True):
                if g is not None and not is_float0(g) and other.shape(g) != jnp.shape(x):
                    differing[path or "the root"] = (other.shape(g), jnp.shape(x))
            if differing:
                return _checks.shapes(other.where, other.name, differing, len(column))
            if not all(map(_is_trainable, column)):
                return _checks.not_floating(other.where, other.name, other.tree)
        return _checks.changed_shape(self._where)


def _is_trainable(g: Any) -> bool:
    return g is None or is_float0(g) or jnp.issubdtype(jnp.result_type(g), jnp.inexact)


def paths(tree: Any) -> list[str]:
    """The key path of each leaf, None leaves included."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    return [jax.tree_util.keystr(path) for path, _ in leaves]


def check_arrays(where: str, params: Any) -> None:
    """Refuse parameters that are not arrays (or numbers)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _is_array(leaf):
            raise _checks.bad_leaf(where, path, leaf, params)


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
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_none)
    return treedef.unflatten(
        x if getattr(x, "dtype", dtype) == dtype else x.astype(dtype)
        for x, dtype in zip(leaves, wanted, strict=True)
    )


def broadcast(
    where: str, what: str, prefix: Any, tree: Any, is_leaf: Callable[[Any], bool] = is_none
) -> list[Any]:
    """The prefix tree's leaf over each leaf of the tree; None is a leaf of both."""
    out: list[Any] = []

    def extend(value: Any, subtree: Any) -> None:
        out.extend([value] * len(jax.tree.leaves(subtree, is_leaf=is_none)))

    try:
        jax.tree.map(extend, prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise _checks.bad_prefix(where, what, str(error).splitlines()[0]) from None
    return out


def global_norm(updates: Any) -> Float[Array, ""]:
    """The 2-norm of all entries of a tree, √Σ|x|².

    Accumulated in float32 or wider; does not overflow or underflow where the result does not.
    An empty tree has norm 0.
    """
    return _numerics.norm(entries(updates))


def entries(updates: Any) -> list[Any]:
    """The arrays of a tree that have data."""
    return [jnp.asarray(x) for x in jax.tree.leaves(updates) if not is_float0(x)]


def compute_dtype(tree: Any) -> Any:
    """The real dtype for numbers of the whole tree: float32, or wider if a leaf is."""
    every = (dtype for dtype in dtypes(tree) if dtype is not None)
    return _numerics.compute_dtype(*(d for d in every if jnp.issubdtype(d, jnp.inexact)))


def total(f: Any, updates: Any, *others: Any, where: str = "update") -> Any:
    """Σ f(g, ...) over the leaves that have a gradient; f returns a scalar, float32 or wider."""
    real = compute_dtype(updates)
    trees = Aligned(where, updates, [Beside(where, "the other tree", tree) for tree in others])
    terms = [
        f(g, *rest).astype(real)
        for g, *rest in zip(trees.leaves, *trees.columns, strict=True)
        if g is not None and not is_float0(g)
    ]
    return _numerics.fold(jnp.sum, terms) if terms else jnp.zeros((), real)
