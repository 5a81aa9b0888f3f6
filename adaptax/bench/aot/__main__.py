"""The command `python -m adaptax.bench.aot`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import jax

from .. import _problems
from . import _report, _results
from ._measure import Report, measure_optimizer
from ._results import BASELINE, Key, Row, Rows
from ._subjects import OPTIMIZERS, TREES, shown
from ._targets import Target, available, prepare

TARGETS = ("v5e", "v6e", "h100")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, show a progress bar, print or write the page; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.resume and options.out is None:
        parser.error("--resume needs --out: it goes on with the page that is there")
    optimizers = select(options.only)
    if not optimizers:
        parser.error(f"--only matches no optimizer; there are {', '.join(OPTIMIZERS)}")
    unknown = [name for name in options.trees if name not in TREES]
    if unknown:
        parser.error(f"--trees has no {', '.join(unknown)}; there are {', '.join(TREES)}")
    try:
        missing = [reason for name in options.targets if (reason := available(name))]
    except ValueError as error:
        parser.error(f"--targets: {error}")
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return 1
    prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    wanted = keys(optimizers, options.trees, options.targets, options.dtype)
    file = None if options.out is None else options.out.with_suffix(".json")
    rows = {} if file is None else _results.load(file)
    done = {key for key, row in rows.items() if options.resume and not row.failed}

    def add(row: Row) -> None:
        rows[row.key] = row
        if file is not None:  # after each, so that an interrupted run can go on
            _results.save(file, _sorted(rows))

    try:
        run([key for key in _with_baselines(wanted, rows) if key not in done], add)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if options.out is None:
        chosen = {key: rows[key] for key in wanted}
        print(_report.page(_sorted(chosen), _command(arguments), rows))
    else:
        page = _report.page(_sorted(rows), f"python -m adaptax.bench.aot --out {options.out}")
        options.out.write_text(page, encoding="utf-8")
    failed = [rows[key] for key in wanted if rows[key].failed]
    for row in failed:
        print(f"{row.optimizer}, {row.tree}, {row.target}: {row.report}", file=sys.stderr)
    return int(bool(failed))


def select(only: Sequence[str] | None) -> list[str]:
    """The optimizers of these names; "sgd" or "sgd-*" stands for all that begin so."""
    if not only:
        return list(OPTIMIZERS)
    return [
        optimizer
        for optimizer in OPTIMIZERS
        if any(fnmatch(optimizer, name) or optimizer.startswith(f"{name}-") for name in only)
    ]


def keys(
    optimizers: Sequence[str], trees: Sequence[str], targets: Sequence[str], dtype: str
) -> list[Key]:
    """The rows of the table, in the order in which to compile them."""
    return [
        (optimizer, tree, target, OPTIMIZERS[optimizer].dtype or dtype)
        for target in targets
        for tree in trees
        for optimizer in optimizers
        if shown(optimizer, tree, target)
    ]


def _with_baselines(wanted: Sequence[Key], rows: Rows) -> list[Key]:
    """These, and first what their estimated cycles are relative to, where it is not known."""
    out: dict[Key, None] = {}
    for key in wanted:
        _, tree, target, _ = key
        baseline = (BASELINE, tree, target, "float32")
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
            optimizer, tree, target, dtype = key
            label = f"{optimizer}, {tree}, {target}"
            progress.update(bar, description=label)
            if not console.is_terminal:
                console.print(label)  # a bar in a file shows at the end only
            add(Row(*key, _compile(optimizer, tree, target, dtype), _results.versions()))
            progress.advance(bar)


def _compile(optimizer: str, tree: str, target: str, dtype: str) -> Report | str:
    try:
        tx = OPTIMIZERS[optimizer].make()
        return measure_optimizer(tx, TREES[tree](), target, param_dtype=dtype)
    except Exception as error:  # a compiler raises what it likes; the other rows go on
        return f"{type(error).__name__}: {error}"


def _sorted(rows: Rows) -> list[Row]:
    """By tree, optimizer, target; without what the table no longer has."""
    trees, optimizers = list(TREES), list(OPTIMIZERS)
    known = [row for row in rows.values() if row.tree in TREES and row.optimizer in OPTIMIZERS]
    targets = [*TARGETS, *sorted({row.target for row in known} - set(TARGETS))]

    def place(row: Row) -> tuple[int, int, str, int]:
        name = optimizers.index(row.optimizer)
        return trees.index(row.tree), name, row.dtype, targets.index(row.target)

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
    parser.add_argument(
        "--targets",
        type=_names,
        default=list(TARGETS),
        metavar="A,B",
        help=f"devices to compile for ({','.join(TARGETS)}); also cpu, v5p, v5e:2x4, h100:8, ...",
    )
    parser.add_argument(
        "--trees",
        type=_names,
        default=list(TREES),
        metavar="A,B",
        help=f"trees of parameters ({','.join(TREES)})",
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
        "--resume", action="store_true", help="with --out: compile only what is not there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
