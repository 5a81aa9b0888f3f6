"""Trees: walked together, with None leaves, and with errors that name paths."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks, _manual, _numerics


class MaskedNode(NamedTuple):
    """Stands in a tree where a leaf is masked out; it holds nothing."""


def is_none(x: Any) -> bool:
    """Whether x is None, which is a leaf here."""
    return x is None


def is_marker(x: Any, marker: type) -> bool:
    """Whether x is a NamedTuple like `marker`: ours, or optax's of the same name and fields."""
    if isinstance(x, marker):
        return True
    alike = isinstance(x, tuple) and getattr(x, "_fields", None) == marker._fields  # type: ignore[attr-defined]
    return alike and type(x).__name__ == marker.__name__


def is_masked(x: Any) -> bool:
    """Whether x is a `MaskedNode`, ours or optax's."""
    return is_marker(x, MaskedNode)


def is_hole(x: Any) -> bool:
    """Whether x stands where there is no array: None or masked out."""
    return x is None or is_masked(x)


def is_function(x: Any) -> TypeGuard[Callable[[Any], Any]]:
    """Whether x is a function of a tree, where a tree may be given instead.

    A pytree that can be called, such as an Equinox module, is a tree, unless all of its leaves are
    functions (as those of a wrapped function are).
    """
    if isinstance(x, jax.tree_util.Partial):
        return True
    return callable(x) and all(map(callable, jax.tree.leaves(x)))


def resolved(given: Any, tree: Any) -> Any:
    """What a function makes of the tree; or, where a tree is given, that."""
    return given(tree) if is_function(given) else given


def is_array(x: Any) -> bool:
    """Whether x is an array, a number, or stands for one; numpy's of text or objects are not."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not hasattr(x, "shape"):
        return isinstance(x, float | int | complex)
    return getattr(dtype, "kind", "") not in ("O", "S", "U", "M", "m")


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
            fits = g is None or (piece is None and other.holes) or is_array(piece)
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
    if not _only_arrays(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not is_array(leaf):
                raise _checks.bad_leaf(where, path, leaf, params)


def _only_arrays(tree: Any) -> bool:
    """Whether all leaves are arrays; of those of one type one is asked."""
    leaves = jax.tree.leaves(tree)
    kinds = {x.dtype if isinstance(x, np.ndarray) else type(x): x for x in leaves}
    return all(map(is_array, kinds.values()))


def check_state(where: str, link: Any, state: Any) -> Any:
    """The link's own state, taken out of its wrapping; refuse anything else.

    A link that stores nothing takes any state without leaves.
    """
    if link.wrap is not None:
        if not isinstance(state, link.wrap):
            raise _checks.wrong_state(where, link.wrap.__name__, state)
        state = state.inner_state
    nothing = not link.state._fields and not jax.tree.leaves(state)
    if not (nothing or isinstance(state, link.state)):
        raise _checks.wrong_state(where, link.state.__name__, state)
    return state


def round_to(tree: Any, wanted: Sequence[Any]) -> Any:
    """Cast each leaf to its dtype in `wanted` (as listed by `dtypes`)."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_none)
    return treedef.unflatten(
        x if getattr(x, "dtype", dtype) == dtype else x.astype(dtype)
        for x, dtype in zip(leaves, wanted, strict=True)
    )


class Laid(NamedTuple):
    """A tree that is a prefix of another, laid over it; None is a leaf of both."""

    values: list[Any]  # the leaves of the prefix
    structure: Any  # and its structure
    sizes: list[int]  # over how many leaves of the tree each of them lies

    @classmethod
    def of(cls, prefix: Any, tree: Any, is_leaf: Callable[[Any], bool] = is_none) -> "Laid":
        """Lay a prefix over a tree. What it has below a `MaskedNode` of the tree is left out.

        Raises:
            NotAPrefix: It is none; the message says where, and what differs.
        """
        values, structure = jax.tree.flatten(prefix, is_leaf=is_leaf)
        try:
            pieces = structure.flatten_up_to(tree)
        except ValueError:
            values, structure = jax.tree.flatten(within(prefix, tree, is_leaf), is_leaf=is_leaf)
            pieces = structure.flatten_up_to(tree)
        sizes = [len(jax.tree.leaves(piece, is_leaf=is_none)) for piece in pieces]
        return cls(values, structure, sizes)

    def by_leaf(self) -> list[Any]:
        """The value over each leaf of the tree."""
        pairs = zip(self.values, self.sizes, strict=True)
        return [value for value, size in pairs for _ in range(size)]

    def paths(self) -> list[str]:
        """The key path of each value."""
        return paths(self.structure.unflatten(range(len(self.values))))


