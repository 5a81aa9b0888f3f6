"""The command `python -m adaptax.bench.quality`."""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import jax

from .. import _problems
from . import _page, _plot
from ._candidates import CANDIDATES, Candidate
from ._results import Results
from ._suite import Variant, variants

PAGE = Path("docs/measured/quality.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, keep it, and write the page; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    known = variants(options.quick)
    problems = list(dict.fromkeys(variant.problem for variant in known))
    unknown = set(options.problems or ()) - set(problems)
    if unknown:
        parser.error(f"--problems knows {', '.join(problems)}, got {', '.join(sorted(unknown))}")
    chosen = select(options.only)
    if not chosen:
        names = ", ".join(candidate.name for candidate in CANDIDATES)
        parser.error(f"--only matches no optimizer; there are {names}")
    results = Results(options.out.with_suffix(".json"))
    if options.again:
        results.forget([candidate.name for candidate in select(options.again)])
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        if not options.page:
            wanted = [v for v in known if not options.problems or v.problem in options.problems]
            run(results, wanted, chosen, range(options.seeds))
        figures = _plot.draw(results, known, options.out.parent)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    _page.write(options.out, _page.render(results, known, figures))
    return 0


def select(only: Sequence[str] | None) -> list[Candidate]:
    """The candidates of these names, which may be patterns as in a shell."""
    if not only:
        return list(CANDIDATES)
    return [c for c in CANDIDATES if any(fnmatch(c.name, name) for name in only)]


def run(
    results: Results, wanted: Sequence[Variant], chosen: Sequence[Candidate], seeds: Sequence[int]
) -> None:
    """Do the runs that have no outcome yet, with a progress bar on stderr."""
    with _problems.needing_extra():
        from rich.console import Console
        from rich.progress import Progress
    todo = [(v, c) for v in wanted for c in chosen if v.problem in c.problems]
    absent: list[Candidate] = []
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=len(todo) * len(seeds))
        for variant, candidate in todo:
            label = " ".join(filter(None, (variant.problem, variant.name, "·", candidate.name)))
            progress.update(bar, description=label)
            done = partial(progress.update, bar, advance=1)
            try:
                tx = variant.make(candidate)
            except AttributeError as error:
                if candidate not in absent:  # say so once, not on every problem
                    console.print(f"{candidate.name}: left out, {error}", soft_wrap=True)
                absent.append(candidate)
                progress.update(bar, advance=len(seeds))
                continue
            missing = results.missing(variant, candidate, tx, seeds)
            progress.update(bar, advance=len(seeds) - len(missing))
            if not missing:
                continue
            outcomes = variant.run(candidate, tx, missing, done)
            results.add(variant, candidate, tx, missing, outcomes)
            if not console.is_terminal:  # a bar in a file shows at the end only
                finals = ", ".join(f"{outcome['final']:.5g}" for outcome in outcomes)
                console.print(f"{label}: {finals}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaptax.bench.quality",
        description="Train with low-precision optimizers and with float32 ones, and write a page.",
    )
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="problems (all)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="optimizers, or patterns (all)")
    parser.add_argument("--again", nargs="+", metavar="NAME", help="run these anew")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each (3)")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help=f"page ({PAGE})")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--quick", action="store_true", help="small problems: does it run?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
