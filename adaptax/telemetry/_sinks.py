"""Where samples go, by `sink(step, sample)`: a list, CSV, JSON lines, TensorBoard."""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .._core import _checks
from ._sample import TOTAL, Sample, flat, from_rows, rows

KINDS = ("leaf", "group", "total")
COLUMNS = ["step", "kind", "name"]


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
    """Appends text to a file, a whole sample at a time."""

    def __init__(self, path: str | Path, append: bool = False):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a" if append else "w", encoding="utf-8", newline="")
        text = self.path.read_bytes()
        self._file.truncate(text.rfind(b"\n") + 1)  # a line that was not written to its end

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CSVSink(_FileSink):
    """Writes a table: a line for each leaf, group and the total of each sample.

    The columns are step, kind ("leaf", "group", "total"), name, and the measures.

    Args:
        path: The file; folders are made.
        append: Whether to go on after what the file holds, whose columns must be the same.

    Raises:
        ValueError: When called: the measures are not the columns of the file.
    """

    def __init__(self, path: str | Path, append: bool = False):
        super().__init__(path, append)
        with self.path.open(encoding="utf-8", newline="") as file:
            self._columns = next(csv.reader(file), None)

    def __call__(self, step: Any, sample: Sample) -> None:
        """Write a sample's lines."""
        columns = [*COLUMNS, *sorted(sample.values)]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        if self._columns is None:
            table.writerow(columns)
        elif self._columns != columns:
            raise _checks.wrong_names("CSVSink", self._columns, columns)
        for (name, measures), kind in zip(rows(sample).items(), _kinds(sample), strict=True):
            table.writerow([int(step), kind, name, *measures.values()])
        self._write(text.getvalue())
        self._columns = columns


class JSONLSink(_FileSink):
    """Writes a JSON object for each sample, one a line.

    `{"step": 0, "leaf": {name: {measure: number}}, "group": {...}, "total": {...}}`; NaN is null,
    infinities are the strings "inf" and "-inf".

    Args:
        path: The file; folders are made.
        append: Whether to go on after what the file holds.
    """

    def __call__(self, step: Any, sample: Sample) -> None:
        """Write a sample's line."""
        record: dict[str, Any] = {"step": int(step), "leaf": {}, "group": {}}
        for (name, measures), kind in zip(rows(sample).items(), _kinds(sample), strict=True):
            numbers = {m: _plain(x) for m, x in measures.items()}
            if kind == TOTAL:
                record[kind] = numbers
            else:
                record[kind][name] = numbers
        self._write(json.dumps(record, allow_nan=False) + "\n")


class TensorBoardSink(Sink):
    """Writes scalars "name/measure" for TensorBoard; those that are NaN are left out.

    Needs the package tensorboardX.

    Args:
        folder: Where the event file is made.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _needs("TensorBoardSink", "tensorboardX", "tensorboard") from None
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, step: Any, sample: Sample) -> None:
        """Write a sample's scalars."""
        for name, value in flat(sample).items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, int(step))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def read(path: str | Path) -> list[Sample]:
    """The samples of a file of `CSVSink` or `JSONLSink`, in its order, as numpy arrays.

    A last sample that was not written to its end is left out.

    Args:
        path: The file; its name ends in .csv or .jsonl.

    Raises:
        ValueError: The name ends otherwise.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise _checks.out_of_range("read", "path", "one of the names *.csv, *.jsonl", str(path))
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    records = _from_csv(whole) if path.suffix == ".csv" else map(json.loads, whole.splitlines())
    return [
        from_rows(r["step"], _numbers(r["leaf"]), _numbers(r["group"]), _number_row(r["total"]))
        for r in records
        if "total" in r
    ]


def _from_csv(text: str) -> list[dict[str, Any]]:
    """The table as records like those of `JSONLSink`; each sample ends with its total."""
    records: list[dict[str, Any]] = []
    for line in csv.DictReader(io.StringIO(text)):
        step, kind, name = (line.pop(column) for column in COLUMNS)
        if not records or "total" in records[-1] or records[-1]["step"] != int(step):
            records.append({"step": int(step), "leaf": {}, "group": {}})
        if kind == TOTAL:
            records[-1][kind] = line
        else:
            records[-1][kind][name] = line
    return records


def _kinds(sample: Sample) -> list[str]:
    counts = len(sample.leaves), len(sample.groups), 1
    return [kind for kind, n in zip(KINDS, counts, strict=True) for _ in range(n)]


def _plain(x: float) -> float | str | None:
    if math.isnan(x):
        return None
    return x if math.isfinite(x) else str(x)


def _number_row(row: Mapping[str, Any]) -> dict[str, float]:
    return {m: math.nan if x is None else float(x) for m, x in row.items()}


def _numbers(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {name: _number_row(row) for name, row in table.items()}


def _needs(function: str, package: str, extra: str) -> ImportError:
    return ImportError(f"{function} needs {package}: pip install 'adaptax[{extra}]'.")
