"""What was compiled, as a page of Markdown tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ._measure import Report
from ._results import Key, Row, relative

MEGABYTE = 1e6


@dataclass(frozen=True)
class Page:
    """What a page is about.

    Attributes:
        title: Its title.
        names: The columns that say what was compiled.
        columns: The columns that say what came out.
        head: What stands before the tables.
    """

    title: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    head: str


ONE_DEVICE = Page(
    "Compiled steps",
    ("optimizer", "target", "dtype"),
    (
        "state",
        "floor",
        "bytes",
        "/ floor",
        "padded",
        "occasional",
        "temporaries, MB",
        "between, MB",
        "fusions / leaf",
        "kernels / leaf",
        "conditionals",
        "collectives",
        "cycles / Adam",
        "compile, s",
    ),
    """\
Each row is one training step, `updates, state = tx.update(grads, state, params)` and
`params = apply_updates(params, updates)`, compiled for a device with `params` and `state` donated.
Nothing was run: these are the compilers' programs and their estimates. The columns state, floor,
bytes, padded and occasional are bytes per parameter; dtype is that of parameters and gradients.
[How to read it](../aot.md).""",
)
SHARDED = Page(
    "Compiled steps on eight devices",
    ("optimizer", "step", "target"),
    ("state", "floor", "bytes", "/ floor", "temporaries, MB", "collectives", "compile, s"),
    """\
Each row is one step on eight devices, float32, with `params` and `state` donated; all sizes are
those of one device. *Update* is `tx.update` and `apply_updates`. *Training* computes the gradients
too, of a loss in which each matrix multiplies a batch that is split over the devices.
In *FSDP* parameters, gradients and state lie as `sharding.split` says; in *ZeRO-1* parameters and
gradients are whole on every device, and the optimizer is `sharding.zero(tx)`; in *replicated*
everything is whole. State, floor and bytes are bytes per parameter of the whole tree. So are the
numbers in brackets behind the collectives: the arrays that they gather or sum, whole. Around a ring
a device sends 7/8 of that, for an all-reduce twice.
Nothing was run. [How to read it](../aot.md).""",
)


def page(
    rows: Sequence[Row],
    command: str,
    known: Mapping[Key, Row] | None = None,
    about: Page = ONE_DEVICE,
) -> str:
    """The page: what made it, then a table for each tree.

    Args:
        rows: What to show, the rows of a tree together.
        command: The command that makes the page.
        known: Rows with those that estimated cycles are relative to; None for `rows`.
        about: Which page.
    """
    if known is None:
        known = {row.key: row for row in rows}
    made = "; ".join(dict.fromkeys(row.versions for row in rows))
    parts = [
        f"<!-- Made by `{command}`; do not edit. -->\n",
        f"# {about.title}\n",
        f"`{command}` makes this page, here with {made}.\n",
        f"{about.head}\n",
    ]
    for tree in dict.fromkeys(row.tree for row in rows):
        parts.append(f"## {tree}\n")
        parts.append(_table([row for row in rows if row.tree == tree], known, about))
    return "\n".join(parts)


def _table(rows: Sequence[Row], known: Mapping[Key, Row], about: Page) -> str:
    names, columns = about.names, about.columns
    lines = [(*names, *columns), (*(":--",) * len(names), *("--:",) * len(columns))]
    for row in rows:
        said = {"optimizer": row.optimizer, "target": row.target, "dtype": row.dtype}
        said["step"] = row.case
        lines.append((*(said[name] for name in names), *_cells(row, relative(row, known), columns)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row, cycles: float | None, columns: Sequence[str]) -> tuple[str, ...]:
    report = row.report
    if isinstance(report, str):
        return (f"does not compile: {_one_line(report)}", *("",) * (len(columns) - 1))
    program = report.program
    unknown = None in program.loops
    moved = {
        "floor": f"{report.floor_per_parameter:.2f}",
        "bytes": _at_least(unknown) + f"{report.bytes_per_parameter:.2f}",
        "/ floor": _at_least(unknown) + f"{report.ratio:.3f}",
    }
    cells = {
        "state": f"{report.state_per_parameter:.2f}",
        **(moved if report.floor else dict.fromkeys(moved, "")),
        "padded": _at_least(unknown) + f"{report.padded_per_parameter:.2f}",
        "occasional": f"{report.occasional_per_parameter:.2f}" if program.conditionals else "",
        "temporaries, MB": f"{report.temporaries / MEGABYTE:.2f}",
        "between, MB": f"{program.between / MEGABYTE:.2f}",
        "fusions / leaf": f"{report.fusions_per_leaf:.2f}",
        "kernels / leaf": f"{program.kernels / report.leaves:.2f}",
        "conditionals": str(program.conditionals or ""),
        "collectives": _collectives(report),
        "cycles / Adam": ""
        if cycles is None
        else _at_least(unknown or program.unestimated > 0) + f"{cycles:.3f}",
        "compile, s": f"{report.compile_seconds:.1f}",
    }
    return tuple(cells[name] for name in columns)


def _at_least(lower_bound: bool) -> str:
    return "≥ " if lower_bound else ""


def _collectives(report: Report) -> str:
    sizes = report.exchanged_per_parameter
    return ", ".join(
        f"{n} {kind} ({sizes[kind]:.2f})" for kind, n in report.program.collectives.items()
    )


def _one_line(message: str, width: int = 120) -> str:
    line = " ".join(message.split()).replace("|", "\\|")
    return line if len(line) <= width else f"{line[: width - 1]}…"
