"""A leaf of a checkpoint as a leaf of a tree: as it was, cast, decoded, encoded.

What a format with `root_of` stores is relative to the slot of second moments beside it. So codes
are taken over only where that slot's numbers are too; else they are decoded and encoded anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..lowbit import Encoded
from ..lowbit._store import _decode as decode
from ..lowbit._store import _nearest as encode
from . import _errors
from ._file import PARTS, Saved, Source, is_key
from ._formats import described, unknown
from ._names import Leaf, Names, boxed, spelled
from ._report import Outcome, Row

Sources = Mapping[Names, tuple[Names, ...]]
T = TypeVar("T")


class Place(NamedTuple):
    """Where an array is to lie; None: where jax puts it."""

    sharding: Any


class Wanted(NamedTuple):
    """A leaf of the tree that is restored.

    Attributes:
        leaf: It, with an array or its shape as its value.
        place: A `Place`, or of an `Encoded` one with a `Place` for each array.
    """

    leaf: Leaf
    place: Any

    @property
    def value(self) -> Any:
        """The array, number or key, or the shape of one."""
        return self.leaf.value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; that of the data of a key, and of the codes of an `Encoded`."""
        if isinstance(self.value, Encoded):
            return self.value.codes.shape
        return _data(self.value).shape if is_key(self.value) else np.shape(self.value)

    @property
    def dtype(self) -> Any:
        """The dtype of the numbers."""
        if isinstance(self.value, Encoded):
            return np.dtype(self.value.kept)
        return _data(self.value).dtype if is_key(self.value) else _dtype(self.value)

    @property
    def near(self) -> Any:
        """The sharding of an array of its shape."""
        place = self.place.codes if isinstance(self.place, Encoded) else self.place
        return place.sharding


def _data(key: Any) -> Any:
    shape = jax.ShapeDtypeStruct(key.shape, key.dtype)
    return jax.eval_shape(jax.random.key_data, shape)


def _implementation(key: Any) -> str:
    """The name of what draws from a key, also of its shape alone."""
    names = []
    shape = jax.ShapeDtypeStruct((), key.dtype)
    jax.eval_shape(lambda k: names.append(str(jax.random.key_impl(k))), shape)
    return names[0]


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype


