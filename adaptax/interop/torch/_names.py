"""Which of torch's parameters is which leaf, and how its axes lie."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._core import TreeMismatchError, _checks, _paths, _tree
from ._tensors import as_numpy

# A module's `weight`, as Flax calls it.
WEIGHT = ("kernel", "scale", "embedding")


class Matched(NamedTuple):
    """A leaf and the parameter of torch that it is.

    Attributes:
        leaf: The leaf's name, "layers/0/kernel".
        names: Torch's name for it; several for one that is tied.
        shape: The leaf's shape.
        axes: The leaf is `transpose(tensor, axes)`.
    """

    leaf: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.shape[i] for i in np.argsort(self.axes))

    def to_leaf(self, x: np.ndarray) -> np.ndarray:
        """An array of the tensor's shape with the leaf's axes."""
        return x.transpose(self.axes)

    def to_torch(self, x: np.ndarray) -> np.ndarray:
        """And back."""
        return x.transpose(np.argsort(self.axes))


class Names(NamedTuple):
    """What `match` returns; prints as a table.

    Attributes:
        matched: The leaves, in the order of torch's parameters.
        left_over: Names of torch that no leaf has, such as buffers.
        others: Names of leaves that torch doesn't have and doesn't need to: integers.
        order: Torch's names in the order of its optimizer, if it was given.
    """

    matched: tuple[Matched, ...]
    left_over: tuple[str, ...]
    others: tuple[str, ...]
    order: tuple[str, ...] | None

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(names: Names) -> Iterator[str]:
    rows = [
        (
            " = ".join(row.names),
            str(row.torch_shape),
            row.leaf or "the root",
            str(row.shape),
            "" if row.axes == tuple(sorted(row.axes)) else f"axes {row.axes}",
        )
        for row in names.matched
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for row in rows:
        there, shape, leaf, own, axes = (
            f"{x:<{w}}" for x, w in zip(row, [*widths, 0], strict=True)
        )
        yield f"{there}  {shape}  ->  {leaf}  {own}  {axes}".rstrip()
    if names.left_over:
        yield f"without a leaf: {', '.join(names.left_over)}"


def match(
    params: Any,
    tensors: Mapping[Any, Any],
    names: Mapping[str, str | None] | Sequence[str] | Callable[[str], str | None] | None = None,
    *,
    axes: Mapping[Any, tuple[int, ...]] | Sequence[tuple[Any, tuple[int, ...]]] = (),
    order: Sequence[str] | None = None,
) -> Names:
    """Say which of torch's parameters is which leaf, and how its axes lie.

    The result is what all other functions here take; print it and look.

    Args:
        params: The parameters, or their shapes.
        tensors: Torch's parameters by name, in its order: `model.state_dict()`, or the `dict` of
            `model.named_parameters()`.
        names: The leaf for each of torch's names: a mapping, or a function of torch's name; None
            where there is none. Or the leaves' names as a sequence in the order of `tensors`. None
            takes torch's name with slashes in the place of dots, and `kernel`, `scale` or
            `embedding` for `weight` where the leaf has that name. Two of torch's names for one
            leaf are a parameter that is tied.
        axes: Permutations by patterns over the leaves' names (see `adaptax.by_path`), the first
            that matches a leaf wins: the leaf is `transpose(tensor, axes)`. A linear layer's
            kernel has (1, 0) and a 2-D convolution's (2, 3, 1, 0), since torch keeps (out, in) and
            (out, in, height, width). Leaves that no pattern matches take the only permutation that
            fits their shape; where several do, as for a square matrix, it is an error.
        order: Torch's names in the order in which its optimizer was given them, group after group.
            Needed where its state doesn't have their names (`param_names`) and it has several
            groups, or not all parameters, or `tensors` was sorted; None takes that of `tensors`.

    Raises:
        TreeMismatchError: Leaves have no tensor, or its axes don't fit or fit in several ways; the
            message lists them.
        ValueError: A name is not there, or a pattern matches no leaf.

    >>> import jax.numpy as jnp, torch
    >>> from adaptax import interop
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))
    >>> params = [{"kernel": jnp.ones((i, 3)), "bias": jnp.ones(3)} for i in (4, 3)]
    >>> print(interop.torch.match(params, model.state_dict(), axes={"1/kernel": (1, 0)}))
    0.weight  (3, 4)  ->  0/kernel  (4, 3)  axes (1, 0)
    0.bias    (3,)    ->  0/bias    (3,)
    1.weight  (3, 3)  ->  1/kernel  (3, 3)  axes (1, 0)
    1.bias    (3,)    ->  1/bias    (3,)
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        wanted = "a mapping of names to tensors, such as model.state_dict()"
        raise _checks.wrong_kind("match", "tensors", wanted, tensors)
    leaves = dict(
        zip(_paths.path_names(params), jax.tree.leaves(params, is_leaf=_tree.is_none), strict=True)
    )
    given = _by_leaf(names, tensors, leaves)
    chosen = _axes_by_leaf(axes, leaves)
    problems = {
        leaf: f"{leaf or 'the root'} has no tensor"
        for leaf, x in leaves.items()
        if leaf not in given and _tree.is_inexact(x)
    }
    rows = []
    for leaf, theirs in given.items():
        row = _matched(leaf, theirs, leaves[leaf], tensors, chosen.get(leaf))
        if isinstance(row, str):
            problems[leaf] = row
        else:
            rows.append(row)
    taken = {name for theirs in given.values() for name in theirs}
    left_over = tuple(name for name in tensors if name not in taken)
    if problems:
        every = _checks.listed(problems.values())
        free = f" Tensors without a leaf: {_checks.listed(left_over)}." if left_over else ""
        raise TreeMismatchError(
            f"match: {len(problems)} of {len(leaves)} leaves don't fit the tensors: {every}.{free}",
            list(problems),
        )
    others = tuple(leaf for leaf, x in leaves.items() if x is not None and leaf not in given)
    return Names(tuple(rows), left_over, others, _checked_order(order, tensors))


