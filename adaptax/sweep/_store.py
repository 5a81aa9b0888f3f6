"""A directory in which a sweep keeps what it has done: a manifest, and a file for each piece."""

import hashlib
import io
import json
import os
import platform
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core import _checks
from .._core._files import lock
from . import _errors
from ._host import is_key

MANIFEST = "sweep.json"
FORMAT = 2
"""The format of the files; those of format 1 have no digests."""


@contextmanager
def claimed(where: str, directory: Any) -> Iterator[None]:
    """Keep other sweeps out of a directory; it is made if it is not there.

    Raises:
        RuntimeError: Another sweep is in it.
        TypeError: It is not a path.
        ValueError: It is a file.
    """
    if directory is None:
        yield
        return
    if not isinstance(directory, str | os.PathLike):
        raise _checks.wrong_kind(where, "directory", "a path, or None", directory)
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise _errors.not_a_folder(where, path)
    path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that can only be read
            file = stack.enter_context(open(path / ".lock", "a+"))
            locked = lock(file, wait=False)
            if locked is False:
                file.seek(0)
                raise _errors.in_use(where, path, file.read())
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            for rest in path.glob(".*.part") if locked else ():  # of a process that was killed
                rest.unlink(missing_ok=True)
        yield


class Store:
    """Pieces of a sweep by name; a store without a directory keeps nothing.

    A file is written under another name first and then renamed, so that one that is there is
    whole, however the process ends. Each has a digest of what was asked for and of what is in it.
    A file whose digest is wrong, or of another request, is not taken, with a warning.

    Args:
        where: Who asks, for errors.
        directory: Where; it must exist. None: nowhere.
        request: What was asked for, as digests by the names of the arguments.

    Raises:
        ValueError: The directory holds another sweep, or one in another format.
    """

    def __init__(self, where: str, directory: Any, request: Callable[[], Mapping[str, str]]):
        self._where = where
        self._directory = None if directory is None else Path(directory)
        self._request: dict[str, str] = {}
        self._size: int | None = None
        if self._directory is not None:
            self._request = dict(request())
            self._size = self._known_size(self._directory / MANIFEST)

    def _known_size(self, path: Path) -> int | None:
        """The size in the manifest; None if there is no manifest, or a damaged one."""
        try:
            manifest = json.loads(path.read_bytes())
            version = manifest["format"]
            if version > 1 and manifest.pop("digest") != digest(*manifest.items()):
                raise ValueError
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            self._warn(_errors.damaged_manifest(self._where, path))
            return None
        if version != FORMAT:
            raise _errors.other_format(self._where, path.parent, version, FORMAT)
        there = manifest["request"]
        other = [name for name in self._request if there.get(name) != self._request[name]]
        if other:
            raise _errors.other_request(self._where, path.parent, other)
        return manifest["size"]

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
                manifest["digest"] = digest(*manifest.items())
                text = json.dumps(manifest, indent=1) + "\n"
                self._write(MANIFEST, lambda file: file.write(text.encode()))
        return self._size

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write a piece; it replaces an older one of this name."""
        if self._directory is not None:
            marked = {**arrays, "request": digest(*self._request.items())}
            marked["digest"] = _digest_of(marked)
            self._write(f"{name}.npz", lambda file: np.savez(file, **marked))

    def load(self, name: str, part: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Read a piece.

        Args:
            name: Its name.
            part: Some of its arrays, those that say what it is a piece of.

        Returns:
            Its arrays; None if there is none, or it is damaged, or a piece of something else.
        """
        if self._directory is None:
            return None
        path = self._directory / f"{name}.npz"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        arrays = _whole(data)
        if arrays is None:
            return self._warn(_errors.damaged_piece(self._where, path))
        wanted = {**part, "request": digest(*self._request.items())}
        if not all(k in arrays and np.array_equal(arrays[k], x) for k, x in wanted.items()):
            return self._warn(_errors.other_piece(self._where, path))
        return arrays

    def _warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=3)

    def _write(self, name: str, write: Callable[[Any], Any]) -> None:
        assert self._directory is not None
        beside = self._directory / f".{name}.{uuid.uuid4().hex}.part"
        try:
            with open(beside, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._directory / name)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def _whole(data: bytes) -> dict[str, np.ndarray] | None:
    """The arrays in a file; None if they are not those that were written."""
    try:
        with np.load(io.BytesIO(data)) as file:
            arrays = dict(file)
        return arrays if str(arrays.pop("digest")) == _digest_of(arrays) else None
    except Exception:  # damaged bytes make zipfile, zlib and numpy raise nearly anything
        return None


def _digest_of(arrays: Mapping[str, Any]) -> str:
    return digest(*(x for k in sorted(arrays) for x in (k, np.asarray(arrays[k]))))


def digest(*values: Any) -> str:
    """A hash of strings, arrays and functions as jax traces them (`jax.make_jaxpr`)."""
    found = hashlib.blake2b(digest_size=16)

    def array(x: Any) -> None:
        if is_key(x):
            text(x.dtype)
            x = jax.random.key_data(x)
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
