"""A directory with the checkpoints of a run, one for each step."""

import operator
import shutil
import warnings
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from .._core import _checks
from . import _errors
from ._file import Source, orbax, packed, path_of
from ._report import Report
from ._restore import check_choices, restored

DELETED = ".deleted"  # where Orbax moves what is to be deleted, so that no step is half there


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

    Orbax stores them (`ocp.CheckpointManager`). A step is written beside the others and renamed
    when it is whole, so that a process may be killed at any time: what is there is whole. What
    it leaves behind is removed by the next process that saves.

    It is a context manager, which waits for the last save. With `jax.distributed`, every process
    makes one for the same directory, and calls what it calls on all of them.

    Args:
        directory: Where; made by the first save. Reading changes nothing in it, so an evaluation
            may read while a run writes.
        keep: How many of the latest steps are kept; None keeps all.
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
        self._writer: Any = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are there, ascending."""
        self.wait()
        ocp = orbax("Checkpoints")
        names = ocp.path.step.standard_name_format()
        return tuple(sorted(found.step for found in names.find_all(self.directory)))

    @property
    def latest(self) -> int | None:
        """The latest step that is there; None if there is none."""
        return max(self.steps, default=None)

    def save(self, step: Any, tree: Any) -> None:
        """Write a tree.

        The arrays may be donated, or numpy arrays changed, when this returns.

        Args:
            step: The step, >= 0, after all that are there.
            tree: A pytree of arrays, numbers and random keys (`jax.random.key`): parameters, the
                state of a transformation, the position in the data. With several processes, an
                array that is on one process alone is taken to be the same on all.

        Raises:
            TypeError: A leaf is something else.
            ValueError: The step is not after those that are there.
        """
        number = _step("save", step)
        item, metadata = packed("save", tree)
        writer = self._open()
        self._tidy()
        latest = writer.latest_step()
        if latest is not None and number <= latest:
            raise _errors.step_is_there("save", number, latest)
        ocp = orbax("Checkpoints")
        args = ocp.args.PyTreeSave(item, custom_metadata=metadata)
        writer.save(number, args=args, force=True)  # else Orbax decides whether to save
        if not self._background:
            self._tidy()

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
                not whole.
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
            ValueError: The files are damaged.
        """
        check_choices("restore", missing, unused)
        wanted = None if step is None else _step("restore", step)
        number, source = self._find(wanted)
        try:
            tree, report = restored("restore", source, like, shardings, missing, unused)
        except _errors.DamagedError as error:
            raise self._with_others(error, number) from error.__cause__
        return Restored(number, tree, report)

    def delete(self, step: Any) -> None:
        """Remove a step.

        Args:
            step: The step.

        Raises:
            FileNotFoundError: It is not there.
        """
        number = _step("delete", step)
        if number not in self.steps:
            raise _errors.no_step("delete", number, self.steps)
        self._open().delete(number)
        self._tidy()

    def wait(self) -> None:
        """Wait until what is being saved is there; raise what went wrong."""
        if self._writer is not None:
            self._writer.wait_until_finished()

    def close(self) -> None:
        """Wait, and release what is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self._remove_deleted()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> Any:
        """The writer, made when it is needed: it removes what a killed process left."""
        if self._writer is None:
            ocp = orbax("Checkpoints")
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                todelete_subdir=DELETED,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=self._background,
            )
            self._writer = ocp.CheckpointManager(self.directory, options=options)
        return self._writer

    def _tidy(self) -> None:
        """Wait, and remove what was deleted."""
        self.wait()
        self._remove_deleted()

    def _remove_deleted(self) -> None:
        if jax.process_index() == 0 and "://" not in str(self.directory):
            shutil.rmtree(self.directory / DELETED, ignore_errors=True)

    def _source(self, step: int) -> Source:
        try:
            return Source("restore", self.directory / str(step))
        except _errors.DamagedError as error:
            raise self._with_others(error, step) from error.__cause__

    def _find(self, step: int | None) -> tuple[int, Source]:
        """The step that is asked for, or the latest whole one."""
        steps = self.steps
        if step is not None:
            if step not in steps:
                raise _errors.no_step("restore", step, steps)
            return step, self._source(step)
        found = self._latest_whole(steps) if jax.process_index() == 0 else None
        number = _of_process_0(None if found is None else found[0])
        if number is None and steps:
            raise _errors.none_whole("restore", self.directory, steps)
        if number is None:
            raise _errors.no_checkpoint("restore", self.directory)
        return found or (number, self._source(number))

    def _latest_whole(self, steps: tuple[int, ...]) -> tuple[int, Source] | None:
        for step in reversed(steps):
            try:
                return step, Source("restore", self.directory / str(step))
            except _errors.DamagedError as error:
                warnings.warn(f"{error} It is left out.", stacklevel=4)
        return None

    def _with_others(self, error: _errors.DamagedError, step: int) -> ValueError:
        return _errors.with_others(error, [other for other in self.steps if other != step])


def _of_process_0(step: int | None) -> int | None:
    """What process 0 found, on all processes."""
    if jax.process_count() == 1:
        return step
    from jax.experimental import multihost_utils

    number = np.int64(-1 if step is None else step)
    number = int(multihost_utils.broadcast_one_to_all(number))
    return None if number < 0 else number


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