def _by_leaf(names: Any, tensors: Any, leaves: Any) -> dict[str, tuple[str, ...]]:
    """For each leaf that has one, torch's names."""
    pairs: list[tuple[str, Any]]
    if names is None:
        pairs = [(name, _guess(name, leaves)) for name in tensors]
    elif isinstance(names, Mapping):
        for name in names:
            if name not in tensors:
                raise _not_there("match", "names", name, "tensor", tensors)
        pairs = [(name, names.get(name)) for name in tensors]
    elif callable(names):
        pairs = [(name, names(name)) for name in tensors]
        pairs = [(name, None if leaves.get(leaf) is None else leaf) for name, leaf in pairs]
    elif isinstance(names, Sequence) and not isinstance(names, str):
        if len(names) != len(tensors):
            raise _checks.wrong_number("match", "names", len(tensors), len(names))
        pairs = list(zip(tensors, names, strict=True))
    else:
        wanted = "a mapping, a sequence, a function of a name, or None"
        raise _checks.wrong_kind("match", "names", wanted, names)
    given: dict[str, tuple[str, ...]] = {}
    for name, leaf in pairs:
        if leaf is None:
            continue
        if leaf not in leaves or leaves[leaf] is None:
            raise _not_there("match", "names", leaf, "leaf", leaves)
        given[leaf] = (*given.get(leaf, ()), name)
    return given


def _guess(name: str, leaves: Any) -> str | None:
    *modules, last = name.split(".")
    choices = [last, *WEIGHT] if last == "weight" else [last]
    found = [leaf for c in choices if leaves.get(leaf := "/".join((*modules, c))) is not None]
    return found[0] if len(found) == 1 else None


def _not_there(where: str, argument: str, name: Any, what: str, known: Any) -> ValueError:
    return ValueError(
        f"{where}: {argument} has {name!r}, and there is no such {what}; there are "
        f"{_checks.listed(repr(k) for k in known)}."
    )


