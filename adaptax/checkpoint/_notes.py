"""What is noted of a tree beside what Orbax notes, read from a file that may be damaged."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._names import Names

KEY = "adaptax"  # of what is ours in Orbax's metadata
WIDER = {"uint2": "uint8", "uint4": "uint8"}  # what TensorStore has no name for


class Notes(NamedTuple):
    """The notes, by the paths of leaves.

    Attributes:
        version: Of this format.
        checksums: Whether the checkpoint has checksums.
        nothing: Whether the tree has no arrays.
        encoded: Of arrays that `lowbit` encoded the description of the format, and the dtype.
        keys: The implementations of keys.
        empty: Shapes and dtypes of arrays without entries, which are not stored.
        dtypes: Those of arrays that are stored with another.
        rounding: The counts that `lowbit.store` rounds by.
    """

    version: int = 1
    checksums: bool = False
    nothing: bool = False
    encoded: Mapping[Names, tuple[Mapping[str, Any], Any]] = {}
    keys: Mapping[Names, str] = {}
    empty: Mapping[Names, tuple[tuple[int, ...], Any]] = {}
    dtypes: Mapping[Names, Any] = {}
    rounding: frozenset[Names] = frozenset()


def parsed(custom_metadata: Any) -> Notes:
    """The notes in the metadata that Orbax keeps for others; none if there are none.

    Raises:
        Exception: They are not what was written; of whatever kind.
    """
    if custom_metadata is None or KEY not in custom_metadata:
        return Notes()  # of a checkpoint that Orbax alone wrote
    notes = dict(custom_metadata[KEY])
    version = notes.pop("version")
    _require(type(version) is int and version >= 1, f"version is {version!r}")
    checksums, nothing = notes.pop("checksums", False), notes.pop("nothing", False)
    _require(type(checksums) is type(nothing) is bool, "flags are no booleans")
    return Notes(
        version,
        checksums,
        nothing,
        {_path(p): (dict(format), jnp.dtype(kept)) for p, format, kept in notes.pop("encoded")},
        {_path(p): _text(key) for p, key in notes.pop("keys")},
        {_path(p): (_shape(shape), _dtype(dtype)) for p, shape, dtype in notes.pop("empty")},
        {_path(p): jnp.dtype(dtype) for p, dtype in notes.pop("dtypes")},
        frozenset(_path(p) for p in notes.pop("rounding")),
    )


def check(notes: Notes, stored: Mapping[Names, Any]) -> None:
    """Compare notes with what is stored.

    Raises:
        ValueError: They contradict each other.
    """
    for names, dtype in notes.dtypes.items():
        _require(names in stored, f"{names} has a dtype and is not stored")
        _require(
            WIDER.get(dtype.name) == jnp.dtype(stored[names].dtype).name,
            f"{names} is {dtype.name}, stored as {stored[names].dtype}",
        )
    for names in (*notes.keys, *notes.rounding, *((*n, "codes") for n in notes.encoded)):
        _require(names in stored, f"{names} is not stored")
    for names, (shape, dtype) in notes.empty.items():
        _require(names not in stored, f"{names} is empty and stored")
        empty = math.prod(shape) == 0 or dtype == jax.dtypes.float0
        _require(empty, f"{names} is empty, with shape {shape}")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _path(path: Any) -> Names:
    _require(isinstance(path, list) and bool(path), f"{path!r} is no path")
    return tuple(map(_text, path))


def _text(text: Any) -> str:
    _require(isinstance(text, str), f"{text!r} is no text")
    return text


def _shape(shape: Any) -> tuple[int, ...]:
    _require(all(type(n) is int and n >= 0 for n in shape), f"{shape!r} is no shape")
    return tuple(shape)


def _dtype(name: Any) -> Any:
    return jax.dtypes.float0 if name == "float0" else jnp.dtype(_text(name))
