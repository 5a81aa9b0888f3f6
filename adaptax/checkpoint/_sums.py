"""Checksums of a checkpoint's files, which tell damage from data.

One file beside the others lists the length and the CRC-32 of each. It is written when all
processes have written theirs, and before the checkpoint gets its name: so a checkpoint with
checksums is never there without them. They are of files, not of arrays, so they cover the notes
and the metadata too, name what is damaged, and do not depend on how arrays are sharded.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from . import _errors, _processes

NAME = "_CHECKSUMS"
CHUNK = 1 << 22  # bytes that are read at once
THREADS = 8
NONE, GOOD, LIST = -2, -1, 0  # no checksums; all fit; the list itself is damaged


class Sum(NamedTuple):
    """What a file is known by."""

    length: int
    crc: int


# --- Writing


def seal(path: Any) -> None:
    """List the files of a directory that is complete.

    What other processes have listed (see `list_part`) is taken over, so that process 0 need not
    read what all of them have written.
    """
    files = dict(files_of(path))
    listed: dict[str, Sum] = {}
    for name in [name for name in files if name.startswith(f"{NAME}.")]:
        part = files.pop(name)
        listed |= _parsed(part.read_bytes())
        part.unlink()
    sums = {name: s for name, s in listed.items() if name in files}
    rest = {name: file for name, file in files.items() if name not in sums}
    (path / NAME).write_bytes(_text(sums | _sums_of(rest)))


def list_part(path: Any, unfinished: str) -> None:
    """List the arrays that this process has written.

    Args:
        path: The directory of the checkpoint, as long as it is incomplete.
        unfinished: How the names of directories end that are renamed before it is complete.
    """
    process = jax.process_index()
    mine: dict[str, Any] = {}
    for tree in [path, *(p for p in path.iterdir() if p.is_dir())]:
        arrays = tree / f"ocdbt.process_{process}" / "d"  # written once, under names of their own
        if arrays.exists():
            before = "" if tree == path else tree.name.removesuffix(unfinished) + "/"
            mine |= {f"{before}{arrays.parent.name}/d/{n}": f for n, f in files_of(arrays)}
    (path / f"{NAME}.{process}").write_bytes(_text(_sums_of(mine)))


# --- Reading


def check(where: str, path: Any, *, alone: bool = False) -> bool:
    """Compare the files of a checkpoint with their checksums; each process reads its share.

    Args:
        where: Who asks, for errors.
        path: The checkpoint's directory, or that of a tree in it.
        alone: Whether this process asks alone, and reads all.

    Returns:
        Whether there are checksums. Of a checkpoint without them nothing is read.

    Raises:
        DamagedError: A file is missing, or another than was written; it is named. All processes
            raise it.
    """
    files, found = _listed(path)
    problem, names = "", []
    if files is not None:
        names = sorted(files, key=lambda name: files[name][1].length)
        mine = names if alone else _processes.shared_out(names)
        with ThreadPoolExecutor(THREADS) as pool:
            problems = zip(mine, pool.map(_problem, (files[name] for name in mine)), strict=True)
        wrong, problem = next((pair for pair in problems if pair[1]), ("", ""))
        found = 1 + names.index(wrong) if wrong else GOOD
    all_found = [found] if alone else _processes.gathered(found)
    if max(all_found) == min(all_found) == NONE:
        return False
    if max(all_found) == min(all_found) == GOOD:
        return True
    number = max(all_found)
    if files is None or number <= LIST:
        raise _errors.damaged(where, path / NAME, "it is missing, or not what was written")
    file = files[names[number - 1]][0]
    raise _errors.damaged(where, file, problem or "it is not what was written")


def looks_damaged(path: Any) -> bool:
    """Whether files are missing, or longer or shorter than they were; nothing else is read."""
    files, found = _listed(path)
    if files is None:
        return found == LIST
    return any(_length(file) != s.length for file, s in files.values())


def files_of(path: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """All files of a directory by their paths in it, but for the list of them."""
    for p in path.iterdir():
        name = before + p.name
        if p.is_dir():
            yield from files_of(p, f"{name}/")
        elif name != NAME:
            yield name, p


def _listed(path: Any) -> tuple[dict[str, tuple[Any, Sum]] | None, int]:
    """The files that are listed, with what they are known by; or None, and `NONE` or `LIST`."""
    for root, before in ((path, ""), (path.parent, f"{path.name}/")):
        try:
            sums = _parsed((root / NAME).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, TypeError):
            return None, LIST
        inside = {n: (root / n, s) for n, s in sums.items() if n.startswith(before)}
        if inside:
            return inside, GOOD
    return None, NONE


def _problem(file_and_sum: tuple[Any, Sum]) -> str:
    """What is wrong with a file; nothing, or a part of a sentence."""
    file, wanted = file_and_sum
    try:
        found = _sum_of(file)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it can't be read ({error})"
    if found.length != wanted.length:
        return f"it has {found.length} bytes, and {wanted.length} were written"
    return "" if found == wanted else "its checksum is not that of what was written"


def _length(file: Any) -> int:
    try:
        return file.stat().length
    except OSError:
        return -1


def _sums_of(files: Mapping[str, Any]) -> dict[str, Sum]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(files, pool.map(_sum_of, files.values()), strict=True))


def _sum_of(file: Any) -> Sum:
    length, crc = 0, 0
    with file.open("rb") as f:
        while chunk := f.read(CHUNK):
            length, crc = length + len(chunk), zlib.crc32(chunk, crc)
    return Sum(length, crc)


def _text(sums: Mapping[str, Sum]) -> bytes:
    """The list as JSON, after a line with its own checksum."""
    text = json.dumps({"files": {name: list(sums[name]) for name in sorted(sums)}}).encode()
    return b"%08x\n%s" % (zlib.crc32(text), text)


def _parsed(data: bytes) -> dict[str, Sum]:
    crc, _, text = data.partition(b"\n")
    if crc != b"%08x" % zlib.crc32(text):
        raise ValueError("another checksum")
    return {name: Sum(*entry) for name, entry in json.loads(text)["files"].items()}


# --- What changes with a file


def token(path: Any) -> Any:
    """What is another if a file of a directory has been changed; None where that is unknown."""
    if "://" in str(path):
        return None
    stats = {name: os.stat(file) for name, file in files_of(path)}
    return hash(
        frozenset((n, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in stats.items())
    )