class NotAPrefix(Exception):
    """A tree has another container or other keys than the tree that it is laid over."""

    def __init__(self, path: Any, problem: str):
        self.path = jax.tree_util.keystr(path) or "the root"
        super().__init__(f"at {self.path} it has {problem}")


def within(
    prefix: Any, tree: Any, is_leaf: Callable[[Any], bool], path: tuple[Any, ...] = ()
) -> Any:
    """The prefix, with a `MaskedNode` where the tree has one.

    Raises:
        NotAPrefix: They differ; it says where, and in what.
    """
    mine, structure = _children(prefix)
    if is_leaf(prefix) or structure == _LEAF:
        return prefix
    if is_masked(tree):
        return MaskedNode()
    others, other_structure = _children(tree)
    if structure != other_structure:
        raise NotAPrefix(path, _different(prefix, tree, mine, others))
    return structure.unflatten(
        within(child, other, is_leaf, path + key)
        for (key, child), (_, other) in zip(mine, others, strict=True)
    )


_LEAF = jax.tree.structure(0)


def _children(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)


def _different(one: Any, other: Any, children: list[Any], others: list[Any]) -> str:
    """What is different between two nodes of trees."""
    keys, other_keys = ([jax.tree_util.keystr(key) for key, _ in x] for x in (children, others))
    if type(one) is not type(other):
        return f"a {_type(one)} where the other tree has a {_type(other)}"
    if keys != other_keys:
        mine, theirs = (", ".join(k) or "no keys" for k in (keys, other_keys))
        return f"{mine} where the other tree has {theirs}"
    return f"a {_type(one)} with other static fields than the other tree's"


def _type(x: Any) -> str:
    kind = type(x)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def lay(
    where: str, what: str, prefix: Any, tree: Any, is_leaf: Callable[[Any], bool] = is_none
) -> Laid:
    """`Laid.of`, with an error about an argument.

    Raises:
        TreeMismatchError: It is not a prefix.
    """
    try:
        return Laid.of(prefix, tree, is_leaf)
    except NotAPrefix as error:
        raise _checks.bad_prefix(where, what, str(error), [error.path]) from None


def broadcast(
    where: str, what: str, prefix: Any, tree: Any, is_leaf: Callable[[Any], bool] = is_none
) -> list[Any]:
    """The prefix tree's leaf over each leaf of the tree; see `lay`."""
    return lay(where, what, prefix, tree, is_leaf).by_leaf()


def trained(updates: Any, params: Any) -> Any:
    """The parameters, with None for what is not an array and has no gradient.

    A whole Equinox model is a tree of parameters and functions.
    """
    if _only_arrays(params):
        return params
    leaves, structure = jax.tree.flatten(params, is_leaf=is_none)
    grads, other = jax.tree.flatten(updates, is_leaf=is_none)
    if structure != other:
        return params
    return structure.unflatten(
        p if g is not None or is_array(p) else None for g, p in zip(grads, leaves, strict=True)
    )


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


def total(f: Any, updates: Any, *others: Any, like: Any, where: str = "update") -> Any:
    """Σ f(g, ...) over the leaves that have a gradient; f returns a scalar, float32 or wider.

    Of arrays that are parts of larger ones, over all devices that share the number `like`. Where
    types do not say whether they are parts or copies, it is the mean of the devices' sums.
    """
    real = _numerics.compute_dtype(compute_dtype(updates), jnp.result_type(like))
    trees = Aligned(where, updates, [Beside(where, "the other tree", tree) for tree in others])
    terms = [
        _manual.total(f(g, *rest).astype(real), like)
        for g, *rest in zip(trees.leaves, *trees.columns, strict=True)
        if g is not None and not is_float0(g)
    ]
    if not terms:
        return jnp.zeros((), real)
    return _manual.mean(_numerics.fold(jnp.sum, terms), like)