class Conversion:
    """How each wanted leaf comes of the leaves of a checkpoint.

    Args:
        where: Who asks, for errors.
        source: The checkpoint.
        wanted: The leaves.
        sources: For each by its path the paths of those that it is made of, or none.
    """

    def __init__(self, where: str, source: Source, wanted: Sequence[Wanted], sources: Sources):
        self._where = where
        self._source = source
        self._wanted = {w.leaf.names: w for w in wanted}
        self._sources = sources
        self._outcomes: dict[Names, Outcome] = {}
        self._arrays: Mapping[Names, Any] = {}
        self._numbers: dict[Names, Any] = {}
        self._values: dict[Names, Any] = {}

    # --- What is to be done

    def saved(self, names: Names) -> Saved | None:
        """What a wanted leaf is made of."""
        found = self._sources.get(names)
        return self._source.leaves[found[0]] if found else None

    def outcome(self, names: Names) -> Outcome:
        """What becomes of a wanted leaf."""
        return _once(self._outcomes, names, self._decide)

    def _decide(self, names: Names) -> Outcome:
        w, s = self._wanted[names], self.saved(names)
        if s is None:
            return "kept"
        if not isinstance(w.value, Encoded):
            if s.format is not None:
                return "decoded"
            return "restored" if _same_type(s.dtype, w) else "cast"
        if s.format is None:
            return "encoded"
        same = s.format == _json(described(w.value.codec)) and self._same_scale(w, s)
        return "restored" if same else "recoded"

    def _same_scale(self, w: Wanted, s: Saved) -> bool:
        """Whether what the codes are relative to is the same number for number."""
        slot = w.value.codec.root_of
        if slot is None:
            return True
        here = beside(w.leaf.names, slot, self._wanted)
        there = beside(s.names, slot, self._source.leaves)
        if here is None or there is None:
            return here == there
        if self._sources.get(here) != (there,):
            return False
        outcome = self.outcome(here)
        wide = self._wanted[here].dtype == np.float32
        return outcome == "restored" or (outcome == "decoded" and wide)

    def problem(self, names: Names) -> str | None:
        """Why a leaf can't become what is wanted."""
        w, s, outcome = self._wanted[names], self.saved(names), self.outcome(names)
        if s is None:
            values = jax.tree.leaves(w.value)
            return "has no value in like" if any(map(_is_abstract, values)) else None
        if is_key(w.value):
            wanted = _implementation(w.value)
            if s.dtype != np.uint32 or s.key not in (None, wanted):
                return f"is a key of {wanted} against {s.key or s.dtype.name}"
            return None
        if outcome in ("decoded", "recoded") and s.codec is None:
            assert s.format is not None
            return f"is in {unknown(s.format)}"
        if outcome == "encoded" and _is_abstract(w.value.seed):
            return "is to be encoded, for which like must be a state from init, not its shapes"
        if outcome in ("decoded", "recoded") and self._lacks(s.codec, s.names, self._source.leaves):
            return f"is in {s.codec!r}, and the checkpoint has no such slot beside it"
        if outcome in ("encoded", "recoded"):
            codec = w.value.codec
            if self._lacks(codec, names, self._wanted):
                return f"is to be in {codec!r}, and like has no such slot beside it"
        if not _castable(s.dtype, w.dtype, w.shape):
            return f"is {w.dtype.name} against {s.dtype.name}"
        return None

    @staticmethod
    def _lacks(codec: Any, names: Names, leaves: Mapping[Names, Any]) -> bool:
        return codec.root_of is not None and beside(names, codec.root_of, leaves) is None

    def row(self, names: Names) -> Row:
        """What the report says of a wanted leaf."""
        w, s, outcome = self._wanted[names], self.saved(names), self.outcome(names)
        if s is None:
            return Row(spelled(names), outcome)
        before, after = _stored(s), _stored_as(w)
        detail = "" if outcome == "restored" else f"{before} to {after}"
        return Row(spelled(names), outcome, spelled(s.names), detail)

    # --- What is to be read

    def reads(self) -> dict[Names, Any]:
        """The arrays to read, by the paths at which they are stored, with their shardings."""
        reads: dict[Names, Any] = {}
        converted = []
        for names, w in self._wanted.items():
            for source in self._sources.get(names, ()):
                s = self._source.leaves[source]
                if s.format is not None and self.outcome(names) != "restored":
                    converted.append((source, w.near))
                elif s.format is not None:
                    for part in s.parts:
                        reads[*source, part] = getattr(w.place, part).sharding
                elif not s.empty:
                    reads.setdefault(source, w.near)
        for source, sharding in converted:
            self._reads_of(source, sharding, reads)
        return reads

    def _reads_of(self, names: Names, sharding: Any, reads: dict[Names, Any]) -> None:
        """What decoding a leaf takes."""
        s = self._source.leaves[names]
        if s.codec is None:
            reads.setdefault(names, sharding)
            return
        for part in s.parts:
            reads.setdefault((*names, part), sharding if part == "codes" else _everywhere(sharding))
        if s.codec.root_of is not None:
            self._reads_of(self._scale_of(s), sharding, reads)

    def _scale_of(self, s: Saved) -> Names:
        assert s.codec is not None and s.codec.root_of is not None
        names = beside(s.names, s.codec.root_of, self._source.leaves)
        assert names is not None, s
        return names

    # --- Doing it

    def values(self, arrays: Mapping[Names, Any]) -> list[Any]:
        """The wanted leaves, of the arrays that were read."""
        self._arrays = arrays
        return [self._value(names) for names in self._wanted]

    def _value(self, names: Names) -> Any:
        return _once(self._values, names, self._make)

    def _make(self, names: Names) -> Any:
        w, s, outcome = self._wanted[names], self.saved(names), self.outcome(names)
        if s is None:
            return jax.tree.map(_keep, w.value, w.place)
        if not isinstance(w.value, Encoded):
            if s.empty:
                return _finished(np.zeros(s.shape, s.dtype), w)
            x = self._numbers_of(s.names)
            self._check_equal(names, x)
            self._check_range(names, x)
            return _finished(x, w)
        if outcome == "restored":
            parts = {part: self._arrays.get((*s.names, part)) for part in PARTS}
        else:
            x = jnp.asarray(self._numbers_of(s.names))
            codes, scale, _ = encode(w.value.codec, x, self._scale_here(w))
            seed = w.value.seed if outcome == "encoded" else self._arrays[*s.names, "seed"]
            parts = {"codes": codes, "scale": scale, "seed": seed}
        parts = {k: None if x is None else put(x, getattr(w.place, k)) for k, x in parts.items()}
        return w.value._replace(**parts)

    def _numbers_of(self, names: Names) -> Any:
        """The numbers of a leaf of the checkpoint."""
        return _once(self._numbers, names, self._open)

    def _open(self, names: Names) -> Any:
        s = self._source.leaves[names]
        if s.codec is None:
            return self._arrays[names]
        codes, scale = self._arrays[*names, "codes"], self._arrays.get((*names, "scale"))
        other = None if s.codec.root_of is None else self._numbers_of(self._scale_of(s))
        return decode(s.codec, codes, scale, other)

    def _scale_here(self, w: Wanted) -> Any:
        """The numbers that a wanted leaf's codes will be relative to; None if to nothing."""
        slot = w.value.codec.root_of
        other = None if slot is None else beside(w.leaf.names, slot, self._wanted)
        if other is None:
            return None
        x = self._value(other)
        if isinstance(x, Encoded):
            return decode(x.codec, x.codes, x.scale, None)
        return jnp.asarray(x)

    def _check_equal(self, names: Names, x: Any) -> None:
        sources = self._sources[names]
        others = {source: np.asarray(self._arrays[source]).item() for source in sources[1:]}
        if any(other != np.asarray(x).item() for other in others.values()):
            values = {sources[0]: np.asarray(x).item(), **others}
            raise _errors.ambiguous(
                self._where, spelled(names), {spelled(k): v for k, v in values.items()}
            )

    def _check_range(self, names: Names, x: Any) -> None:
        dtype = self._wanted[names].dtype
        if jnp.issubdtype(dtype, jnp.integer) and np.shape(x) == () and x.dtype != dtype:
            number, limits = int(x), jnp.iinfo(dtype)
            if not limits.min <= number <= limits.max:
                raise _errors.too_large(self._where, spelled(names), number, dtype.name)


