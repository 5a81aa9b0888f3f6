"""Samples as scalars for TensorBoard."""

import itertools
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import _errors
from ._sample import Sample, flat
from ._sinks import Sink


class TensorBoardSink(Sink):
    """Writes scalars "name/measure" for TensorBoard; those that are NaN are left out.

    Needs the package tensorboardX. TensorBoard shows all files of a folder as one run: after a
    write that failed, and after the file was deleted, the next sample begins another file.

    Args:
        folder: Where the event file is made.

    Raises:
        ImportError: tensorboardX is not installed.
        OSError: When called: the sample could not be written; the next ones can.
    """

    def __init__(self, folder: str | Path):
        try:
            from tensorboardX import record_writer
            from tensorboardX.proto import event_pb2
        except ImportError:
            raise _errors.needs("TensorBoardSink", "tensorboardX", "tensorboard") from None
        self.folder = str(folder)
        self._records, self._event = record_writer, vars(event_pb2)["Event"]
        self._numbers = itertools.count()
        self._closed = False
        self._writer: Any = self._opened()

    def _opened(self) -> Any:
        """A writer of records, not of summaries: those are written later, by a thread of theirs."""
        self._records.directory_check(self.folder)
        number = next(self._numbers)
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{id(self)}.{number}"
        writer: Any = self._records.RecordWriter(
            os.path.join(self.folder, f"events.out.tfevents.{name}")
        )
        self._local = os.path.exists(writer.path)
        self._put(writer, file_version="brain.Event:2")
        return writer

    def _put(self, writer: Any, **event: Any) -> None:
        writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        writer.flush()

    def __call__(self, step: Any, sample: Sample) -> None:
        """Write a sample's scalars."""
        if self._closed:
            raise _errors.closed("TensorBoardSink", self.folder)
        scalars = [
            {"tag": _utf8(name), "simple_value": value}
            for name, value in flat(sample).items()
            if not math.isnan(value)
        ]
        if self._writer is None or (self._local and not os.path.exists(self._writer.path)):
            self._leave()
            self._writer = self._opened()
        try:
            self._put(self._writer, step=int(step), summary={"value": scalars})
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Close the file, whatever is left to be written."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Close the event file."""
        self._leave()
        self._closed = True


def _utf8(name: str) -> str:
    """A name as TensorBoard's format can hold it: without lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()
