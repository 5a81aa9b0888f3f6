"""What was measured, as a table and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from . import _problems
from ._timing import Row, Settings

COLUMNS = ("adaptax", "optax", "torch")
FORMAT = 1


def environment() -> dict[str, Any]:
    """Versions and the machine, without anything that names it."""
    torch = _problems.torch_or_none()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("adaptax", "jax", "jaxlib", "numpy", "optax", "torch")
        },
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(affinity(0)) if affinity is not None else None,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def as_dict(rows: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """All samples, with what they were taken on."""
    return {
        "format": FORMAT,
        "environment": environment(),
        "settings": {"repeats": settings.repeats, "quick": settings.quick},
        "rows": [
            {
                "name": row.name,
                "quantity": row.quantity,
                "unit": row.unit,
                "samples": {name: list(samples) for name, samples in row.samples.items()},
                "medians": row.medians,
                "p99": dict(row.p99),
                "ratio": {other: row.ratio(other) for other in COLUMNS[1:]},
                "quartiles": {other: row.quartiles(other) for other in COLUMNS[1:]},
                "note": row.note,
            }
            for row in rows
        ],
    }


def write_json(path: str, rows: Sequence[Row], settings: Settings) -> None:
    """Write `as_dict` to a file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(as_dict(rows, settings), file, indent=1)
        file.write("\n")


def table(rows: Sequence[Row]) -> Any:
    """A `rich.table.Table`: medians, and adaptax over each of the others."""
    with _problems.needing_extra():
        from rich.table import Table

    out = Table(
        caption="Medians. Ratios: adaptax over the other, the median over the rounds, "
        "in brackets their quartiles. ULP: median (99th percentile) over the entries."
    )
    out.add_column("benchmark")
    out.add_column("quantity")
    for name in (*COLUMNS, "/optax", "/torch"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("unit")
    out.add_column("note")
    previous = None
    for row in rows:
        if previous is not None and previous.name.split()[0] != row.name.split()[0]:
            out.add_section()
        repeated = previous is not None and previous.name == row.name
        cells = [_median(row, column) for column in COLUMNS]
        ratios = [_ratio(row, "optax"), _ratio(row, "torch", quartiles=False)]
        out.add_row("" if repeated else row.name, row.quantity, *cells, *ratios, row.unit, row.note)
        previous = row
    return out


def _median(row: Row, column: str) -> str:
    if column not in row.medians:
        return ""
    tail = f" ({_digits(row.p99[column])})" if column in row.p99 else ""
    return _digits(row.medians[column]) + tail


def _ratio(row: Row, against: str, *, quartiles: bool = True) -> str:
    ratio = row.ratio(against)
    if ratio is None:
        return ""
    around = row.quartiles(against) if quartiles else None
    tail = "" if around is None else f" [{around[0]:.2f}, {around[1]:.2f}]"
    return f"{ratio:.3f}" + tail.replace("[", r"\[")


def _digits(x: float) -> str:
    return f"{x:.0f}" if x >= 1000 else f"{x:.3g}"
