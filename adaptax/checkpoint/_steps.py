"""The steps in a directory, and which of them are whole."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from . import _errors, _processes, _sums
from ._errors import DamagedError, RemovedError
from ._file import STEP_METADATA, Source, is_tree, orbax

T = TypeVar("T")
DELETED = ".deleted"  # where steps are moved that are removed, so that none is half there
TRIES = 100  # of reading what a writer removes meanwhile
LISTINGS = 10  # of a directory without steps: its only one may be replaced amid a listing
UNKNOWN, WHOLE, DAMAGED = range(3)


class Steps:
    """The steps in a directory.

    A step is verified once, and again if one of its files has changed since. With several
    processes, methods are called by all of them, but for those with `alone`.

    Args:
        directory: Where they are.
    """

    def __init__(self, directory: Any):
        self.directory = directory
        self._known: dict[int, tuple[Any, DamagedError | None]] = {}

    def path(self, step: int) -> Any:
        """The directory of a step."""
        return self.directory / str(step)

    # --- Reading

    def there(self) -> list[int]:
        """All steps, damaged or not, ascending; what this process sees."""
        names = orbax("Checkpoints").path.step.standard_name_format()
        for _ in range(LISTINGS):
            found = sorted(found.step for found in names.find_all(self.directory))
            steps = [step for step in found if _is_step(self.path(step))]
            if steps or not self.directory.exists():
                return steps
        return []

    def listed(self) -> list[int]:
        """The same, on all processes what process 0 sees."""
        return _processes.all_of_process_0(self.there() if _processes.is_0() else [])

    def seem_whole(self) -> list[int]:
        """The steps that are not known to be damaged, and whose files are as long as they were."""
        return [step for step in self.there() if not self._seems_damaged(step)]

    def damage(self, where: str, step: int, *, alone: bool = False) -> DamagedError | None:
        """What is wrong with a step.

        Args:
            where: Who asks, for errors.
            step: The step.
            alone: Whether process 0 asks, without the others.

        Raises:
            RemovedError: It was removed meanwhile.
        """
        token, known = self._token(step), self._known.get(step)
        state = UNKNOWN
        if token is not None and known is not None and known[0] == token:
            state = WHOLE if known[1] is None else DAMAGED
        if not alone:
            state = _processes.of_process_0(state)
        if state == UNKNOWN:
            try:
                self.open(where, step, alone=alone)
            except DamagedError as error:
                return error
        if state == DAMAGED:
            error = None if known is None else known[1]
            return error or _errors.damaged_elsewhere(where, self.path(step))
        return None

    def open(self, where: str, step: int, *, alone: bool = False) -> Source:
        """A step, verified whatever is known of it.

        Raises:
            DamagedError: It is damaged. All processes raise it.
            RemovedError: It was removed meanwhile.
        """
        with reading(self.path(step), together=not alone):
            token = self._token(step)
            source, problem = self._opened(where, step, alone)
            if not alone and any(_processes.gathered(int(problem is not None))):
                problem = problem or _errors.damaged_elsewhere(where, self.path(step))
            self._known[step] = token, problem
            if problem is not None:
                raise problem
            assert source is not None
            return source

    def _opened(
        self, where: str, step: int, alone: bool
    ) -> tuple[Source | None, DamagedError | None]:
        try:
            return Source(where, self.path(step), alone=alone), None
        except DamagedError as error:
            return None, error
        except FileNotFoundError as error:
            return None, _errors.unreadable(where, self.path(step), error)

    # --- Writing, by process 0 alone

    def trust(self, step: int) -> None:
        """Take a step for whole that was just written."""
        self._known[step] = self._token(step), None

    def tidy(self) -> None:
        """Remove what killed processes have left."""
        ocp = orbax("Checkpoints")
        for unfinished in ocp.path.step.all_temporary_paths(self.directory):
            unfinished.get().rmtree()
        self._empty()

    def remove(self, step: int) -> None:
        """Remove a step: it is moved away first, so that it is not half there at any time."""
        path, away = self.path(step), self.directory / DELETED
        self._known.pop(step, None)
        if "://" in str(path):  # a bucket moves files one by one, too
            path.rmtree()
            return
        self._empty()
        away.mkdir()
        path.rename(away / path.name)
        self._empty()

    def prune(self, keep: int | None, latest: int) -> None:
        """Remove the steps before the last `keep` whole ones up to the latest."""
        steps = [step for step in self.there() if step <= latest]
        if keep is None or len(steps) <= keep:
            return
        whole = 0
        for step in reversed(steps):
            if whole == keep:
                self.remove(step)
                continue
            try:
                whole += self.damage("save", step, alone=True) is None
            except RemovedError:  # by somebody else
                pass
            except ValueError:  # written by a later version: nothing is wrong with it
                whole += 1

    def _empty(self) -> None:
        away = self.directory / DELETED
        if away.exists():
            away.rmtree()

    # --- What is known

    def _token(self, step: int) -> Any:
        try:
            return _sums.token(self.path(step))
        except OSError:  # a writer is removing it
            return None

    def _seems_damaged(self, step: int) -> bool:
        known = self._known.get(step)
        if known is not None and known[1] is not None and known[0] == self._token(step):
            return True
        path = self.path(step)
        return _sums.looks_damaged(path) or not any(map(is_tree, (path, *_inside(path))))


@contextmanager
def reading(path: Any, *, together: bool = False) -> Iterator[None]:
    """Tell a checkpoint that is damaged from one that a writer removes, or replaces, meanwhile.

    Args:
        path: Its directory.
        together: Whether all processes fail if one does.

    Raises:
        RemovedError: It is the second.
    """
    before = _identity(path)
    try:
        yield
    except Exception as error:
        now = _identity(path)
        gone = before is None or now != before
        if together:
            gone = bool(_processes.of_process_0(gone))
        if gone and (together or _processes.alone()):
            raise RemovedError(path) from error
        raise


def steady(read: Callable[[], T], error: Exception) -> T:
    """What a function reads, again if what it reads is removed meanwhile.

    Args:
        read: The function.
        error: What is raised if that happens always.
    """
    for _ in range(TRIES):
        try:
            return read()
        except RemovedError:
            pass
    raise error


def _is_step(path: Any) -> bool:
    """Whether Orbax wrote a directory; what else has a number for a name is left alone."""
    marks = (STEP_METADATA, _sums.NAME, "default")
    return any((path / mark).exists() for mark in marks) or any(map(is_tree, _inside(path)))


def _inside(path: Any) -> list[Any]:
    try:
        return list(path.iterdir())
    except OSError:  # removed meanwhile
        return []


def _identity(path: Any) -> Any:
    """What is another if a directory has been replaced; None if it isn't there."""
    if "://" in str(path):
        return True if path.exists() else None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