def _axes_by_leaf(axes: Any, leaves: Any) -> dict[str, tuple[int, ...]]:
    """The permutation of each leaf that a pattern matches."""
    found: dict[str, tuple[int, ...]] = {}
    for pattern, permutation in _paths.pairs_of("match", "axes", axes) if axes else ():
        hits = [leaf for leaf in leaves if _paths.matches(pattern, leaf)]
        if not hits:
            raise _checks.matches_nothing("match", _paths.spelled(pattern), list(leaves))
        if not isinstance(permutation, tuple | list) or sorted(permutation) != list(
            range(len(permutation))
        ):
            wanted = "a permutation of axes, such as (1, 0)"
            name = f"axes[{_paths.spelled(pattern)!r}]"
            raise _checks.wrong_kind("match", name, wanted, permutation)
        for leaf in hits:
            found.setdefault(leaf, tuple(permutation))
    return found


def _matched(leaf: str, names: Any, x: Any, tensors: Any, axes: Any) -> Matched | str:
    """The row of a leaf, or what is wrong."""
    shape, at = tuple(jnp.shape(x)), leaf or "the root"
    theirs = {name: tuple(np.shape(tensors[name])) for name in names}
    there = theirs[names[0]]
    for name in names[1:]:
        if theirs[name] != there or not _equal(tensors[names[0]], tensors[name]):
            return f"{at} has {names[0]} and {name}, which differ, so they are not tied"
    fits = [p for p in _permutations(len(there)) if _permuted(there, p) == shape]
    if axes is not None:
        if axes not in fits:
            return f"{at} has shape {shape}, and {names[0]} {there}, which axes {axes} don't fit"
        return Matched(leaf, names, shape, axes)
    if not fits:
        return f"{at} has shape {shape} against {there} of {names[0]}"
    if len({_of_data(there, p) for p in fits}) > 1:
        every = " or ".join(map(str, fits))
        return f"{at} has shape {shape}, and {names[0]} {there}: give axes, {every}"
    return Matched(leaf, names, shape, fits[0])


def _permutations(ndim: int) -> Iterator[tuple[int, ...]]:
    return itertools.permutations(range(ndim))


def _permuted(shape: Any, axes: Any) -> tuple[int, ...]:
    return tuple(shape[i] for i in axes)


def _of_data(shape: Any, axes: Any) -> tuple[int, ...]:
    """What a permutation does to the entries: nothing to axes of size 1, or to no entries."""
    return () if 0 in shape else tuple(i for i in axes if shape[i] != 1)


def _equal(a: Any, b: Any) -> bool:
    """Whether two tensors have the same entries; also where they have none but a shape."""
    if a is b or any(isinstance(x, jax.ShapeDtypeStruct) or _is_meta(x) for x in (a, b)):
        return True
    a, b = as_numpy("match", "tensors", a), as_numpy("match", "tensors", b)
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _is_meta(x: Any) -> bool:
    return bool(getattr(x, "is_meta", False))


def _checked_order(order: Any, tensors: Any) -> tuple[str, ...] | None:
    if order is None:
        return None
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise _checks.wrong_kind("match", "order", "a sequence of names", order)
    for name in order:
        if name not in tensors:
            raise _not_there("match", "order", name, "tensor", tensors)
    if len(set(order)) < len(order):
        raise _checks.repeated_name("match", order)
    return tuple(order)


def rows_of(where: str, params: Any, names: Any) -> list[Matched | None]:
    """The row of each leaf of the parameters, None leaves included."""
    if not isinstance(names, Names):
        raise _checks.wrong_kind(where, "names", "what match(params, tensors) returns", names)
    rows = {row.leaf: row for row in names.matched}
    leaves = jax.tree.leaves(params, is_leaf=_tree.is_none)
    found = [rows.pop(name, None) for name in _paths.path_names(params)]
    problems = [f"{name or 'the root'} is not in params" for name in rows]
    problems += [
        f"{row.leaf or 'the root'} has shape {jnp.shape(x)} against {row.shape}"
        for row, x in zip(found, leaves, strict=True)
        if row is not None and tuple(jnp.shape(x)) != row.shape
    ]
    problems += [
        f"{name or 'the root'} is not in names"
        for name, row, x in zip(_paths.path_names(params), found, leaves, strict=True)
        if row is None and _tree.is_inexact(x)
    ]
    if problems:
        raise ValueError(
            f"{where}: names are of other parameters: {_checks.listed(problems)}. Make them with "
            "match(params, ...)."
        )
    return found
