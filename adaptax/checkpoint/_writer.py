"""Writing a checkpoint with Orbax: in the background, and with checksums.

Orbax writes into a temporary directory, which gets the checkpoint's name when all of it is there.
The checksums are added in between.
"""

import time
from collections.abc import Callable
from typing import Any

from . import _sums
from ._file import STEP_METADATA, orbax


class Writer:
    """Writes trees, one after the other.

    Args:
        where: Who asks, for errors.
        directory: Where the checkpoints go, or one of them.
        items: Whether a checkpoint is a step with items in it, as those of
            `ocp.CheckpointManager`, or a tree.
        committed: What is called with the path of each checkpoint when it is there, by process 0
            and in the background.
    """

    def __init__(
        self,
        where: str,
        directory: Any,
        *,
        items: bool,
        committed: Callable[[Any], None] = lambda _: None,
    ):
        self._ocp = ocp = orbax(where)
        self._items = items
        self._path: Any = None
        self._paths = _sealed(ocp, directory, committed)
        self._wait_for_all = ocp.multihost.get_barrier_sync_fn()
        # If making a directory in the background fails, Orbax's threads wait for it forever, and
        # the process can't exit.
        options = ocp.AsyncOptions(
            create_directories_asynchronously=False, barrier_sync_fn=self._meet
        )
        if items:
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(async_options=options)
            )
        else:
            handler = ocp.PyTreeCheckpointHandler()
        # What goes wrong in a metadata store with a thread of its own is raised by a later save.
        self._writer = ocp.AsyncCheckpointer(
            handler,
            async_options=options,
            temporary_path_class=self._paths,
            checkpoint_metadata_store=ocp.metadata.metadata_store(
                enable_write=True, blocking_write=True
            ),
        )

    def save(self, path: Any, item: Any, metadata: Any) -> None:
        """Write what `packed` gives; it may be overwritten when this returns."""
        self._path = self._paths.from_final(path).get()
        args = self._ocp.args.PyTreeSave(item, custom_metadata=metadata)
        if self._items:
            args = self._ocp.args.Composite(default=args)
        self._writer.save(path, args=args)

    def wait(self) -> None:
        """Wait until it is there; raise what went wrong, once."""
        self._writer.wait_until_finished()

    def close(self) -> None:
        """Wait, and release what is open."""
        try:
            self.wait()
        finally:
            self._writer.close()

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Wait for the other processes, of several: what each has written it lists before."""
        if "async_write_complete" in key:
            _sums.list_part(self._path, self._ocp.path.atomicity.TMP_DIR_SUFFIX)
        assert self._wait_for_all is not None
        self._wait_for_all(key=key, timeout_ms=timeout_ms)


def _sealed(ocp: Any, directory: Any, committed: Callable[[Any], None]) -> Any:
    """Orbax's class of temporary directories, but for how they are finished."""
    base = ocp.path.atomicity_defaults.get_default_temporary_path_class(directory)
    renames = issubclass(base, ocp.path.atomicity.AtomicRenameTemporaryPath)

    async def finalize(self: Any) -> None:
        path, final, metadata = self.get(), self.get_final(), self._checkpoint_metadata_store
        metadata.update(path / STEP_METADATA, commit_timestamp_nsecs=time.time_ns())
        commit = path / ocp.path.atomicity.COMMIT_SUCCESS_FILE
        success = f"Checkpoint commit was successful to {final}"
        if renames:
            commit.write_text(success)
            _sums.seal(path)
            path.rename(final)
        else:  # in a bucket it is this file that makes a checkpoint whole
            _sums.seal(path)
            commit.write_text(success)
        committed(final)

    return type("Sealed", (base,), {"finalize": finalize})
