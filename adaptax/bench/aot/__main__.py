"""The command `python -m adaptax.bench.aot`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax

from .. import _problems
from . import _report
from ._measure import Report, measure_optimizer
from ._report import Row
from ._subjects import OPTIMIZERS, TREES
from ._targets import Target, available, prepare

TARGETS = ("v5e", "v6e", "h100")
BASELINE = "adam"  # what estimated cycles are relative to, in float32


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, show a progress bar, print or write the page; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
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
    try:
        rows = run(optimizers, options.trees, options.targets, dtype=options.dtype)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    page = _report.page(rows, _command(arguments), options.dtype)
    if options.out is None:
        print(page)
    else:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(page, encoding="utf-8")
    for row in rows:
        if row.failed:
            print(f"{row.optimizer}, {row.tree}, {row.target}: {row.report}", file=sys.stderr)
    return int(any(row.failed for row in rows))


def select(only: Sequence[str] | None) -> list[str]:
    """The optimizers of these names; "sgd" or "sgd-*" stands for all that begin so."""
    if not only:
        return list(OPTIMIZERS)
    return [
        optimizer
        for optimizer in OPTIMIZERS
        if any(fnmatch(optimizer, name) or optimizer.startswith(f"{name}-") for name in only)
    ]


def run(
    optimizers: Sequence[str], trees: Sequence[str], targets: Sequence[str], *, dtype: str
) -> list[Row]:
    """Compile all with a progress bar on stderr; what does not compile becomes a row too."""
    with _problems.needing_extra():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
    rows: list[Row] = []
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(optimizers) * len(trees) * len(targets))

        def starting(what: str) -> None:
            progress.update(bar, description=what)
            if not console.is_terminal:
                console.print(what)  # a bar in a file shows at the end only

        for row in _rows(optimizers, trees, targets, dtype, starting):
            rows.append(row)
            progress.advance(bar)
    order = [*optimizers]
    return sorted(rows, key=lambda row: (trees.index(row.tree), order.index(row.optimizer)))


def _rows(
    optimizers: Sequence[str],
    trees: Sequence[str],
    targets: Sequence[str],
    dtype: str,
    starting: Callable[[str], None],
) -> Iterator[Row]:
    for target in targets:
        for tree in trees:
            baseline = None
            if Target.named(target).platform == "tpu":  # the only compiler that estimates
                starting(f"{BASELINE}, {tree}, {target}")
                baseline = _compile(BASELINE, tree, target, "float32")
            for optimizer in optimizers:
                if baseline is not None and (optimizer, dtype) == (BASELINE, "float32"):
                    report = baseline
                else:
                    starting(f"{optimizer}, {tree}, {target}")
                    report = _compile(optimizer, tree, target, dtype)
                yield Row(optimizer, tree, target, report, _relative(report, baseline))


def _compile(optimizer: str, tree: str, target: str, dtype: str) -> Report | str:
    try:
        tx = OPTIMIZERS[optimizer]()
        return measure_optimizer(tx, TREES[tree](), target, param_dtype=dtype)
    except Exception as error:  # a compiler raises what it likes; the other rows go on
        return f"{type(error).__name__}: {error}"


def _relative(report: Any, baseline: Any) -> float | None:
    if not (isinstance(report, Report) and isinstance(baseline, Report)):
        return None
    if not (report.program.cycles and baseline.program.cycles):
        return None
    return report.program.cycles / baseline.program.cycles


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
        help="of parameters and gradients (float32)",
    )
    parser.add_argument("--out", metavar="FILE", help="write the page there, not to stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
