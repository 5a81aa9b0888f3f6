"""The command `python -m adaptax.bench.formats`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from .. import _problems
from .._timing import Settings
from . import _page
from ._errors import measure
from ._steps import steps
from ._subjects import SUBJECTS

PAGE = Path("docs/measured/formats.md")
PARTS = ("errors", "steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep it beside the page, and write the page; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    jax.config.update("jax_enable_compilation_cache", False)
    kept = options.out.with_suffix(".json")
    found = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    try:
        run(found, options.only, options.repeats, options.quick)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    options.out.write_text(_page.render(found), encoding="utf-8")
    return 0


def run(found: dict[str, Any], parts: Sequence[str], repeats: int, quick: bool) -> None:
    """Measure these parts with a progress bar on stderr."""
    with _problems.needing_extra():
        from rich.progress import Progress
    with Progress(auto_refresh=False) as progress:
        if "errors" in parts:
            bar = progress.add_task("errors", total=len(SUBJECTS))
            found["errors"] = []
            for subject in SUBJECTS:
                found["errors"].append(measure(subject))
                progress.update(bar, advance=1, refresh=True)
        if "steps" in parts:
            bar = progress.add_task("steps", total=repeats + 2)

            def tick() -> None:
                progress.update(bar, advance=1, refresh=True)

            found["steps"] = steps(Settings(repeats, quick, tick))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaptax.bench.formats",
        description="Measure what storage formats lose, and the time of steps; write a page.",
    )
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=PARTS, help="what to measure anew (both)"
    )
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="rounds of steps (9)")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help=f"page ({PAGE})")
    parser.add_argument("--quick", action="store_true", help="a small tree: does it run?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
