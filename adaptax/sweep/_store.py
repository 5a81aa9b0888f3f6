"""A directory in which a sweep keeps what it has done: a manifest, and a file for each piece."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import _errors

MANIFEST = "sweep.json"
FORMAT = 1


class Store:
    """Pieces of a sweep by name; a store without a directory keeps nothing.

    A file is written under another name first and then renamed, so that one that is there is
    whole, however the process ends.

    Args:
        where: Who asks, for errors.
        directory: Where; made if it is not there. None: nowhere.
        request: What was asked for, as digests by the names of the arguments.
    """

    def __init__(self, where: str, directory: Any, request: Callable[[], Mapping[str, str]]):
        self._directory = None if directory is None else Path(directory)
        self._request: dict[str, str] = {}
        self._size: int | None = None
        if self._directory is None:
            return
        self._request = dict(request())
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / MANIFEST
        if path.exists():
            manifest = json.loads(path.read_text(encoding="utf-8"))
            there = {"format": manifest["format"], **manifest["request"]}
            here = {"format": FORMAT, **self._request}
            other = [name for name in here if there.get(name) != here[name]]
            if other:
                raise _errors.other_request(where, directory, other)
            self._size = manifest["size"]

    @property
    def keeps(self) -> bool:
        """Whether anything is written."""
        return self._directory is not None

    def size(self, choose: Callable[[], int]) -> int:
        """The lanes of a piece: as they were chosen when the sweep began, or now."""
        if self._size is None:
            self._size = choose()
            if self._directory is not None:
                manifest = {"format": FORMAT, "size": self._size, "request": self._request}
                text = json.dumps(manifest, indent=1) + "\n"
                self._write(MANIFEST, lambda file: file.write(text.encode()))
        return self._size

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write a piece, in the place of an older one of this name."""
        if self._directory is not None:
            self._write(f"{name}.npz", lambda file: np.savez(file, **arrays))

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """Read a piece; None if there is none."""
        if self._directory is None or not (path := self._directory / f"{name}.npz").exists():
            return None
        with np.load(path) as arrays:
            return dict(arrays)

    def _write(self, name: str, write: Callable[[Any], Any]) -> None:
        assert self._directory is not None
        beside = self._directory / f".{name}.part"
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._directory / name)


def digest(*values: Any) -> str:
    """A hash of strings, arrays and functions as jax traces them (`jax.make_jaxpr`)."""
    found = hashlib.blake2b(digest_size=16)

    def array(x: Any) -> None:
        x = np.asarray(x)
        found.update(f"{x.dtype}{x.shape}".encode())
        found.update(x.tobytes())

    def text(value: Any) -> None:
        found.update(re.sub(r"0x[0-9a-f]+", "", str(value)).encode())

    def constants(jaxpr: Any) -> None:
        """Arrays that a function closes over; the text has only their shapes."""
        for x in getattr(jaxpr, "consts", ()):
            array(x)
        for equation in jaxpr.eqns:
            for x in equation.invars:
                if np.ndim(getattr(x, "val", 0)):
                    array(x.val)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    constants(inner)

    for value in values:
        if _is_jaxpr(value):
            text(value)
            constants(value)
        elif isinstance(value, jax.Array | np.ndarray):
            array(value)
        else:
            text(value)
        found.update(b"\0")
    return found.hexdigest()


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns")
