"""Where samples go, by `sink(step, sample)`: a list, CSV, JSON lines."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .._core._files import lock, unlock
from . import _errors, _lines
from ._sample import Sample, flat


class Sink:
    """What samples are given to; a context manager that closes it."""

    def __call__(self, step: Any, sample: Sample) -> None:
        """Take a sample in, completely: what was written stays if the process is killed."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what is open."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class DictSink(Sink):
    """Keeps samples in memory, as numbers by "name/measure".

    Attributes:
        records: For each sample `{"step": ..., "layers/0/kernel/update_ratio": ..., ...}`.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def __call__(self, step: Any, sample: Sample) -> None:
        """Append a record."""
        self.records.append({"step": int(step), **flat(sample)})


class _FileSink(Sink):
    """Appends to a file, a whole sample at a time or nothing.

    Each write first looks at the file: one that was deleted or renamed is made again, and an
    incomplete sample at its end is cut off. Others that append wait meanwhile.
    """

    _end_of: Callable[[bytes], int]  # where what is whole ends

    def __init__(self, path: str | Path, append: bool = False):
        self.path = Path(path)
        self._threads = threading.Lock()
        self._end = 0  # so much of the file is whole
        self._file = self._opened()
        if not append:
            self._file.truncate(0)

    def _opened(self) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return open(self.path, "ab+", buffering=0)  # what a buffer kept would come after a failure

    def _append(self, text: str, begins: str, header: str = "") -> None:
        """Append a sample.

        Args:
            text: Its lines.
            begins: How the file must begin.
            header: What to write first into an empty file.
        """
        data, start, head = map(_lines.encoded, (text, begins, header))
        with self._threads:
            self._locked()
            try:
                self._check(start)
                self._repair()
                self._write(data if self._end else head + data)
            finally:
                unlock(self._file)

    def _locked(self) -> None:
        """Lock the file that the path means now."""
        if self._file.closed:
            raise _errors.closed(type(self).__name__, self.path)
        lock(self._file, wait=True)
        while not self._is_there():
            self._file.close()
            self._file, self._end = self._opened(), 0
            lock(self._file, wait=True)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _check(self, start: bytes) -> None:
        self._file.seek(0)
        first = self._file.read(len(start))
        if start[: len(first)] != first:
            raise self._foreign(first, start)

    def _foreign(self, first: bytes, start: bytes) -> ValueError:
        text = first[:20].decode("utf-8", "replace")
        return _errors.foreign_file(type(self).__name__, self.path, text)

    def _repair(self) -> None:
        """Cut off what was not written to its end."""
        size = self._file.seek(0, os.SEEK_END)
        if size == self._end:
            return
        self._file.seek(0)
        try:
            self._end = self._end_of(self._file.read())
        except _lines.DamagedError as error:
            sink = type(self).__name__
            raise _errors.damaged_line(sink, self.path, *error.args) from None
        if self._end < size:
            self._file.truncate(self._end)

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            with suppress(OSError):  # the next write cuts it off
                self._file.truncate(self._end)
            raise
        self._end += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CSVSink(_FileSink):
    """Writes a table: a line for each leaf, group and the total of each sample.

    The columns are step, kind ("leaf", "group", "total"), name, and the measures. Names may be any
    text.

    A sample is written as a whole or not at all. A file that is deleted or renamed meanwhile is
    made again, and several sinks, also of several processes, may append to one file.

    Args:
        path: The file; folders are made.
        append: Whether to go on after what the file holds, whose columns must be the same; else
            the file is emptied.

    Raises:
        ValueError: When called: the measures are not the columns of the file, or a sink did not
            write it; the file stays as it is.
        OSError: When called: the sample could not be written; the next ones can.
    """

    _end_of = staticmethod(_lines.csv_end)

    def __call__(self, step: Any, sample: Sample) -> None:
        """Write a sample's lines."""
        header = _lines.csv_header(sample)
        self._append(_lines.csv_rows(int(step), sample), header, header)

    def _foreign(self, first: bytes, start: bytes) -> ValueError:
        self._file.seek(0)
        line = self._file.readline().decode("utf-8", "replace")
        there, here = (text.rstrip("\r\n").split(",") for text in (line, start.decode()))
        if there[:3] == _lines.COLUMNS:
            return _errors.wrong_columns(self.path, there, here)
        return super()._foreign(first, start)


class JSONLSink(_FileSink):
    """Writes a JSON object for each sample, one a line.

    `{"step": 0, "leaf": {name: {measure: number}}, "group": {...}, "total": {...}}`; NaN is null,
    infinities are the strings "inf" and "-inf". Names may be any text.

    A sample is written as a whole or not at all. A file that is deleted or renamed meanwhile is
    made again, and several sinks, also of several processes, may append to one file.

    Args:
        path: The file; folders are made.
        append: Whether to go on after what the file holds; else the file is emptied.

    Raises:
        ValueError: When called: a sink did not write the file; it stays as it is.
        OSError: When called: the sample could not be written; the next ones can.
    """

    _end_of = staticmethod(_lines.json_end)

    def __call__(self, step: Any, sample: Sample) -> None:
        """Write a sample's line."""
        self._append(_lines.json_line(int(step), sample), _lines.RECORD)
