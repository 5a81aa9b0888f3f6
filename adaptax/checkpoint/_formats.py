"""Storage formats of `lowbit` as plain data, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from .. import lowbit
from ..lowbit import Codec


def described(codec: Codec) -> dict[str, Any]:
    """A format as a JSON object: its name, its arguments, and the version of its codes."""
    version = {"version": codec.version} if codec.version > 1 else {}
    return {"name": _name(type(codec)), **asdict(codec), **version}


def codec_of(description: Mapping[str, Any]) -> Codec | None:
    """The format of a description; None if none of this name and version is known here.

    Nothing is imported for it: a format of one's own is known when its module is loaded.
    """
    given = dict(description)
    wanted = given.pop("name")
    version = given.pop("version", 1)
    known = (cls for cls in _subclasses(Codec) if _name(cls) == wanted and cls.version == version)
    found = next(known, None)
    return None if found is None else found(**given)


def unknown(description: Mapping[str, Any]) -> str:
    """What a description is of that `codec_of` does not know, and what to do."""
    name, version = description["name"], description.get("version", 1)
    if any(_name(cls) == name and cls.version != version for cls in _subclasses(Codec)):
        return (
            f"version {version} of the codes of {name}, which this adaptax does not have: decode "
            "the state with the one that wrote it (lowbit.decode_state), and save that"
        )
    return f"the format {name}, unknown here: import its module"


def _name(cls: type) -> str:
    ours = getattr(lowbit, cls.__name__, None) is cls
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"


def _subclasses(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)
