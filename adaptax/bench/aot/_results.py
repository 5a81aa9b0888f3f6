"""Compiled steps in a file, so that a page can be made in parts."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ._measure import Report
from ._program import Program

BASELINE = "adam"  # what estimated cycles are relative to, in float32
_PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Row:
    """One optimizer on one tree for one target, on several devices in one way.

    Attributes:
        optimizer: Its name.
        tree: The tree's name.
        target: The target's name.
        dtype: Of the parameters and gradients.
        report: What was measured, or why it did not compile.
        versions: What compiled it.
        case: How the step is spread over several devices.
    """

    optimizer: str
    tree: str
    target: str
    dtype: str
    report: Report | str
    versions: str = ""
    case: str = ""

    @property
    def key(self) -> Key:
        """What tells it from other rows."""
        return self.optimizer, self.tree, self.target, self.dtype, self.case

    @property
    def failed(self) -> bool:
        """Whether it did not compile."""
        return isinstance(self.report, str)

    @property
    def fresh(self) -> bool:
        """Whether it compiled, with the compilers that are installed."""
        return not self.failed and set(versions().split(", ")) <= set(self.versions.split(", "))


Rows = dict[Key, Row]


def versions() -> str:
    """The installed compilers."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def relative(row: Row, rows: Mapping[Key, Row]) -> float | None:
    """Estimated cycles over those of float32 Adam; None where there is no estimate."""
    baseline = rows.get((BASELINE, row.tree, row.target, "float32", ""))
    if baseline is None or isinstance(baseline.report, str) or isinstance(row.report, str):
        return None
    mine, base = row.report.program.cycles, baseline.report.program.cycles
    return mine / base if mine and base else None


def save(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, one a line, without the programs' texts."""
    lines = ",\n".join(json.dumps(_plain(row)) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load(path: Path) -> Rows:
    """The rows of a file; none if there is no file."""
    if not path.exists():
        return {}
    rows = map(_row, json.loads(path.read_text(encoding="utf-8")))
    return {row.key: row for row in rows}


def _plain(row: Row) -> dict[str, Any]:
    plain = dataclasses.asdict(row)
    if not row.case:
        del plain["case"]
    if not row.failed:
        del plain["report"]["text"]
    return plain


def _row(plain: dict[str, Any]) -> Row:
    report = plain.pop("report")
    if not isinstance(report, str):
        program = report.pop("program")
        program["loops"] = tuple(program["loops"])
        report = Report(**report, program=Program(**program), text="")
    return Row(**plain, report=report)
