"""What was compiled, as a page of Markdown tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from ._measure import Report

MEGABYTE = 1e6
_PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
_COLUMNS = (
    "optimizer",
    "target",
    "floor",
    "bytes",
    "/ floor",
    "padded",
    "occasional",
    "temporaries, MB",
    "fusions / leaf",
    "kernels / leaf",
    "conditionals",
    "collectives",
    "cycles / Adam",
    "compile, s",
)
_HEAD = """\
Each row is one training step, `updates, state = tx.update(grads, state, params)` and
`params = apply_updates(params, updates)`, compiled for a device with `params` and `state` donated.
Nothing was run: these are the compilers' programs and their estimates. The columns floor, bytes,
padded and occasional are bytes per parameter. [How to read it](../aot.md)."""


@dataclass(frozen=True)
class Row:
    """One optimizer on one tree for one target.

    Attributes:
        optimizer: Its name.
        tree: The tree's name.
        target: The target's name.
        report: What was measured, or why it did not compile.
        cycles: Estimated cycles over those of float32 Adam; None where there is no estimate.
    """

    optimizer: str
    tree: str
    target: str
    report: Report | str
    cycles: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it did not compile."""
        return isinstance(self.report, str)


def page(rows: Sequence[Row], command: str, dtype: str = "float32") -> str:
    """The page: what made it, then a table for each tree.

    Args:
        rows: What to show, the rows of a tree together.
        command: The command that makes the page.
        dtype: The dtype of the parameters and gradients.
    """
    parts = [
        f"<!-- Made by `{command}`; do not edit. -->\n",
        "# Compiled steps\n",
        f"`{command}` makes this page, here with {_versions()}.\n",
        f"{_HEAD}\n\nParameters and gradients are {dtype}.\n",
    ]
    for tree in dict.fromkeys(row.tree for row in rows):
        parts.append(f"## {tree}\n")
        parts.append(_table([row for row in rows if row.tree == tree]))
    return "\n".join(parts)


def _versions() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _table(rows: Sequence[Row]) -> str:
    lines = [_COLUMNS, (":--", ":--", *("--:",) * (len(_COLUMNS) - 2))]
    for row in rows:
        lines.append((row.optimizer, row.target, *_cells(row)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    report = row.report
    if isinstance(report, str):
        empty = ("",) * (len(_COLUMNS) - 3)
        return (f"does not compile: {_one_line(report)}", *empty)
    program = report.program
    unknown = None in program.loops
    return (
        f"{report.floor_per_parameter:.2f}",
        _at_least(unknown) + f"{report.bytes_per_parameter:.2f}",
        _at_least(unknown) + f"{report.ratio:.3f}",
        _at_least(unknown) + f"{report.padded_per_parameter:.2f}",
        f"{report.occasional_per_parameter:.2f}" if program.conditionals else "",
        f"{report.temporaries / MEGABYTE:.2f}",
        f"{report.fusions_per_leaf:.2f}",
        f"{program.kernels / report.leaves:.2f}",
        str(program.conditionals or ""),
        _counts(program.collectives),
        ""
        if row.cycles is None
        else _at_least(unknown or program.unestimated > 0) + f"{row.cycles:.3f}",
        f"{report.compile_seconds:.1f}",
    )


def _at_least(lower_bound: bool) -> str:
    return "≥ " if lower_bound else ""


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items())


def _one_line(message: str, width: int = 120) -> str:
    line = " ".join(message.split()).replace("|", "\\|")
    return line if len(line) <= width else f"{line[: width - 1]}…"
