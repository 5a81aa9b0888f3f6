"""What is in a checkpoint's directory: Orbax writes and reads it, and here is what.

A tree is stored as nested dicts and lists of its arrays, which is what Orbax makes of the same
tree by itself; so Orbax alone can read it. What differs: an `Encoded` is a dict of its arrays,
uint4 is stored as uint8, and arrays without entries are only in the metadata. Those say what was
in which format.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..lowbit import Codec, Encoded
from . import _errors, _notes, _sums
from ._formats import codec_of, described
from ._names import Names, leaves_of, name, spelled
from ._notes import KEY, WIDER, Notes

VERSION = 1
PARTS = ("codes", "scale", "seed")
STEP_METADATA = "_CHECKPOINT_METADATA"
LONGEST = 65_000  # bytes of a name, since 65535 are the most that TensorStore takes for a chunk's


def orbax(where: str) -> Any:
    """The module `orbax.checkpoint`, which takes a second to import."""
    try:
        import orbax.checkpoint
    except ImportError:
        raise _errors.needs_orbax(where) from None
    return orbax.checkpoint


def path_of(path: Any) -> Any:
    """A path as Orbax wants it, absolute; also of a bucket ("gs://...")."""
    from etils import epath

    path = epath.Path(path)
    return path if "://" in str(path) else path.absolute()


# --- Writing


def packed(where: str, tree: Any) -> tuple[Any, dict[str, Any]]:
    """What Orbax is given to store, and the metadata."""
    notes: dict[str, Any] = {"version": VERSION, "checksums": True}
    notes |= {k: [] for k in ("encoded", "keys", "empty", "dtypes", "rounding")}
    arrays: dict[Names, Any] = {}

    def put(names: Names, value: Any) -> None:
        _check_name(where, names)
        if names in arrays:
            raise _errors.same_name(where, [spelled(names)] * 2)
        arrays[names], dtype = _storable(where, names, value)
        if dtype:
            notes["dtypes"].append([names, dtype])

    for leaf in leaves_of(tree):
        names, value = leaf.names or ("",), leaf.value
        if is_key(value) and value.size == 0:
            value = jax.random.key_data(value)
        if isinstance(value, Encoded):
            notes["encoded"].append([names, described(value.codec), np.dtype(value.kept).name])
            for part in PARTS:
                if (array := getattr(value, part)) is not None:
                    put((*names, part), array)
        elif _is_empty(value):
            notes["empty"].append([names, value.shape, _dtype_name(value.dtype)])
        else:
            if is_key(value):
                notes["keys"].append([names, str(jax.random.key_impl(value))])
            put(names, value)
        if leaf.rounding:
            notes["rounding"].append(names)
    _check_names(where, arrays)
    if not arrays:  # Orbax stores no tree without arrays
        return {"nothing": np.zeros((), np.int8)}, {KEY: {**notes, "nothing": True}}
    return _nested(tree, arrays), {KEY: notes}


def _storable(where: str, names: Names, x: Any) -> tuple[Any, str | None]:
    """A leaf that Orbax takes, and the dtype if it is another than the leaf's."""
    if isinstance(x, Tracer):
        raise _errors.traced(where)
    if isinstance(x, int) and not -(2**63) <= x < 2**63:
        raise _errors.too_large(where, spelled(names), x, "int64")
    if isinstance(x, bool | int | float) and not isinstance(x, np.generic):
        return x, None
    if isinstance(x, complex | np.generic):
        x = np.asarray(x)
    if not isinstance(x, np.ndarray | jax.Array) or not _is_storable(x):
        raise _errors.not_an_array(where, spelled(names), x)
    if isinstance(x, jax.Array) and jax.process_count() > 1 and x.is_fully_addressable:
        # An array of this process alone, such as a count made without jit: the same on all.
        x = np.asarray(jax.random.key_data(x) if is_key(x) else x)
    dtype = _dtype_name(x.dtype)
    return (x.astype(WIDER[dtype]), dtype) if dtype in WIDER else (x, None)