def beside(names: Names, slot: str, leaves: Mapping[Names, Any]) -> Names | None:
    """The path of the leaf of another slot for the same parameter."""
    others = ((*names[:i], slot, *names[i + 1 :]) for i in range(len(names)) if names[i] != slot)
    spots = (spot for other in others for spot in (other, boxed(other)))
    return next((spot for spot in spots if spot in leaves), None)


def _once(memory: dict[Names, T], names: Names, make: Callable[[Names], T]) -> T:
    if names not in memory:
        memory[names] = make(names)
    return memory[names]


def _json(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it comes out of a file."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in description.items()}


def _is_abstract(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _same_type(dtype: Any, w: Wanted) -> bool:
    """Whether numbers of a dtype are what is wanted; a Python number takes any width."""
    if isinstance(w.value, bool | int | float | complex) and not isinstance(w.value, np.generic):
        return dtype.kind == w.dtype.kind
    return dtype == w.dtype


def _castable(old: Any, new: Any, shape: tuple[int, ...]) -> bool:
    """Whether a cast keeps what an array means; one integer's range is checked when it is read."""
    if old == new:
        return True
    if jnp.issubdtype(old, jnp.integer) and jnp.issubdtype(new, jnp.integer):
        a, b = jnp.iinfo(old), jnp.iinfo(new)
        return shape == () or (b.min <= a.min and a.max <= b.max)
    real = jnp.issubdtype(old, jnp.floating)
    if jnp.issubdtype(new, jnp.floating):
        return real
    return jnp.issubdtype(new, jnp.complexfloating) and jnp.issubdtype(old, jnp.inexact)


def _stored(s: Saved) -> str:
    if s.format is None:
        return s.dtype.name
    return repr(s.codec) if s.codec is not None else s.format["name"]


def _stored_as(w: Wanted) -> str:
    return repr(w.value.codec) if isinstance(w.value, Encoded) else w.dtype.name


def _everywhere(sharding: Any) -> Any:
    """For a small array beside one with a sharding: all of it on each of the devices."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)
    return sharding if sharding is not None and len(sharding.device_set) == 1 else None


def _finished(x: Any, w: Wanted) -> Any:
    """Numbers that were read, as the kind of leaf that is wanted."""
    value = w.value
    if is_key(value):
        key = jax.random.wrap_key_data(jnp.asarray(x), impl=_implementation(value))
        return put(key, w.place)
    if not hasattr(value, "dtype"):
        return type(value)(np.asarray(x).item())
    x = x if x.dtype == value.dtype else x.astype(value.dtype)
    if isinstance(value, np.generic):
        return np.asarray(x)[()]
    return np.asarray(x) if isinstance(value, np.ndarray) else put(x, w.place)


def _keep(x: Any, place: Place) -> Any:
    return x if place.sharding is None or not isinstance(x, jax.Array) else put(x, place)


def put(x: Any, place: Place) -> Any:
    """An array where it is to lie."""
    if place.sharding is None:
        return jnp.asarray(x)
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(place.sharding, x.ndim):
        return x
    if jax.process_count() == 1:
        return jax.device_put(x, place.sharding)
    return jax.jit(_itself, out_shardings=place.sharding)(x)


def _itself(x: Any) -> Any:
    return x


def misplaced(wanted: Wanted) -> Iterator[tuple[Any, Exception]]:
    """The shapes of a wanted leaf's arrays that their shardings don't fit."""
    arrays = jax.tree.leaves(wanted.value)
    places = jax.tree.leaves(wanted.place, is_leaf=lambda x: isinstance(x, Place))
    for x, place in zip(arrays, places, strict=True):
        if place.sharding is not None:
            try:
                place.sharding.check_compatible_aval(np.shape(x))  # as many axes
                place.sharding.shard_shape(np.shape(x))  # of sizes that divide
            except (ValueError, IndexError) as error:
                yield np.shape(x), error
