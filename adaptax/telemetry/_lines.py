"""The formats of files of samples: CSV and JSON lines."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._core import _checks
from . import _errors
from ._sample import TOTAL, Sample, from_rows, rows

KINDS = ("leaf", "group", TOTAL)
COLUMNS = ["step", "kind", "name"]
RECORD = '{"step": '
"""How a line of JSON begins."""
_ROW = re.compile(
    rb'(step,kind,name,|-?\d+,total,)?(?:[^"\n]++|"[^"]*+")*+\n'  # a newline may be in quotes
)


class DamagedError(Exception):
    """Lines that were not written so: the number of the first one, and what is wrong."""


def encoded(text: str) -> bytes:
    """Any text as bytes, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def csv_header(sample: Sample) -> str:
    """The line of the columns."""
    return _csv_line([*COLUMNS, *sorted(sample.values)])


def csv_rows(step: int, sample: Sample) -> str:
    """The lines of a sample; the last one is the total."""
    every = zip(rows(sample).items(), _kinds(sample), strict=True)
    return "".join(
        _csv_line([str(step), kind, name, *map(repr, measures.values())])
        for (name, measures), kind in every
    )


def json_line(step: int, sample: Sample) -> str:
    """The line of a sample."""
    record: dict[str, Any] = {"step": step, "leaf": {}, "group": {}}
    for (name, measures), kind in zip(rows(sample).items(), _kinds(sample), strict=True):
        numbers = {m: _plain(x) for m, x in measures.items()}
        if kind == TOTAL:
            record[kind] = numbers
        else:
            record[kind][name] = numbers
    # Two lone surrogates, escaped, would be read as one character.
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"


def csv_end(data: bytes) -> int:
    """Where the last whole sample ends; what follows was not written to its end.

    Raises:
        DamagedError: It is not the last one.
    """
    at = end = 0
    while row := _ROW.match(data, at):
        at = row.end()
        end = at if row[1] else end
    if re.search(rb"\n-?\d+,total,", data[at:]):
        raise DamagedError(data.count(b"\n", 0, at) + 1, "it has an odd number of quotes")
    return end


def json_end(data: bytes) -> int:
    """Where the last whole line ends."""
    return data.rfind(b"\n") + 1


def read(path: str | Path) -> list[Sample]:
    """The samples of a file of `CSVSink` or `JSONLSink`, in its order, as numpy arrays.

    A last sample that was not written to its end is left out: that of a process that was killed
    while it wrote, or is writing.

    Args:
        path: The file; its name ends in .csv or .jsonl.

    Raises:
        ValueError: The name ends otherwise; or a line is damaged.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise _checks.out_of_range("read", "path", "one of the names *.csv, *.jsonl", str(path))
    try:
        records = (_from_csv if path.suffix == ".csv" else _from_json)(path.read_bytes())
        return [
            from_rows(r["step"], r["leaf"], r["group"], r["total"]) for r in records if "total" in r
        ]
    except DamagedError as error:
        raise _errors.damaged_line("read", path, *error.args) from error.__cause__


def _from_csv(data: bytes) -> list[dict[str, Any]]:
    """The table as records like those of JSON; each sample ends with its total."""
    records: list[dict[str, Any]] = []
    columns: list[str] | None = None
    for number, cells in _csv_lines(data[: csv_end(data)]):
        if columns is None or cells == columns:  # again where two have begun the file
            columns = cells
            if cells[:3] != COLUMNS:
                raise DamagedError(number, f"it must begin with {','.join(COLUMNS)}")
            continue
        if len(cells) != len(columns) or cells[1] not in KINDS:
            raise DamagedError(number, f"it is no row of {len(columns)} columns")
        try:
            step, kind, name = int(cells[0]), cells[1], cells[2]
            measures = dict(zip(columns[3:], map(float, cells[3:]), strict=True))
        except ValueError as error:
            raise DamagedError(number, str(error)) from error
        last: dict[str, Any] = records[-1] if records else {"step": None}
        if "total" in last or last["step"] != step or name in last.get(kind, ()):
            last = {"step": step, "leaf": {}, "group": {}}
            records.append(last)
        if kind == TOTAL:
            last[kind] = measures
        else:
            last[kind][name] = measures
    return records


def _csv_lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with the number of its first line."""
    number = 1
    try:
        lines = csv.reader(io.StringIO(_decoded(data), newline=""), strict=True)
        for cells in lines:
            yield number, cells
            number = lines.line_num + 1
    except csv.Error as error:
        raise DamagedError(number, str(error)) from error


def _from_json(data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data[: json_end(data)].split(b"\n")[:-1], 1):
        try:
            record = json.loads(_decoded(line, number))
            every = [*record["leaf"].values(), *record["group"].values(), record["total"]]
            if len({frozenset(row) for row in every}) != 1:
                raise ValueError("its rows have different measures")
            yield {
                "step": int(record["step"]),
                "leaf": {name: _numbers(row) for name, row in record["leaf"].items()},
                "group": {name: _numbers(row) for name, row in record["group"].items()},
                "total": _numbers(record["total"]),
            }
        except KeyError as error:
            raise DamagedError(number, f"it has no {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(number, str(error)) from error


def _decoded(data: bytes, first: int = 1) -> str:
    """The text of some lines, of which this is the number of the first."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        number = first + data.count(b"\n", 0, error.start)
        raise DamagedError(number, "it is not UTF-8") from error


def _csv_line(cells: list[str]) -> str:
    return ",".join(map(_quoted, cells)) + "\n"


def _quoted(cell: str) -> str:
    """A cell; csv's writer leaves some newlines out of quotes."""
    return '"' + cell.replace('"', '""') + '"' if re.search('[",\r\n]', cell) else cell


def _kinds(sample: Sample) -> list[str]:
    counts = len(sample.leaves), len(sample.groups), 1
    return [kind for kind, n in zip(KINDS, counts, strict=True) for _ in range(n)]


def _plain(x: float) -> float | str | None:
    if math.isnan(x):
        return None
    return x if math.isfinite(x) else str(x)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {m: math.nan if x is None else float(x) for m, x in row.items()}
