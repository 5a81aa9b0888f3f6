"""The command `python -m adaptax.bench`."""

import argparse
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatch

import jax

from . import _problems, _report
from ._suite import SUITE, Benchmark
from ._timing import Row, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks, show a progress bar, print the table; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    chosen = select(options.only)
    if not chosen:
        names = ", ".join(benchmark.name for benchmark in SUITE)
        parser.error(f"--only matches no benchmark; there are {names}")
    jax.config.update("jax_enable_compilation_cache", False)
    # Torch's threads would spin between its steps, on the processors that jax then works on.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        rows, settings = run(chosen, repeats=options.repeats, quick=options.quick)
        if options.json is not None:
            _report.write_json(options.json, rows, settings)
        _show(rows)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def select(only: Sequence[str] | None) -> list[Benchmark]:
    """The benchmarks of these names; "step" or "step-*" stands for all that begin so.

    None stands for all that are not slow.
    """
    if not only:
        return [benchmark for benchmark in SUITE if not benchmark.slow]
    return [
        benchmark
        for benchmark in SUITE
        if any(
            fnmatch(benchmark.name, name) or benchmark.name.startswith(f"{name}-") for name in only
        )
    ]


def run(
    benchmarks: Sequence[Benchmark], *, repeats: int, quick: bool
) -> tuple[list[Row], Settings]:
    """Run benchmarks with a progress bar on stderr, drawn between the timings only."""
    with _problems.needing_extra():
        from rich.console import Console
        from rich.progress import Progress
    rows: list[Row] = []
    console = Console(stderr=True)
    with Progress(console=console, auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(benchmarks))
        settings = Settings(repeats, quick, progress.refresh)
        for benchmark in benchmarks:
            progress.update(bar, description=benchmark.name, refresh=True)
            if not console.is_terminal:
                console.print(benchmark.name)  # a bar in a file shows at the end only
            rows += benchmark.run(settings)
            progress.update(bar, advance=1, refresh=True)
    return rows, settings


def _show(rows: Sequence[Row]) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe takes lines of any length
    console.print(_report.table(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaptax.bench",
        description="Measure adaptax beside optax and torch, in turn, in one process.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="benchmarks, or the beginnings of their names (default: all but long)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    parser.add_argument("--quick", action="store_true", help="small problems: does it run?")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds (15)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
