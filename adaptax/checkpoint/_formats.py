"""Storage formats of `lowbit` as plain data, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from .. import lowbit
from ..lowbit import Codec


def described(codec: Codec) -> dict[str, Any]:
    """A format as a JSON object: its name and its arguments."""
    return {"name": _name(type(codec)), **asdict(codec)}


def codec_of(description: Mapping[str, Any]) -> Codec | None:
    """The format of a description; None if no format of this name is known here.

    Nothing is imported for it: a format of one's own is known when its module is loaded.
    """
    given = dict(description)
    wanted = given.pop("name")
    found = next((cls for cls in _subclasses(Codec) if _name(cls) == wanted), None)
    return None if found is None else found(**given)


def _name(cls: type) -> str:
    ours = getattr(lowbit, cls.__name__, None) is cls
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"


def _subclasses(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)
