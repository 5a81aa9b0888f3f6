"""A directory with the checkpoints of a run, one for each step."""

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from .._core import _checks
from . import _errors, _processes
from ._file import Source, orbax, packed, path_of
from ._report import Report
from ._restore import check_choices, restored
from ._steps import Steps, reading, steady
from ._writer import Writer

T = TypeVar("T")


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns.

    Attributes:
        step: The step.
        tree: What was saved, in the structure of `like`.
        report: What became of each leaf.
    """

    step: int
    tree: Any
    report: Report


class Checkpoints:
    """The checkpoints of a run: trees in a directory, by step.

    Orbax stores them, as its `CheckpointManager` does. A step is written beside the others and
    renamed when it is whole, so that a process may be killed at any time: what is there is whole.
    What it leaves behind is removed by the next process that saves.

    A step has checksums, which are verified before it is restored. One that was damaged since is
    left out: it is not the latest, is not counted among those that are kept, and is replaced when
    its number is saved again.

    It is a context manager, which waits for the last save: what is being written when the program
    ends is not finished. With `jax.distributed`, every process makes one for the same directory,
    and all of them call what one calls, `latest` too.

    Args:
        directory: Where; made by the first save. Reading changes nothing in it, so an evaluation
            may read while a run writes.
        keep: How many of the latest whole steps are kept; None keeps all.
        background: Whether `save` returns when the arrays are copied, and writes meanwhile. What
            goes wrong then is raised by the next call.

    Raises:
        ImportError: Orbax is not installed.
        NotADirectoryError: The directory is a file.

    >>> import adaptax, jax, jax.numpy as jnp, tempfile
    >>> from adaptax import checkpoint
    >>> tx, params = adaptax.adam(1e-3), {"w": jnp.ones(3)}
    >>> with checkpoint.Checkpoints(tempfile.mkdtemp()) as saves:
    ...     saves.save(100, {"params": params, "state": tx.init(params)})
    ...     like = {"params": params, "state": jax.eval_shape(tx.init, params)}
    ...     step, tree, report = saves.restore(like)
    >>> step, tree["state"][0].count
    (100, Array(0, dtype=int32))
    >>> print(report)
    4 leaves: 4 restored
    """

    def __init__(self, directory: Any, *, keep: Any = 3, background: bool = True):
        orbax("Checkpoints")
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            raise _checks.out_of_range("Checkpoints", "keep", "[1, inf), or be None", keep)
        self.directory = path_of(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise _errors.not_a_directory("Checkpoints", self.directory)
        self._keep = keep
        self._background = background
        self._steps = Steps(self.directory)
        self._writer: Writer | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are there, ascending.

        Those that are known to be damaged are left out, and those with files that are missing or
        of another length; what is in the files is verified by `latest` and `restore`.
        """
        self.wait()
        return tuple(self._steps.seem_whole())

    @property
    def latest(self) -> int | None:
        """The latest step that is whole; None, with a warning if steps are there, if none is.

        It is verified: its files are read, once by each object unless they change.
        """
        self.wait()
        return self._steady("Checkpoints", self._latest)

    def _latest(self) -> int | None:
        problems = []
        for step in reversed(self._steps.listed()):
            problem = self._steps.damage("Checkpoints", step)
            if problem is None:
                return step
            problems.append(problem)
        for problem in problems:
            warnings.warn(f"{problem} It is left out, and no other step is whole.", stacklevel=4)
        return None

    def save(self, step: Any, tree: Any) -> None:
        """Write a tree.

        The arrays may be donated, or numpy arrays changed, when this returns. A damaged step of
        the same number is replaced.

        Args:
            step: The step, >= 0, after all that are there and whole.
            tree: A pytree of arrays, numbers and random keys (`jax.random.key`): parameters, the
                state of a transformation, the position in the data. With several processes, an
                array that is on one process alone is taken to be the same on all.

        Raises:
            TypeError: A leaf is something else.
            ValueError: The step is not after those that are there, or Orbax can't write the name
                of a leaf.
            FileExistsError: There is something else of this name.
        """
        number = _step("save", step)
        item, metadata = packed("save", tree)
        self.wait()
        self._steady("save", lambda: self._make_way(number))
        with self._renewed():
            self._open().save(self._steps.path(number), item, metadata)
        if not self._background:
            self.wait()

    def _make_way(self, step: int) -> None:
        """Refuse a step that is not after all whole ones; remove a damaged one of its number."""
        later = [other for other in self._steps.listed() if other >= step]
        for other in reversed(later):
            if self._steps.damage("save", other) is None:
                raise _errors.step_is_there("save", step, other)
        if step in later:
            self._remove(step)
        elif self._steps.path(step).exists():
            raise _errors.path_is_there("save", self._steps.path(step))

    def restore(
        self,
        like: Any,
        *,
        step: Any = None,
        shardings: Any = None,
        missing: str = "raise",
        unused: str = "raise",
    ) -> Restored:
        """Read a tree.

        Leaves are matched by path: names of fields, keys, numbers of links, whatever the
        containers are. Where the optimizer has changed, a state that has moved (by a link more
        in a chain, by a wrapper, a group) is found by its leaves, and a leaf whose state has
        changed by the name of its field and the parameter's path. What `lowbit.store` encoded
        is decoded, encoded, or brought to another format, as `like` has it. Nothing is restored
        in part: what doesn't match is an error that lists all of it.

        Args:
            like: A tree of what is wanted, for example `jax.eval_shape(tx.init, params)`. Arrays
                come back with its shapes and dtypes, as jax or numpy arrays, keys or Python
                numbers. Values are needed only for leaves that are kept, and for arrays that are
                to be encoded: then give a state from `tx.init`.
            step: The step; None takes the latest one, leaving out with a warning those that are
                damaged.
            shardings: A sharding, or a tree of them like `like` or a prefix of it, None where
                jax decides. By default that of each leaf of `like`. Each process reads its
                shards, whatever the shardings and processes were when it was saved.
            missing: What to do about leaves that the checkpoint does not have: "raise", or "keep"
                what `like` has there.
            unused: What to do about leaves that only the checkpoint has: "raise" or "drop".

        Returns:
            The step, the tree, and what became of each leaf.

        Raises:
            FileNotFoundError: There is no checkpoint, or not this one.
            TreeMismatchError: The checkpoint and `like` don't match; the message lists paths.
            ValueError: Files are damaged (the message names them), or a sharding does not fit.
        """
        check_choices("restore", missing, unused)
        number = None if step is None else _step("restore", step)
        self.wait()

        def read() -> tuple[Restored, list[_errors.DamagedError]]:
            return self._read(
                number, lambda s: restored("restore", s, like, shardings, missing, unused)
            )

        result, left_out = self._steady("restore", read)
        for problem in left_out:
            warnings.warn(f"{problem} It is left out.", stacklevel=2)
        return result

    def _read(
        self, step: int | None, read: Callable[[Source], tuple[Any, Report]]
    ) -> tuple[Restored, list[_errors.DamagedError]]:
        """A step, or the latest that is whole; and what is wrong with those after it."""
        steps = self._steps.listed()
        if step is not None and step not in steps:
            raise _errors.no_step("restore", step, steps)
        if not steps:
            raise _errors.no_checkpoint("restore", self.directory)
        problems: list[_errors.DamagedError] = []
        for number in [step] if step is not None else reversed(steps):
            try:
                source = self._steps.open("restore", number)
                with reading(self._steps.path(number)):
                    return Restored(number, *read(source)), problems
            except _errors.DamagedError as error:
                if step is not None:
                    others = [other for other in self._steps.seem_whole() if other != step]
                    raise _errors.with_others(error, others) from error.__cause__
                problems.append(error)
        raise _errors.none_whole("restore", self.directory, steps, problems)

    def delete(self, step: Any) -> None:
        """Remove a step, whole or damaged.

        Args:
            step: The step.

        Raises:
            FileNotFoundError: It is not there.
        """
        number = _step("delete", step)
        self.wait()
        steps = self._steps.listed()
        if number not in steps:
            raise _errors.no_step("delete", number, steps)
        self._remove(number)

    def _remove(self, step: int) -> None:
        if _processes.is_0():
            self._steps.remove(step)
        _processes.meet()

    def wait(self) -> None:
        """Wait until what is being saved is there; raise what went wrong."""
        if self._writer is not None:
            with self._renewed():
                self._writer.wait()

    def close(self) -> None:
        """Wait, and release what is open; raise what went wrong."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _steady(self, where: str, read: Callable[[], T]) -> T:
        return steady(read, _errors.removed(where, self.directory))

    def _open(self) -> Writer:
        """The writer, made when it is needed; what a killed process left is removed."""
        if self._writer is None:
            if _processes.is_0():
                self._steps.tidy()
            self._writer = Writer("save", self.directory, items=True, committed=self._committed)
        return self._writer

    @contextmanager
    def _renewed(self) -> Iterator[None]:
        """Take another writer after one that has failed."""
        try:
            yield
        except Exception:
            writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(Exception):
                    writer.close()
            raise

    def _committed(self, path: Any) -> None:
        """What process 0 does when a step is there: it removes older ones."""
        step = int(path.name)
        self._steps.trust(step)
        self._steps.prune(self._keep, step)


def _step(where: str, step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise _checks.wrong_kind(where, "step", "an integer", step) from None
    if isinstance(step, bool):
        raise _checks.wrong_kind(where, "step", "an integer", step)
    if number < 0:
        raise _checks.out_of_range(where, "step", "[0, inf)", step)
    return number
