"""The command `python -m adaptax.bench.aot`."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import jax

from .. import _problems
from . import _report, _results
from ._measure import Report, measure_optimizer
from ._results import BASELINE, Key, Row, Rows
from ._sharded import CASES, measure_sharded
from ._subjects import OPTIMIZERS
from ._tables import ONE_DEVICE, SHARDED, Table
from ._targets import Target, available, prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, show a progress bar, print or write the page; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.resume and options.out is None:
        parser.error("--resume needs --out: it goes on with the page that is there")
    table = SHARDED if options.sharded else ONE_DEVICE
    optimizers = select(options.only, table)
    if not optimizers:
        parser.error(f"--only matches no optimizer; there are {', '.join(table.optimizers)}")
    trees, targets = options.trees or list(table.trees), options.targets or list(table.targets)
    unknown = [name for name in trees if name not in table.trees]
    if unknown:
        parser.error(f"--trees has no {', '.join(unknown)}; there are {', '.join(table.trees)}")
    try:
        missing = [reason for name in targets if (reason := available(name))]
    except ValueError as error:
        parser.error(f"--targets: {error}")
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return 1
    prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    wanted = keys(table, optimizers, trees, targets, options.dtype)
    file = None if options.out is None else options.out.with_suffix(".json")
    rows = {} if file is None else _results.load(file)
    done = {key for key, row in rows.items() if options.resume and row.fresh}

    def add(row: Row) -> None:
        rows[row.key] = row
        if file is not None:  # after each, so that an interrupted run can go on
            _results.save(file, _sorted(table, rows))

    todo = wanted if options.sharded else _with_baselines(wanted, rows)
    try:
        run([key for key in todo if key not in done], add)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if options.out is None:
        chosen = {key: rows[key] for key in wanted}
        page = _report.page(_sorted(table, chosen), _command(arguments), rows, table.page)
        print(page)
    else:
        command = f"{table.command} --out {options.out}"
        page = _report.page(_sorted(table, rows), command, about=table.page)
        options.out.write_text(page, encoding="utf-8")
    failed = [rows[key] for key in wanted if rows[key].failed]
    for row in failed:
        print(f"{_label(row.key)}: {row.report}", file=sys.stderr)
    return int(bool(failed))


def select(only: Sequence[str] | None, table: Table = ONE_DEVICE) -> list[str]:
    """The optimizers of these names; "sgd" or "sgd-*" stands for all that begin so."""
    if not only:
        return list(table.optimizers)
    return [
        optimizer
        for optimizer in table.optimizers
        if any(fnmatch(optimizer, name) or optimizer.startswith(f"{name}-") for name in only)
    ]


def keys(
    table: Table,
    optimizers: Sequence[str],
    trees: Sequence[str],
    targets: Sequence[str],
    dtype: str,
) -> list[Key]:
    """The rows of the table, in the order in which to compile them."""
    return [
        (optimizer, tree, target, OPTIMIZERS[optimizer].dtype or dtype, case)
        for target in targets
        for tree in trees
        for optimizer in optimizers
        for case in table.cases
        if table.shown(optimizer, tree, target, case)
    ]


def _with_baselines(wanted: Sequence[Key], rows: Rows) -> list[Key]:
    """These, and first what their estimated cycles are relative to, where it is not known."""
    out: dict[Key, None] = {}
    for key in wanted:
        _, tree, target, *_ = key
        baseline = (BASELINE, tree, target, "float32", "")
        # Only a TPU's compiler makes estimates.
        if baseline not in rows and Target.named(target).platform == "tpu":
            out[baseline] = None
        out[key] = None
    return list(out)


def run(todo: Sequence[Key], add: Callable[[Row], None]) -> None:
    """Compile these with a progress bar on stderr; what does not compile is a row too."""
    with _problems.needing_extra():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(todo))
        for key in todo:
            progress.update(bar, description=_label(key))
            if not console.is_terminal:
                console.print(_label(key))  # a bar in a file shows at the end only
            optimizer, tree, target, dtype, case = key
            report = _compile(key)
            add(Row(optimizer, tree, target, dtype, report, _results.versions(), case))
            progress.advance(bar)


def _label(key: Key) -> str:
    optimizer, tree, target, _, case = key
    return ", ".join(filter(None, (optimizer, tree, target, case)))


def _compile(key: Key) -> Report | str:
    optimizer, tree, target, dtype, case = key
    try:
        tx = OPTIMIZERS[optimizer].make()
        if case:
            report = measure_sharded(tx, SHARDED.trees[tree](), target, CASES[case])
        else:
            report = measure_optimizer(tx, ONE_DEVICE.trees[tree](), target, param_dtype=dtype)
        return dataclasses.replace(report, text="")  # of all rows together, gigabytes
    except Exception as error:  # a compiler raises what it likes; the other rows go on
        return f"{type(error).__name__}: {error}"


def _sorted(table: Table, rows: Rows) -> list[Row]:
    """By tree, optimizer, case, target; without what the table no longer has."""
    trees, optimizers = list(table.trees), list(table.optimizers)
    known = [
        row
        for row in rows.values()
        if row.tree in trees and row.optimizer in optimizers and row.case in table.cases
    ]
    targets = [*table.targets, *sorted({row.target for row in known} - set(table.targets))]

    def place(row: Row) -> tuple[int, int, str, int, int]:
        tree, optimizer = trees.index(row.tree), optimizers.index(row.optimizer)
        return tree, optimizer, row.dtype, table.cases.index(row.case), targets.index(row.target)

    return sorted(known, key=place)


def _command(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else arguments
    return " ".join(["python -m adaptax.bench.aot", *given])


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaptax.bench.aot",
        description="Compile optimizer steps for TPUs and GPUs, and read the programs.",
    )
    sharded = "with --sharded"
    parser.add_argument(
        "--sharded", action="store_true", help="the table of steps on several devices"
    )
    parser.add_argument(
        "--targets",
        type=_names,
        metavar="A,B",
        help=f"devices to compile for ({','.join(ONE_DEVICE.targets)}; {sharded} "
        f"{','.join(SHARDED.targets)}); also cpu, v5p, ...",
    )
    parser.add_argument(
        "--trees",
        type=_names,
        metavar="A,B",
        help=f"trees of parameters ({','.join(ONE_DEVICE.trees)}; {sharded} "
        f"{','.join(SHARDED.trees)})",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="optimizers, or the beginnings of their names"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of parameters and gradients where the row does not say it (float32)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the page there, not to stdout, and its rows beside it, to FILE with the ending "
        ".json; rows that are there and not compiled now stay",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="with --out: compile only what is not there, or not with these compilers",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
