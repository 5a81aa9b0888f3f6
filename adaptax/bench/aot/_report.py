"""What was compiled, as a page of Markdown tables."""

from collections.abc import Mapping, Sequence

from ._results import Key, Row, relative

MEGABYTE = 1e6
_NAMES = ("optimizer", "target", "dtype")
_COLUMNS = (
    *_NAMES,
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
)
_HEAD = """\
Each row is one training step, `updates, state = tx.update(grads, state, params)` and
`params = apply_updates(params, updates)`, compiled for a device with `params` and `state` donated.
Nothing was run: these are the compilers' programs and their estimates. The columns state, floor,
bytes, padded and occasional are bytes per parameter; dtype is that of parameters and gradients.
[How to read it](../aot.md)."""


def page(rows: Sequence[Row], command: str, known: Mapping[Key, Row] | None = None) -> str:
    """The page: what made it, then a table for each tree.

    Args:
        rows: What to show, the rows of a tree together.
        command: The command that makes the page.
        known: Rows with those that estimated cycles are relative to; None for `rows`.
    """
    if known is None:
        known = {row.key: row for row in rows}
    made = "; ".join(dict.fromkeys(row.versions for row in rows))
    parts = [
        f"<!-- Made by `{command}`; do not edit. -->\n",
        "# Compiled steps\n",
        f"`{command}` makes this page, here with {made}.\n",
        f"{_HEAD}\n",
    ]
    for tree in dict.fromkeys(row.tree for row in rows):
        parts.append(f"## {tree}\n")
        parts.append(_table([row for row in rows if row.tree == tree], known))
    return "\n".join(parts)


def _table(rows: Sequence[Row], known: Mapping[Key, Row]) -> str:
    lines = [_COLUMNS, (*(":--",) * len(_NAMES), *("--:",) * (len(_COLUMNS) - len(_NAMES)))]
    for row in rows:
        lines.append((row.optimizer, row.target, row.dtype, *_cells(row, relative(row, known))))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row, cycles: float | None) -> tuple[str, ...]:
    report = row.report
    if isinstance(report, str):
        empty = ("",) * (len(_COLUMNS) - len(_NAMES) - 1)
        return (f"does not compile: {_one_line(report)}", *empty)
    program = report.program
    unknown = None in program.loops
    return (
        f"{report.state_per_parameter:.2f}",
        f"{report.floor_per_parameter:.2f}",
        _at_least(unknown) + f"{report.bytes_per_parameter:.2f}",
        _at_least(unknown) + f"{report.ratio:.3f}",
        _at_least(unknown) + f"{report.padded_per_parameter:.2f}",
        f"{report.occasional_per_parameter:.2f}" if program.conditionals else "",
        f"{report.temporaries / MEGABYTE:.2f}",
        f"{program.between / MEGABYTE:.2f}",
        f"{report.fusions_per_leaf:.2f}",
        f"{program.kernels / report.leaves:.2f}",
        str(program.conditionals or ""),
        _counts(program.collectives),
        "" if cycles is None else _at_least(unknown or program.unestimated > 0) + f"{cycles:.3f}",
        f"{report.compile_seconds:.1f}",
    )


def _at_least(lower_bound: bool) -> str:
    return "≥ " if lower_bound else ""


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items())


def _one_line(message: str, width: int = 120) -> str:
    line = " ".join(message.split()).replace("|", "\\|")
    return line if len(line) <= width else f"{line[: width - 1]}…"