def is_key(x: Any) -> bool:
    """Whether x is an array of jax's random keys, or its shape."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_storable(x: Any) -> bool:
    if is_key(x) or x.dtype == np.bool_:
        return True
    return jnp.issubdtype(x.dtype, jnp.number) and x.dtype.char not in "gG"  # long doubles


def _is_empty(x: Any) -> bool:
    """Whether x is an array without data."""
    array = isinstance(x, np.ndarray | jax.Array) and not is_key(x)
    return array and (x.size == 0 or x.dtype == jax.dtypes.float0) and not isinstance(x, Tracer)


def _dtype_name(dtype: Any) -> str:
    return "float0" if dtype == jax.dtypes.float0 else dtype.name


def _check_name(where: str, names: Names) -> None:
    """Refuse what TensorStore would refuse in the background."""
    try:
        length = len(_key(names).encode())
    except UnicodeEncodeError:
        problem = "has characters that UTF-8 has no code for"
        raise _errors.unwritable(where, spelled(names), problem) from None
    if length > LONGEST:
        problem = f"has {length} bytes, and Orbax's files take {LONGEST}"
        raise _errors.unwritable(where, spelled(names), problem)


def _check_names(where: str, arrays: Iterable[Names]) -> None:
    seen: dict[str, Names] = {}
    for names in arrays:
        other = seen.setdefault(_key(names), names)
        if other != names:
            raise _errors.same_name(where, [spelled(other), spelled(names)])


def _key(names: Names) -> str:
    """The directory that an array is written to in Orbax's files."""
    key = ".".join(names)
    return key if key.endswith("/") else f"{key}/"


class _Node(dict[str, Any]):
    """The children of a container; `is_list` while all keys are places in a sequence."""

    is_list = True


def _nested(tree: Any, arrays: Mapping[Names, Any]) -> Any:
    """The arrays in dicts and lists, with the tree's holes where Orbax has them too."""
    top = _Node()

    def put(path: Any, value: Any) -> None:
        node = top
        for i, key in enumerate(path):
            node.is_list &= isinstance(key, jax.tree_util.SequenceKey)
            last = i == len(path) - 1
            node = node.setdefault(name(key), value if last else _Node())

    for path, value in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_end):
        names = tuple(map(name, path)) or ("",)
        path = path or (jax.tree_util.DictKey(""),)
        if isinstance(value, Encoded):
            put(path, {part: arrays[*names, part] for part in PARTS if (*names, part) in arrays})
        else:
            put(path, arrays.get(names, type(value)() if type(value) in (dict, list) else None))
    return _plain(top)


def _is_end(x: Any) -> bool:
    return x is None or isinstance(x, Encoded) or (isinstance(x, tuple | list | dict) and not x)


def _plain(node: Any) -> Any:
    if not isinstance(node, _Node):
        return node
    children = {k: _plain(v) for k, v in node.items()}
    if not node.is_list:
        return children
    return [children.get(str(i)) for i in range(1 + max(map(int, children)))]


# --- Reading


class Saved(NamedTuple):
    """A leaf of a checkpoint.

    Attributes:
        names: Its path.
        shape: Its shape; that of the data of a key, and of the codes of an encoded array.
        dtype: Its dtype; that of the codes of an encoded array.
        format: The description of the format of an encoded array, or None.
        codec: The format, if it is known here.
        parts: The names of the arrays of an encoded array.
        key: The implementation of a key, if it is noted.
        empty: Whether it has no entries, and is not stored.
        rounding: Whether it is the count that `lowbit.store` rounds by.
    """

    names: Names
    shape: tuple[int, ...]
    dtype: Any
    format: Mapping[str, Any] | None = None
    codec: Codec | None = None
    parts: tuple[str, ...] = ()
    key: str | None = None
    empty: bool = False
    rounding: bool = False


class Item(NamedTuple):
    """A tree in a directory: the names before its own, where, and what Orbax says of it."""

    before: Names
    path: Any
    metadata: Any


