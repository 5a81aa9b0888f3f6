"""A checkpoint into the structure of a tree: matched, read, converted, reported."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from .._core import _checks, _tree, boxed_like, unboxed
from ..lowbit import Encoded
from . import _errors
from ._convert import Conversion, Place, Wanted, misplaced
from ._file import Source, orbax, packed, path_of
from ._match import Spot, match
from ._names import Leaf, Names, bare, leaves_of, spelled
from ._report import Report, Row
from ._steps import reading, steady
from ._writer import Writer

ARRAYS = jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic


def save(path: Any, tree: Any) -> None:
    """Write one tree into a new directory, for example what a training run ends with.

    For checkpoints during a run take `Checkpoints`. Every process calls it.

    Args:
        path: The directory, which must not exist.
        tree: What `Checkpoints.save` takes.

    Raises:
        ImportError: Orbax is not installed.
        TypeError: A leaf is not an array, a key or a number.
        ValueError: Orbax can't write the name of a leaf.
        FileExistsError: There is something at the path.

    >>> import adaptax, jax.numpy as jnp, tempfile
    >>> from adaptax import checkpoint
    >>> path = tempfile.mkdtemp() + "/final"
    >>> checkpoint.save(path, {"w": jnp.ones(3)})
    >>> checkpoint.restore(path, {"w": jnp.zeros(3)})[0]
    {'w': Array([1., 1., 1.], dtype=float32)}
    """
    orbax("save")
    path = path_of(path)
    if path.exists():
        raise _errors.path_is_there("save", path)
    item, metadata = packed("save", tree)
    with contextlib.closing(Writer("save", path, items=False)) as writer:
        writer.save(path, item, metadata)


def restore(
    path: Any,
    like: Any,
    *,
    shardings: Any = None,
    missing: str = "raise",
    unused: str = "raise",
) -> tuple[Any, Report]:
    """Read one checkpoint of a tree, written here or by another program that uses Orbax.

    Args:
        path: Its directory: one of `save`, of a step, or of `ocp.StandardCheckpointer`.
        like: As in `Checkpoints.restore`, as the rest.
        shardings: Where the arrays are to lie.
        missing: What to do about leaves that the checkpoint does not have.
        unused: What to do about leaves that only the checkpoint has.

    Returns:
        The tree, and what became of each leaf.

    Raises:
        ImportError: Orbax is not installed.
        FileNotFoundError: There is nothing at the path.
        TreeMismatchError: As in `Checkpoints.restore`.
        ValueError: It is no checkpoint of a tree, or damaged (the message names the file), or a
            sharding does not fit.
    """
    check_choices("restore", missing, unused)
    orbax("restore")
    path = path_of(path)

    def read() -> tuple[Any, Report]:
        if not path.exists():
            raise _errors.nothing_there("restore", path)
        with reading(path):
            source = Source("restore", path)
            return restored("restore", source, like, shardings, missing, unused)

    return steady(read, _errors.nothing_there("restore", path))


def check_choices(where: str, missing: Any, unused: Any) -> None:
    """Refuse other words than those that the two arguments take."""
    for name, value, choices in (
        ("missing", missing, ("raise", "keep")),
        ("unused", unused, ("raise", "drop")),
    ):
        if value not in choices:
            raise _checks.out_of_range(where, name, f"one of {choices}", value)


def restored(
    where: str, source: Source, like: Any, shardings: Any, missing: str, unused: str
) -> tuple[Any, Report]:
    """What a checkpoint holds, in the structure of `like`."""
    wanted, structure = _wanted(where, like, shardings)
    sources = _matched(source, wanted)
    plan = Conversion(where, source, wanted, sources)
    left = _left(source, sources)
    _check(where, source, wanted, plan, left, missing, unused)
    rows = [plan.row(w.leaf.names) for w in wanted]
    rows += [Row(spelled(names), "dropped", spelled(names)) for names in left]
    values = plan.values(source.read(plan.reads()))
    originals = jax.tree.leaves(like, is_leaf=_is_encoded)
    values = [
        boxed_like(old, new) if _is_encoded(old) else new
        for old, new in zip(originals, values, strict=True)
    ]
    return structure.unflatten(values), Report(tuple(rows), source.verified)


def _wanted(where: str, like: Any, shardings: Any) -> tuple[list[Wanted], Any]:
    """The leaves of a tree with their places, and its structure."""
    found = leaves_of(like)
    for leaf in found:
        _check_leaf(where, leaf)
    given = _per_leaf(where, shardings, like)
    leaves, structure = jax.tree.flatten(like)
    places = structure.unflatten(_place(where, *both) for both in zip(leaves, given, strict=True))
    structure = jax.tree.structure(like, is_leaf=_is_encoded)
    wanted = [
        Wanted(
            leaf._replace(names=leaf.names or ("",)),
            unboxed(place) if _is_encoded(place) else place,
        )
        for leaf, place in zip(found, structure.flatten_up_to(places), strict=True)
    ]
    for w in wanted:
        for shape, error in misplaced(w):
            raise _errors.sharding_misfit(where, spelled(w.leaf.names), shape, error)
    return wanted, structure


def _is_encoded(x: Any) -> bool:
    return isinstance(x, Encoded)


def _check_leaf(where: str, leaf: Leaf) -> None:
    for x in jax.tree.leaves(leaf.value):
        if isinstance(x, Tracer):
            raise _errors.traced(where)
        if not isinstance(x, ARRAYS | bool | int | float | complex):
            raise _errors.not_an_array(where, spelled(leaf.names), x)


def _per_leaf(where: str, shardings: Any, like: Any) -> list[Any]:
    """A sharding or None for each leaf."""
    try:
        laid = _tree.Laid.of(shardings, like)
    except _tree.NotAPrefix as error:
        raise _errors.bad_shardings(where, str(error)) from None
    for value in laid.values:
        if value is not None and not isinstance(value, jax.sharding.Sharding):
            raise _errors.bad_shardings(where, f"got {value!r}")
    leaves = jax.tree.leaves(like, is_leaf=_tree.is_none)
    return [v for v, leaf in zip(laid.by_leaf(), leaves, strict=True) if leaf is not None]


def _place(where: str, leaf: Any, given: Any) -> Place:
    """Where a leaf is to lie: where it is told to, or where that of `like` does."""
    told = isinstance(leaf, jax.ShapeDtypeStruct) or getattr(leaf, "committed", False)
    if given is not None or not told:
        return Place(given)
    mesh = getattr(leaf.sharding, "mesh", None)
    if not isinstance(mesh, jax.sharding.AbstractMesh):
        return Place(leaf.sharding)
    there = jax.sharding.get_mesh()  # what jax.eval_shape says of arrays on explicit axes
    if there.empty or there.abstract_mesh != mesh:
        raise _errors.abstract_mesh(where, mesh)
    return Place(NamedSharding(there, leaf.sharding.spec))


def _matched(source: Source, wanted: list[Wanted]) -> dict[Names, tuple[Names, ...]]:
    """For each wanted leaf that is there, the leaves that it is made of, boxed or not."""
    spots = [Spot(bare(w.leaf.names), w.leaf.owner, w.shape, w.leaf.rounding) for w in wanted]
    saved = {bare(names): names for names in source.leaves}
    there = {name: source.leaves[names] for name, names in saved.items()}
    found = match(spots, {name: (s.shape, s.rounding) for name, s in there.items()})
    return {
        w.leaf.names: tuple(saved[name] for name in found[spot.names])
        for w, spot in zip(wanted, spots, strict=True)
        if spot.names in found
    }


def _left(source: Source, sources: dict[Names, tuple[Names, ...]]) -> list[Names]:
    """The leaves of a checkpoint that no leaf is made of."""
    used = {names for found in sources.values() for names in found}
    return [names for names in source.leaves if names not in used]


def _check(
    where: str,
    source: Source,
    wanted: list[Wanted],
    plan: Conversion,
    left: list[Names],
    missing: str,
    unused: str,
) -> None:
    """Refuse what does not match, all of it at once."""
    there = {bare(names): s for names, s in source.leaves.items()}
    misshapen: set[str] = set()
    shapes: dict[str, str] = {}
    others: dict[str, str] = {}
    lost: dict[str, str] = {}
    for w in wanted:
        names, name = w.leaf.names, spelled(w.leaf.names)
        is_lost = plan.saved(names) is None
        alike = there.get(bare(names)) if is_lost else None
        if alike is not None and alike.shape != w.shape:
            shapes[name] = f"has shape {w.shape} against {alike.shape}"
            misshapen.add(spelled(bare(names)))
        elif is_lost and missing == "raise" and not w.leaf.rounding:
            lost[name] = ""
        elif (problem := plan.problem(names)) is not None:
            others[name] = problem
    # What has no entries is nothing to lose: a guard's `norms` without a limit were such an array.
    saved = {names: source.leaves[names] for names in left}
    extra = [
        spelled(names)
        for names, s in saved.items()
        if not (s.rounding or s.empty) and spelled(bare(names)) not in misshapen
    ]
    problems = {
        "Of another shape": shapes,
        "Of another kind": others,
        'Not in the checkpoint (missing="keep" keeps what like has there)': lost,
        'Only in the checkpoint (unused="drop" leaves it out)': {
            name: "" for name in extra if unused == "raise"
        },
    }
    if any(problems.values()):
        raise _errors.misfit(where, source.path, problems)