class Source:
    """A checkpoint of a tree, of any program that uses Orbax.

    Of a checkpoint of several items all that are trees are read, as a dict of them.

    Args:
        where: Who asks, for errors.
        path: A directory that Orbax wrote: of a step, or of a tree.
        alone: Whether one of several processes asks, without the others.

    Attributes:
        verified: Whether it has checksums; they fit.
        leaves: What is in it, by path.

    Raises:
        DamagedError: It is not what was written, or can't be read.
    """

    def __init__(self, where: str, path: Any, *, alone: bool = False):
        self._ocp = orbax(where)
        self._where = where
        self.path = path_of(path)
        self.verified = _sums.check(where, self.path, alone=alone)
        self._items = [Item(before, at, self._metadata(at)) for before, at in self._trees()]
        self._dtypes: dict[Names, Any] = {}
        self.leaves: dict[Names, Saved] = {}
        for item in self._items:
            self._list(item)

    def _trees(self) -> list[tuple[Names, Any]]:
        if not self.path.exists():
            raise _errors.nothing_there(self._where, self.path)
        if not self.path.is_dir():
            raise _errors.not_a_directory(self._where, self.path)
        if is_tree(self.path):
            return [((), self.path)]
        inside = sorted(p for p in self.path.iterdir() if is_tree(p))
        if not inside:
            steps = sorted((p.name for p in self.path.iterdir() if p.name.isdecimal()), key=int)
            raise _errors.incomplete(self._where, self.path, steps)
        return [(() if p.name == "default" else (p.name,), p) for p in inside]

    def _metadata(self, path: Any) -> Any:
        try:
            return self._ocp.PyTreeCheckpointHandler().metadata(path)
        except Exception as error:
            raise _errors.unreadable(self._where, path, error) from error

    def _list(self, item: Item) -> None:
        """Add the leaves of a tree."""
        try:
            notes = _notes.parsed(item.metadata.custom_metadata)
            if notes.version <= VERSION:
                self._add(item.before, notes, _arrays(item.metadata.tree))
        except Exception as error:
            raise _errors.bad_notes(self._where, item.path, repr(error)) from error
        if notes.version > VERSION:
            raise _errors.newer(self._where, item.path)
        if notes.checksums and not self.verified:
            raise _errors.damaged(self._where, self.path / _sums.NAME, "it is missing")

    def _add(self, before: Names, notes: Notes, stored: dict[Names, Any]) -> None:
        stored = {} if notes.nothing else stored
        _notes.check(notes, stored)
        leaves: dict[Names, Saved] = {}
        for names, (format, kept) in notes.encoded.items():
            parts = tuple(part for part in PARTS if (*names, part) in stored)
            codes, *_ = (stored.pop((*names, part)) for part in parts)
            leaves[names] = Saved(names, codes.shape, kept, format, codec_of(format), parts)
        for names, x in stored.items():
            dtype, key = notes.dtypes.get(names, x.dtype), notes.keys.get(names)
            rounding = names in notes.rounding
            leaves[names] = Saved(names, x.shape, dtype, key=key, rounding=rounding)
        for names, (shape, dtype) in notes.empty.items():
            leaves[names] = Saved(names, shape, dtype, empty=True)
        self._dtypes |= {(*before, *names): dtype for names, dtype in notes.dtypes.items()}
        self.leaves |= {
            (*before, *names): s._replace(names=(*before, *names)) for names, s in leaves.items()
        }

    def read(self, wanted: Mapping[Names, Any]) -> dict[Names, Any]:
        """Arrays by the paths at which they are stored.

        Args:
            wanted: For each a sharding, of which each process reads its shards; or None, then it
                is a numpy array. Of a key it is that of its data.
        """
        found = {}
        for item in self._items:
            mine = {n: s for n, s in wanted.items() if n[: len(item.before)] == item.before}
            if mine:
                found |= self._read_item(item, mine)
        return found

    def _read_item(self, item: Item, wanted: Mapping[Names, Any]) -> dict[Names, Any]:
        ocp = self._ocp

        def args(path: Any, _: Any) -> Any:
            sharding = wanted.get((*item.before, *map(name, path)))
            if sharding is None:
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)

        def place(path: Any, _: Any) -> Any:
            return 0 if (*item.before, *map(name, path)) in wanted else ocp.PLACEHOLDER

        tree = item.metadata.tree
        places = jax.tree_util.tree_map_with_path(place, tree)
        arguments = ocp.args.PyTreeRestore(
            places, restore_args=jax.tree_util.tree_map_with_path(args, tree)
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                restored = reader.restore(item.path, args=arguments)
        except Exception as error:
            if self.verified:
                raise  # the files are what was written: it is something else
            raise _errors.unreadable(self._where, item.path, error) from error
        arrays = {(*item.before, *names): x for names, x in _arrays(restored).items()}
        return {names: self._as_was(names, arrays[names]) for names in wanted if names in arrays}

    def _as_was(self, names: Names, x: Any) -> Any:
        if is_key(x):
            return jax.random.key_data(x)
        return x.astype(self._dtypes[names]) if names in self._dtypes else x


def is_tree(path: Any) -> bool:
    """Whether a directory is a tree of Orbax's."""
    return (path / "_METADATA").exists()


def _arrays(tree: Any) -> dict[Names, Any]:
    """The arrays of a nested tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(map(name, path)): x for path, x in leaves if hasattr(x, "shape")}
